//! Measures the idle cost of processes: bytes on the wire, processor time and memory, from `/proc`.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// Memory and processor time of one process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Process {
    /// Processor time since the start of the process.
    cpu_ticks: u64,
    resident_kib: u64,
}

/// Reading of all processes and of the loopback interface.
#[derive(Debug)]
pub(crate) struct Reading {
    sent_bytes: u64,
    processes: Vec<Process>,
}

/// Average cost of one node between two readings.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Idle {
    /// Bytes that a node sends in a second, with IP and TCP or UDP headers.
    pub(crate) bytes_per_second: f64,
    /// Processor time, as a percentage of one core.
    pub(crate) cpu_percent: f64,
    pub(crate) resident_kib_p50: u64,
    pub(crate) resident_kib_max: u64,
    pub(crate) seconds: f64,
}

impl Reading {
    /// Reads these processes and the loopback interface of this namespace.
    ///
    /// # Errors
    /// A process is gone, or the kernel's files have another format.
    pub(crate) fn take(pids: impl Iterator<Item = u32>) -> Result<Self> {
        let sent_bytes =
            sent_bytes(&fs::read_to_string("/proc/net/dev")?).context("/proc/net/dev without lo")?;
        let process = |pid| {
            let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}"));
            let cpu_ticks = cpu_ticks(&read("stat")?).context("/proc/PID/stat")?;
            let resident_kib = resident_kib(&read("status")?).context("/proc/PID/status")?;
            Ok(Process { cpu_ticks, resident_kib })
        };
        Ok(Self { sent_bytes, processes: pids.map(process).collect::<Result<_>>()? })
    }

    /// Returns the processor time of these processes since an earlier reading, in seconds.
    pub(crate) fn cpu_seconds_since(&self, earlier: &Self) -> f64 {
        let ticks = |reading: &Self| reading.processes.iter().map(|process| process.cpu_ticks).sum::<u64>();
        (ticks(self) - ticks(earlier)) as f64 / rustix::param::clock_ticks_per_second() as f64
    }

    /// Returns the usage since an earlier reading of the same processes.
    pub(crate) fn since(&self, earlier: &Self, time: Duration) -> Idle {
        let (seconds, count) = (time.as_secs_f64(), self.processes.len().max(1) as f64);
        let cpu_seconds = self.cpu_seconds_since(earlier);
        let mut resident: Vec<u64> = self.processes.iter().map(|process| process.resident_kib).collect();
        resident.sort_unstable();
        Idle {
            bytes_per_second: (self.sent_bytes - earlier.sent_bytes) as f64 / seconds / count,
            cpu_percent: 100.0 * cpu_seconds / seconds / count,
            resident_kib_p50: resident.get(resident.len() / 2).copied().unwrap_or_default(),
            resident_kib_max: resident.last().copied().unwrap_or_default(),
            seconds,
        }
    }
}

impl Idle {
    /// Divides the usage of one process among the nodes that share it.
    pub(crate) fn shared_by(self, nodes: usize) -> Self {
        let parts = nodes.max(1) as u64;
        Self {
            bytes_per_second: self.bytes_per_second / parts as f64,
            cpu_percent: self.cpu_percent / parts as f64,
            resident_kib_p50: self.resident_kib_p50 / parts,
            resident_kib_max: self.resident_kib_max / parts,
            ..self
        }
    }
}

/// Parses the bytes that `lo` sent, which is the ninth number after its name. Loopback counts no Ethernet
/// headers.
fn sent_bytes(net_dev: &str) -> Option<u64> {
    let line = net_dev.lines().find_map(|line| line.trim_start().strip_prefix("lo:"))?;
    line.split_whitespace().nth(8)?.parse().ok()
}

/// Parses user and system time, the 14th and 15th fields of `stat`. The second field is the name in
/// parentheses, which may contain any characters.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut after_name = stat.rsplit_once(')')?.1.split_whitespace().skip(11).map(str::parse::<u64>);
    Some(after_name.next()?.ok()? + after_name.next()?.ok()?)
}

fn resident_kib(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_files_are_read() {
        let dev = "Inter-|   Receive  |  Transmit\n face |bytes\n  eth0: 1 2 3 4 5 6 7 8 9 10\n    lo: 11 2 0 0 0 0 0 0 77 2 0 0\n";
        assert_eq!(sent_bytes(dev), Some(77));
        let stat = "42 (a) b) S 1 42 42 0 -1 4194304 100 0 0 0 12 30 0 0 20 0 1 0";
        assert_eq!(cpu_ticks(stat), Some(42));
        assert_eq!(resident_kib("Name:\tx\nVmRSS:\t    8500 kB\n"), Some(8500));
        assert!(Reading::take([std::process::id()].into_iter()).is_ok());
    }

    #[test]
    fn costs_are_per_node_and_second() {
        let reading = |sent_bytes, cpu_ticks| {
            let process = |resident_kib| Process { cpu_ticks, resident_kib };
            Reading { sent_bytes, processes: vec![process(9), process(7)] }
        };
        let idle = reading(5000, 30).since(&reading(1000, 10), Duration::from_secs(10));
        assert_eq!(idle.bytes_per_second, 200.0);
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        assert_eq!(idle.cpu_percent, 100.0 * 20.0 / ticks / 10.0);
        assert_eq!((idle.resident_kib_p50, idle.resident_kib_max), (9, 9));
    }
}
