//! What a state that is not healthy means, and what to type next: one remark for each.

use tandem_daemon::control::messages::{ResourceReport, VolumeReport};

use crate::invocation::Invocation;

/// What is wrong, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Remark {
    pub(super) text: String,
    pub(super) next: Option<String>,
}

fn remark(text: impl Into<String>, next: Option<String>) -> Remark {
    Remark {
        text: text.into(),
        next,
    }
}

/// All that should be said about a resource.
pub(super) fn remarks(invocation: &Invocation, resource: &ResourceReport) -> Vec<Remark> {
    let name = &resource.name;
    let adm = |rest: String| Some(invocation.adm(&rest));
    if let Some(failed) = &resource.failed {
        return vec![
            remark(
                format!("its loop ended: {failed}. Nothing is served."),
                adm(format!("down {name}")),
            ),
            remark("afterwards bring it up again", adm(format!("up {name}"))),
        ];
    }
    let mut remarks: Vec<Remark> = connection(invocation, resource).into_iter().collect();
    remarks.extend(outdated_net(invocation, resource));
    for volume in &resource.volumes {
        remarks.extend(disk(invocation, resource, volume));
        remarks.extend(peer_disk(resource, volume));
        remarks.extend(suspended(invocation, resource, volume));
        remarks.extend(differences(invocation, resource, volume));
        if volume.paused_user {
            remarks.push(remark(
                format!("volume {}: the resync is paused here", volume.number),
                adm(format!("resume-sync {}", target(resource, volume))),
            ));
        }
        if volume.paused_peer {
            remarks.push(remark(
                format!("volume {}: the resync is paused by the peer", volume.number),
                Some(format!("on the peer: tandem adm resume-sync {name}")),
            ));
        }
    }
    remarks
}

/// `R` or `R/V`, whichever is needed.
fn target(resource: &ResourceReport, volume: &VolumeReport) -> String {
    if resource.volumes.len() == 1 {
        resource.name.clone()
    } else {
        format!("{}/{}", resource.name, volume.number)
    }
}

fn connection(invocation: &Invocation, resource: &ResourceReport) -> Option<Remark> {
    let name = &resource.name;
    let peer = resource.peer.as_ref()?;
    let why = resource
        .last_error
        .as_ref()
        .map_or_else(String::new, |why| format!(" ({why})"));
    let has_disk = resource
        .volumes
        .iter()
        .any(|volume| volume.disk != "Diskless");
    let writes_here = resource.role == "Primary" && has_disk;
    let split = resource
        .last_error
        .as_ref()
        .is_some_and(|why| why.contains("split brain"));
    match resource.connection.as_str() {
        "StandAlone" => {
            let both = resource
                .last_error
                .as_ref()
                .is_some_and(|why| why.contains("both nodes were told to discard"));
            if both {
                return Some(remark(
                    "StandAlone after a split brain: --discard-my-data was given on both nodes, so nobody's data was \
                     discarded. Only on the node whose changes are given up",
                    Some(format!(
                        "{}   # and on the other, without the option: connect {name}",
                        invocation.adm(&format!("connect --discard-my-data {name}"))
                    )),
                ));
            }
            if split {
                return Some(remark(
                    "StandAlone after a split brain: both nodes have changes that the other lacks. On the node whose \
                     changes are given up",
                    Some(format!(
                        "{} && {}   # and on the other: connect {name}",
                        invocation.adm(&format!("secondary {name}")),
                        invocation.adm(&format!("connect --discard-my-data {name}"))
                    )),
                ));
            }
            let meaning = if writes_here {
                "; writes go to this node only"
            } else {
                ""
            };
            Some(remark(
                format!(
                    "StandAlone: does not try to reach {}{why}{meaning}",
                    peer.peer_name
                ),
                Some(if why.contains("disk is too small") {
                    format!(
                        "{}   # once the disk of {} has grown: until then they part again at once",
                        invocation.adm(&format!("connect {name}")),
                        peer.peer_name
                    )
                } else if mend_the_file(resource) {
                    format!(
                        "{}   # once both files agree",
                        invocation.adm(&format!("connect {name}"))
                    )
                } else {
                    invocation.adm(&format!("connect {name}"))
                }),
            ))
        }
        "WFConnection" | "Unconnected" | "Timeout" | "BrokenPipe" | "NetworkFailure"
        | "ProtocolError" | "TearDown" | "Disconnecting" => {
            let meaning = if writes_here {
                "writes go to this node only"
            } else {
                "nothing is replicated"
            };
            let (there, at) = (&peer.peer_name, peer.peer_address);
            if split {
                let text = format!(
                    "after a split brain this node waits for {there} at {at}, which has to be told, too: {meaning} until then"
                );
                let next = format!(
                    "on {there}: tandem adm connect {name}   # if its changes are given up: secondary {name}, then connect --discard-my-data {name}"
                );
                return Some(remark(text, Some(next)));
            }
            let text = format!(
                "no connection to {there} at {at}{why}: {meaning}. It is retried by itself"
            );
            let next = if mend_the_file(resource) {
                let again = invocation.adm(&format!("disconnect {name}"));
                let connect = invocation.adm(&format!("connect {name}"));
                format!("{again} && {connect}   # once both files agree; on {there}, too")
            } else {
                format!("on {there}: tandem adm up {name}")
            };
            Some(remark(text, Some(next)))
        }
        _ => None,
    }
}

