//! [`OnHangup`]: action on SIGHUP. A daemon reloads its options, a node that loses its terminal leaves, and
//! under `nohup` nothing happens.

use std::fs;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Action on SIGHUP. Decided at the start, because the terminal is gone when the signal arrives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OnHangup {
    /// Reload the options.
    Reload,
    /// Leave the cluster and stop.
    Leave,
    /// Do nothing: the parent process has set SIGHUP to be ignored.
    Ignore,
}

impl OnHangup {
    /// Determines the action for this process. Without `/proc`, the action is to reload.
    pub(crate) fn of_this_process() -> Self {
        let read = |name: &str| fs::read_to_string(format!("/proc/self/{name}")).unwrap_or_default();
        Self::of(&read("status"), &read("stat"))
    }

    fn of(status: &str, stat: &str) -> Self {
        if is_ignored(status) {
            Self::Ignore
        } else if has_terminal(stat) {
            Self::Leave
        } else {
            Self::Reload
        }
    }

    /// Returns the stream of signals. `None`: the signals stay ignored, because installing a handler would
    /// end that.
    pub(crate) fn signals(self) -> std::io::Result<Option<Signal>> {
        (self != Self::Ignore).then(|| signal(SignalKind::hangup())).transpose()
    }
}

/// Whether the mask of ignored signals in `/proc/PID/status` (proc(5)) has the first signal, SIGHUP.
fn is_ignored(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

/// Whether the process has a controlling terminal: the fifth field after the name in `/proc/PID/stat`
/// (proc(5)). The name may contain any characters.
fn has_terminal(stat: &str) -> bool {
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    fields.split_whitespace().nth(4).is_some_and(|terminal| terminal != "0")
}

/// Waits for the next signal; for ever if signals are ignored.
pub(crate) async fn next(signals: &mut Option<Signal>) {
    match signals {
        Some(signals) => _ = signals.recv().await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IGNORED: &str = "Name:\tnode\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\n";
    const CAUGHT: &str = "Name:\tnode\nSigIgn:\t0000000000001000\n";
    const ON_TERMINAL: &str = "12 (a) b) 0 0) S 1 12 12 34816 12 4194304 0";
    const DAEMON: &str = "12 (node) S 1 12 12 0 -1 4194304 0";

    #[test]
    fn a_daemon_reloads_a_node_on_a_terminal_leaves_and_nohup_is_respected() {
        assert_eq!(OnHangup::of(CAUGHT, DAEMON), OnHangup::Reload);
        assert_eq!(OnHangup::of(CAUGHT, ON_TERMINAL), OnHangup::Leave);
        assert_eq!(OnHangup::of(IGNORED, ON_TERMINAL), OnHangup::Ignore);
        assert_eq!(OnHangup::of(IGNORED, DAEMON), OnHangup::Ignore);
        assert_eq!(OnHangup::of("", ""), OnHangup::Reload);
    }
}
