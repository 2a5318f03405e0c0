//! [`Progress`]: line that shows the progress of a long command, redrawn on standard error, only on a
//! terminal.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use crate::{config::Environment, escape::escaped};

/// Interval of redraws; shorter ones are not readable.
const DRAW_EVERY: Duration = Duration::from_millis(100);
/// Width of the bar, in characters.
const BAR: usize = 24;
/// The longest text. With the bar the line stays below 80 columns: a wrapped line could not be redrawn.
const TEXT_CHARS_MAX: usize = 44;

/// State of the progress line.
#[derive(Debug)]
pub(super) struct Progress {
    is_shown: bool,
    drawn: Option<Instant>,
}

impl Progress {
    /// Returns a line that is visible only if standard error is a terminal.
    pub(super) fn new(environment: &Environment) -> Self {
        let is_dumb = environment.get("TERM").is_some_and(|terminal| terminal == "dumb");
        Self { is_shown: io::stderr().is_terminal() && !is_dumb, drawn: None }
    }

    /// Redraws the line. A `total` of 0 means unknown.
    pub(super) fn update(&mut self, text: &str, done: u64, total: u64) {
        if !self.is_shown || self.drawn.is_some_and(|drawn| drawn.elapsed() < DRAW_EVERY) {
            return;
        }
        self.drawn = Some(Instant::now());
        // Write errors are ignored: the terminal may be gone.
        _ = write!(io::stderr(), "\r\x1b[K{}", line(text, done, total));
        _ = io::stderr().flush();
    }

    /// Erases the line.
    pub(super) fn clear(&mut self) {
        if self.drawn.take().is_some() {
            _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

fn line(text: &str, done: u64, total: u64) -> String {
    let text: String = escaped(text).chars().take(TEXT_CHARS_MAX).collect();
    if total == 0 {
        return text;
    }
    let share = done.min(total) as f64 / total as f64;
    let full = (share * BAR as f64) as usize;
    format!("[{}{}] {:>3.0} %  {text}", "#".repeat(full), ".".repeat(BAR - full), (share * 100.0).floor())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_fits_a_terminal_and_is_escaped() {
        assert_eq!(line("x", 1, 2), "[############............]  50 %  x");
        assert_eq!(line("x\x1b", 9, 3), "[########################] 100 %  x\\u001b");
        assert_eq!(line("x", 7, 0), "x");
        assert!(line(&"y".repeat(200), 999, 1000).chars().count() < 80);
    }
}
