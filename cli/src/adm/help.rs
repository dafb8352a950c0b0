//! Help and version of `tandem adm`.

use crate::arguments::Arguments;
use crate::failure::USAGE;
use crate::invocation::Invocation;
use crate::output::{err, out, out_line};
use crate::words::{self, Action, Scope, WORDS, Word};

const GENERAL: &str = "
General options, anywhere on the line:
  -c, --config-file FILE   the configuration (default: /etc/drbd.conf below the root; - is standard input)
      --root DIR           another node's root: its etc, run and var (default: /)
  -d, --dry-run            print the backend steps, do nothing
  -v, --verbose            print the backend steps and do them
      --compat=8|9         outputs in the form of 8.4 (default) or of 9
  -t, --config-to-test F   read this file, too (dump and sh-nop)
  -V, --version            versions as shell variables
  -h, --help

Exit codes: 0 done, 1 usage or cancelled, 5 timed out, 10 configuration or refused, 11 state change refused,
16 no local disk, 17 no UpToDate data, 20 cannot run.
";

/// Usage without a command: exit 1, unless help was asked for.
pub(super) fn without_command(invocation: &Invocation, arguments: &Arguments) -> u8 {
    if arguments.has("help") {
        return all(invocation);
    }
    err(&usage(invocation));
    USAGE
}

fn usage(invocation: &Invocation) -> String {
    format!(
        "USAGE: {} [OPTION...] COMMAND [OPTION...] {{all|RESOURCE[/VOLUME]...}}\nnext: {}",
        invocation.adm,
        invocation.adm("help")
    )
}

/// The whole help on standard output.
pub(super) fn all(invocation: &Invocation) -> u8 {
    let mut text = format!(
        "USAGE: {} [OPTION...] COMMAND [OPTION...] {{all|RESOURCE[/VOLUME]...}}\n\nCommands:\n",
        invocation.adm
    );
    for word in WORDS.iter().filter(|word| !word.summary.is_empty()) {
        text.push_str(&format!("  {:<18} {}\n", word.name, word.summary));
    }
    text.push_str(GENERAL);
    out(&text);
    0
}

/// The usage of one command on standard output.
pub(super) fn of_word(invocation: &Invocation, word: &Word) -> u8 {
    let mut text = format!(
        "USAGE: {} {}{}{}\n",
        invocation.adm,
        word.name,
        if word.options.is_empty() {
            ""
        } else {
            " [OPTION...]"
        },
        words::target_form(word.scope)
    );
    if word.action == Action::NotYet {
        text.push_str("\nA command of drbdadm that is not supported yet.\n");
    } else if !word.summary.is_empty() {
        text.push_str(&format!("\n{}\n", word.summary));
    }
    if !word.options.is_empty() && word.action != Action::NotYet {
        let options: Vec<String> = word
            .options
            .iter()
            .map(|option| {
                let remark = if words::is_refused(word.action, option) {
                    " (not supported yet)"
                } else {
                    ""
                };
                format!("--{option}{remark}")
            })
            .collect();
        text.push_str(&format!("\nOptions: {}\n", options.join(", ")));
    }
    out(&text);
    0
}

/// The answer to an unknown command: exit 1, with the word that was probably meant.
pub(super) fn unknown(invocation: &Invocation, name: &str) -> u8 {
    err(&format!("Unknown command '{name}'"));
    match words::nearest(name) {
        Some(meant) => {
            err(&format!("Did you mean '{meant}'?"));
            err(&format!(
                "next: {}",
                invocation.adm(&format!("help {meant}"))
            ));
        }
        None => err(&usage(invocation)),
    }
    USAGE
}

/// Names of the commands for scripts.
pub(super) fn hidden() -> u8 {
    for word in WORDS {
        if word.summary.is_empty() && word.action != Action::NotYet {
            out_line(&format!(
                "{}{}",
                word.name,
                match word.scope {
                    Scope::None => "",
                    scope => words::target_form(scope),
                }
            ));
        }
    }
    0
}

/// Version of the kernel module whose interface is offered: cluster agents choose their words by it
/// (docs/spec/config-and-cli.md 4.8).
const INTERFACE_CODE: u32 = 0x0008_040B;

/// Shell assignments.
pub(super) fn version() {
    let number = |text: &str| text.parse::<u32>().unwrap_or(0);
    let code = number(env!("CARGO_PKG_VERSION_MAJOR")) << 16
        | number(env!("CARGO_PKG_VERSION_MINOR")) << 8
        | number(env!("CARGO_PKG_VERSION_PATCH"));
    out_line(&format!(
        "DRBDADM_BUILDTAG=tandem\\ {}",
        env!("CARGO_PKG_VERSION")
    ));
    out_line("DRBDADM_API_VERSION=1");
    out_line(&format!("DRBD_KERNEL_VERSION_CODE=0x{INTERFACE_CODE:06x}"));
    out_line(&format!("DRBDADM_VERSION_CODE=0x{code:06x}"));
    out_line(&format!("DRBDADM_VERSION={}", env!("CARGO_PKG_VERSION")));
}
