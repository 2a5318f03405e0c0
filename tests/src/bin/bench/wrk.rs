//! Runs `wrk`, a load generator for HTTP, and parses its report.

use std::{process::Command, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};

use crate::process::bound;

/// Parameters of a run of `wrk`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wrk<'a> {
    pub(crate) url: &'a str,
    pub(crate) threads: usize,
    pub(crate) connections: usize,
    pub(crate) time: Duration,
    /// Processor to which `wrk` is bound.
    pub(crate) processor: Option<usize>,
}

/// Report of a run of `wrk`.
#[derive(Clone, Default, Debug)]
pub(crate) struct LoadReport {
    pub(crate) per_second: f64,
    pub(crate) requests: u64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) max_us: f64,
    pub(crate) errors: u64,
}

impl Wrk<'_> {
    /// Runs `wrk` and parses its report.
    ///
    /// # Errors
    /// `wrk` is not installed, fails, or got no answer.
    pub(crate) fn run(self) -> Result<LoadReport> {
        let mut command: Command = bound("wrk", self.processor);
        command.args([&format!("-t{}", self.threads), &format!("-c{}", self.connections)]);
        command.args([&format!("-d{}s", self.time.as_secs()), "--latency", self.url]);
        let output = command.output().context("wrk")?;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "wrk: {text}{}", String::from_utf8_lossy(&output.stderr));
        let Some(told) = read(&text) else { bail!("wrk says something else: {text}") };
        ensure!(told.requests > 0, "nothing was answered: {text}");
        Ok(told)
    }
}

/// Parses the report that `wrk` prints.
fn read(text: &str) -> Option<LoadReport> {
    let after = |start: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(start))?;
        Some(line.trim().to_owned())
    };
    let requests = text.lines().find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok())?;
    let max_us = after("Latency  ").and_then(|line| micros(line.split_whitespace().nth(2)?))?;
    let counted = |text: &str| {
        text.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse::<u64>().ok()).sum::<u64>()
    };
    let errors = ["Socket errors:", "Non-2xx or 3xx responses:"];
    Some(LoadReport {
        per_second: after("Requests/sec:")?.parse().ok()?,
        requests,
        p50_us: micros(&after("50%")?)?,
        p99_us: micros(&after("99%")?)?,
        max_us,
        errors: errors.iter().filter_map(|start| after(start)).map(|line| counted(&line)).sum(),
    })
}

/// Parses a time such as `532.00us`, `1.98ms` or `1.02s`, in microseconds.
fn micros(text: &str) -> Option<f64> {
    let number = |text: &str| text.parse::<f64>().ok();
    match text {
        text if text.ends_with("us") => number(text.strip_suffix("us")?),
        text if text.ends_with("ms") => Some(number(text.strip_suffix("ms")?)? * 1e3),
        text => Some(number(text.strip_suffix('s')?)? * 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_says_is_read() {
        let text = "Running 1s test @ http://x/\n  1 threads and 64 connections\n  Thread Stats   Avg      Stdev     Max   +/- Stdev\n    \
                    Latency     1.98ms    1.10ms  20.50ms   90.00%\n    Req/Sec    32.10k     1.00k   33.00k    70.00%\n  \
                    Latency Distribution\n     50%    1.87ms\n     75%    2.00ms\n     90%    2.50ms\n     99%  532.00us\n  \
                    32100 requests in 1.00s, 7.00MB read\n  Socket errors: connect 0, read 2, write 0, timeout 1\n  \
                    Non-2xx or 3xx responses: 4\nRequests/sec:  32100.50\nTransfer/sec:      7.00MB\n";
        let wrk = read(text).unwrap();
        assert_eq!((wrk.requests, wrk.per_second, wrk.errors), (32_100, 32_100.5, 7));
        assert_eq!((wrk.p50_us, wrk.p99_us, wrk.max_us), (1870.0, 532.0, 20_500.0));
        assert_eq!(micros("1.02s"), Some(1_020_000.0));
    }
}
