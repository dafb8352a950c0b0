//! The state word: roles, connection and disk states with their numbers and names, and the 32 bits of P_STATE.
//!
//! Layout of the word (docs/spec/state-machine.md section 1.4), as the peer sends it:
//!
//! | bits | field | values |
//! |---|---|---|
//! | 0-1 | role | 0..2 |
//! | 2-3 | peer | 0..2 |
//! | 4-8 | conn | 0..23 |
//! | 9-12 | disk | 0..8 |
//! | 13-16 | pdsk | 0..8 |
//! | 17 | susp | |
//! | 18, 19, 20 | aftr_isp, peer_isp, user_isp | |
//! | 21, 22 | susp_nod, susp_fen | |
//! | 23-31 | zero | |

use alloc::string::String;
use core::fmt;
use core::fmt::Write as _;

/// A number in a state word, a mask or a request that means nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WordError {
    /// The role field holds 3.
    #[error("state word names no role: {0}")]
    Role(u32),
    /// The connection state is above 23.
    #[error("state word names no connection state: {0}")]
    Conn(u32),
    /// The disk state is above 8.
    #[error("state word names no disk state: {0}")]
    Disk(u32),
    /// Bits 23 to 31 are in use.
    #[error("state word has bits that mean nothing: {0:#x}")]
    Reserved(u32),
    /// The mask of a request covers a field only in part.
    #[error("mask of a state request covers a field only in part: {0:#x}")]
    PartialMask(u32),
    /// A peer asked for a connection state that has no meaning from the other side (section 2.6).
    #[error("peer asked for connection state {0}, which cannot be requested")]
    RequestedConn(ConnState),
    /// A peer asked to change suspension or pause flags, which are never cluster-wide (section 2.6).
    #[error("peer asked to change flags that are local: mask {0:#x}")]
    RequestedFlags(u32),
}

macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident, $error:ident { $($(#[$vdoc:meta])* $variant:ident = $number:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum $name {
            $($(#[$vdoc])* $variant = $number,)*
        }

        impl $name {
            /// Every value, in the order of the numbers.
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];

            /// The number used on the wire and in the metadata.
            pub const fn number(self) -> u32 {
                self as u32
            }

            /// The value of a number; an error if it means nothing (the mask value is no state).
            pub const fn from_number(number: u32) -> Result<Self, WordError> {
                match number {
                    $($number => Ok($name::$variant),)*
                    _ => Err(WordError::$error(number)),
                }
            }

            /// The name as every DRBD tool prints it.
            pub const fn name(self) -> &'static str {
                match self {
                    $($name::$variant => stringify!($variant),)*
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.name())
            }
        }
    };
}

numbered! {
    /// Role of a node (section 1.1).
    Role, Role {
        /// Only for the peer: there is no connection.
        Unknown = 0,
        /// May be opened for I/O.
        Primary = 1,
        /// Must not be opened.
        Secondary = 2,
    }
}

numbered! {
    /// Connection and replication state (section 1.2). 3 to 7 are the failure states; 0 to 8 have no usable socket.
    ConnState, Conn {
        /// No network configuration.
        StandAlone = 0,
        /// Transient towards StandAlone.
        Disconnecting = 1,
        /// Network configured, between two attempts.
        Unconnected = 2,
        /// Transient: the peer did not answer in time.
        Timeout = 3,
        /// Transient: a socket was closed.
        BrokenPipe = 4,
        /// Transient: another loss of the link.
        NetworkFailure = 5,
        /// Transient: unexpected or unprocessable packet.
        ProtocolError = 6,
        /// Transient: the peer asked for the disconnect.
        TearDown = 7,
        /// Listening and trying to connect.
        WFConnection = 8,
        /// Sockets exist, parameters are being exchanged.
        WFReportParams = 9,
        /// Established; no resync, no verify.
        Connected = 10,
        /// Full resync requested by the administrator, this side source.
        StartingSyncS = 11,
        /// Full resync requested by the administrator, this side target.
        StartingSyncT = 12,
        /// Resync decided, this side source, exchanging bitmaps.
        WFBitMapS = 13,
        /// Resync decided, this side target, exchanging bitmaps.
        WFBitMapT = 14,
        /// Target waits for the sync UUID.
        WFSyncUUID = 15,
        /// Resync running, this node has the good data.
        SyncSource = 16,
        /// Resync running, this node receives.
        SyncTarget = 17,
        /// Online verify that this node drives.
        VerifyS = 18,
        /// Online verify that the peer drives.
        VerifyT = 19,
        /// Like SyncSource, paused.
        PausedSyncS = 20,
        /// Like SyncTarget, paused.
        PausedSyncT = 21,
        /// Replication suspended because of congestion.
        Ahead = 22,
        /// Counterpart of Ahead.
        Behind = 23,
    }
}

