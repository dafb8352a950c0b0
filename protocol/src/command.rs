//! Command numbers (wire 3.1).

use core::fmt;

use crate::error::ProtocolError;

/// One of the two TCP connections between two nodes (wire 1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Socket {
    /// Handshake, writes, barriers, requests, bitmap, parameters, states.
    Data,
    /// Pings, acknowledgements, negative and state-change replies.
    Meta,
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Data => "data",
            Self::Meta => "meta",
        })
    }
}

/// Where a command may come (wire 3.1, column "Sock").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocketUse {
    /// Only on this socket.
    Only(Socket),
    /// On both (P_DELAY_PROBE).
    Both,
}

macro_rules! commands {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $wire:literal, $socket:expr;)*) => {
        /// A command that a version 100 or 101 node sends and understands.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u16)]
        pub enum Command {
            $($(#[$doc])* $name = $number,)*
        }

        impl Command {
            /// Every command, by number.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The number on the wire.
            #[must_use]
            pub const fn number(self) -> u16 {
                self as u16
            }

            /// The name in DRBD's words: `P_DATA`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $wire,)* }
            }

            /// The socket that it is sent on.
            #[must_use]
            pub const fn socket(self) -> SocketUse {
                match self { $(Self::$name => $socket,)* }
            }
        }

        impl TryFrom<u16> for Command {
            type Error = ProtocolError;

            fn try_from(number: u16) -> Result<Self, ProtocolError> {
                match number {
                    $($number => Ok(Self::$name),)*
                    _ => Err(ProtocolError::UnknownCommand { number }),
                }
            }
        }
    };
}

const D: SocketUse = SocketUse::Only(Socket::Data);
const M: SocketUse = SocketUse::Only(Socket::Meta);

