//! `node journal`: verifies, rebuilds, backs up and restores the journals of plug-ins.
//!
//! All commands but `restore` work on the files of a data directory; `rebuild` needs the node to be stopped.
//! `restore` writes through a running node.

pub(super) mod restore;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::{Args, Subcommand};
use hearsay_services::{Service, journal::Projection};
use serde_json::{Value, json};

use super::{
    failure::Failure,
    output::{Output, Tone},
    progress::Progress,
};
use crate::{
    config::{Environment, Options, data_dir},
    journal::{self, Part, Report},
    storage::{self, DataDir},
};

#[derive(Debug, Subcommand)]
pub(super) enum JournalCommand {
    /// Verify signatures, hash chains, extents, keys and tables; exit code 1 if something is wrong
    #[command(after_help = "A node may run on the data directory. Nothing is changed.\n\n\
        Examples:\n  node journal verify\n  node journal verify --data-dir /var/lib/hearsay --json\n  \
        node journal verify backups/2026-11-21")]
    Verify {
        #[command(flatten)]
        place: DataDirOptions,
        /// A database, or a directory of databases such as a backup, in place of a data directory
        #[arg(conflicts_with_all = ["data_dir", "cluster"])]
        file: Option<PathBuf>,
    },
    /// Rebuild the plug-ins' tables from the entries; the node must be stopped
    #[command(
        after_help = "Damaged runs are removed, so that the node fetches them from other nodes when it starts; a copy of the original \
        file is kept beside it.\n\nExample:\n  node journal rebuild --data-dir /var/lib/hearsay grading"
    )]
    Rebuild {
        #[command(flatten)]
        place: DataDirOptions,
        /// Only this topic, such as grading
        topic: Option<String>,
    },
    /// Copy a consistent snapshot of each database into a directory
    #[command(
        after_help = "A node may run on the data directory and write. Existing files are never overwritten.\n\n\
        Example:\n  node journal backup backups/$(date +%F) && node journal verify backups/$(date +%F)\n\n\
        To restore rows that were deleted or overwritten since, use `node journal restore`.\n\n\
        To replace a lost disk, stop the node, move DATA-DIR/journal/TOPIC.db away together with TOPIC.db-wal and TOPIC.db-shm \
        (they belong to the old file and would damage the new one), put the copy in its place, and start the node. \
        It starts a new feed, so no number is used twice; later entries come from the other nodes of the role. \
        The key of the node is not in the backup: it is DATA-DIR/node.key."
    )]
    Backup {
        /// The directory to copy to; created if missing
        to: PathBuf,
        #[command(flatten)]
        place: DataDirOptions,
    },
    /// Restore rows that a running node lacks or has changed, from a backup, as new entries
    #[command(
        after_help = "It prints the differences and asks for confirmation; without a terminal it writes only with --yes. Nothing is removed: rows that \
        are not in the backup stay. A deleted student gets the same id again; a deleted grade gets a new one. It can be run again: nothing is \
        written twice. The log and the visits are not restored, because they would count twice.\n\nExamples:\n  \
        node journal restore --from backups/2026-11-21 --dry-run\n  \
        node journal restore --from backups/2026-11-21 --only student:7 --yes --node http://db1:7500"
    )]
    Restore(restore::RestoreOptions),
}

/// The data directory.
#[derive(Args, Debug)]
pub(super) struct DataDirOptions {
    /// The data directory [default: as for a node, or all slots under $XDG_STATE_HOME/hearsay/CLUSTER]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The cluster whose slots are used [default: default]
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
}

/// A topic's database.
struct Database {
    path: PathBuf,
    /// The topic in its file name; `None`: the name is arbitrary.
    topic: Option<String>,
}

