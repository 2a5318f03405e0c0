//! `node journal`: looks after the files that the plug-ins' entries are in. It asks no node: it works on a data directory, and says where a node must
//! not be running on it. `restore` alone writes, by way of a running node.

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
    /// Check everything that is kept: signatures, chains, extents, keys, and the tables made of it; exit code 1 if something is wrong
    #[command(after_help = "A node may be running on it. Nothing is changed.\n\n\
        Examples:\n  node journal verify\n  node journal verify --data-dir /var/lib/hearsay --json\n  \
        node journal verify backups/2026-11-21")]
    Verify {
        #[command(flatten)]
        place: Place,
        /// A database, or a directory of them such as a backup, in place of a data directory
        #[arg(conflicts_with_all = ["data_dir", "cluster"])]
        file: Option<PathBuf>,
    },
    /// Make the plug-ins' tables anew from the entries; the node must be stopped
    #[command(
        after_help = "Runs that are damaged are taken out, so that the node fetches them from the others when it starts; \
        a copy of the file as it was is kept beside it.\n\nExample:\n  node journal rebuild --data-dir /var/lib/hearsay grading"
    )]
    Rebuild {
        #[command(flatten)]
        place: Place,
        /// Only this topic, such as grading
        topic: Option<String>,
    },
    /// Copy every database as it is at one moment, into a directory
    #[command(after_help = "A node may be running on it and writing. Nothing is ever overwritten.\n\n\
        Example:\n  node journal backup backups/$(date +%F) && node journal verify backups/$(date +%F)\n\n\
        To bring back what was deleted or overwritten since, use `node journal restore`.\n\n\
        To replace a disk that was lost, stop the node, move DATA-DIR/journal/TOPIC.db away together with TOPIC.db-wal and TOPIC.db-shm \
        (those belong to the file that goes, and would damage the one that comes), put the copy in its place, and start the node. \
        It begins a new feed at every start, so no number is used twice; what happened since the backup comes from the other nodes of the role. \
        The key of the node is not in the backup: it is DATA-DIR/node.key.")]
    Backup {
        /// The directory to copy to; made if it is not there
        to: PathBuf,
        #[command(flatten)]
        place: Place,
    },
    /// Write what a backup has and a running node has not, or has otherwise, as new entries
    #[command(
        after_help = "It shows the difference first, and asks; without a terminal it writes only with --yes. Nothing is removed: what is not in the \
        backup stays. A student comes back under the same id; a grade that was taken back comes back under a new one. It can be run again: what is \
        there is not written twice. The log and the visits are not restored, because they would count twice.\n\nExamples:\n  \
        node journal restore --from backups/2026-11-21 --dry-run\n  \
        node journal restore --from backups/2026-11-21 --only student:7 --yes --node http://db1:7500"
    )]
    Restore(restore::RestoreOptions),
}

/// Where the files are.
#[derive(Args, Debug)]
pub(super) struct Place {
    /// The data directory [default: as a node's, or every slot under $XDG_STATE_HOME/hearsay/CLUSTER]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The cluster whose slots are meant [default: default]
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
}

/// A topic's database.
struct Database {
    path: PathBuf,
    /// The one that its name says; `None` where it may be called anything.
    topic: Option<String>,
}

/// Does it. `services`: the plug-ins of this program.
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
                Some(file) => named(file)?,
                None => databases(&dirs(place, environment)?)?,
            };
            let mut reports = Vec::new();
            for database in databases {
                let topic = database.topic.as_deref();
                let name = database.path.display().to_string();
                let mut tell = |what: &'static str, done, total| {
                    progress.tell(&format!("{}: {what}", topic.unwrap_or(&name)), done, total);
                };
                reports.push(journal::verify(&database.path, topic, &projections, &mut tell));
            }
            progress.clear();
            told(output, &reports)
        }
        JournalCommand::Rebuild { place, topic } => {
            rebuild(&one_dir(place, environment)?, topic.as_deref(), &projections, output, &mut progress)
        }
        JournalCommand::Backup { to, place } => {
            backup(&one_dir(place, environment)?, to, output, &mut progress)
        }
        // It asks a node, as the commands beside this one do.
        JournalCommand::Restore(_) => Ok(()),
    }
}

