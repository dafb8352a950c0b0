//! Every command word that a drbdadm of any era knew, with its options, and what Tandem does with it
//! (docs/spec/config-and-cli.md 4.4). Help, checks and suggestions come from this table.

/// What a target of a command may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// No target.
    None,
    /// Resources.
    Resource,
    /// Volumes: `R` stands for each volume, `R/V` for one.
    Volume,
    /// Connections: `R`, or `R:PEER`.
    Connection,
    /// Resources or `minor-N`.
    Handler,
    /// None, or resources.
    Any,
}

/// What a command does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Up,
    Down,
    Adjust,
    Attach,
    Detach,
    Connect,
    Disconnect,
    Primary,
    Secondary,
    Role,
    Cstate,
    Dstate,
    Status,
    Events,
    Proc,
    Probe,
    Invalidate,
    InvalidateRemote,
    Outdate,
    WaitConnect,
    WaitConInt,
    WaitSync,
    PauseSync,
    ResumeSync,
    Verify,
    VerifyStop,
    SuspendIo,
    ResumeIo,
    NewCurrentUuid,
    NewResource,
    CreateMd,
    DumpMd,
    WipeMd,
    ApplyAl,
    Resize,
    CheckResize,
    DiskOptions,
    NetOptions,
    ResourceOptions,
    ShowGi,
    GetGi,
    SetGi,
    Dump,
    ShNop,
    ShResources,
    ShResource,
    ShDev,
    ShMinor,
    ShLlDev,
    ShMdDev,
    ShMdIdx,
    ShIp,
    ShModParms,
    ShStatus,
    ShBPri,
    Handler,
    HiddenCommands,
    Help,
    Version,
    /// Known to drbdadm, not to Tandem.
    NotYet,
}

/// One command word.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Word {
    pub(crate) name: &'static str,
    pub(crate) action: Action,
    pub(crate) scope: Scope,
    /// Long options that it takes beside the general ones.
    pub(crate) options: &'static [&'static str],
    /// One line for the help; empty: only in `hidden-commands`.
    pub(crate) summary: &'static str,
}

const fn word(
    name: &'static str,
    action: Action,
    scope: Scope,
    options: &'static [&'static str],
    summary: &'static str,
) -> Word {
    Word {
        name,
        action,
        scope,
        options,
        summary,
    }
}

/// Whether an option is known, but refused when it is given.
pub(crate) fn is_refused(action: Action, option: &str) -> bool {
    match action {
        Action::Secondary => option == "force",
        Action::Resize => option.starts_with("al-"),
        _ => false,
    }
}

/// `adjust` with a line for each stage, as init scripts call it (docs/spec/config-and-cli.md 4.9).
pub(crate) const WITH_PROGRESS: &str = "adjust-with-progress";

const TIMEOUTS: &[&str] = &[
    "wfc-timeout",
    "degr-wfc-timeout",
    "outdated-wfc-timeout",
    "wait-after-sb",
];