/// Runs a command other than `restore`. `services` are the plug-ins of this program.
pub(super) fn run(
    command: &JournalCommand,
    services: &[Arc<dyn Service>],
    output: Output,
    environment: &Environment,
) -> Result<(), Failure> {
    let projections = |topic: &str| -> Option<Arc<dyn Projection>> {
        services.iter().find(|service| service.name() == topic)?.projection()
    };
    let mut progress = Progress::new(environment);
    match command {
        JournalCommand::Verify { place, file } => {
            let databases = match file {
                Some(file) => databases_at(file)?,
                None => databases(&dirs(place, environment)?)?,
            };
            let mut reports = Vec::new();
            for database in databases {
                let topic = database.topic.as_deref();
                let name = database.path.display().to_string();
                let mut report_progress = |what: &'static str, done, total| {
                    progress.update(&format!("{}: {what}", topic.unwrap_or(&name)), done, total);
                };
                reports.push(journal::verify(&database.path, topic, &projections, &mut report_progress));
            }
            progress.clear();
            print_reports(output, &reports)
        }
        JournalCommand::Rebuild { place, topic } => {
            rebuild(&one_dir(place, environment)?, topic.as_deref(), &projections, output, &mut progress)
        }
        JournalCommand::Backup { to, place } => {
            backup(&one_dir(place, environment)?, to, output, &mut progress)
        }
        // `restore::restore` handles it, because it needs a client.
        JournalCommand::Restore(_) => Ok(()),
    }
}

/// Returns the selected data directories that have journals.
fn dirs(place: &DataDirOptions, environment: &Environment) -> Result<Vec<PathBuf>, Failure> {
    let flags =
        Options { data_dir: place.data_dir.clone(), cluster: place.cluster.clone(), ..Options::default() };
    let file = environment.get("HEARSAY_CONFIG").map(PathBuf::from);
    let file = file.as_deref().map(Options::from_file).transpose()?.unwrap_or_default();
    let options = flags.over(environment.options()?).over(file);
    let cluster = options.cluster.unwrap_or_else(|| "default".into());
    let data_dir = data_dir(options.ephemeral, options.data_dir, environment)?;
    let dirs: Vec<PathBuf> =
        data_dir.existing(&cluster).into_iter().filter(|dir| dir.join("journal").is_dir()).collect();
    if !dirs.is_empty() {
        return Ok(dirs);
    }
    Err(Failure::NoMatch(match data_dir {
        DataDir::Ephemeral => "an ephemeral node has no journal; name a directory with --data-dir".into(),
        DataDir::Exactly(dir) => format!("there is no journal in {}", dir.display()),
        DataDir::Slots(under) => {
            format!(
                "there is no journal of the cluster {cluster:?} under {}; name a directory with --data-dir",
                under.display()
            )
        }
    }))
}

/// Returns the one selected data directory.
fn one_dir(place: &DataDirOptions, environment: &Environment) -> Result<PathBuf, Failure> {
    let mut dirs = dirs(place, environment)?;
    match (dirs.pop(), dirs.is_empty()) {
        (Some(dir), true) => Ok(dir),
        (last, _) => {
            let names: Vec<String> = dirs.iter().chain(&last).map(|dir| dir.display().to_string()).collect();
            Err(Failure::Usage(format!(
                "there are several data directories; name one of them with --data-dir: {}",
                names.join(", ")
            )))
        }
    }
}

/// Returns the databases in a directory, sorted by name.
fn databases_in(dir: &Path) -> Result<Vec<Database>, Failure> {
    let failed = |error| Failure::Failed(anyhow::anyhow!("cannot read {}: {error}", dir.display()));
    let mut databases = Vec::new();
    for entry in dir.read_dir().map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "db") {
            let topic = path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
            databases.push(Database { path, topic });
        }
    }
    databases.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(databases)
}

/// Returns the databases of data directories.
fn databases(dirs: &[PathBuf]) -> Result<Vec<Database>, Failure> {
    let mut all = Vec::new();
    for dir in dirs {
        all.extend(databases_in(&dir.join("journal"))?);
    }
    Ok(all)
}

/// Returns a database, or all databases of a directory.
fn databases_at(file: &Path) -> Result<Vec<Database>, Failure> {
    let found = if file.is_dir() {
        databases_in(file)?
    } else if file.exists() {
        vec![Database { path: file.to_owned(), topic: None }]
    } else {
        Vec::new()
    };
    if found.is_empty() {
        return Err(Failure::NoMatch(format!("there is no database at {}", file.display())));
    }
    Ok(found)
}

