//! What the daemon asks of its allocator.

/// Places that all threads of the daemon allocate from.
///
/// glibc makes up to eight per processor, each keeps the holes between what is in use, and a daemon has six threads a resource: with forty
/// resources on two processors they kept as much again as was in use. What is small does not go there each time: each thread
/// has a stock of its own.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 4;

/// Bounds what the allocator keeps, unless the environment has a wish (`MALLOC_ARENA_MAX`). To be called before there are threads.
#[cfg(target_env = "gnu")]
#[expect(
    unsafe_code,
    reason = "a setting of the C library; its use has its proof"
)]
pub(crate) fn few_arenas() {
    if std::env::var_os("MALLOC_ARENA_MAX").is_none() {
        // SAFETY: this changes a number in the allocator, under its lock.
        let set = unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
        if set == 0 {
            tracing::warn!("the allocator takes no bound for its arenas; more memory may be held");
        }
    }
}

/// Other C libraries have no such setting.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn few_arenas() {}