commands! {
    /// Replicated write.
    Data = 0x00, "P_DATA", D;
    /// Answer to [`Command::DataRequest`].
    DataReply = 0x01, "P_DATA_REPLY", D;
    /// Answer to a resync request.
    RsDataReply = 0x02, "P_RS_DATA_REPLY", D;
    /// Closes a write epoch.
    Barrier = 0x03, "P_BARRIER", D;
    /// Plain bitmap chunk; empty: the end.
    Bitmap = 0x04, "P_BITMAP", D;
    /// Hint: submit what you have.
    UnplugRemote = 0x07, "P_UNPLUG_REMOTE", D;
    /// Application read from the peer.
    DataRequest = 0x08, "P_DATA_REQUEST", D;
    /// Sync target asks for a block.
    RsDataRequest = 0x09, "P_RS_DATA_REQUEST", D;
    /// Network parameters, once for each connection.
    Protocol = 0x0b, "P_PROTOCOL", D;
    /// Data generation identifiers.
    Uuids = 0x0c, "P_UUIDS", D;
    /// Sizes and queue limits.
    Sizes = 0x0d, "P_SIZES", D;
    /// State word.
    State = 0x0e, "P_STATE", D;
    /// Starts the sync target.
    SyncUuid = 0x0f, "P_SYNC_UUID", D;
    /// CRAM-HMAC challenge.
    AuthChallenge = 0x10, "P_AUTH_CHALLENGE", D;
    /// CRAM-HMAC response.
    AuthResponse = 0x11, "P_AUTH_RESPONSE", D;
    /// State change of one volume that needs the peer's consent.
    StateChgReq = 0x12, "P_STATE_CHG_REQ", D;
    /// Are you there?
    Ping = 0x13, "P_PING", M;
    /// I am here.
    PingAck = 0x14, "P_PING_ACK", M;
    /// Protocol B: the write was received.
    RecvAck = 0x15, "P_RECV_ACK", M;
    /// Protocol C: the write is done.
    WriteAck = 0x16, "P_WRITE_ACK", M;
    /// Like [`Command::WriteAck`], and the bits were cleared.
    RsWriteAck = 0x17, "P_RS_WRITE_ACK", M;
    /// Two primaries: the write was discarded, count it as done.
    Superseded = 0x18, "P_SUPERSEDED", M;
    /// The write failed on the peer.
    NegAck = 0x19, "P_NEG_ACK", M;
    /// An application read failed on the peer.
    NegDreply = 0x1a, "P_NEG_DREPLY", M;
    /// A resync or verify request failed on the peer.
    NegRsDreply = 0x1b, "P_NEG_RS_DREPLY", M;
    /// Epoch complete.
    BarrierAck = 0x1c, "P_BARRIER_ACK", M;
    /// Answer to [`Command::StateChgReq`].
    StateChgReply = 0x1d, "P_STATE_CHG_REPLY", M;
    /// Verify source: hash this block.
    OvRequest = 0x1e, "P_OV_REQUEST", D;
    /// Verify target's hash.
    OvReply = 0x1f, "P_OV_REPLY", D;
    /// Verify source's verdict.
    OvResult = 0x20, "P_OV_RESULT", M;
    /// Checksum resync request.
    CsumRsRequest = 0x21, "P_CSUM_RS_REQUEST", D;
    /// Sync source: hashes are equal.
    RsIsInSync = 0x22, "P_RS_IS_IN_SYNC", M;
    /// Resync parameters.
    SyncParam89 = 0x23, "P_SYNC_PARAM89", D;
    /// Run-length coded bitmap chunk.
    CompressedBitmap = 0x24, "P_COMPRESSED_BITMAP", D;
    /// Ignored on receipt, never sent.
    DelayProbe = 0x27, "P_DELAY_PROBE", SocketUse::Both;
    /// Mark a range dirty.
    OutOfSync = 0x28, "P_OUT_OF_SYNC", D;
    /// Sync source went Ahead: the request is dropped.
    RsCancel = 0x29, "P_RS_CANCEL", M;
    /// State change of the connection that needs the peer's consent.
    ConnStChgReq = 0x2a, "P_CONN_ST_CHG_REQ", D;
    /// Answer to [`Command::ConnStChgReq`].
    ConnStChgReply = 0x2b, "P_CONN_ST_CHG_REPLY", M;
    /// Two primaries: issue the write again.
    RetryWrite = 0x2c, "P_RETRY_WRITE", M;
    /// Network parameters changed on a live connection.
    ProtocolUpdate = 0x2d, "P_PROTOCOL_UPDATE", D;
    /// Replicated discard.
    Trim = 0x31, "P_TRIM", D;
    /// Resync request whose answer may be [`Command::RsDeallocated`].
    RsThinReq = 0x32, "P_RS_THIN_REQ", D;
    /// The block is all zero on the sync source.
    RsDeallocated = 0x33, "P_RS_DEALLOCATED", D;
    /// Write same.
    Wsame = 0x34, "P_WSAME", D;
    /// Replicated zero-out.
    Zeroes = 0x36, "P_ZEROES", D;
    /// First packet of the meta socket.
    InitialMeta = 0xfff1, "P_INITIAL_META", M;
    /// First packet of the data socket.
    InitialData = 0xfff2, "P_INITIAL_DATA", D;
    /// Versions and features.
    ConnectionFeatures = 0xfffe, "P_CONNECTION_FEATURES", D;
}

impl Command {
    /// Whether it may come on `socket`.
    #[must_use]
    pub fn belongs_on(self, socket: Socket) -> bool {
        match self.socket() {
            SocketUse::Only(only) => only == socket,
            SocketUse::Both => true,
        }
    }

    /// Whether the volume of its header is without meaning: sent as 0, ignored on receipt (wire 2.1).
    #[must_use]
    pub const fn is_connection_level(self) -> bool {
        matches!(
            self,
            Self::InitialData
                | Self::InitialMeta
                | Self::ConnectionFeatures
                | Self::AuthChallenge
                | Self::AuthResponse
                | Self::Protocol
                | Self::ProtocolUpdate
                | Self::Barrier
                | Self::BarrierAck
                | Self::Ping
                | Self::PingAck
                | Self::ConnStChgReq
                | Self::ConnStChgReply
        )
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_survives_its_number() {
        for &command in Command::ALL {
            assert_eq!(Command::try_from(command.number()), Ok(command));
        }
    }

    #[test]
    fn numbers_without_a_handler_are_refused() {
        for number in [
            0x05, 0x06, 0x0a, 0x25, 0x26, 0x2e, 0x35, 0x40, 0x100, 0x101, 0xffff,
        ] {
            let refused = Err(ProtocolError::UnknownCommand { number });
            assert_eq!(Command::try_from(number), refused);
        }
    }
}
