//! Results of state changes (docs/spec/state-machine.md section 2.7): their numbers, names, messages and exit codes.

use core::fmt;

macro_rules! coded {
    ($(#[$doc:meta])* $name:ident: $kind:ty { $($(#[$vdoc:meta])* $variant:ident = $number:literal, $text:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(i32)]
        pub enum $name {
            $($(#[$vdoc])* $variant = $number,)*
        }

        impl $name {
            /// Every value, in the order of the table in the specification.
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];

            /// The number that tools print and the wire carries.
            pub const fn number(self) -> $kind {
                self as $kind
            }

            /// The value of a number; `None` if none is defined.
            pub const fn from_number(number: $kind) -> Option<Self> {
                match number {
                    $($number => Some($name::$variant),)*
                    _ => None,
                }
            }

            /// The text that drbdsetup prints.
            pub const fn message(self) -> &'static str {
                match self {
                    $($name::$variant => $text,)*
                }
            }
        }
    };
}

coded! {
    /// Result of a change of state. Above 0: done or agreed to; 0 and below: refused.
    StateResult: i32 {
        /// The request stopped being cluster-wide.
        CwNoNeed = 4, "";
        /// The peer agreed.
        CwSuccess = 3, "";
        /// No change after sanitising.
        NothingToDo = 2, "";
        /// Done.
        Success = 1, "";
        /// Refused without a better reason; also what a request that makes no sense is answered with.
        UnknownError = 0, "unknown error.";
        /// Validity rule 1.
        TwoPrimaries = -1, "Multiple primaries not allowed by config";
        /// Validity rules 4, 6, 9, 13.
        NoUpToDateDisk = -2, "Need access to UpToDate data";
        /// Validity rule 7.
        NoLocalDisk = -4, "Can not resync without local disk";
        /// Validity rule 8.
        NoRemoteDisk = -5, "Can not resync without remote disk";
        /// Validity rules 10, 15.
        ConnectedOutdates = -6, "Refusing to be Outdated while Connected";
        /// Validity rule 5.
        PrimaryNop = -7, "Refusing to be Primary while peer is not outdated";
        /// Soft rules 1, 10.
        ResyncRunning = -8, "Can not start OV/resync since it is already active";
        /// Hard rule 2, soft rule 2.
        AlreadyStandAlone = -9, "Can not disconnect a StandAlone device";
        /// The peer refused, or could not be asked.
        CwFailedByPeer = -10, "State change was refused by peer node";
        /// Hard rule 0 (no disk to fail), soft rule 3.
        IsDiskless = -11, "Device is diskless, the requested operation requires a disk";
        /// Validity rule 3.
        DeviceInUse = -12, "Device is held open by someone";
        /// Soft rule 4.
        NoNetConfig = -13, "Have no net/connection configuration";
        /// Validity rule 11.
        NoVerifyAlg = -14, "Need a verify algorithm to start online verify";
        /// Hard rules 3, 4; validity rule 14; soft rules 9, 11, 12.
        NeedConnection = -15, "Need a connection to start verify or resync";
        /// Soft rule 5.
        LowerThanOutdated = -16, "Disk state is lower than outdated";
        /// Validity rule 12.
        NotSupported = -17, "Peer does not support protocol";
        /// Hard rules 5, 6; soft rules 6, 7, 8.
        InTransientState = -18, "In transient state, retry after next state change";
        /// Only as an answer to a peer.
        ConcurrentStateChange = -19, "Concurrent state changes detected and aborted";
        /// Validity rule 2.
        OtherVolumePeerPrimary = -20, "Other vol primary on peer not allowed by config";
        /// Soft rule 13.
        OutdateWithoutConnection = -21, "Need a connection for a graceful disconnect/outdate peer";
    }
}

impl StateResult {
    /// Above 0: the change happened, or there was nothing to change.
    pub const fn is_success(self) -> bool {
        self.number() > 0
    }

    /// The name in the kernel's own tables.
    pub const fn name(self) -> &'static str {
        match self {
            StateResult::CwNoNeed => "SS_CW_NO_NEED",
            StateResult::CwSuccess => "SS_CW_SUCCESS",
            StateResult::NothingToDo => "SS_NOTHING_TO_DO",
            StateResult::Success => "SS_SUCCESS",
            StateResult::UnknownError => "SS_UNKNOWN_ERROR",
            StateResult::TwoPrimaries => "SS_TWO_PRIMARIES",
            StateResult::NoUpToDateDisk => "SS_NO_UP_TO_DATE_DISK",
            StateResult::NoLocalDisk => "SS_NO_LOCAL_DISK",
            StateResult::NoRemoteDisk => "SS_NO_REMOTE_DISK",
            StateResult::ConnectedOutdates => "SS_CONNECTED_OUTDATES",
            StateResult::PrimaryNop => "SS_PRIMARY_NOP",
            StateResult::ResyncRunning => "SS_RESYNC_RUNNING",
            StateResult::AlreadyStandAlone => "SS_ALREADY_STANDALONE",
            StateResult::CwFailedByPeer => "SS_CW_FAILED_BY_PEER",
            StateResult::IsDiskless => "SS_IS_DISKLESS",
            StateResult::DeviceInUse => "SS_DEVICE_IN_USE",
            StateResult::NoNetConfig => "SS_NO_NET_CONFIG",
            StateResult::NoVerifyAlg => "SS_NO_VERIFY_ALG",
            StateResult::NeedConnection => "SS_NEED_CONNECTION",
            StateResult::LowerThanOutdated => "SS_LOWER_THAN_OUTDATED",
            StateResult::NotSupported => "SS_NOT_SUPPORTED",
            StateResult::InTransientState => "SS_IN_TRANSIENT_STATE",
            StateResult::ConcurrentStateChange => "SS_CONCURRENT_ST_CHG",
            StateResult::OtherVolumePeerPrimary => "SS_O_VOL_PEER_PRI",
            StateResult::OutdateWithoutConnection => "SS_OUTDATE_WO_CONN",
        }
    }

    /// The exit code of drbdsetup, which drbdadm passes on.
    pub const fn exit_code(self) -> u8 {
        match self {
            StateResult::CwNoNeed
            | StateResult::CwSuccess
            | StateResult::NothingToDo
            | StateResult::Success => 0,
            StateResult::NoUpToDateDisk => 17,
            StateResult::NoLocalDisk => 16,
            StateResult::LowerThanOutdated => 5,
            _ => 11,
        }
    }
}

