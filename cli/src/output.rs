//! Standard output and standard error. A reader that went away (`| head`) is not an error.

use std::io::Write;

/// Writes data to standard output.
pub(crate) fn out(text: &str) {
    let mut stdout = std::io::stdout().lock();
    if let Err(error) = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            std::process::exit(0);
        }
        err(&format!("cannot write to standard output: {error}"));
        std::process::exit(20);
    }
}

/// Writes one line of data to standard output.
pub(crate) fn out_line(line: &str) {
    out(&format!("{line}\n"));
}

/// Writes one line for a person to standard error.
pub(crate) fn err(line: &str) {
    // Where nobody can be told, nobody can be told that either.
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}