numbered! {
    /// Disk state (section 1.3). The rules compare these by number.
    DiskState, Disk {
        /// No local disk.
        Diskless = 0,
        /// Metadata is being read.
        Attaching = 1,
        /// Being detached; references still drain.
        Failed = 2,
        /// Attached while connected; the handshake decides.
        Negotiating = 3,
        /// Not usable by itself.
        Inconsistent = 4,
        /// Consistent, but known to be older than the peer's.
        Outdated = 5,
        /// Only for the peer: there is no connection.
        DUnknown = 6,
        /// Usable, but perhaps not current.
        Consistent = 7,
        /// Usable and current as far as known.
        UpToDate = 8,
    }
}

impl ConnState {
    /// Timeout to TearDown: the link is gone and the receiver cleans up.
    pub fn is_failure(self) -> bool {
        self >= ConnState::Timeout && self <= ConnState::TearDown
    }

    /// The volume is connected: 10 or above (section 0.1).
    pub fn is_connected(self) -> bool {
        self >= ConnState::Connected
    }

    /// A resync that has begun, running or paused: SyncSource, SyncTarget, PausedSyncS, PausedSyncT.
    pub fn is_resync(self) -> bool {
        use ConnState::{PausedSyncS, PausedSyncT, SyncSource, SyncTarget};
        matches!(self, SyncSource | SyncTarget | PausedSyncS | PausedSyncT)
    }

    /// An online verify, on either side.
    pub fn is_verify(self) -> bool {
        matches!(self, ConnState::VerifyS | ConnState::VerifyT)
    }
}

const ROLE_SHIFT: u32 = 0;
const PEER_SHIFT: u32 = 2;
const CONN_SHIFT: u32 = 4;
const DISK_SHIFT: u32 = 9;
const PDSK_SHIFT: u32 = 13;
const ROLE_MASK: u32 = 3;
const CONN_MASK: u32 = 31;
const DISK_MASK: u32 = 15;
const SUSP: u32 = 1 << 17;
const AFTR_ISP: u32 = 1 << 18;
const PEER_ISP: u32 = 1 << 19;
const USER_ISP: u32 = 1 << 20;
const SUSP_NOD: u32 = 1 << 21;
const SUSP_FEN: u32 = 1 << 22;
const FLAGS: u32 = SUSP | AFTR_ISP | PEER_ISP | USER_ISP | SUSP_NOD | SUSP_FEN;
const USED: u32 = (1 << 23) - 1;

/// One volume's view of itself and its peer. The three `susp` flags belong to the resource and are the same in all its
/// volumes; whoever stores a changed state copies them to the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct State {
    /// Own role.
    pub role: Role,
    /// Peer's role; Unknown without a connection.
    pub peer: Role,
    /// Connection or replication state.
    pub conn: ConnState,
    /// Own disk.
    pub disk: DiskState,
    /// Peer's disk, as far as known.
    pub pdsk: DiskState,
    /// I/O suspended by the administrator.
    pub susp: bool,
    /// I/O suspended: no accessible up-to-date data.
    pub susp_nod: bool,
    /// I/O suspended: the fence-peer handler has not answered yet.
    pub susp_fen: bool,
    /// Resync paused here by a `resync-after` dependency.
    pub aftr_isp: bool,
    /// The peer reports a pause.
    pub peer_isp: bool,
    /// Resync paused here by the administrator.
    pub user_isp: bool,
}

