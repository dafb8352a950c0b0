//! Other processes, as a person knows them.

/// `pid 812 (qemu-img)`, or only the number if the process is gone or hidden.
pub(crate) fn name_of(pid: i32) -> String {
    match std::fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("pid {pid} ({})", name.trim()),
        Err(_) => format!("pid {pid}"),
    }
}
