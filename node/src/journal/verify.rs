//! Whether a topic's file holds what its writers signed, and tables that follow from it.
//!
//! A database that SQLite can read may still be wrong: a disk decays, a file is cut short or edited, a backup mixes two moments. What can be checked
//! is checked, without changing anything: SQLite's own structure; the signature, chain and numbers of every run; the extents and keys,
//! which the journal keeps beside them; and the plug-in's tables, which must be equal to those that all entries make in an empty database.
//! All of it is one snapshot, so that a node may go on writing meanwhile.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use hearsay_services::journal::Projection;
use rusqlite::{Connection, OpenFlags, OptionalExtension, types::FromSql};

use super::store::{APPLICATION_ID, FORMAT};

mod runs;
pub(super) mod tables;

use runs::Walk;

/// What is listed of one file. The rest is counted: a file that decayed as a whole has as much wrong with it as it has runs.
const PROBLEMS_LISTED_MAX: usize = 100;
/// Complaints that are asked of SQLite. They tend to follow from one another.
const COMPLAINTS_MAX: i64 = 20;

/// A part of a file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Part {
    /// The file as a database.
    File,
    /// What writers signed.
    Runs,
    /// What the journal says to have of each feed.
    Extents,
    /// Which entry has which idempotency key.
    Keys,
    /// What the plug-in made of the entries.
    Tables,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "file",
            Self::Runs => "run",
            Self::Extents => "extent",
            Self::Keys => "key",
            Self::Tables => "table",
        })
    }
}

/// Something that is wrong.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// Where.
    pub part: Part,
    /// Where exactly: a run, a feed, a key, a table; empty where it is the whole.
    pub place: String,
    /// What.
    pub problem: String,
}

/// What was found in a file.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Which.
    pub path: PathBuf,
    /// The cluster that it says to belong to.
    pub cluster: String,
    /// The topic that it says to hold.
    pub topic: String,
    /// How many feeds.
    pub feeds: u64,
    /// How many runs.
    pub runs: u64,
    /// How many entries, without those that are kept twice.
    pub entries: u64,
    /// What is wrong: the first so many.
    pub problems: Vec<Problem>,
    /// How much more is wrong.
    pub unlisted: u64,
    /// What was not checked, and why.
    pub notes: Vec<String>,
    /// Rows of runs that are damaged, for whoever takes them out.
    pub(super) damaged_rows: Vec<i64>,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    /// Whether this part is sound, as far as it was checked.
    pub fn is_sound(&self, part: Part) -> bool {
        self.problems.iter().all(|problem| problem.part != part)
    }

    /// Whether [`rebuild`](super::rebuild) takes out what is damaged.
    pub fn is_mendable(&self) -> bool {
        self.is_sound(Part::File) && (!self.damaged_rows.is_empty() || !self.is_sound(Part::Extents))
    }

    fn add(&mut self, part: Part, place: impl Into<String>, problem: impl fmt::Display) {
        // One of each part is always listed: what to do depends on which parts are damaged.
        if self.problems.len() < PROBLEMS_LISTED_MAX || self.is_sound(part) {
            self.problems.push(Problem { part, place: place.into(), problem: problem.to_string() });
        } else {
            self.unlisted += 1;
        }
    }
}

/// What is being done, how much of it is done, and of how much.
pub type Tell<'a> = dyn FnMut(&'static str, u64, u64) + 'a;

/// Finds the projection of a topic, if this program has its plug-in.
pub type Projections<'a> = dyn Fn(&str) -> Option<Arc<dyn Projection>> + 'a;

/// Checks a file. `topic`: the one that it must hold, if that is known.
pub fn verify(
    path: &Path,
    topic: Option<&str>,
    projections: &Projections<'_>,
    tell: &mut Tell<'_>,
) -> Report {
    let mut report = Report { path: path.to_owned(), ..Report::default() };
    let checked = open(path).and_then(|db| {
        // From here to the end it is one snapshot.
        db.execute_batch("BEGIN")?;
        check(&db, topic, projections, &mut report, tell)
    });
    ended(report, checked)
}

/// Checks a file that is open, as [`verify`] does.
pub(super) fn verify_opened(
    (path, db): (&Path, &Connection),
    topic: &str,
    projections: &Projections<'_>,
    tell: &mut Tell<'_>,
) -> Report {
    let mut report = Report { path: path.to_owned(), ..Report::default() };
    let checked = check(db, Some(topic), projections, &mut report, tell);
    ended(report, checked)
}

fn ended(mut report: Report, checked: rusqlite::Result<()>) -> Report {
    if let Err(error) = checked {
        report.add(Part::File, "", format_args!("it cannot be read: {error}"));
    }
    report
}

/// Opens a file to look at it.
///
/// # Errors
/// What the database said.
pub(super) fn open(path: &Path) -> rusqlite::Result<Connection> {
    super::pages::check_from_now_on();
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let db = Connection::open_with_flags(path, flags)?;
    db.busy_timeout(Duration::from_secs(5))?;
    db.pragma_update(None, "mmap_size", 0)?;
    db.pragma_update(None, "cell_size_check", true)?;
    Ok(db)
}

/// What the file says of itself.
pub(super) fn meta<T: FromSql>(db: &Connection, name: &str) -> rusqlite::Result<Option<T>> {
    db.query_row("SELECT value FROM journal_meta WHERE name = ?1", [name], |row| row.get(0)).optional()
}

fn check(
    db: &Connection,
    topic: Option<&str>,
    projections: &Projections<'_>,
    report: &mut Report,
    tell: &mut Tell<'_>,
) -> rusqlite::Result<()> {
    let tables: i64 = db.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    let application: i64 = db.pragma_query_value(None, "application_id", |row| row.get(0))?;
    if tables == 0 || application != APPLICATION_ID {
        let problem = if tables == 0 { "it is empty" } else { "it is the database of something else" };
        report.add(Part::File, "", problem);
        return Ok(());
    }
    tell("checking the structure", 0, 0);
    let mut complaints = db.prepare(&format!("PRAGMA integrity_check({COMPLAINTS_MAX})"))?;
    let complaints = complaints.query_map([], |row| row.get::<_, String>(0))?;
    for complaint in complaints.collect::<rusqlite::Result<Vec<_>>>()? {
        // One may hold several lines.
        complaint.lines().filter(|line| *line != "ok").for_each(|line| report.add(Part::File, "", line));
    }
    let format = meta::<i64>(db, "format")?;
    if format != Some(FORMAT) {
        let problem =
            format!("its format is {}, and this version reads {FORMAT}", format.unwrap_or_default());
        report.add(Part::File, "", problem);
        return Ok(());
    }
    report.cluster = meta(db, "cluster")?.unwrap_or_default();
    report.topic = meta(db, "topic")?.unwrap_or_default();
    if let Some(topic) = topic.filter(|topic| *topic != report.topic) {
        let problem = format!("it holds the topic {:?} under the name of {topic:?}", report.topic);
        report.add(Part::File, "", problem);
    }
    let mut reference = tables::Reference::new(db, projections(&report.topic), report)?;
    Walk::new(db, report, &mut reference, tell)?.all()?;
    reference.compare(db, report, tell)
}

#[cfg(test)]
mod tests;