/// The connection goes by what the configuration said before.
fn outdated_net(invocation: &Invocation, resource: &ResourceReport) -> Option<Remark> {
    let outdated = resource.outdated_net.as_ref()?;
    let name = &resource.name;
    let both = if outdated.concerns_both {
        "   # on both nodes, once both files say so"
    } else {
        ""
    };
    let text = format!(
        "the connection goes by older options than the configuration's: {} changed",
        outdated.changed.join(", ")
    );
    let next = format!(
        "{} && {}{both}",
        invocation.adm(&format!("disconnect {name}")),
        invocation.adm(&format!("connect {name}"))
    );
    Some(remark(text, Some(next)))
}

/// What the engine says when the options of the two nodes do not fit together.
const FILES_DIFFER: [&str; 3] = [
    "both nodes the same",
    "of both nodes equal",
    "but this node has no cram-hmac-alg",
];

/// Whether the connection fails because of what the files say.
fn mend_the_file(resource: &ResourceReport) -> bool {
    let why = resource.last_error.as_deref().unwrap_or_default();
    FILES_DIFFER.iter().any(|words| why.contains(words))
}

fn disk(
    invocation: &Invocation,
    resource: &ResourceReport,
    volume: &VolumeReport,
) -> Option<Remark> {
    let number = volume.number;
    let target = target(resource, volume);
    let adm = |rest: String| Some(invocation.adm(&rest));
    let fresh = volume.disk == "Inconsistent"
        && volume.peer_disk == "Inconsistent"
        && volume.connection == "Connected";
    if fresh {
        return Some(remark(
            format!(
                "volume {number}: a fresh pair, neither side has data. On the node whose data count"
            ),
            adm(format!("primary --force {target}")),
        ));
    }
    let why = volume
        .disk_error
        .as_ref()
        .map_or_else(String::new, |why| format!(" ({why})"));
    match volume.disk.as_str() {
        "Diskless" if volume.backing.is_none() => None,
        "Diskless" if volume.role == "Primary" && volume.peer_disk != "UpToDate" => Some(remark(
            format!(
                "volume {number}: no local disk{why} and no UpToDate peer: reads and writes fail"
            ),
            // The peer may have what this disk lacks: an attach alone would be refused.
            match resource.connection.as_str() {
                "StandAlone" => Some(format!(
                    "{}   # connects and attaches",
                    invocation.adm(&format!("up {}", resource.name))
                )),
                _ => adm(format!("attach {target}")),
            },
        )),
        "Diskless" if volume.role == "Primary" => Some(remark(
            format!("volume {number}: no local disk{why}; all reads and writes go to the peer"),
            attach_again(invocation, &target, volume),
        )),
        "Diskless" => Some(remark(
            format!("volume {number}: no local disk{why}, so no copy of the data here"),
            attach_again(invocation, &target, volume),
        )),
        "Failed" => Some(remark(
            format!(
                "volume {number}: the local disk failed{why}, or is detached, and is let go when it has answered what was asked of it"
            ),
            Some(format!(
                "{}   # only if it never answers",
                invocation.adm(&format!("down --force {}", resource.name))
            )),
        )),
        "Inconsistent" if volume.resync.is_none() && !volume.connection.starts_with("Paused") => {
            Some(remark(
                format!(
                    "volume {number}: the local copy is incomplete{why} until it has been synced from the peer"
                ),
                None,
            ))
        }
        "Outdated" => Some(remark(
            format!(
                "volume {number}: the local copy is older than the peer's; it cannot become Primary"
            ),
            // What keeps it from being synced is said of the connection.
            None,
        )),
        "Consistent" => Some(remark(
            format!("volume {number}: the local copy is complete, but the peer's may be newer"),
            None,
        )),
        _ => None,
    }
}

