//! The benchmark starts itself again in a network namespace of its own: nothing that its processes send reaches any other network, ports
//! are all free, and the loopback interface's counters count them alone.

use std::{
    fs,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

/// Set for the process that runs inside.
const INSIDE: &str = "HEARSAY_BENCH_INSIDE";

/// Where this process is.
pub(crate) enum Place {
    /// In the namespace.
    Inside,
    /// Outside; the one that was started inside has ended well.
    Done,
}

/// Enters a namespace by starting this very command again.
///
/// # Errors
/// There can be no namespace (not root, or a tool is missing), or the process inside failed.
pub(crate) fn enter() -> Result<Place> {
    if std::env::var_os(INSIDE).is_some() {
        // The variable may have been inherited from anywhere, and traffic on a real interface cannot be taken back.
        let net_dev = fs::read_to_string("/proc/net/dev")?;
        let interfaces = interfaces(&net_dev);
        ensure!(interfaces == ["lo"], "not in a namespace of its own: there are {}", interfaces.join(", "));
        run("ip", &["link", "set", "lo", "up"])?;
        return Ok(Place::Inside);
    }
    run("unshare", &["--net", "--mount", "true"])
        .context("this needs a network namespace, which takes root")?;
    let status = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--", "unshare", "--net", "--mount", "--"])
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(INSIDE, "1")
        .status()
        .context("setpriv (util-linux)")?;
    if !status.success() {
        bail!("the benchmark ended with {status}");
    }
    Ok(Place::Done)
}

/// The interfaces that there are.
fn interfaces(net_dev: &str) -> Vec<&str> {
    net_dev.lines().filter_map(|line| Some(line.split_once(':')?.0.trim())).collect()
}

fn run(command: &str, arguments: &[&str]) -> Result<()> {
    let status = Command::new(command).args(arguments).stdin(Stdio::null()).status();
    let status = status.with_context(|| format!("{command} is not installed"))?;
    if !status.success() {
        bail!("{command} {}: {status}", arguments.join(" "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_are_listed_without_the_heads_of_the_table() {
        let dev = "Inter-|   Receive  |  Transmit\n face |bytes  |bytes\n  eth0: 1 2\n    lo: 0 0\n";
        assert_eq!(interfaces(dev), ["eth0", "lo"]);
    }
}
