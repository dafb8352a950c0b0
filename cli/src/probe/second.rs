//! A second opinion on an export, from a client that shares no code with Tandem: the `nbd` crate, which speaks the handshake of old
//! clients (docs/spec/nbd.md 3.2, `EXPORT_NAME`).

use std::io::{self, Read, Write};

use nbd::client::{NbdClient, handshake};

use super::haggle::READ_BYTES;

/// What an old client meets: the size in bytes, and how many bytes it read at the beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Opinion {
    pub(super) size: u64,
    pub(super) read: usize,
}

/// Asks over a connection of its own.
///
/// # Errors
/// The server refuses old clients (it hangs up: that handshake has no words for it), or the connection broke.
pub(super) fn ask<S: Read + Write>(mut stream: S, export: &str) -> io::Result<Opinion> {
    let told = handshake(&mut stream, export.as_bytes())?;
    let mut start = [0; READ_BYTES as usize];
    let wanted = usize::try_from(told.size).unwrap_or(usize::MAX);
    let wanted = wanted.min(start.len());
    let start = start.get_mut(..wanted).unwrap_or_default();
    NbdClient::new(stream, &told).read_exact(start)?;
    Ok(Opinion {
        size: told.size,
        read: start.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probe::tests::Said;

    fn server(size: u64, answer: &[u8]) -> Said {
        let greeting: [&[u8]; 6] = [
            b"NBDMAGICIHAVEOPT",
            &[0, 1],
            &size.to_be_bytes(),
            &[0, 1],
            &[0; 124],
            answer,
        ];
        Said::all(&greeting)
    }

    #[test]
    fn size_and_beginning_of_an_export_are_asked_for() {
        let reply = [&[0x67, 0x44, 0x66, 0x98][..], &[0; 4 + 8], &[7; 512]].concat();
        let opinion = ask(server(512, &reply), "r0").unwrap();
        assert_eq!(
            opinion,
            Opinion {
                size: 512,
                read: 512
            }
        );
    }

    #[test]
    fn a_server_that_hangs_up_or_fails_the_read_has_no_opinion() {
        assert!(ask(Said::all(&[b"NBDMAGICIHAVEOPT\0\x01"]), "r0").is_err());
        let failed = [&[0x67, 0x44, 0x66, 0x98, 0, 0, 0, 5][..], &[0; 8]].concat();
        assert!(ask(server(u64::MAX, &failed), "r0").is_err());
    }
}