/// All words; those that people need first.
pub(crate) const WORDS: &[Word] = &[
    word(
        "up",
        Action::Up,
        Scope::Resource,
        &[],
        "start the daemon if none runs, attach the disks, connect",
    ),
    word(
        "down",
        Action::Down,
        Scope::Resource,
        &["force"],
        "demote, disconnect, detach, forget the resource; --force ends in any case, as after a crash if a disk or a client hangs",
    ),
    word(
        "status",
        Action::Status,
        Scope::Any,
        &["json", "statistics", "color"],
        "roles, connections and disks of all resources or of one",
    ),
    word(
        "events2",
        Action::Events,
        Scope::Any,
        &["now", "statistics", "timestamps"],
        "what is there and every change of it, a line each, for cluster managers; --now: no changes",
    ),
    word(
        "primary",
        Action::Primary,
        Scope::Volume,
        &[
            "force",
            "overwrite-data-of-peer",
            "do-what-I-say",
            "human",
            "timeout-expired",
        ],
        "become Primary: clients may use the device",
    ),
    word(
        "secondary",
        Action::Secondary,
        Scope::Volume,
        &["force"],
        "become Secondary again",
    ),
    word(
        "connect",
        Action::Connect,
        Scope::Connection,
        &["discard-my-data", "tentative"],
        "connect to the peer; --discard-my-data after a split brain",
    ),
    word(
        "disconnect",
        Action::Disconnect,
        Scope::Connection,
        &["force"],
        "disconnect; ends StandAlone",
    ),
    word(
        "attach",
        Action::Attach,
        Scope::Volume,
        &[],
        "attach the backing disk",
    ),
    word(
        "detach",
        Action::Detach,
        Scope::Volume,
        &["force"],
        "detach it",
    ),
    word(
        "adjust",
        Action::Adjust,
        Scope::Resource,
        &["skip-disk", "skip-net", "discard-my-data", "tentative"],
        "make the running state match the configuration",
    ),
    word(
        "create-md",
        Action::CreateMd,
        Scope::Volume,
        &[
            "force",
            "max-peers",
            "peer-max-bio-size",
            "al-stripes",
            "al-stripe-size-kB",
            "ignore-sanity-checks",
        ],
        "write fresh metadata; asks before it overwrites anything",
    ),
    word(
        "role",
        Action::Role,
        Scope::Volume,
        &[],
        "own role/role of the peer",
    ),
    word(
        "cstate",
        Action::Cstate,
        Scope::Volume,
        &[],
        "state of the connection",
    ),
    word(
        "dstate",
        Action::Dstate,
        Scope::Volume,
        &[],
        "own disk/disk of the peer",
    ),
    word(
        "proc",
        Action::Proc,
        Scope::None,
        &[],
        "the text of /proc/drbd",
    ),
    word(
        "version",
        Action::Version,
        Scope::None,
        &[],
        "versions of this tool, of the daemon and of its peers (drbdadm has --version alone, for scripts)",
    ),
    word(
        "probe",
        Action::Probe,
        Scope::Any,
        &[],
        "connect to an export as a client would; URI, or RES[/VOL] on this node",
    ),
    word(
        "invalidate",
        Action::Invalidate,
        Scope::Volume,
        &["force"],
        "give up the local data: full resync from the peer",
    ),
    word(
        "invalidate-remote",
        Action::InvalidateRemote,
        Scope::Volume,
        &["force"],
        "give up the peer's data: full resync to the peer",
    ),
    word(
        "outdate",
        Action::Outdate,
        Scope::Volume,
        &[],
        "mark the local data as older than the peer's",
    ),
    word(
        "wait-connect",
        Action::WaitConnect,
        Scope::Volume,
        TIMEOUTS,
        "wait until connected; exit 5 when the time is up",
    ),
    word(
        "wait-sync",
        Action::WaitSync,
        Scope::Volume,
        TIMEOUTS,
        "wait until no resync runs",
    ),
    word(
        "wait-con-int",
        Action::WaitConInt,
        Scope::None,
        &[],
        "at boot: wait for the peers of all resources; always exit 0",
    ),
    word(
        "pause-sync",
        Action::PauseSync,
        Scope::Volume,
        &[],
        "pause a resync",
    ),
    word(
        "resume-sync",
        Action::ResumeSync,
        Scope::Volume,
        &[],
        "let it go on",
    ),
    word(
        "verify",
        Action::Verify,
        Scope::Volume,
        &["start", "stop"],
        "compare the disks of both nodes, block by block (sectors)",
    ),
    word(
        "verify-stop",
        Action::VerifyStop,
        Scope::Volume,
        &[],
        "end a verify that this node started",
    ),
    word(
        "suspend-io",
        Action::SuspendIo,
        Scope::Volume,
        &[],
        "hold all I/O of clients",
    ),
    word(
        "resume-io",
        Action::ResumeIo,
        Scope::Volume,
        &[],
        "let it go on",
    ),
    word(
        "new-current-uuid",
        Action::NewCurrentUuid,
        Scope::Volume,
        &["clear-bitmap"],
        "new data generation; --clear-bitmap on a fresh pair skips the first sync",
    ),
    word(
        "dump",
        Action::Dump,
        Scope::Any,
        &[],
        "the configuration as it was understood; -v with what is inherited",
    ),
    word(
        "dump-md",
        Action::DumpMd,
        Scope::Volume,
        &["force"],
        "the metadata as text",
    ),
    word(
        "show-gi",
        Action::ShowGi,
        Scope::Volume,
        &[],
        "generation identifiers, explained",
    ),
    word(
        "get-gi",
        Action::GetGi,
        Scope::Volume,
        &[],
        "generation identifiers on one line",
    ),
    word(
        "set-gi",
        Action::SetGi,
        Scope::Volume,
        &["force"],
        "set-gi VALUES RES/VOL: change them (detached disks only)",
    ),
    word(
        "apply-al",
        Action::ApplyAl,
        Scope::Volume,
        &["force"],
        "apply the activity log of a crashed node (attach does it, too)",
    ),
    word(
        "resize",
        Action::Resize,
        Scope::Volume,
        &[
            "size",
            "assume-peer-has-space",
            "assume-clean",
            "al-stripes",
            "al-stripe-size-kB",
        ],
        "let the device grow to what both disks offer now; the new area is copied, unless --assume-clean",
    ),
    word(
        "check-resize",
        Action::CheckResize,
        Scope::Volume,
        &[],
        "of a detached disk that has grown: move internal metadata to its new end",
    ),
    word(
        "disk-options",
        Action::DiskOptions,
        Scope::Volume,
        &[],
        "give attached disks the options of the configuration, and those given as --OPTION=VALUE",
    ),
    word(
        "net-options",
        Action::NetOptions,
        Scope::Connection,
        &[],
        "the same for the connection: they count from the next connect on",
    ),
    word(
        "resource-options",
        Action::ResourceOptions,
        Scope::Resource,
        &[],
        "the same for the section options",
    ),
    word(
        "wipe-md",
        Action::WipeMd,
        Scope::Volume,
        &["force"],
        "remove the metadata",
    ),
    word(
        "new-resource",
        Action::NewResource,
        Scope::Resource,
        &[],
        "first stage of up alone",
    ),
    word(
        "new-minor",
        Action::NewResource,
        Scope::Resource,
        &[],
        "second stage of up alone",
    ),
    word(
        "help",
        Action::Help,
        Scope::Any,
        &[],
        "this text, or that of one command",
    ),
    word(
        "hidden-commands",
        Action::HiddenCommands,
        Scope::None,
        &[],
        "commands that scripts use",
    ),
    word("sh-nop", Action::ShNop, Scope::None, &[], ""),
    word("sh-resources", Action::ShResources, Scope::None, &[], ""),
    word("sh-resource", Action::ShResource, Scope::Resource, &[], ""),
    word("sh-dev", Action::ShDev, Scope::Volume, &[], ""),
    word("sh-minor", Action::ShMinor, Scope::Volume, &[], ""),
    word("sh-ll-dev", Action::ShLlDev, Scope::Volume, &[], ""),
    word("sh-md-dev", Action::ShMdDev, Scope::Volume, &[], ""),
    word("sh-md-idx", Action::ShMdIdx, Scope::Volume, &[], ""),
    word("sh-ip", Action::ShIp, Scope::Volume, &[], ""),
    word("sh-mod-parms", Action::ShModParms, Scope::None, &[], ""),
    word("sh-status", Action::ShStatus, Scope::Any, &[], ""),
    word("sh-b-pri", Action::ShBPri, Scope::Resource, &[], ""),
    word(
        "pri-on-incon-degr",
        Action::Handler,
        Scope::Handler,
        &[],
        "",
    ),
    word(
        "pri-lost-after-sb",
        Action::Handler,
        Scope::Handler,
        &[],
        "",
    ),
    word("pri-lost", Action::Handler, Scope::Handler, &[], ""),
    word(
        "initial-split-brain",
        Action::Handler,
        Scope::Handler,
        &[],
        "",
    ),
    word("split-brain", Action::Handler, Scope::Handler, &[], ""),
    word("fence-peer", Action::Handler, Scope::Handler, &[], ""),
    word("unfence-peer", Action::Handler, Scope::Handler, &[], ""),
    word("local-io-error", Action::Handler, Scope::Handler, &[], ""),
    word(
        "before-resync-target",
        Action::Handler,
        Scope::Handler,
        &[],
        "",
    ),
    word(
        "after-resync-target",
        Action::Handler,
        Scope::Handler,
        &[],
        "",
    ),
    word(
        "before-resync-source",
        Action::Handler,
        Scope::Handler,
        &[],
        "",
    ),
    word("out-of-sync", Action::Handler, Scope::Handler, &[], ""),
    word("quorum-lost", Action::Handler, Scope::Handler, &[], ""),
    word("disconnected", Action::Handler, Scope::Handler, &[], ""),
    word(
        WITH_PROGRESS,
        Action::Adjust,
        Scope::Resource,
        &["skip-disk", "skip-net", "discard-my-data", "tentative"],
        "",
    ),
    word(
        "peer-device-options",
        Action::DiskOptions,
        Scope::Volume,
        &[],
        "",
    ),
    word("syncer", Action::DiskOptions, Scope::Volume, &[], ""),
    word("dump-xml", Action::NotYet, Scope::Any, &[], ""),
    word("sh-udev", Action::NotYet, Scope::Handler, &[], ""),
    word("sh-lr-of", Action::NotYet, Scope::Resource, &[], ""),
    word("sh-list-adjustable", Action::NotYet, Scope::None, &[], ""),
    word("sh-list-config-file", Action::NotYet, Scope::None, &[], ""),
    word("new-peer", Action::NotYet, Scope::Connection, &[], ""),
    word("del-peer", Action::NotYet, Scope::Connection, &[], ""),
    word("new-path", Action::NotYet, Scope::Connection, &[], ""),
    word("del-path", Action::NotYet, Scope::Connection, &[], ""),
    word("forget-peer", Action::NotYet, Scope::Connection, &[], ""),
    word("peer-role", Action::NotYet, Scope::Connection, &[], ""),
    word("repair-md", Action::NotYet, Scope::Volume, &[], ""),
    word("dump-superblock", Action::NotYet, Scope::Volume, &[], ""),
    word("proxy-up", Action::NotYet, Scope::Connection, &[], ""),
    word("proxy-down", Action::NotYet, Scope::Connection, &[], ""),
];

