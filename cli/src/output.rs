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

/// The same lines, each once, those that are there several times with their count.
pub(crate) fn grouped(lines: &[String]) -> Vec<String> {
    let mut counted: Vec<(&String, usize)> = Vec::new();
    for line in lines {
        match counted.iter_mut().find(|(known, _)| *known == line) {
            Some((_, count)) => *count += 1,
            None => counted.push((line, 1)),
        }
    }
    let text = |(line, count): (&String, usize)| match count {
        1 => line.clone(),
        _ => format!("{line} ({count} times)"),
    };
    counted.into_iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::grouped;

    #[test]
    fn a_line_that_is_there_several_times_is_said_once_with_its_count() {
        let lines = ["pid 1 (a)", "pid 2 (b)", "pid 1 (a)", "pid 1 (a)"].map(str::to_owned);
        assert_eq!(grouped(&lines), ["pid 1 (a) (3 times)", "pid 2 (b)"]);
        assert!(grouped(&[]).is_empty());
    }
}
