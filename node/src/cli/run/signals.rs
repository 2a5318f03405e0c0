//! Catches the signals that `node run` forwards to its command, and recognises those that the terminal has
//! already sent to it.

use std::{fs, io};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

/// Capacity of the queue of caught signals. When it is full, the tasks that catch them wait.
const WAITING_MAX: usize = 16;

/// Catches the signals to forward. Signals that were ignored when this process started (`nohup`) are not
/// caught, so the command ignores them as well.
pub(super) fn catch_signals() -> io::Result<mpsc::Receiver<SignalKind>> {
    let ignored = read_ignored_mask(&fs::read_to_string("/proc/self/status").unwrap_or_default());
    let (sender, caught) = mpsc::channel(WAITING_MAX);
    let kinds = [
        SignalKind::terminate(),
        SignalKind::interrupt(),
        SignalKind::hangup(),
        SignalKind::quit(),
        SignalKind::user_defined1(),
        SignalKind::user_defined2(),
        SignalKind::window_change(),
    ];
    for kind in kinds.into_iter().filter(|kind| !is_in(ignored, *kind)) {
        let (mut signals, sender) = (signal(kind)?, sender.clone());
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                if sender.send(kind).await.is_err() {
                    return;
                }
            }
        });
    }
    Ok(caught)
}

/// Whether the terminal sent this signal to the command, too. Ctrl-C, Ctrl-\ and size changes go to all
/// processes of the foreground group.
pub(super) fn is_sent_by_terminal(kind: SignalKind) -> bool {
    let by_terminal = [SignalKind::interrupt(), SignalKind::quit(), SignalKind::window_change()];
    by_terminal.contains(&kind)
        && is_in_foreground(&fs::read_to_string("/proc/self/stat").unwrap_or_default())
}

/// Whether a process is in the foreground of its terminal, by `/proc/PID/stat` (proc(5)): after the name,
/// which may contain any character, the third field is its group and the sixth the foreground group.
fn is_in_foreground(stat: &str) -> bool {
    let fields: Vec<_> = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace().collect();
    matches!((fields.get(2), fields.get(5)), (Some(group), Some(foreground)) if group == foreground)
}

/// Parses the mask of ignored signals in `/proc/PID/status` (proc(5)).
fn read_ignored_mask(status: &str) -> u64 {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

fn is_in(mask: u64, kind: SignalKind) -> bool {
    u32::try_from(kind.as_raw_value() - 1).is_ok_and(|bit| mask.checked_shr(bit).unwrap_or(0) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_foreground_of_a_terminal_is_detected() {
        assert!(is_in_foreground("12 (a) b) S 1 12 12 34816 12 4194304"));
        assert!(!is_in_foreground("12 (node) S 1 12 12 34816 40 4194304"));
        assert!(!is_in_foreground("12 (node) S 1 12 12 0 -1 4194304"));
        assert!(!is_in_foreground(""));
    }

    #[test]
    fn an_ignored_signal_is_known_from_the_mask() {
        let mask = read_ignored_mask("Name:\tnode\nSigIgn:\t0000000000001001\n");
        assert!(is_in(mask, SignalKind::hangup()) && !is_in(mask, SignalKind::interrupt()));
        assert_eq!(read_ignored_mask(""), 0);
    }
}
