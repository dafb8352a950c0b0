//! Sections 2.1 to 2.6 of the specification once more, in its numbers (section 1) and its order, without the engine's tables.

use tandem_replicator::state::rules::{Context, Fencing, Hardness, OnNoData};
use tandem_replicator::state::word::State;

const PRIMARY: u32 = 1;
const SECONDARY: u32 = 2;
const NOT_CONNECTED: std::ops::RangeInclusive<u32> = 0..=9;

/// A state in the numbers of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Numbers {
    pub(crate) role: u32,
    pub(crate) peer: u32,
    pub(crate) conn: u32,
    pub(crate) disk: u32,
    pub(crate) pdsk: u32,
    pub(crate) susp_nod: bool,
    pub(crate) susp_fen: bool,
    pub(crate) aftr_isp: bool,
    pub(crate) peer_isp: bool,
    pub(crate) user_isp: bool,
}

impl Numbers {
    pub(crate) fn of(state: &State) -> Numbers {
        Numbers {
            role: state.role.number(),
            peer: state.peer.number(),
            conn: state.conn.number(),
            disk: state.disk.number(),
            pdsk: state.pdsk.number(),
            susp_nod: state.susp_nod,
            susp_fen: state.susp_fen,
            aftr_isp: state.aftr_isp,
            peer_isp: state.peer_isp,
            user_isp: state.user_isp,
        }
    }

    fn is_paused(&self) -> bool {
        self.aftr_isp || self.peer_isp || self.user_isp
    }
}

/// The ranges of S6 by the number of the connection state: own disk from, to, peer's disk from, to.
pub(crate) type Ranges = [[u32; 4]; 24];

/// Section 2.5.
pub(crate) fn sanitised(
    old: &Numbers,
    wanted: Numbers,
    context: &Context,
    ranges: &Ranges,
) -> Numbers {
    let mut new = wanted;
    if new.conn < 10 {
        new.peer_isp = false;
        new.peer = 0;
        if ![4, 5, 6].contains(&new.pdsk) {
            new.pdsk = 6;
        }
    }
    s2(&mut new);
    if new.conn > 10 && (new.disk <= 2 || new.pdsk <= 2) {
        new.conn = 10;
        // Where Tandem deviates.
        let not_begun = |side: [u32; 4]| side.contains(&old.conn);
        if not_begun([14, 15, 12, 21]) && old.disk == 5 && new.disk == 5 {
            new.disk = 4;
        }
        if not_begun([13, 13, 11, 20]) && old.pdsk == 7 && new.pdsk == 7 {
            new.pdsk = 4;
        }
    }
    if new.conn < 10 && new.disk == 3 {
        let computed = context.attach_result.filter(|_| context.exposed_is_current);
        let found = computed.map(|result| (result.disk.number(), result.pdsk.number()));
        (new.disk, new.pdsk) = found.unwrap_or((0, 6));
    }
    if (10..22).contains(&new.conn) {
        for disk in [&mut new.disk, &mut new.pdsk] {
            if [5, 7].contains(disk) {
                *disk = 8;
            }
        }
    }
    s6(&mut new, ranges);
    let lost = |at: &Numbers| at.role == PRIMARY && at.conn < 10 && at.pdsk > 5;
    if fencing(old, context) == Fencing::ResourceAndStonith && lost(&new) && !lost(old) {
        new.susp_fen = true;
    }
    let starved = |at: &Numbers| at.role == PRIMARY && at.disk < 8 && at.pdsk < 8;
    if context.on_no_data == OnNoData::SuspendIo && starved(&new) && !starved(old) {
        new.susp_nod = true;
    }
    new.conn = match (new.conn, new.is_paused()) {
        (16, true) => 20,
        (17, true) => 21,
        (20, false) => 16,
        (21, false) => 17,
        (conn, _) => conn,
    };
    // No run needs these twice; for constructed states they make the form final.
    s2(&mut new);
    s6(&mut new, ranges);
    new
}

fn s2(new: &mut Numbers) {
    if new.conn == 0 && new.disk == 0 && new.role == SECONDARY {
        new.aftr_isp = false;
    }
}

fn s6(new: &mut Numbers, ranges: &Ranges) {
    let [disk_min, disk_max, pdsk_min, pdsk_max] = ranges[new.conn as usize];
    new.disk = new.disk.max(disk_min).min(disk_max);
    new.pdsk = new.pdsk.max(pdsk_min).min(pdsk_max);
}

fn fencing(old: &Numbers, context: &Context) -> Fencing {
    if old.disk == 0 {
        Fencing::DontCare
    } else {
        context.fencing
    }
}

/// Section 2.2: the code of the refusal.
fn hard(old: &Numbers, new: &Numbers) -> Option<i32> {
    if new.disk == 2 && old.disk == 0 {
        return Some(-11);
    }
    match (old.conn, new.conn) {
        (from, to) if from == to => None,
        (0, 1) => Some(-9),
        (0, to) if to != 2 => Some(-15),
        (from, to) if from < 9 && to >= 10 => Some(-15),
        (3..=7, to) if to != 2 && to != 1 => Some(-18),
        (1, to) if to != 0 => Some(-18),
        _ => None,
    }
}