/// What brings a disk back. One that the peer has refused would be refused again, as long as it has the data that it has.
fn attach_again(invocation: &Invocation, target: &str, volume: &VolumeReport) -> Option<String> {
    let attach = invocation.adm(&format!("attach {target}"));
    let refused = (volume.disk_error.as_deref()).is_some_and(|why| why.contains("create-md"));
    Some(if refused {
        let create = invocation.adm(&format!("create-md {target}"));
        format!("{create} && {attach}   # gives up what is on this disk")
    } else {
        attach
    })
}

/// A peer that answers but keeps no copy.
fn peer_disk(resource: &ResourceReport, volume: &VolumeReport) -> Option<Remark> {
    let peer = resource.peer.as_ref()?;
    let gone = matches!(volume.peer_disk.as_str(), "Diskless" | "Failed");
    let has_copy = volume.disk == "UpToDate";
    (volume.connection == "Connected" && gone && has_copy).then(|| {
        remark(
            format!(
                "volume {}: the peer has no disk: this is the only copy",
                volume.number
            ),
            Some(format!(
                "on {}: tandem adm attach {}",
                peer.peer_name,
                target(resource, volume)
            )),
        )
    })
}

/// What a verify found stays until a resync copies it, and only a Primary's new generation makes one begin (state-machine.md 6.10).
fn differences(
    invocation: &Invocation,
    resource: &ResourceReport,
    volume: &VolumeReport,
) -> Option<Remark> {
    let both = volume.disk == "UpToDate" && volume.peer_disk == "UpToDate";
    let blocks = volume.counters.oos / 4;
    if volume.connection != "Connected" || !both || blocks == 0 {
        return None;
    }
    let name = &resource.name;
    let text = format!(
        "volume {}: {blocks} blocks of 4 KiB differ from the peer (found by a verify). A resync copies them from the Primary",
        volume.number
    );
    let reconnect = format!(
        "{} && {}",
        invocation.adm(&format!("disconnect {name}")),
        invocation.adm(&format!("connect {name}"))
    );
    let next = if resource.role == "Primary" || resource.peer_role == "Primary" {
        reconnect
    } else {
        format!(
            "{} && {reconnect}   # on the node whose data is right",
            invocation.adm(&format!("primary {name}"))
        )
    };
    Some(remark(text, Some(next)))
}

fn suspended(
    invocation: &Invocation,
    resource: &ResourceReport,
    volume: &VolumeReport,
) -> Option<Remark> {
    let number = volume.number;
    if volume.suspended_user {
        return Some(remark(
            format!("volume {number}: I/O is held by an administrator's command"),
            Some(invocation.adm(&format!("resume-io {}", target(resource, volume)))),
        ));
    }
    if volume.suspended_no_data {
        return Some(remark(
            format!("volume {number}: I/O is held, no good data can be reached"),
            Some(invocation.adm(&format!("connect {}", resource.name))),
        ));
    }
    volume.suspended_fencing.then(|| {
        remark(
            format!("volume {number}: I/O is held until the peer is fenced"),
            Some(invocation.adm(&format!("resume-io {}", target(resource, volume)))),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::adm::tests::resource;
    use super::*;

    #[test]
    fn a_disk_that_is_too_small_has_to_grow_before_a_connect_helps() {
        let mut report = resource();
        report.connection = "StandAlone".to_owned();
        report.last_error =
            Some("the peer's disk is too small: let the peer's disk grow".to_owned());
        let told = remarks(&Invocation::of("tandem"), &report);
        let next = told[0].next.as_deref().unwrap();
        assert!(
            next.starts_with("tandem adm connect r0   # once the disk of bravo has grown"),
            "{next}"
        );
    }

    #[test]
    fn a_primary_without_its_disk_is_told_to_connect_before_it_attaches() {
        let mut report = resource();
        let volume = &mut report.volumes[0];
        volume.disk = "Diskless".to_owned();
        volume.peer_disk = "DUnknown".to_owned();
        volume.role = "Primary".to_owned();
        let next = |report: &ResourceReport| -> Option<String> {
            let told = disk(&Invocation::of("tandem"), report, &report.volumes[0]);
            told.unwrap().next
        };
        report.connection = "StandAlone".to_owned();
        assert_eq!(
            next(&report).as_deref(),
            Some("tandem adm up r0   # connects and attaches")
        );
        report.connection = "WFConnection".to_owned();
        assert_eq!(next(&report).as_deref(), Some("tandem adm attach r0"));
    }
}