/// The data directories that are meant and hold journals.
fn dirs(place: &Place, environment: &Environment) -> Result<Vec<PathBuf>, Failure> {
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
        DataDir::Ephemeral => "a node that is ephemeral keeps no journal".into(),
        DataDir::Exactly(dir) => format!("there is no journal in {}", dir.display()),
        DataDir::Slots(under) => {
            format!(
                "there is no journal of the cluster {cluster:?} under {}; name a directory with --data-dir",
                under.display()
            )
        }
    }))
}

/// The data directory that is meant, where only one can be.
fn one_dir(place: &Place, environment: &Environment) -> Result<PathBuf, Failure> {
    let mut dirs = dirs(place, environment)?;
    match (dirs.pop(), dirs.is_empty()) {
        (Some(dir), true) => Ok(dir),
        (last, _) => {
            let names: Vec<String> = dirs.iter().chain(&last).map(|dir| dir.display().to_string()).collect();
            Err(Failure::Usage(format!("name one of them with --data-dir: {}", names.join(", "))))
        }
    }
}

/// The databases in a directory, by name.
fn in_dir(dir: &Path) -> Result<Vec<Database>, Failure> {
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

/// The databases of data directories.
fn databases(dirs: &[PathBuf]) -> Result<Vec<Database>, Failure> {
    let mut all = Vec::new();
    for dir in dirs {
        all.extend(in_dir(&dir.join("journal"))?);
    }
    Ok(all)
}

/// A database, or those in a directory.
fn named(file: &Path) -> Result<Vec<Database>, Failure> {
    let found = if file.is_dir() {
        in_dir(file)?
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

fn told(output: Output, reports: &[Report]) -> Result<(), Failure> {
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

/// What a person can do about what was found.
fn advice(report: &Report) -> Option<String> {
    let is_sound = |part| report.is_sound(part);
    if report.is_clean() {
        None
    } else if !is_sound(Part::File) {
        Some(
            "stop the node and move the file away, with its -wal and -shm if there are any; then put a backup in its place, or start \
             without: what other nodes of the role keep comes back from them"
                .into(),
        )
    } else if report.is_mendable() {
        Some(
            "stop the node and run `node journal rebuild`: it keeps a copy, takes out what is damaged and makes the tables anew; once the \
             node is started, what is missing comes back from other nodes of the role"
                .into(),
        )
    } else if !is_sound(Part::Runs) {
        Some(
            "a writer's key was used in two places at once (a copied data directory?), and both have signed; keep the file, and give \
             each node a directory of its own"
                .into(),
        )
    } else {
        Some(
            "stop the node and run `node journal rebuild`: it makes keys and tables anew from the entries"
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
    let databases = in_dir(&dir.join("journal"))?;
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
        let mut tell =
            |what: &'static str, done, total| progress.tell(&format!("{topic}: {what}"), done, total);
        match journal::rebuild(&database.path, topic, projections, &mut tell) {
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
                json!({ "topic": topic, "entries": rebuilt.entries, "takenOut": rebuilt.taken_out, "copy": copy })
            })
            .collect();
        output.json(json!({ "rebuilt": done, "failed": failed }).to_string().as_bytes())?;
    } else {
        for (topic, rebuilt) in &done {
            output
                .line(Tone::Good, &format!("{topic}: tables made anew from {} entries", rebuilt.entries))?;
            if let Some(copy) = &rebuilt.copy {
                let line = format!(
                    "{topic}: {} damaged runs were taken out, and what is missing comes from other nodes of the role; the file as it was is {}",
                    rebuilt.taken_out,
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
    let databases = in_dir(&dir.join("journal"))?;
    if databases.is_empty() {
        return Err(Failure::NoMatch(format!("there is no journal in {}", dir.display())));
    }
    let failed =
        |error: std::io::Error| Failure::Failed(anyhow::anyhow!("cannot make {}: {error}", to.display()));
    make_private_dir(to).map_err(failed)?;
    let mut copies = Vec::new();
    for database in &databases {
        let name = database.path.file_name().unwrap_or_default();
        let target = to.join(name);
        let topic = database.topic.as_deref().unwrap_or_default();
        let mut tell =
            |what: &'static str, done, total| progress.tell(&format!("{topic}: {what}"), done, total);
        let bytes = journal::backup(&database.path, &target, &mut tell)
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

/// Makes a directory for its owner alone; one that is there stays as it is.
fn make_private_dir(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}