impl fmt::Display for StateResult {
    /// `State change failed: (-2) Need access to UpToDate data`; the bare name for a success.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_success() {
            return f.write_str(self.name());
        }
        write!(
            f,
            "State change failed: ({}) {}",
            self.number(),
            self.message()
        )
    }
}

coded! {
    /// Refusal of a configuration operation: numbers above 100, exit code 10.
    Failure: i32 {
        /// This local address is in use by another connection, or this connection exists.
        LocalAddressInUse = 102, "Local address(port) already in use.";
        /// The peer's address is in use.
        RemoteAddressInUse = 103, "Remote address(port) already in use.";
        /// The backing device is smaller than the size asked for, or than the device is now.
        DiskTooSmall = 111, "Low.dev. smaller than requested DRBD-dev. size.";
        /// Bitmap or metadata I/O failed.
        MetadataIo = 118, "IO error(s) occurred during initial access to meta-data.";
        /// discard-my-data while a volume is Primary.
        DiscardWhilePrimary = 123, "--discard-my-data not allowed when primary.";
        /// Already attached.
        DiskConfigured = 124, "Device is attached to a disk (use detach first)";
        /// Has a connection already.
        NetConfigured = 125, "Device has a net-config (use disconnect first)";
        /// No such minor.
        MinorUnknown = 127, "Device minor not allocated";
        /// The wait for a detach was interrupted.
        Interrupted = 129, "Interrupted by Signal";
        /// Resize while a resync runs.
        ResizeDuringResync = 130, "Resize not allowed during resync.";
        /// Resize with both nodes Secondary.
        ResizeNeedsPrimary = 131, "Need one Primary node to resize.";
        /// resync-after names no possible minor.
        ResyncAfterInvalid = 132, "The resync-after minor number is invalid";
        /// resync-after would depend on itself.
        ResyncAfterCycle = 133, "This would cause a resync-after dependency cycle";
        /// Paused already.
        PauseAlreadySet = 134, "Sync-pause flag is already set";
        /// Not paused.
        PauseAlreadyClear = 135, "Sync-pause flag is already cleared";
        /// The volume has no disk.
        NoDiskConfig = 138, "Device does not have a disk-config";
        /// Two primaries with protocol A or B.
        TwoPrimariesNeedC = 139, "Protocol C required";
        /// The bitmap could not be resized.
        OutOfMemory = 140, "vmalloc() failed. Out of memory?";
        /// The disk does not carry the data that the application last saw.
        DataNotCurrent = 150, "Can only attach to the data we lost last (see kernel log).";
        /// new-current-uuid in a wrong state.
        NeedStandAlone = 151, "Need to be StandAlone";
        /// Freezing fencing policy with protocol A.
        FencingNeedsBOrC = 154, "Fencing policy resource-and-stonith only with prot B or C allowed";
        /// assume-clean with an old peer.
        AssumeCleanProtocol = 153, "Protocol version 93 required to use --assume-clean";
        /// pull-ahead with protocol B or C.
        PullAheadNeedsA = 155, "on-congestion policy pull-ahead only with prot A allowed";
        /// Not paused by the administrator, but by a dependency.
        PausedByDependency = 156, "Sync-pause flag is already cleared.\nNote: Resync pause caused by a local resync-after dependency.";
        /// Not paused by the administrator, but by the peer.
        PausedByPeer = 157, "Sync-pause flag is already cleared.\nNote: Resync pause caused by the peer node.";
        /// No such resource.
        ResourceUnknown = 158, "Unknown resource";
        /// Something still belongs to the resource.
        ResourceInUse = 159, "resource still in use";
        /// The minor is still in use.
        MinorInUse = 160, "Minor still configured (down it first)";
        /// Minor or volume exists.
        MinorExists = 161, "minor or volume exists";
        /// The request makes no sense for this connection.
        InvalidRequest = 162, "Invalid configuration request";
        /// Two primaries exist.
        TwoPrimariesInUse = 164, "Can not clear allow_two_primaries as\nlong as there a primaries on both sides";
        /// The activity log was not applied.
        MetadataUnclean = 165, "Unclean meta-data found.\nYou need to 'drbdadm apply-al res'";
        /// The device would shrink.
        ImplicitShrink = 170, "Implicit device shrinking not allowed. See kernel log.";
    }
}

impl Failure {
    /// The exit code of drbdsetup for every refusal of this kind.
    pub const EXIT_CODE: u8 = 10;

    /// The number that stands for success among these (section 2.7).
    pub const NO_ERROR: i32 = 101;

    /// The exit code of drbdsetup.
    pub const fn exit_code(self) -> u8 {
        Failure::EXIT_CODE
    }
}

impl fmt::Display for Failure {
    /// `Failure: (124) Device is attached to a disk (use detach first)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Failure: ({}) {}", self.number(), self.message())
    }
}
