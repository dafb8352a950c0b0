//! Other processes, as a person knows them.

/// Whether a process runs: not one that has ended, or is ending, and still has a number in the kernel's tables.
pub(crate) fn is_there(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // `812 (a name (or so)) S ...`
    let state = stat.rsplit_once(')').map(|(_, rest)| rest.trim_start());
    state.is_some_and(|state| !state.starts_with(['Z', 'X']))
}

/// `pid 812 (qemu-img)`, or only the number if the process is gone or hidden.
pub(crate) fn name_of(pid: i32) -> String {
    match std::fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("pid {pid} ({})", name.trim()),
        Err(_) => format!("pid {pid}"),
    }
}
