//! Data generations: every comparison of appendix B.1, the mirror property, decisions of sections 4.4 and 5, and the life of
//! a resync with its interruptions. The vectors are read from the specification itself.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod comparing;
mod deciding;
mod living;
mod relations;

use tandem_replicator::generations::*;
use tandem_replicator::state::word::Role;

fn value(text: &str) -> u64 {
    if let Ok(number) = text.parse() {
        return number;
    }
    let bit = u64::from(text.ends_with('*'));
    let step = if text.ends_with("+δ") {
        SYNC_UUID_STEP
    } else {
        0
    };
    let letter = u64::from(*text.as_bytes().first().unwrap());
    0x0000_1234_5678_0000 + letter * 16 + step + bit
}

fn set(text: &str) -> Uuids {
    let inner = text.trim().trim_start_matches('[').trim_end_matches(']');
    let slots: Vec<u64> = inner.split(',').map(|part| value(part.trim())).collect();
    Uuids::from_slots(slots.try_into().unwrap())
}

fn mirrored(side: ResolveConflicts) -> ResolveConflicts {
    match side {
        ResolveConflicts::Here => ResolveConflicts::There,
        ResolveConflicts::There => ResolveConflicts::Here,
    }
}

fn role(primary: bool) -> Role {
    if primary {
        Role::Primary
    } else {
        Role::Secondary
    }
}

const LINK: Link = Link {
    protocol: 101,
    write_same: true,
    resolve_conflicts: ResolveConflicts::Here,
    tandem: true,
};

fn secondary(uuids: Uuids) -> Party {
    Party {
        uuids,
        crashed_primary: false,
        role: Role::Secondary,
    }
}