impl Default for State {
    /// A new volume: StandAlone, Secondary, Diskless, nothing known of a peer.
    fn default() -> Self {
        State::UNCONFIGURED
    }
}

impl State {
    /// A new volume: StandAlone, Secondary, Diskless, nothing known of a peer.
    pub const UNCONFIGURED: State = State {
        role: Role::Secondary,
        peer: Role::Unknown,
        conn: ConnState::StandAlone,
        disk: DiskState::Diskless,
        pdsk: DiskState::DUnknown,
        susp: false,
        susp_nod: false,
        susp_fen: false,
        aftr_isp: false,
        peer_isp: false,
        user_isp: false,
    };

    /// The 32 bits of P_STATE (the codec writes them in network order).
    pub fn pack(&self) -> u32 {
        let fields = self.role.number() << ROLE_SHIFT
            | self.peer.number() << PEER_SHIFT
            | self.conn.number() << CONN_SHIFT
            | self.disk.number() << DISK_SHIFT
            | self.pdsk.number() << PDSK_SHIFT;
        let flags = [
            (self.susp, SUSP),
            (self.aftr_isp, AFTR_ISP),
            (self.peer_isp, PEER_ISP),
            (self.user_isp, USER_ISP),
            (self.susp_nod, SUSP_NOD),
            (self.susp_fen, SUSP_FEN),
        ];
        flags
            .iter()
            .filter(|(set, _)| *set)
            .fold(fields, |word, (_, bit)| word | bit)
    }

    /// The same without the suspend bits: what a P_STATE that reports the current state carries (section 1.4).
    pub fn pack_volume(&self) -> u32 {
        self.pack() & !(SUSP | SUSP_NOD | SUSP_FEN)
    }

    /// Reads a word from a peer. Any number that names no state, and any reserved bit, is an error.
    pub fn unpack(word: u32) -> Result<State, WordError> {
        if word & !USED != 0 {
            return Err(WordError::Reserved(word));
        }
        Ok(State {
            role: Role::from_number(word >> ROLE_SHIFT & ROLE_MASK)?,
            peer: Role::from_number(word >> PEER_SHIFT & ROLE_MASK)?,
            conn: ConnState::from_number(word >> CONN_SHIFT & CONN_MASK)?,
            disk: DiskState::from_number(word >> DISK_SHIFT & DISK_MASK)?,
            pdsk: DiskState::from_number(word >> PDSK_SHIFT & DISK_MASK)?,
            susp: word & SUSP != 0,
            aftr_isp: word & AFTR_ISP != 0,
            peer_isp: word & PEER_ISP != 0,
            user_isp: word & USER_ISP != 0,
            susp_nod: word & SUSP_NOD != 0,
            susp_fen: word & SUSP_FEN != 0,
        })
    }

    /// Application I/O is suspended for whichever reason.
    pub fn is_suspended(&self) -> bool {
        self.susp || self.susp_nod || self.susp_fen
    }

    /// A resync of this volume has to wait, for whichever reason.
    pub fn is_paused(&self) -> bool {
        self.aftr_isp || self.peer_isp || self.user_isp
    }

    /// Both disks UpToDate.
    pub fn is_up_to_date_pair(&self) -> bool {
        self.disk == DiskState::UpToDate && self.pdsk == DiskState::UpToDate
    }

    /// The six characters of /proc/drbd, for example `r-----` (section 1.4).
    pub fn proc_flags(&self, activity_log: ActivityLogUpdates) -> String {
        let suspended = activity_log == ActivityLogUpdates::Suspended;
        letters(&[
            (self.is_suspended(), 's', 'r'),
            (self.aftr_isp, 'a', '-'),
            (self.peer_isp, 'p', '-'),
            (self.user_isp, 'u', '-'),
            // Short internal suspensions: the kernel has a place for them and never shows one.
            (false, 'd', '-'),
            (suspended, 's', '-'),
        ])
    }

