//! The benchmark starts itself again in a network namespace of its own: nothing that its processes send reaches any other network, ports
//! are all free, and the loopback interface's counters count them alone.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

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

fn run(command: &str, arguments: &[&str]) -> Result<()> {
    let status = Command::new(command).args(arguments).stdin(Stdio::null()).status();
    let status = status.with_context(|| format!("{command} is not installed"))?;
    if !status.success() {
        bail!("{command} {}: {status}", arguments.join(" "));
    }
    Ok(())
}
