//! [`Output`]: prints the results of commands, as tables for people or as JSON for programs.
//!
//! A table has plain columns without borders, so that `awk` can read it. Each row is one line: cells come
//! from other nodes and are escaped. Colours are used only on a terminal and without `NO_COLOR`
//! (no-color.org).

use std::io::{self, IsTerminal as _, Write as _};

use comfy_table::{ContentArrangement, Table, presets::NOTHING};

use super::failure::Failure;
use crate::{config::Environment, escape::escaped};

/// Colour of a line, by meaning.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Tone {
    Plain,
    Good,
    Warning,
    Bad,
    Faint,
}

impl Tone {
    /// Returns the tone of a member's state or an instance's health.
    pub(super) fn of(word: &str) -> Self {
        match word {
            "suspect" | "warning" => Self::Warning,
            "failed" | "critical" => Self::Bad,
            "left" => Self::Faint,
            _ => Self::Plain,
        }
    }

    /// Returns the SGR parameter (ECMA-48).
    fn sgr(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Good => Some("32"),
            Self::Warning => Some("33"),
            Self::Bad => Some("31"),
            Self::Faint => Some("2"),
        }
    }
}

/// Output settings.
#[derive(Clone, Copy, Debug)]
pub(super) struct Output {
    /// Whether to print JSON.
    pub(super) json: bool,
    colour: bool,
}

impl Output {
    /// Returns the settings for this standard output and environment.
    pub(super) fn new(json: bool, environment: &Environment) -> Self {
        let wanted = environment.get("NO_COLOR").is_none()
            && environment.get("TERM").is_none_or(|terminal| terminal != "dumb");
        Self { json, colour: wanted && io::stdout().is_terminal() }
    }

    /// Prints text that is escaped already, and flushes it.
    pub(super) fn print(self, text: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()?;
        Ok(())
    }

    /// Prints one line, escaped.
    pub(super) fn line(self, tone: Tone, text: &str) -> Result<(), Failure> {
        self.print(&format!("{}\n", self.toned(tone, &escaped(text))))
    }

    /// Prints a node's JSON. Control characters and bidirectional formatting characters, which JSON allows
    /// unescaped, become `\u` escapes.
    pub(super) fn json(self, body: &[u8]) -> Result<(), Failure> {
        let invalid =
            |why: String| Failure::Refused(format!("the response is not one of a Hearsay node: {why}"));
        serde_json::from_slice::<serde::de::IgnoredAny>(body).map_err(|error| invalid(error.to_string()))?;
        let text = std::str::from_utf8(body).map_err(|error| invalid(error.to_string()))?;
        let mut safe = String::with_capacity(text.len() + 1);
        for line in text.lines() {
            safe += &escaped(line);
            safe.push('\n');
        }
        self.print(&safe)
    }

    /// Prints rows under a header.
    pub(super) fn table(self, header: &[&str], rows: &[(Tone, Vec<String>)]) -> Result<(), Failure> {
        self.print(&self.render(header, rows))
    }

    fn render(self, header: &[&str], rows: &[(Tone, Vec<String>)]) -> String {
        let mut table = Table::new();
        table.load_style(NOTHING).set_content_arrangement(ContentArrangement::Disabled).set_header(header);
        for (_, cells) in rows {
            // An empty cell would shift the columns for tools that split lines at spaces.
            table.add_row(cells.iter().map(|cell| match cell.trim() {
                "" => "-".to_owned(),
                cell => escaped(cell).into_owned(),
            }));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let tones = std::iter::once(Tone::Faint).chain(rows.iter().map(|(tone, _)| *tone));
        let lines = table.lines().zip(tones);
        lines.map(|(line, tone)| format!("{}\n", self.toned(tone, line.trim_end()))).collect()
    }

    fn toned(self, tone: Tone, text: &str) -> String {
        match tone.sgr().filter(|_| self.colour) {
            Some(sgr) => format!("\x1b[{sgr}m{text}\x1b[0m"),
            None => text.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<(Tone, Vec<String>)> {
        vec![
            (Tone::Plain, vec!["grading".into(), String::new(), "alive".into()]),
            (Tone::Bad, vec!["a\x1b[2J\nb".into(), "x".into(), "failed".into()]),
        ]
    }

    #[test]
    fn a_row_is_a_line_and_cells_are_escaped() {
        let text = Output { json: false, colour: false }.render(&["NAME", "TAGS", "STATE"], &rows());
        assert_eq!(
            text,
            "NAME           TAGS  STATE\n\
             grading        -     alive\n\
             a\\u001b[2J\\nb  x     failed\n"
        );
    }

    #[test]
    fn colour_marks_whole_lines_and_only_where_it_is_wanted() {
        let text = Output { json: false, colour: true }.render(&["NAME", "TAGS", "STATE"], &rows());
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[1].starts_with("grading"), "{text:?}");
        assert!(lines[2].starts_with("\x1b[31m") && lines[2].ends_with("\x1b[0m"), "{text:?}");
    }
}
