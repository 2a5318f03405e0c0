//! `node grades`: import and export of the grade book as CSV.
//!
//! An import is sent in parts. Parts are idempotent, because the same line always means the same grade. So a
//! part whose answer is lost goes to the next grading node, and an interrupted import can be run again.

mod parts;

use std::{
    borrow::Cow,
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Subcommand;
use csv::ByteRecord;
use hearsay_services::plugins::{Sheet, SheetError};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::{Value, json};

use self::parts::{Header, Part};
use super::{
    client::{Client, Post},
    failure::Failure,
    output::{Output, Tone},
    progress::Progress,
    providers::{Probe, Providers, Role},
};
use crate::config::Environment;

/// The role that stores the grade book.
const GRADING: Role =
    Role { name: Cow::Borrowed("grading"), probe: Probe::Get("/students?limit=1"), keeps: "grade book" };
/// Maximum number of refused lines that are listed; further ones are only counted.
const LISTED_MAX: usize = 10_000;
/// Silence after which an export fails.
const SILENCE_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Subcommand)]
pub(super) enum GradesCommand {
    /// Import a CSV file; exit code 1 if lines were refused (the others are imported)
    #[command(
        after_help = "The first line has the column names, in any order: ID,FirstName,LastName,Title,Type,Score. \
        FirstName and LastName are required; a line without Title, Type and Score adds only the student. Fields are separated by commas, \
        semicolons or tabs, as in the header; with semicolons or tabs, 92,5 is a score. The text is UTF-8, or UTF-16 with a byte order \
        mark. Columns without a name and lines without a value are ignored. A file can be imported again: nothing is added twice.\n\nExamples:\n  node grades import students.csv\n  \
        cut -d, -f1-6 all.csv | node grades import - --node http://db1:7500"
    )]
    Import {
        /// The file; - is standard input
        file: PathBuf,
    },
    /// Export the whole grade book as CSV, one line per grade
    #[command(after_help = "Examples:\n  node grades export students.csv\n  node grades export | head")]
    Export {
        /// The file; replaced when the export is complete [default: standard output]
        file: Option<PathBuf>,
        /// Start with a byte order mark, which Excel needs for letters such as ü
        #[arg(long)]
        excel: bool,
    },
}

pub(super) async fn run(
    command: &GradesCommand,
    client: &Client,
    output: Output,
    environment: &Environment,
) -> Result<(), Failure> {
    match command {
        GradesCommand::Import { file } => import(client, output, file, Progress::new(environment)).await,
        GradesCommand::Export { file, excel } => {
            let path = if *excel { "/students/export?excel" } else { "/students/export" };
            match file.as_deref().filter(|file| *file != Path::new("-")) {
                None if output.json => {
                    Err(Failure::Usage("the export is CSV; with --json, name a file for it".into()))
                }
                file => export(client, output, (path, file), Progress::new(environment)).await,
            }
        }
    }
}

/// Result of an import so far.
#[derive(Debug, Default)]
struct Report {
    lines: u64,
    grades: u64,
    refused: u64,
    problems: Vec<(u64, String)>,
}

/// A node's answer to a part.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PartReport {
    grades: u64,
    refused: u64,
    problems: Vec<RefusedLine>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RefusedLine {
    line: u64,
    problem: String,
}

impl Report {
    fn refuse(&mut self, line: u64, problem: String) {
        self.refused += 1;
        if self.problems.len() < LISTED_MAX {
            self.problems.push((line, problem));
        }
    }

    fn add(&mut self, part: PartReport, place: impl Fn(u64) -> u64) {
        self.grades += part.grades;
        // A line that caused several writes may be listed several times. It is counted once.
        let mut problems: Vec<_> = part.problems.into_iter().map(|p| (place(p.line), p.problem)).collect();
        problems.sort();
        let listed = problems.len() as u64;
        problems.dedup_by_key(|(line, _)| *line);
        self.refused += part.refused.saturating_sub(listed);
        problems.into_iter().for_each(|(line, problem)| self.refuse(line, problem));
    }

