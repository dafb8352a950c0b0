//! Serves a file, or memory if none is named, on a Unix socket until it is killed:
//!
//! ```text
//! cargo run -p tandem-nbd-server --features std --example serve -- nbd.sock disk.img
//! nbdinfo 'nbd+unix:///disk?socket=nbd.sock'
//! ```

use std::error::Error;
use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::thread;

use tandem_nbd_server::Access;
use tandem_nbd_server::device::{Exports, FileDevice, MemoryDevice, plain_info, serve};

/// Size of the device in memory: 64 MiB.
const MEMORY_SIZE: usize = 64 << 20;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let socket = args.next().ok_or("usage: serve SOCKET [FILE]")?;
    let mut exports = Exports::default();
    match args.next() {
        Some(path) => {
            let mut file = File::options().read(true).write(true).open(&path)?;
            let size = file.seek(SeekFrom::End(0))?;
            let info = plain_info("disk", size, Access::ReadWrite);
            exports.add(info, Arc::new(FileDevice::new(file)));
        }
        None => {
            let info = plain_info("disk", MEMORY_SIZE as u64, Access::ReadWrite);
            exports.add(info, Arc::new(MemoryDevice::new(MEMORY_SIZE)));
        }
    }
    let listener = UnixListener::bind(&socket)?;
    eprintln!("serving nbd+unix:///disk?socket={socket}");
    for stream in listener.incoming() {
        let (stream, exports) = (stream?, exports.clone());
        thread::spawn(move || match serve(stream, &exports) {
            Ok(end) => eprintln!("session over: {end}"),
            Err(error) => eprintln!("connection lost: {error}"),
        });
    }
    Ok(())
}