fn print_reports(output: Output, reports: &[Report]) -> Result<(), Failure> {
    if output.json {
        let reports: Vec<Value> = reports.iter().map(report_json).collect();
        output.json(json!({ "databases": reports }).to_string().as_bytes())?;
    } else {
        report_tables(output, reports)?;
    }
    match reports.iter().filter(|report| !report.is_clean()).count() {
        0 => Ok(()),
        damaged => {
            Err(Failure::Refused(format!("something is wrong with {damaged} of {} databases", reports.len())))
        }
    }
}

fn report_json(report: &Report) -> Value {
    let problems: Vec<Value> = report
        .problems
        .iter()
        .map(|p| json!({ "part": p.part.to_string(), "place": p.place, "problem": p.problem }))
        .collect();
    json!({
        "file": report.path.display().to_string(),
        "cluster": report.cluster,
        "topic": report.topic,
        "feeds": report.feeds,
        "runs": report.runs,
        "entries": report.entries,
        "ok": report.is_clean(),
        "problems": problems,
        "unlisted": report.unlisted,
        "notes": report.notes,
        "advice": advice(report),
    })
}

fn report_tables(output: Output, reports: &[Report]) -> Result<(), Failure> {
    let state = |report: &Report| match report.problems.len() as u64 + report.unlisted {
        0 => (Tone::Plain, "ok".to_owned()),
        1 => (Tone::Bad, "1 problem".to_owned()),
        many => (Tone::Bad, format!("{many} problems")),
    };
    let rows: Vec<_> = reports
        .iter()
        .map(|report| {
            let (tone, state) = state(report);
            let numbers = [report.entries, report.runs, report.feeds].map(|number| number.to_string());
            let [entries, runs, feeds] = numbers;
            let file = report.path.display().to_string();
            (tone, vec![report.topic.clone(), entries, runs, feeds, state, file])
        })
        .collect();
    output.table(&["TOPIC", "ENTRIES", "RUNS", "FEEDS", "STATE", "FILE"], &rows)?;
    for report in reports {
        let file = report.path.display();
        for note in &report.notes {
            output.line(Tone::Faint, &format!("note: {file}: {note}"))?;
        }
        if report.is_clean() {
            continue;
        }
        output.line(Tone::Plain, "")?;
        output.line(Tone::Bad, &format!("{file}:"))?;
        let problems = report.problems.iter().map(|problem| {
            (Tone::Plain, vec![problem.part.to_string(), problem.place.clone(), problem.problem.clone()])
        });
        output.table(&["PART", "WHERE", "PROBLEM"], &problems.collect::<Vec<_>>())?;
        if report.unlisted > 0 {
            output.line(Tone::Plain, &format!("and {} more", report.unlisted))?;
        }
        if let Some(advice) = advice(report) {
            output.line(Tone::Plain, &format!("what to do: {advice}"))?;
        }
    }
    Ok(())
}

/// Returns advice for a report with problems.
fn advice(report: &Report) -> Option<String> {
    let is_sound = |part| report.is_sound(part);
    if report.is_clean() {
        None
    } else if !is_sound(Part::File) {
        Some(
            "stop the node and move the file away, with its -wal and -shm if they exist; then put a backup in its place, or start without \
             one: the node fetches the entries from other nodes of the role"
                .into(),
        )
    } else if report.needs_run_repair() {
        Some(
            "stop the node and run `node journal rebuild`: it keeps a copy, removes damaged runs and rebuilds the tables; once started, the \
             node fetches missing runs from other nodes of the role"
                .into(),
        )
    } else if !is_sound(Part::Runs) {
        Some(
            "two processes used the same writer's key (a copied data directory?), and both have signed; keep the file, and give each node \
             its own data directory"
                .into(),
        )
    } else {
        Some(
            "stop the node and run `node journal rebuild`: it rebuilds keys and tables from the entries"
                .into(),
        )
    }
}