/// Section 2.3: the first rule that the state breaks. `old` only says whether there is a disk to fence.
fn invalid(old: &Numbers, new: &Numbers, context: &Context) -> Option<i32> {
    let Numbers {
        role,
        peer,
        conn,
        disk,
        pdsk,
        ..
    } = *new;
    let primary = role == PRIMARY;
    let one_only = context.net.is_some_and(|net| !net.two_primaries_allowed);
    let verify = [18, 19].contains(&conn);
    let algorithm = context.net.is_some_and(|net| net.verify_alg_present);
    let fenced = fencing(old, context) >= Fencing::ResourceOnly;
    let rules = [
        (-1, one_only && primary && peer == PRIMARY),
        (
            -20,
            one_only && primary && context.other_volume_peer_primary,
        ),
        (-12, role == SECONDARY && context.device_open),
        (-2, primary && conn < 10 && disk < 8),
        (-7, fenced && primary && conn < 10 && pdsk >= 6),
        (-2, primary && disk <= 4 && pdsk <= 4),
        (-4, conn > 10 && disk < 4),
        (-5, conn > 10 && pdsk < 4),
        (-2, conn > 10 && disk < 8 && pdsk < 8),
        (-6, [10, 13, 16, 20].contains(&conn) && disk == 5),
        (-14, verify && !algorithm),
        (-17, verify && context.protocol < 88),
        (-2, primary && disk < 8 && pdsk < 8),
        (-15, [11, 12].contains(&conn) && pdsk == 6),
        (-6, conn >= 10 && pdsk == 6),
    ];
    rules.iter().find(|(_, broken)| *broken).map(|rule| rule.0)
}

/// Section 2.4: the last rule that matches.
fn soft(old: &Numbers, new: &Numbers, context: &Context) -> Option<i32> {
    let conn_changes = old.conn != new.conn;
    let full = [11, 12].contains(&new.conn);
    let verify = [18, 19].contains(&new.conn);
    let begins = (old.conn, new.conn) == (8, 9);
    let ends = old.conn == 9 && new.conn >= 10;
    let promotion = old.role != PRIMARY && new.role == PRIMARY;
    let rules = [
        (-8, full && old.conn > 10),
        (-9, new.conn == 1 && old.conn == 0),
        (-11, new.disk > 1 && old.disk == 0),
        (-13, new.conn == 8 && old.conn < 2),
        (-16, new.disk == 5 && old.disk < 5 && old.disk != 1),
        (-18, new.conn == 1 && old.conn == 2),
        (-18, context.state_sent && !begins && !ends),
        (
            -18,
            promotion
                && new.pdsk == 8
                && ![8, 0].contains(&new.disk)
                && (new.conn <= 15 || conn_changes),
        ),
        (-15, verify && old.conn < 10),
        (-8, verify && conn_changes && old.conn > 10),
        (-15, full && old.conn < 10),
        (-15, [16, 17].contains(&new.conn) && old.conn < 9),
        (
            -21,
            new.conn == 1 && new.pdsk == 5 && old.conn < 10 && old.pdsk > 5,
        ),
    ];
    rules
        .iter()
        .rev()
        .find(|(_, refuses)| *refuses)
        .map(|rule| rule.0)
}

/// Section 2.1: the result, and the state that is stored.
pub(crate) fn judged(
    old: &Numbers,
    wanted: Numbers,
    context: &Context,
    hardness: Hardness,
    ranges: &Ranges,
) -> (i32, Numbers) {
    let new = sanitised(old, wanted, context, ranges);
    if new == *old {
        return (2, new);
    }
    if let Some(code) = hard(old, &new) {
        return (code, *old);
    }
    if hardness == Hardness::Hard {
        let code = if old.conn == new.conn { 2 } else { 1 };
        return (code, new);
    }
    let before = invalid(old, old, context);
    if let Some(code) = invalid(old, &new, context).filter(|code| Some(*code) != before) {
        return (code, *old);
    }
    match soft(old, &new, context) {
        Some(code) => (code, *old),
        None => (1, new),
    }
}

/// Section 2.6: whether the peer has to agree to a soft change.
pub(crate) fn asks_peer(old: &Numbers, new: &Numbers) -> bool {
    let connected = |at: &Numbers| !NOT_CONNECTED.contains(&at.conn);
    let becomes = |conn: u32| old.conn != conn && new.conn == conn;
    let both = connected(old) && connected(new);
    (both && old.role != PRIMARY && new.role == PRIMARY)
        || (connected(old) && (becomes(12) || becomes(11) || becomes(1)))
        || (both && old.disk != 2 && new.disk == 2)
        || (old.conn == 10 && (new.conn == 18 || new.conn == 9))
}
