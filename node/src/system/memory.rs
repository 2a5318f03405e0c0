//! Returns memory to the system after the start, and after bursts of connections.
//!
//! Most of a node's resident memory is code and constants of the program and of the C library. Half of it is
//! used only at the start, and is returned a little later. Pages that are needed again are read from the
//! file.
//!
//! A node that many others name in `--join` holds buffers for all of them at once: twelve megabytes for a
//! hundred nodes. The C library would keep that memory until the process ends, because it returns memory only
//! from the end of its heap.

use std::time::Duration;

use tokio::sync::watch;

use crate::driver_command::Neighbourhood;

/// Connections of a burst. Fewer connections leave little unused memory.
const BURST: usize = 16;
/// How long the number of connections must be constant: nodes join in waves.
const CALM: Duration = Duration::from_secs(2);

/// Pauses after which the work of a start is done: first that of the node, then that of a cluster that starts
/// as a whole.
const SETTLED: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(20)];

/// Returns the memory that only the start needed.
pub(crate) async fn release_after_start() {
    for pause in SETTLED {
        tokio::time::sleep(pause).await;
        release_heap();
        release_code();
    }
}

/// Returns memory whenever most connections of a burst are closed, until the driver ends.
pub(crate) async fn release_after_bursts(mut neighbourhood: watch::Receiver<Neighbourhood>) {
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
            release_heap();
            release_code();
        }
    }
}

/// Returns unused heap memory to the system. Takes some milliseconds, during which other threads may wait for
/// memory.
#[cfg(target_env = "gnu")]
#[allow(unsafe_code, reason = "no crate wraps it; it takes a number and touches only free memory")]
fn release_heap() {
    // SAFETY: glibc's documentation calls it thread-safe, and it has no preconditions.
    let gave = unsafe { libc::malloc_trim(0) } == 1;
    tracing::debug!(gave, "returned unused memory");
}

#[cfg(not(target_env = "gnu"))]
fn release_heap() {}

/// Removes code and constants of the program and its libraries from this process's memory. They stay in the
/// system's cache, and the next access maps them again.
#[allow(
    unsafe_code,
    reason = "no crate wraps it safely, because it is unsafe for memory that was written to"
)]
fn release_code() {
    let mappings = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    for (start, length) in unchanged_mappings(&mappings) {
        let address = std::ptr::without_provenance_mut::<libc::c_void>(start);
        // SAFETY: the range is a read-only mapping of a file without private pages, so its content equals the
        // file. On the next access the system fills it again from the file (madvise(2), MADV_DONTNEED).
        let gave = unsafe { libc::madvise(address, length, libc::MADV_DONTNEED) } == 0;
        tracing::debug!(gave, kib = length / 1024, "returned code that is not in use");
    }
}

/// Returns start and length of the mappings in `/proc/self/smaps` whose content equals their file: read-only
/// or executable, without private pages (`Anonymous`). The linker's relocations and a debugger's breakpoints
/// make private pages.
fn unchanged_mappings(mappings: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut candidate: Option<(usize, usize)> = None;
    for line in mappings.lines() {
        let mut words = line.split_ascii_whitespace();
        match words.next() {
            // The kernel lists `Anonymous:` before `Swap:`, which counts private pages as well.
            Some("Anonymous:") => candidate = candidate.filter(|_| words.next() == Some("0")),
            Some("Swap:") => found.extend(candidate.take().filter(|_| words.next() == Some("0"))),
            Some(field) if field.ends_with(':') => (),
            _ => candidate = read_only_file_range(line),
        }
    }
    found
}

/// Returns the range of a private, read-only mapping of a file, from its first line.
fn read_only_file_range(line: &str) -> Option<(usize, usize)> {
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
            unchanged_mappings(&mappings.concat()),
            [(0x5000, 0x1000), (0x6000, 0x2000), (0xc000, 0x1000)]
        );
        assert_eq!(unchanged_mappings("5000-6000 r-xp 0 fe:00 1 /bin/node\nSize: 4 kB"), [], "no word of it");
    }

    #[test]
    fn a_program_without_its_code_runs_on() {
        assert!(!unchanged_mappings(&std::fs::read_to_string("/proc/self/smaps").unwrap()).is_empty());
        release_code();
        assert_eq!("still here".len(), 10);
    }
}
