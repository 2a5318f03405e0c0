//! `node grades`: the grade book from CSV and to CSV.
//!
//! An import is sent in parts. Each can be sent again without harm, because the same line always names the same grade; so a part whose
//! answer is lost goes to the next node that keeps the book, and an import that broke off is simply run again.

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
use hearsay_services::grading::{Sheet, SheetError};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::{Value, json};

use self::parts::{Header, Part};
use super::{
    client::Client,
    failure::Failure,
    output::{Output, Tone},
    progress::Progress,
    providers::{Post, Probe, Providers, Role},
};
use crate::config::Environment;

/// The role whose nodes are asked.
const GRADING: Role =
    Role { name: Cow::Borrowed("grading"), probe: Probe::Get("/students?limit=1"), keeps: "grade book" };
/// Refused lines that are listed. The rest is counted: a file that is wrong altogether is not read line by line.
const LISTED_MAX: usize = 10_000;
/// An export that stands still for so long has broken off.
const SILENCE_MAX: Duration = Duration::from_secs(60);

#[derive(Debug, Subcommand)]
pub(super) enum GradesCommand {
    /// Add what the lines of a CSV file say; exit code 1 if some were refused (the others are taken)
    #[command(
        after_help = "The first line names the columns, in any order: ID,FirstName,LastName,Title,Type,Score. \
        FirstName and LastName must be there; a line without Title, Type and Score adds only the student. Fields are separated by commas, \
        semicolons or tabs, as in the header; with the latter two, 92,5 is a score. The text is UTF-8, or UTF-16 with its mark. Columns \
        without a name and lines without a value are passed over. The same file can be imported again: nothing is added twice.\n\nExamples:\n  node grades import students.csv\n  \
        cut -d, -f1-6 all.csv | node grades import - --node http://db1:7500"
    )]
    Import {
        /// The file; - is standard input
        file: PathBuf,
    },
    /// Print the whole book as CSV, one line for each grade, or write it to a file
    #[command(after_help = "Examples:\n  node grades export students.csv\n  node grades export | head")]
    Export {
        /// The file; replaced once all of it has come [default: standard output]
        file: Option<PathBuf>,
        /// Begin with a byte order mark, without which Excel takes letters such as ü for others
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
                    Err(Failure::Usage("what is exported is CSV; with --json, name a file for it".into()))
                }
                file => export(client, output, (path, file), Progress::new(environment)).await,
            }
        }
    }
}

/// What has become of an import so far.
#[derive(Debug, Default)]
struct Report {
    lines: u64,
    grades: u64,
    refused: u64,
    problems: Vec<(u64, String)>,
}