    fn print(&mut self, output: Output, file: &Path) -> Result<(), Failure> {
        self.problems.sort();
        let unlisted = self.refused - self.problems.len() as u64;
        let taken = self.lines.saturating_sub(self.refused);
        if output.json {
            let problems: Vec<Value> = self
                .problems
                .iter()
                .map(|(line, problem)| json!({ "line": line, "problem": problem }))
                .collect();
            let report = json!({
                "file": file.display().to_string(),
                "lines": self.lines,
                "taken": taken,
                "grades": self.grades,
                "refused": self.refused,
                "problems": problems,
                "unlisted": unlisted,
            });
            return output.json(report.to_string().as_bytes());
        }
        if !self.problems.is_empty() {
            let row =
                |(line, problem): &(u64, String)| (Tone::Plain, vec![line.to_string(), problem.clone()]);
            output.table(&["LINE", "PROBLEM"], &self.problems.iter().map(row).collect::<Vec<_>>())?;
        }
        if unlisted > 0 {
            output.line(Tone::Plain, &format!("and {unlisted} more"))?;
        }
        let tone = if self.refused == 0 { Tone::Good } else { Tone::Warning };
        let Self { lines, grades, refused, .. } = self;
        output.line(tone, &format!("lines: {lines}, taken: {taken} (grades: {grades}), refused: {refused}"))
    }
}

async fn import(client: &Client, output: Output, file: &Path, mut progress: Progress) -> Result<(), Failure> {
    let (source, total) = open(file)?;
    let sheet = Sheet::open(source).map_err(|error| match error {
        SheetError::Io(error) => unreadable(file, &error),
        other => Failure::Refused(format!("{}: {other}", file.display())),
    })?;
    let header = Header::new(ByteRecord::from(sheet.columns().to_vec()));
    let providers = Providers::find(GRADING, client).await?;
    let mut import = Import { file, sheet, header, providers, report: Report::default() };
    let ended = import.send_all(|done, report| {
        let text = format!("{} lines, {} refused", report.lines, report.refused);
        progress.update(&text, done, total);
    });
    let ended = ended.await;
    progress.clear();
    let mut report = import.report;
    if ended.is_err() && report.lines == 0 {
        // No line was imported; only the failure matters.
        return ended;
    }
    report.print(output, file)?;
    if let Err(failure) = ended {
        notice!(
            "the import was interrupted after {} lines; run it again, nothing is added twice",
            report.lines
        );
        return Err(failure);
    }
    match report.refused {
        0 => Ok(()),
        1 => Err(Failure::Refused("one line was refused".into())),
        refused => Err(Failure::Refused(format!("{refused} lines were refused"))),
    }
}

/// An import in progress.
struct Import<'a> {
    file: &'a Path,
    sheet: Sheet<Box<dyn Read>>,
    header: Header,
    providers: Providers,
    report: Report,
}

impl Import<'_> {
    /// Sends all parts. On failure, the report has the lines sent so far.
    async fn send_all(&mut self, mut report_progress: impl FnMut(u64, &Report)) -> Result<(), Failure> {
        let (mut part, mut lines, mut refused) = (Part::new(&self.header), 0, Vec::new());
        let mut is_first = true;
        loop {
            let row = self.sheet.next_row().map_err(|error| unreadable(self.file, &error))?;
            let has_ended = row.is_none();
            if let Some(row) = row {
                lines += 1;
                match row.fields.and_then(|fields| self.header.complete(ByteRecord::from(fields))) {
                    Ok(record) => part.add(row.line, &record),
                    Err(problem) => refused.push((row.line, problem)),
                }
            }
            let is_full = part.is_full() || refused.len() >= parts::LINES_MAX;
            if !is_full && !has_ended {
                continue;
            }
            // A part without lines is sent only as the first, so that the node checks the header.
            if part.lines() > 0 || is_first {
                self.send_part(std::mem::replace(&mut part, Part::new(&self.header))).await?;
                is_first = false;
            }
            refused.drain(..).for_each(|(line, problem)| self.report.refuse(line, problem));
            self.report.lines += std::mem::take(&mut lines);
            report_progress(self.sheet.bytes_read(), &self.report);
            if has_ended {
                return Ok(());
            }
        }
    }

    async fn send_part(&mut self, part: Part) -> Result<(), Failure> {
        let (body, places) = part.finish();
        let post = Post {
            path: "/students/import",
            content_type: "text/csv; charset=utf-8",
            key: None,
            body: &body,
        };
        let answer = self.providers.post(post).await?;
        self.report.add(answer.json()?, |line| places.of(line));
        Ok(())
    }
}

