//! How far a long command has come: one line on standard error, drawn over itself. Only a terminal sees it; a pipe or a log does not.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use crate::{config::Environment, escape::escaped};

/// Faster, and nobody could read it.
const DRAW_EVERY: Duration = Duration::from_millis(100);
/// Characters of the bar itself.
const BAR: usize = 24;
/// With the bar below the 80 columns that every terminal has: a longer line would not draw over itself.
const TEXT_CHARS_MAX: usize = 44;

/// The line.
#[derive(Debug)]
pub(super) struct Progress {
    is_shown: bool,
    drawn: Option<Instant>,
}

impl Progress {
    /// Shown if somebody looks at standard error.
    pub(super) fn new(environment: &Environment) -> Self {
        let is_dumb = environment.get("TERM").is_some_and(|terminal| terminal == "dumb");
        Self { is_shown: io::stderr().is_terminal() && !is_dumb, drawn: None }
    }

    /// Says what is done, how much of how much; of 0, nobody knows how much there is.
    pub(super) fn tell(&mut self, text: &str, done: u64, total: u64) {
        if !self.is_shown || self.drawn.is_some_and(|drawn| drawn.elapsed() < DRAW_EVERY) {
            return;
        }
        self.drawn = Some(Instant::now());
        // A terminal that is gone is none that has to be told.
        _ = write!(io::stderr(), "\r\x1b[K{}", line(text, done, total));
        _ = io::stderr().flush();
    }

    /// Takes the line away, for what is printed next.
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
    fn a_line_fits_a_terminal_and_commands_nothing() {
        assert_eq!(line("x", 1, 2), "[############............]  50 %  x");
        assert_eq!(line("x\x1b", 9, 3), "[########################] 100 %  x\\u001b");
        assert_eq!(line("x", 7, 0), "x");
        assert!(line(&"y".repeat(200), 999, 1000).chars().count() < 80);
    }
}
