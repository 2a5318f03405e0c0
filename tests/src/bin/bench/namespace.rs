//! Restarts the benchmark in a separate network namespace. So no traffic reaches another network, all ports
//! are free, and the loopback interface counts only the benchmark's bytes.

use std::{
    fs,
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};

/// Environment variable that is set for the process inside the namespace.
const INSIDE: &str = "HEARSAY_BENCH_INSIDE";

/// Where this process runs.
pub(crate) enum Place {
    /// Inside the namespace.
    Inside,
    /// Outside the namespace. The process inside has ended successfully.
    Done,
}

/// Enters a namespace by running the same command again.
///
/// # Errors
/// No namespace can be created (not root, or a tool is missing), or the process inside failed.
pub(crate) fn enter() -> Result<Place> {
    if std::env::var_os(INSIDE).is_some() {
        // The variable may be inherited by mistake, and traffic on a real interface cannot be undone.
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

/// Lists the names of the interfaces.
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