    /// The dump that follows a refused change, for example
    /// `{ cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate r----- }` (section 1.4).
    pub fn dump(&self) -> String {
        let flags = letters(&[
            (self.is_suspended(), 's', 'r'),
            (self.aftr_isp, 'a', '-'),
            (self.peer_isp, 'p', '-'),
            (self.user_isp, 'u', '-'),
            (self.susp_fen, 'F', '-'),
            (self.susp_nod, 'N', '-'),
        ]);
        alloc::format!(
            "{{ cs:{} ro:{}/{} ds:{}/{} {flags} }}",
            self.conn,
            self.role,
            self.peer,
            self.disk,
            self.pdsk
        )
    }
}

/// Whether updates of the activity log are suspended (section 0.3), for [`State::proc_flags`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ActivityLogUpdates {
    /// Updates are written.
    Running,
    /// The whole bitmap is set and there is no peer: nothing to log.
    Suspended,
}

fn letters(places: &[(bool, char, char)]) -> String {
    places
        .iter()
        .map(|(set, yes, no)| if *set { *yes } else { *no })
        .collect()
}

/// The fields that changed, in the kernel's words: `peer( Unknown -> Secondary ) conn( WFReportParams -> Connected )`.
/// Empty if nothing changed. A change of a suspend flag belongs in a line of the resource, everything else in a line of
/// the volume unless the change was made for the whole connection (section 1.4).
pub fn diff(old: &State, new: &State) -> String {
    let mut text = String::new();
    field(&mut text, "role", old.role, new.role);
    field(&mut text, "peer", old.peer, new.peer);
    field(&mut text, "conn", old.conn, new.conn);
    field(&mut text, "disk", old.disk, new.disk);
    field(&mut text, "pdsk", old.pdsk, new.pdsk);
    // The kernel calls all three by the same name.
    field(&mut text, "susp", u8::from(old.susp), u8::from(new.susp));
    field(
        &mut text,
        "susp",
        u8::from(old.susp_nod),
        u8::from(new.susp_nod),
    );
    field(
        &mut text,
        "susp",
        u8::from(old.susp_fen),
        u8::from(new.susp_fen),
    );
    field(
        &mut text,
        "aftr_isp",
        u8::from(old.aftr_isp),
        u8::from(new.aftr_isp),
    );
    field(
        &mut text,
        "peer_isp",
        u8::from(old.peer_isp),
        u8::from(new.peer_isp),
    );
    field(
        &mut text,
        "user_isp",
        u8::from(old.user_isp),
        u8::from(new.user_isp),
    );
    text
}

fn field<T: PartialEq + fmt::Display>(text: &mut String, name: &str, old: T, new: T) {
    if old == new {
        return;
    }
    let space = if text.is_empty() { "" } else { " " };
    // Writing to a String cannot fail.
    let _ = write!(text, "{space}{name}( {old} -> {new} )");
}

/// The fields that somebody wants to change; `None` leaves a field alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Own role.
    pub role: Option<Role>,
    /// Peer's role.
    pub peer: Option<Role>,
    /// Connection state.
    pub conn: Option<ConnState>,
    /// Own disk.
    pub disk: Option<DiskState>,
    /// Peer's disk.
    pub pdsk: Option<DiskState>,
    /// Suspension by the administrator.
    pub susp: Option<bool>,
    /// Suspension for want of data.
    pub susp_nod: Option<bool>,
    /// Suspension for fencing.
    pub susp_fen: Option<bool>,
    /// Pause by dependency.
    pub aftr_isp: Option<bool>,
    /// Pause by the peer.
    pub peer_isp: Option<bool>,
    /// Pause by the administrator.
    pub user_isp: Option<bool>,
}

impl Request {
    /// Asks for a role.
    pub fn role(role: Role) -> Request {
        Request {
            role: Some(role),
            ..Request::default()
        }
    }

    /// Asks for a connection state.
    pub fn conn(conn: ConnState) -> Request {
        Request {
            conn: Some(conn),
            ..Request::default()
        }
    }

    /// Asks for an own disk state.
    pub fn disk(disk: DiskState) -> Request {
        Request {
            disk: Some(disk),
            ..Request::default()
        }
    }