/// What a node says of a part.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Taken {
    grades: u64,
    refused: u64,
    problems: Vec<Refused>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Refused {
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

    fn add(&mut self, taken: Taken, place: impl Fn(u64) -> u64) {
        self.grades += taken.grades;
        // One line may be told twice, when several writes came of it.
        let mut told: Vec<_> = taken.problems.into_iter().map(|p| (place(p.line), p.problem)).collect();
        told.sort();
        let listed = told.len() as u64;
        told.dedup_by_key(|(line, _)| *line);
        self.refused += taken.refused.saturating_sub(listed);
        told.into_iter().for_each(|(line, problem)| self.refuse(line, problem));
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
    let mut sheet = Sheet::open(source).map_err(|error| match error {
        SheetError::Io(error) => unreadable(file, &error),
        other => Failure::Refused(format!("{}: {other}", file.display())),
    })?;
    let mut header = Header::new(ByteRecord::from(sheet.columns().to_vec()));
    let mut providers = Providers::find(GRADING, client).await?;
    let mut report = Report::default();
    let ended = send(file, &mut sheet, &mut header, &mut providers, &mut report, |done, report| {
        let text = format!("{} lines, {} refused", report.lines, report.refused);
        progress.tell(&text, done, total);
    });
    let ended = ended.await;
    progress.clear();
    if ended.is_err() && report.lines == 0 {
        // Nothing was taken, so there is nothing to tell but why.
        return ended;
    }
    report.print(output, file)?;
    if let Err(failure) = ended {
        notice!("the import broke off after {} lines; run it again, nothing is added twice", report.lines);
        return Err(failure);
    }
    match report.refused {
        0 => Ok(()),
        1 => Err(Failure::Refused("one line was refused".into())),
        refused => Err(Failure::Refused(format!("{refused} lines were refused"))),
    }
}

/// Sends all parts. What was sent when it fails is in the report.
async fn send(
    file: &Path,
    sheet: &mut Sheet<Box<dyn Read>>,
    header: &mut Header,
    providers: &mut Providers,
    report: &mut Report,
    mut tell: impl FnMut(u64, &Report),
) -> Result<(), Failure> {
    let (mut part, mut lines, mut refused) = (Part::new(header), 0, Vec::new());
    let mut is_first = true;
    loop {
        let row = sheet.next_row().map_err(|error| unreadable(file, &error))?;
        let has_ended = row.is_none();
        if let Some(row) = row {
            lines += 1;
            match row.fields.and_then(|fields| header.complete(ByteRecord::from(fields))) {
                Ok(record) => part.add(row.line, &record),
                Err(problem) => refused.push((row.line, problem)),
            }
        }
        let is_full = part.is_full() || refused.len() >= parts::LINES_MAX;
        if !is_full && !has_ended {
            continue;
        }
        // One without lines is sent only to hear what the node thinks of the header.
        if part.lines() > 0 || is_first {
            let (body, places) = std::mem::replace(&mut part, Part::new(header)).finish();
            let post = Post {
                path: "/students/import",
                content_type: "text/csv; charset=utf-8",
                key: None,
                body: &body,
            };
            let answer = providers.post(post).await?;
            report.add(answer.json()?, |line| places.of(line));
            is_first = false;
        }
        refused.drain(..).for_each(|(line, problem)| report.refuse(line, problem));
        report.lines += std::mem::take(&mut lines);
        tell(sheet.bytes_read(), report);
        if has_ended {
            return Ok(());
        }
    }
}

fn unreadable(file: &Path, error: &io::Error) -> Failure {
    Failure::Failed(anyhow::anyhow!("cannot read {}: {error}", file.display()))
}

/// The file, and how many bytes it has; 0 where nobody knows.
fn open(file: &Path) -> Result<(Box<dyn Read>, u64), Failure> {
    if file == Path::new("-") {
        return Ok((Box::new(io::stdin()), 0));
    }
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Failure::NoMatch(format!("there is no file {}", file.display())),
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
    // A pipe or a device cannot be replaced, and must not be.
    let is_special = file.metadata().is_ok_and(|metadata| !metadata.is_file());
    let mut name = file.as_os_str().to_owned();
    if !is_special {
        name.push(".partial");
    }
    let partial = PathBuf::from(name);
    let mut target = if is_special { File::options().write(true).open(file) } else { File::create(&partial) }
        .map_err(written)?;
    let tell = |done| progress.tell(&file.display().to_string(), done, total);
    let copied = copy(&provider, response.into_body(), &mut target, tell).await;
    progress.clear();
    let copied = copied.and_then(|copied| {
        if !is_special {
            target.sync_all().and_then(|()| std::fs::rename(&partial, file)).map_err(written)?;
        }
        Ok(copied)
    });
    if copied.is_err() && !is_special {
        // Half a book is none.
        _ = std::fs::remove_file(&partial);
    }
    let (bytes, url) = (copied?, providers.url());
    if output.json {
        let told = json!({ "file": file.display().to_string(), "bytes": bytes, "node": url });
        return output.json(told.to_string().as_bytes());
    }
    output.line(Tone::Good, &format!("{}: {bytes} bytes from {url}", file.display()))
}

/// Copies what comes. Returns how much it was.
async fn copy(
    provider: &Client,
    mut body: Incoming,
    target: &mut impl Write,
    mut tell: impl FnMut(u64),
) -> Result<u64, Failure> {
    let broken = |problem: String| Failure::Unreachable { url: provider.url().to_owned(), problem };
    let mut bytes = 0;
    loop {
        let piece = match tokio::time::timeout(SILENCE_MAX, body.frame()).await {
            Ok(None) => break,
            Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
            Ok(Some(Err(error))) => return Err(broken(format!("its answer broke off: {error}"))),
            Err(_) => return Err(broken("its answer does not end".into())),
        };
        target.write_all(&piece)?;
        bytes += piece.len() as u64;
        tell(bytes);
    }
    target.flush()?;
    Ok(bytes)
}