fn rebuild(
    dir: &Path,
    topic: Option<&str>,
    projections: &journal::Projections<'_>,
    output: Output,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let databases = databases_in(&dir.join("journal"))?;
    let chosen: Vec<&Database> =
        databases.iter().filter(|database| topic.is_none() || database.topic.as_deref() == topic).collect();
    if chosen.is_empty() {
        let what = topic.map_or("no journal".into(), |topic| format!("no journal of {topic:?}"));
        return Err(Failure::NoMatch(format!("there is {what} in {}", dir.display())));
    }
    let _lock = storage::lock(dir).map_err(|error| Failure::Failed(error.into()))?;
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    for database in chosen {
        let topic = database.topic.as_deref().unwrap_or_default();
        let mut report_progress =
            |what: &'static str, done, total| progress.update(&format!("{topic}: {what}"), done, total);
        match journal::rebuild(&database.path, topic, projections, &mut report_progress) {
            Ok(rebuilt) => done.push((topic.to_owned(), rebuilt)),
            Err(error) => failed.push(format!("{topic}: {error}")),
        }
    }
    progress.clear();
    if output.json {
        let done: Vec<Value> = done
            .iter()
            .map(|(topic, rebuilt)| {
                let copy = rebuilt.copy.as_ref().map(|copy| copy.display().to_string());
                json!({ "topic": topic, "entries": rebuilt.entries, "takenOut": rebuilt.deleted_runs, "copy": copy })
            })
            .collect();
        output.json(json!({ "rebuilt": done, "failed": failed }).to_string().as_bytes())?;
    } else {
        for (topic, rebuilt) in &done {
            output.line(Tone::Good, &format!("{topic}: tables rebuilt from {} entries", rebuilt.entries))?;
            if let Some(copy) = &rebuilt.copy {
                let line = format!(
                    "{topic}: {} damaged runs were removed; the node fetches missing runs from other nodes of the role. The original file is {}",
                    rebuilt.deleted_runs,
                    copy.display()
                );
                output.line(Tone::Warning, &line)?;
            }
        }
    }
    match failed.is_empty() {
        true => Ok(()),
        false => Err(Failure::Refused(failed.join("\n"))),
    }
}

fn backup(dir: &Path, to: &Path, output: Output, progress: &mut Progress) -> Result<(), Failure> {
    let databases = databases_in(&dir.join("journal"))?;
    if databases.is_empty() {
        return Err(Failure::NoMatch(format!("there is no journal in {}", dir.display())));
    }
    let failed =
        |error: std::io::Error| Failure::Failed(anyhow::anyhow!("cannot create {}: {error}", to.display()));
    make_private_dir(to).map_err(failed)?;
    let mut copies = Vec::new();
    for database in &databases {
        let name = database.path.file_name().unwrap_or_default();
        let target = to.join(name);
        let topic = database.topic.as_deref().unwrap_or_default();
        let mut report_progress =
            |what: &'static str, done, total| progress.update(&format!("{topic}: {what}"), done, total);
        let bytes = journal::backup(&database.path, &target, &mut report_progress)
            .map_err(|error| Failure::Refused(error.to_string()))?;
        copies.push((topic.to_owned(), bytes, target.display().to_string()));
    }
    progress.clear();
    if output.json {
        let copies: Vec<Value> = copies
            .iter()
            .map(|(topic, bytes, file)| json!({ "topic": topic, "bytes": bytes, "file": file }))
            .collect();
        return output.json(json!({ "copies": copies }).to_string().as_bytes());
    }
    let row = |(topic, bytes, file): &(String, u64, String)| {
        (Tone::Plain, vec![topic.clone(), bytes.to_string(), file.clone()])
    };
    output.table(&["TOPIC", "BYTES", "COPY"], &copies.iter().map(row).collect::<Vec<_>>())
}

/// Creates a directory that only its owner can read; an existing one is unchanged.
fn make_private_dir(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}
