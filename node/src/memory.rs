//! Gives memory back that a start, or a burst of connections, left behind.
//!
//! Most of a node's resident memory is its code, and half of that ran once, when it started. It is given back a little later; what is needed
//! again comes from the file.
//!
//! Whoever is named in everybody's `--join` fills everybody's table: with a hundred newcomers it holds buffers for a hundred connections
//! for a while, and for its lifetime would hold the twelve megabytes that they took, because the C library returns memory only from the
//! end of its heap.

use std::time::Duration;

use tokio::sync::watch;

use crate::driver::Neighbourhood;

/// Fewer connections than this leave nothing worth the trouble.
const BURST: usize = 16;
/// How long the number of connections must have stood still: newcomers come in waves.
const CALM: Duration = Duration::from_secs(2);

/// When a node has done what it does only once: by itself, and then with all the others of a cluster that starts as a whole.
const SETTLED: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(20)];

/// Gives back what only the start needed.
pub(crate) async fn give_back_after_start() {
    for pause in SETTLED {
        tokio::time::sleep(pause).await;
        give_back();
        give_back_code();
    }
}

/// Returns memory whenever most of many connections have been closed, until the driver is gone.
pub(crate) async fn give_back_after_bursts(mut neighbourhood: watch::Receiver<Neighbourhood>) {
    loop {
        if neighbourhood.wait_for(|n| n.neighbours.len() >= BURST).await.is_err()
            || neighbourhood.wait_for(|n| n.neighbours.len() < BURST).await.is_err()
        {
            return;
        }
        while let Ok(changed) = tokio::time::timeout(CALM, neighbourhood.changed()).await {
            if changed.is_err() {
                return;
            }
        }
        if neighbourhood.borrow().neighbours.len() < BURST {
            give_back();
            give_back_code();
        }
    }
}

/// Takes some milliseconds, during which other threads may have to wait for memory.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code, reason = "nobody wraps it, and it takes a number and touches only what is free")]
fn give_back() {
    // SAFETY: glibc's documentation calls it thread-safe, and it has no preconditions.
    let gave = unsafe { libc::malloc_trim(0) } == 1;
    tracing::debug!(gave, "returned unused memory");
}

#[cfg(not(target_env = "gnu"))]
fn give_back() {}

/// Takes the program's own code out of this process's memory, where it stays in the system's cache. Whatever runs next is mapped again at once.
#[allow(
    unsafe_code,
    reason = "nobody wraps it safely, because for memory that was written to it would not be"
)]
fn give_back_code() {
    let Ok(program) = std::fs::read_link("/proc/self/exe") else { return };
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for (start, length) in maps.lines().filter_map(|line| code_of(line, &program.to_string_lossy())) {
        let address = std::ptr::without_provenance_mut::<libc::c_void>(start);
        // SAFETY: the range is a mapping of this program's file that cannot be written to, so nothing in it differs from the file, from which
        // the system fills it again on the next access (madvise(2), MADV_DONTNEED).
        let gave = unsafe { libc::madvise(address, length, libc::MADV_DONTNEED) } == 0;
        tracing::debug!(gave, kib = length / 1024, "returned code that is not running");
    }
}

/// Where a line of `/proc/self/maps` says that the program's code is, and how long it is.
fn code_of(line: &str, program: &str) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let (range, permissions) = (words.next()?, words.next()?);
    if permissions != "r-xp" || words.nth(3)? != program {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let start = usize::from_str_radix(start, 16).ok()?;
    Some((start, usize::from_str_radix(end, 16).ok()?.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_the_program_itself_is_given_back() {
        let line =
            |permissions, path| format!("55d0a000-55d0c000 {permissions} 0000a000 fe:00 4711    {path}");
        assert_eq!(code_of(&line("r-xp", "/bin/node"), "/bin/node"), Some((0x55d0_a000, 0x2000)));
        assert_eq!(
            code_of(&line("r--p", "/bin/node"), "/bin/node"),
            None,
            "relocated data differs from the file"
        );
        assert_eq!(code_of(&line("rw-p", "/bin/node"), "/bin/node"), None);
        assert_eq!(code_of(&line("r-xp", "/lib/libc.so"), "/bin/node"), None);
        assert_eq!(code_of("7ffd-8000 r-xp 0 00:00 0", "/bin/node"), None);
    }

    #[test]
    fn a_program_without_its_code_runs_on() {
        give_back_code();
        assert_eq!("still here".len(), 10);
    }
}