fn unreadable(file: &Path, error: &io::Error) -> Failure {
    Failure::Failed(anyhow::anyhow!("cannot read {}: {error}", file.display()))
}

/// Opens the file and returns its size; 0: unknown.
fn open(file: &Path) -> Result<(Box<dyn Read>, u64), Failure> {
    if file == Path::new("-") {
        return Ok((Box::new(io::stdin()), 0));
    }
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Failure::NoMatch(format!("the file {} does not exist", file.display())),
        _ => unreadable(file, &error),
    };
    let opened = File::open(file).map_err(failed)?;
    let metadata = opened.metadata().map_err(failed)?;
    let total = if metadata.is_file() { metadata.len() } else { 0 };
    Ok((Box::new(opened), total))
}

async fn export(
    client: &Client,
    output: Output,
    (path, file): (&str, Option<&Path>),
    mut progress: Progress,
) -> Result<(), Failure> {
    let mut providers = Providers::find(GRADING, client).await?;
    let (provider, response) = providers.get(path).await?;
    let total = response.headers().get(http::header::CONTENT_LENGTH);
    let total = total.and_then(|length| length.to_str().ok()?.parse().ok()).unwrap_or(0);
    let Some(file) = file else {
        return copy(&provider, response.into_body(), &mut io::stdout().lock(), |_| ()).await.map(|_| ());
    };
    let written =
        |error: io::Error| Failure::Failed(anyhow::anyhow!("cannot write {}: {error}", file.display()));
    // A pipe or a device must not be replaced.
    let is_special = file.metadata().is_ok_and(|metadata| !metadata.is_file());
    let mut name = file.as_os_str().to_owned();
    if !is_special {
        name.push(".partial");
    }
    let partial = PathBuf::from(name);
    let mut target = if is_special { File::options().write(true).open(file) } else { File::create(&partial) }
        .map_err(written)?;
    let report_progress = |done| progress.update(&file.display().to_string(), done, total);
    let copied = copy(&provider, response.into_body(), &mut target, report_progress).await;
    progress.clear();
    let copied = copied.and_then(|copied| {
        if !is_special {
            target.sync_all().and_then(|()| std::fs::rename(&partial, file)).map_err(written)?;
        }
        Ok(copied)
    });
    if copied.is_err() && !is_special {
        // An incomplete export is removed.
        _ = std::fs::remove_file(&partial);
    }
    let (bytes, url) = (copied?, providers.url());
    if output.json {
        let summary = json!({ "file": file.display().to_string(), "bytes": bytes, "node": url });
        return output.json(summary.to_string().as_bytes());
    }
    output.line(Tone::Good, &format!("{}: {bytes} bytes from {url}", file.display()))
}

/// Copies a response body. Returns the number of bytes.
async fn copy(
    provider: &Client,
    mut body: Incoming,
    target: &mut impl Write,
    mut report_progress: impl FnMut(u64),
) -> Result<u64, Failure> {
    let broken = |problem: String| Failure::Unreachable { url: provider.url().to_owned(), problem };
    let mut bytes = 0;
    loop {
        let piece = match tokio::time::timeout(SILENCE_MAX, body.frame()).await {
            Ok(None) => break,
            Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
            Ok(Some(Err(error))) => return Err(broken(format!("the answer broke off: {error}"))),
            Err(_) => return Err(broken("no data within the timeout".into())),
        };
        target.write_all(&piece)?;
        bytes += piece.len() as u64;
        report_progress(bytes);
    }
    target.flush()?;
    Ok(bytes)
}
