//! `process` check: passes while a process of this machine lives.
//!
//! A `pidfd` (Linux 5.3) becomes readable when the process ends, so its end is noticed at once without
//! polling. If the kernel or a sandbox refuses one, `/proc` is read at each interval. After its process ended
//! the check stays critical: the identity is never reused.

use std::{fs, io, os::fd::OwnedFd, time::Duration};

use rustix::{
    io::Errno,
    process::{Pid, PidfdFlags, pidfd_open},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::sleep,
};

use super::{outcome::Outcome, reporter::Reporter, spec::ProcessIdentity};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Position of `starttime`, the 22nd field of `/proc/PID/stat`, after the command, the 2nd.
const START_TICKS_AT: usize = 22 - 3;

impl ProcessIdentity {
    /// Returns the identity of the process with this pid.
    ///
    /// # Errors
    /// There is no such process, it is a zombie, or `/proc` cannot be read.
    pub fn of(pid: i32) -> io::Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let invalid = || io::Error::new(io::ErrorKind::InvalidData, "/proc/PID/stat has another form");
        let start_ticks = match parse_stat(&stat).ok_or_else(invalid)? {
            (b'Z' | b'X', _) => return Err(io::Error::new(io::ErrorKind::NotFound, "the process has ended")),
            (_, start_ticks) => start_ticks,
        };
        // The error does not say "no such process", because a sandbox may hide the boot id.
        let unknown = |error| io::Error::other(format!("{BOOT_ID} cannot be read: {error}"));
        let boot_id = fs::read_to_string(BOOT_ID).map_err(unknown)?.trim().to_owned();
        Ok(Self { pid, start_ticks, boot_id })
    }
}

/// Parses state and start time. Starts after the last parenthesis: the command may contain parentheses.
fn parse_stat(stat: &str) -> Option<(u8, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    Some((state, fields.nth(START_TICKS_AT - 1)?.parse().ok()?))
}

/// Returns the real uid of a process, which a set-user-ID program keeps.
///
/// # Errors
/// There is no such process, or `/proc` cannot be read.
pub fn owner_uid(pid: i32) -> io::Result<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let real = uids.and_then(|uids| uids.split_ascii_whitespace().next()?.parse().ok());
    real.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/PID/status has another form"))
}

/// Runs the check.
pub(super) async fn run(reporter: &Reporter, identity: &ProcessIdentity, interval: Duration) {
    let pid = identity.pid;
    loop {
        let opened = open_pidfd(pid);
        // Checked after the descriptor is open: it refers to the process that then has the pid, which may be
        // another one.
        if let Some(gone) = find_end(identity) {
            return reporter.set_if_new(gone).await;
        }
        let error = match opened {
            Ok(pidfd) => {
                reporter.set_if_new(Outcome::passing(format!("process {pid} lives"))).await;
                let _ = pidfd.readable().await;
                return reporter.set_if_new(Outcome::critical(format!("process {pid} has ended"))).await;
            }
            Err(error) => error,
        };
        let note = format!("process {pid} lives; looked at every {interval:?} ({error})");
        reporter.set_if_new(Outcome::passing(note)).await;
        sleep(interval).await;
    }
}

/// Opens a descriptor that becomes readable when the process ends.
#[expect(deprecated, reason = "the function is unsound for descriptors that are not owned; this one is")]
pub(super) fn open_pidfd(pid: i32) -> io::Result<AsyncFd<OwnedFd>> {
    let pid = Pid::from_raw(pid).ok_or(Errno::SRCH)?;
    AsyncFd::with_interest(pidfd_open(pid, PidfdFlags::empty())?, Interest::READABLE)
}

/// Returns the outcome if the process has ended. An unreadable `/proc`, for example without free descriptors,
/// is no evidence.
fn find_end(identity: &ProcessIdentity) -> Option<Outcome> {
    let pid = identity.pid;
    let is_absent = |error: &io::Error| {
        error.kind() == io::ErrorKind::NotFound || Errno::from_io_error(error) == Some(Errno::SRCH)
    };
    match ProcessIdentity::of(pid) {
        Ok(now) if now == *identity => None,
        Ok(now) if now.boot_id != identity.boot_id => {
            Some(Outcome::critical(format!("process {pid} has ended: the machine was started again")))
        }
        Ok(_) => Some(Outcome::critical(format!("process {pid} has ended; another process has its pid"))),
        Err(error) if is_absent(&error) => Some(Outcome::critical(format!("process {pid} has ended"))),
        Err(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_with_parentheses_and_spaces_does_not_move_the_fields() {
        let numbers: Vec<String> = (4..=30).map(|field| field.to_string()).collect();
        let stat = format!("77 (a) R (b c) S {}", numbers.join(" "));
        assert_eq!(parse_stat(&stat), Some((b'S', 22)));
        assert_eq!(parse_stat("77 (a) S 1 2"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn a_process_has_the_same_identity_each_time_and_an_owner() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let identity = ProcessIdentity::of(pid).unwrap();
        assert_eq!(ProcessIdentity::of(pid).unwrap(), identity);
        assert!(identity.start_ticks > 0 && !identity.boot_id.is_empty());
        assert_eq!(owner_uid(pid).unwrap(), rustix::process::getuid().as_raw());
        assert!(ProcessIdentity::of(i32::MAX).is_err());
        assert!(owner_uid(i32::MAX).is_err());
    }
}
