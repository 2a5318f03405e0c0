//! What SIGHUP means to this process: a daemon reloads its options, a node whose terminal has gone leaves, and one that was started to
//! ignore it (`nohup`) goes on.

use std::fs;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a process does on SIGHUP. Decided once, at its start: the terminal is gone by the time the signal comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum OnHangup {
    /// Read the options again.
    Reload,
    /// Say goodbye and stop.
    Leave,
    /// Nothing, as the parent process wished.
    Ignore,
}

impl OnHangup {
    /// Of this process. Where `/proc` does not tell, it reloads.
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

    /// The signals as they come. `None`: they are not to be caught, because catching one ends that it is ignored.
    pub(crate) fn signals(self) -> std::io::Result<Option<Signal>> {
        (self != Self::Ignore).then(|| signal(SignalKind::hangup())).transpose()
    }
}

/// Whether SIGHUP, the first signal, is in the mask of ignored ones: `/proc/PID/status`, proc(5).
fn is_ignored(status: &str) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

/// Whether the process has a controlling terminal: the fifth field behind the name in `/proc/PID/stat`, proc(5). The name may hold anything.
fn has_terminal(stat: &str) -> bool {
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
    fields.split_whitespace().nth(4).is_some_and(|terminal| terminal != "0")
}

/// The next of these signals; never, where they are not caught.
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