/// A word that is still accepted, its successor, and whether a line on standard error says so.
const OLD_WORDS: &[(&str, &str, bool)] = &[
    ("state", "role", true),
    ("outdate-peer", "fence-peer", true),
    ("invalidate_remote", "invalidate-remote", false),
    ("wait_connect", "wait-connect", false),
    ("wait_con_int", "wait-con-int", false),
    ("wait_sync", "wait-sync", false),
];

/// The command of this name; for an old name also the line that says so.
pub(crate) fn find(name: &str) -> Option<(&'static Word, Option<String>)> {
    let old = OLD_WORDS.iter().find(|(old, ..)| *old == name);
    let current = old.map_or(name, |(_, new, _)| new);
    let found = WORDS.iter().find(|word| word.name == current)?;
    let notice = old
        .filter(|(.., said)| *said)
        .map(|(old, new, _)| format!("'{old}' is deprecated, use '{new}' instead."));
    Some((found, notice))
}

/// The word that was probably meant.
pub(crate) fn nearest(name: &str) -> Option<&'static str> {
    tandem_config::diagnostics::nearest(name, WORDS.iter().map(|word| word.name))
}

/// How a target of this command is written.
pub(crate) fn target_form(scope: Scope) -> &'static str {
    match scope {
        Scope::None => "",
        Scope::Resource => " RES...|all",
        Scope::Volume => " RES[/VOL]...|all",
        Scope::Connection => " RES[:PEER]...|all",
        Scope::Handler => " RES|minor-N",
        Scope::Any => " [RES...]",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_word_stands_twice() {
        let mut names: Vec<&str> = WORDS.iter().map(|word| word.name).collect();
        names.sort_unstable();
        let count = names.len();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn every_option_of_a_command_is_a_known_option() {
        for word in WORDS {
            for option in word.options {
                assert!(
                    crate::arguments::LONG
                        .iter()
                        .any(|(name, _)| name == option),
                    "{} --{option}",
                    word.name
                );
            }
        }
    }

    #[test]
    fn misspelt_words_are_recognised() {
        assert_eq!(nearest("primry"), Some("primary"));
        assert_eq!(nearest("statsu"), Some("status"));
        assert_eq!(nearest("xyzzy"), None);
    }
}