    /// Asks for a disk state of the peer.
    pub fn pdsk(pdsk: DiskState) -> Request {
        Request {
            pdsk: Some(pdsk),
            ..Request::default()
        }
    }

    /// The same with an own disk state.
    pub fn with_disk(self, disk: DiskState) -> Request {
        Request {
            disk: Some(disk),
            ..self
        }
    }

    /// The same with a disk state of the peer.
    pub fn with_pdsk(self, pdsk: DiskState) -> Request {
        Request {
            pdsk: Some(pdsk),
            ..self
        }
    }

    /// Lays the requested fields over a state (section 2.1 step 1).
    pub fn apply(&self, old: State) -> State {
        State {
            role: self.role.unwrap_or(old.role),
            peer: self.peer.unwrap_or(old.peer),
            conn: self.conn.unwrap_or(old.conn),
            disk: self.disk.unwrap_or(old.disk),
            pdsk: self.pdsk.unwrap_or(old.pdsk),
            susp: self.susp.unwrap_or(old.susp),
            susp_nod: self.susp_nod.unwrap_or(old.susp_nod),
            susp_fen: self.susp_fen.unwrap_or(old.susp_fen),
            aftr_isp: self.aftr_isp.unwrap_or(old.aftr_isp),
            peer_isp: self.peer_isp.unwrap_or(old.peer_isp),
            user_isp: self.user_isp.unwrap_or(old.user_isp),
        }
    }

    /// The words `mask` and `value` of P_STATE_CHG_REQ and P_CONN_ST_CHG_REQ.
    pub fn to_wire(&self) -> (u32, u32) {
        let fields = [
            (self.role.map(Role::number), ROLE_MASK, ROLE_SHIFT),
            (self.peer.map(Role::number), ROLE_MASK, PEER_SHIFT),
            (self.conn.map(ConnState::number), CONN_MASK, CONN_SHIFT),
            (self.disk.map(DiskState::number), DISK_MASK, DISK_SHIFT),
            (self.pdsk.map(DiskState::number), DISK_MASK, PDSK_SHIFT),
            (self.susp.map(u32::from), 1, 17),
            (self.aftr_isp.map(u32::from), 1, 18),
            (self.peer_isp.map(u32::from), 1, 19),
            (self.user_isp.map(u32::from), 1, 20),
            (self.susp_nod.map(u32::from), 1, 21),
            (self.susp_fen.map(u32::from), 1, 22),
        ];
        let mut wire = (0, 0);
        for (number, mask, shift) in fields {
            if let Some(number) = number {
                wire.0 |= mask << shift;
                wire.1 |= number << shift;
            }
        }
        wire
    }

    /// Reads `mask` and `value` as they were sent, still from the sender's point of view. A field that the mask covers
    /// in part, flags, and numbers that name no state are errors; value bits outside the mask are ignored.
    pub fn from_wire(mask: u32, value: u32) -> Result<Request, WordError> {
        if mask & !USED != 0 {
            return Err(WordError::Reserved(mask));
        }
        if mask & FLAGS != 0 {
            return Err(WordError::RequestedFlags(mask));
        }
        let part = |width: u32, shift: u32| match mask >> shift & width {
            0 => Ok(None),
            covered if covered == width => Ok(Some(value >> shift & width)),
            _ => Err(WordError::PartialMask(mask)),
        };
        Ok(Request {
            role: part(ROLE_MASK, ROLE_SHIFT)?
                .map(Role::from_number)
                .transpose()?,
            peer: part(ROLE_MASK, PEER_SHIFT)?
                .map(Role::from_number)
                .transpose()?,
            conn: part(CONN_MASK, CONN_SHIFT)?
                .map(ConnState::from_number)
                .transpose()?,
            disk: part(DISK_MASK, DISK_SHIFT)?
                .map(DiskState::from_number)
                .transpose()?,
            pdsk: part(DISK_MASK, PDSK_SHIFT)?
                .map(DiskState::from_number)
                .transpose()?,
            ..Request::default()
        })
    }
}
