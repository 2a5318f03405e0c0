//! Describes the machine and the measured versions for every page of figures, and prepares the machine (open
//! files, idle processors).

use std::{
    fs,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::hearsay;

/// The lock file, which has the versions of the libraries in the agents.
const LOCK_FILE: &str = include_str!("../../../../Cargo.lock");

/// The date, in UTC.
pub(crate) fn date() -> String {
    first_line("date", &["-u", "+%Y-%m-%d %H:%M UTC"]).unwrap_or_else(|| "an unknown date".into())
}

/// Describes processor, memory and kernel.
pub(crate) fn describe() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let model = field(&cpuinfo, "model name").unwrap_or("unknown processor");
    let gib = kib("/proc/meminfo", "MemTotal").unwrap_or(0) as f64 / f64::from(1 << 30);
    format!("{cores} cores ({model}), {gib:.0} GiB of memory, Linux {}", kernel.trim())
}

/// Returns the version of the measured node, as it prints it.
pub(crate) fn node_version() -> (&'static str, String) {
    let node = hearsay::binary().and_then(|binary| first_line(&binary, &["--version"]));
    ("hearsay", node.unwrap_or_else(|| "unknown".to_owned()))
}

/// Returns the versions of the other systems in a cluster's comparison, as they print them.
pub(crate) fn versions() -> Vec<(&'static str, String)> {
    let unknown = || "unknown".to_owned();
    vec![
        node_version(),
        ("serf", first_line("serf", &["version"]).unwrap_or_else(unknown)),
        ("foca", locked_version(LOCK_FILE, "foca").unwrap_or("unknown").into()),
        ("chitchat", locked_version(LOCK_FILE, "chitchat").unwrap_or("unknown").into()),
    ]
}

/// Returns the memory that is available without swapping, in bytes.
pub(crate) fn available_memory() -> Option<u64> {
    kib("/proc/meminfo", "MemAvailable")
}

/// Returns this process's peak memory, in bytes; 0 if the kernel does not report it.
pub(crate) fn peak_memory() -> u64 {
    kib("/proc/self/status", "VmHWM").unwrap_or(0)
}

/// Raises the limit of open files of this process and its later children to this number, or as far as the
/// system allows.
///
/// # Errors
/// The system refuses.
pub(crate) fn allow_files(files: u64) -> Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let wanted = files.max(1024).min(maximum.unwrap_or(u64::MAX));
    setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }).context("the limit of open files")
}

/// Share of busy processor time above which the machine has foreign load, in percent.
const IDLE_PERCENT: f64 = 10.0;
/// Time over which the load is measured.
const LOOK: Duration = Duration::from_millis(300);

/// Waits until no other program loads the machine, but no longer than this bound. Foreign load would distort
/// the figures.
pub(crate) fn wait_until_idle(bound: Duration) {
    let begin = Instant::now();
    while begin.elapsed() < bound {
        let busy = || busy_ticks(&fs::read_to_string("/proc/stat").unwrap_or_default());
        let (first, from) = (busy(), Instant::now());
        thread::sleep(LOOK);
        let (Some(first), Some(last)) = (first, busy()) else { return };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let all =
            from.elapsed().as_secs_f64() * rustix::param::clock_ticks_per_second() as f64 * cores as f64;
        if (last.saturating_sub(first)) as f64 * 100.0 / all < IDLE_PERCENT {
            return;
        }
    }
    eprintln!("the machine is not idle; figures will be worse than they could be");
}

/// Returns the busy time of all processors: the first line of `/proc/stat` without idle and iowait.
fn busy_ticks(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<u64> = line.split_whitespace().map_while(|field| field.parse().ok()).collect();
    fields.iter().take(8).sum::<u64>().checked_sub(fields.get(3)? + fields.get(4)?)
}

/// Returns a value in bytes from a file of the kernel that states it in KiB.
fn kib(file: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let kib: u64 = field(&text, name)?.split(' ').next()?.parse().ok()?;
    Some(kib * 1024)
}

/// Returns the first line that a program prints, on either output; `None` if it is not installed.
pub(crate) fn first_line(command: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(command).args(arguments).stdin(Stdio::null()).output().ok()?;
    let text = if output.stdout.is_empty() { output.stderr } else { output.stdout };
    Some(String::from_utf8_lossy(&text).lines().next()?.trim().to_owned())
}

/// Returns the value of the first line `name : value`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim_start().strip_prefix(':')?.trim())
}

fn locked_version<'a>(lock: &'a str, package: &str) -> Option<&'a str> {
    let (_, entry) = lock.split_once(&format!("name = \"{package}\"\n"))?;
    entry.lines().next()?.strip_prefix("version = \"")?.strip_suffix('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_come_from_the_lock_file() {
        let lock = "[[package]]\nname = \"foca\"\nversion = \"2.0.0\"\nsource = \"x\"\n";
        assert_eq!(locked_version(lock, "foca"), Some("2.0.0"));
        assert!(locked_version(LOCK_FILE, "foca").is_some());
        assert!(locked_version(LOCK_FILE, "chitchat").is_some());
    }

    #[test]
    fn the_kernels_fields_are_read() {
        assert_eq!(busy_ticks("cpu  10 20 30 400 500 1 2 3 7 7\ncpu0 1 1\n"), Some(66));
        assert_eq!(field("vendor_id\t: x\nmodel name\t: A B\n", "model name"), Some("A B"));
        assert_eq!(field("MemTotal:       24000 kB\n", "MemTotal"), Some("24000 kB"));
    }
}
