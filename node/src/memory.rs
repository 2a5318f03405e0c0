//! Gives memory back that a start, or a burst of connections, left behind.
//!
//! Most of a node's resident memory is code and constants, its own and the C library's, and half of that was used once, when it started. It is
//! given back a little later; what is needed again comes from the file.
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

/// Takes code and constants, the program's own and its libraries', out of this process's memory; they stay in the system's cache. Whatever is
/// used next is mapped again at once.
#[allow(
    unsafe_code,
    reason = "nobody wraps it safely, because for memory that was written to it would not be"
)]
fn give_back_code() {
    let mappings = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    for (start, length) in as_in_their_files(&mappings) {
        let address = std::ptr::without_provenance_mut::<libc::c_void>(start);
        // SAFETY: the range is a mapping of a file that nobody can write to and that has no page of its own, so it is the same as in the file,
        // from which the system fills it again on the next access (madvise(2), MADV_DONTNEED).
        let gave = unsafe { libc::madvise(address, length, libc::MADV_DONTNEED) } == 0;
        tracing::debug!(gave, kib = length / 1024, "returned code that is not running");
    }
}

/// Where `/proc/self/smaps` shows what is the same as in its file, and how long that is: what can only be read or run, and has no page that
/// differs (`Anonymous`), as where the linker put addresses in before it was made read-only, or a debugger a breakpoint.
fn as_in_their_files(mappings: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut candidate: Option<(usize, usize)> = None;
    for line in mappings.lines() {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            // Comes before `Swap:`, where pages that differ may be as well.
            Some("Anonymous:") => candidate = candidate.filter(|_| words.next() == Some("0")),
            Some("Swap:") => found.extend(candidate.take().filter(|_| words.next() == Some("0"))),
            Some(field) if field.ends_with(':') => (),
            _ => candidate = unwritable(line),
        }
    }
    found
}

/// The range of a private mapping of a file that cannot be written to, from the first line about it.
fn unwritable(line: &str) -> Option<(usize, usize)> {
    let mut words = line.split_ascii_whitespace();
    let range = words.next()?;
    let readable = words.next().is_some_and(|permissions| matches!(permissions, "r--p" | "r-xp"));
    let of_a_file = words.nth(3).is_some_and(|path| path.starts_with('/'));
    let (start, end) = range.split_once('-').filter(|_| readable && of_a_file)?;
    let start = usize::from_str_radix(start, 16).ok()?;
    Some((start, usize::from_str_radix(end, 16).ok()?.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_as_in_its_file_is_given_back() {
        let mapping = |what: &str, anonymous: u32, swap: u32| {
            format!(
                "{what}\nSize: 4 kB\nPrivate_Dirty: 0 kB\nAnonymous: {anonymous} kB\nSwap: {swap} kB\nVmFlags: rd ex\n"
            )
        };
        let mappings = [
            mapping("5000-6000 r--p 00000000 fe:00 4711    /bin/node", 0, 0),
            mapping("6000-8000 r-xp 00001000 fe:00 4711    /bin/node", 0, 0),
            mapping("8000-9000 r--p 00003000 fe:00 4711    /bin/node", 376, 0),
            mapping("9000-a000 r--p 00003000 fe:00 4711    /bin/node", 0, 4),
            mapping("a000-b000 rw-p 00004000 fe:00 4711    /bin/node", 0, 0),
            mapping("b000-c000 r--p 00000000 00:00 0       [heap]", 0, 0),
            mapping("c000-d000 r-xp 00000000 fe:00 13      /lib/libc.so", 0, 0),
            mapping("d000-e000 r--s 00000000 fe:00 14      /lib/shared", 0, 0),
            mapping("e000-f000 r-xp 00000000 00:00 0", 0, 0),
        ];
        assert_eq!(
            as_in_their_files(&mappings.concat()),
            [(0x5000, 0x1000), (0x6000, 0x2000), (0xc000, 0x1000)]
        );
        assert_eq!(as_in_their_files("5000-6000 r-xp 0 fe:00 1 /bin/node\nSize: 4 kB"), [], "no word of it");
    }

    #[test]
    fn a_program_without_its_code_runs_on() {
        assert!(!as_in_their_files(&std::fs::read_to_string("/proc/self/smaps").unwrap()).is_empty());
        give_back_code();
        assert_eq!("still here".len(), 10);
    }
}
