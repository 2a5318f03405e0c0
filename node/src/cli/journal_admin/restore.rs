//! `node journal restore`: writes rows of a backup that a running node lacks or has changed, as new entries.
//!
//! The backup is only read. Its items are sent in parts to a node with the plug-in, which compares and writes
//! (`hearsay_services::journal::RestoreSource`). Parts are idempotent: a part whose answer is lost goes to
//! the next node, and an interrupted restore can be run again.

use std::{
    io::{self, BufRead, IsTerminal as _, Write as _},
    path::PathBuf,
    sync::Arc,
};

use bytes::Bytes;
use clap::Args;
use hearsay_services::{
    Service,
    journal::{
        Difference, ItemSelection, Resolution, RestoreItem, RestoreReport, RestoreSource, RestoreSupport,
    },
};
use rusqlite::Connection;
use serde_json::{Value, json};

use super::{advice, databases_at};
use crate::{
    cli::{
        client::{Client, Post},
        failure::Failure,
        output::{Output, Tone},
        progress::Progress,
        providers::{Probe, Providers, Role},
        responses::Members,
    },
    config::Environment,
    journal::{BackupFile, Projections},
};

/// Maximum number of differences in a table; further ones are only counted.
const LISTED_MAX: usize = 1000;
/// Maximum number of differences in JSON output.
const LISTED_JSON_MAX: usize = 100_000;
/// Maximum number of bytes of items in a request: a quarter of a node's limit.
const PART_BYTES_MAX: usize = 256 * 1024;
/// Maximum number of items in a request.
const PART_ITEMS_MAX: usize = 200;

/// Options of `node journal restore`.
#[derive(Args, Debug)]
pub(in crate::cli) struct RestoreOptions {
    /// Backup by `node journal backup`: the directory, or a file in it
    #[arg(long, value_name = "BACKUP")]
    from: PathBuf,
    /// Only this item, such as student:7 (repeatable)
    #[arg(long, value_name = "KIND:ID")]
    only: Vec<String>,
    /// Print the differences and write nothing
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
    /// Write without confirmation
    #[arg(long)]
    yes: bool,
    /// Only this topic, such as grading
    topic: Option<String>,
}

/// A topic to restore.
struct Topic {
    name: String,
    file: PathBuf,
    tables: Connection,
    restore: Arc<dyn RestoreSource>,
    providers: Providers,
    /// The ids of `--only`; empty: all.
    only: Vec<String>,
}

/// Differences found and entries written so far.
#[derive(Default)]
struct Outcome {
    listed: Vec<(String, Difference)>,
    differences: u64,
    refused: u64,
    entries: u64,
    remaining: u64,
    /// The lowest level that an entry reached.
    ack: Option<String>,
}

/// Compares a backup with a running node and writes the differences. `services` are the plug-ins of this
/// program.
pub(in crate::cli) async fn restore(
    options: &RestoreOptions,
    client: &Client,
    services: &[Arc<dyn Service>],
    output: Output,
    environment: &Environment,
) -> Result<(), Failure> {
    let mut progress = Progress::new(environment);
    let (mut topics, left_out) = open_topics(options, client, services, &mut progress).await?;
    if !output.json {
        for (topic, reason) in &left_out {
            output.line(Tone::Faint, &format!("{topic} is left out: {reason}"))?;
        }
    }
    let list_max = if output.json { LISTED_JSON_MAX } else { LISTED_MAX };
    let is_interactive = !options.dry_run && !options.yes && !output.json && io::stdin().is_terminal();
    let is_dry_run = !options.yes;
    let mut outcome = Outcome::default();
    let passed = send_all(&mut topics, is_dry_run, list_max, &mut outcome, &mut progress).await;
    progress.clear();
    if passed.is_ok() || outcome.differences > 0 {
        print_differences(options, output, &outcome, &left_out, is_dry_run)?;
    }
    report_interruption(&outcome, passed)?;
    if options.dry_run || outcome.differences == outcome.refused {
        return check_complete(&outcome);
    }
    if !is_dry_run {
        print_written(output, &outcome)?;
        return check_complete(&outcome);
    }
    if !is_interactive {
        return Err(Failure::Usage(
            "nothing was written; add --yes to write these differences, or --dry-run to only list them"
                .into(),
        ));
    }
    if !is_confirmed(outcome.differences - outcome.refused, &mut io::stdin().lock())? {
        return Err(Failure::Refused("nothing was written".into()));
    }
    let mut written = Outcome::default();
    let passed = send_all(&mut topics, false, 0, &mut written, &mut progress).await;
    progress.clear();
    if passed.is_ok() {
        print_written(output, &written)?;
    }
    report_interruption(&written, passed)?;
    check_complete(&written)
}

/// Opens and verifies the topics to restore. Returns them, and the topics left out with the reason.
async fn open_topics(
    options: &RestoreOptions,
    client: &Client,
    services: &[Arc<dyn Service>],
    progress: &mut Progress,
) -> Result<(Vec<Topic>, Vec<(String, &'static str)>), Failure> {
    let (mut topics, mut left_out) = (Vec::new(), Vec::new());
    let cluster = client.get("/members").await?.json::<Members>()?.cluster;
    for database in databases_at(&options.from)? {
        let source = BackupFile::open(&database.path).map_err(|error| Failure::Refused(error.to_string()))?;
        let name = source.topic.clone();
        if options.topic.as_ref().is_some_and(|topic| *topic != name) {
            continue;
        }
        let Some(service) = services.iter().find(|service| service.name() == name) else {
            left_out.push((name, "this program has no plug-in for it"));
            continue;
        };
        let restore = match service.restoring() {
            RestoreSupport::Refused(reason) => {
                left_out.push((name, reason));
                continue;
            }
            RestoreSupport::Possible(restore) => restore,
        };
        if source.cluster != cluster {
            return Err(Failure::Refused(format!(
                "{} is of the cluster {:?}, but the node at {} is of {cluster:?}; nothing was written",
                database.path.display(),
                source.cluster,
                client.url()
            )));
        }
        let tables = verified_tables(source, services, progress)?;
        let only = selected_ids(&options.only, restore.kind());
        let probe = Probe::Post(part_path(restore.as_ref(), true), "{\"items\":[]}");
        let role = Role { name: name.clone().into(), probe, keeps: "journal of this topic" };
        let providers = Providers::find(role, client).await?;
        topics.push(Topic { name, file: database.path, tables, restore, providers, only });
    }
    check_selection(options, &topics)?;
    match (topics.is_empty(), left_out.as_slice()) {
        (false, _) => Ok((topics, left_out)),
        (true, []) => {
            let what = options
                .topic
                .as_ref()
                .map_or("no journal".into(), |topic| format!("no journal of {topic:?}"));
            Err(Failure::NoMatch(format!("there is {what} in {}", options.from.display())))
        }
        (true, left_out) => {
            let reasons: Vec<_> =
                left_out.iter().map(|(topic, reason)| format!("{topic} is not restored: {reason}")).collect();
            Err(Failure::Refused(format!("{}; nothing was written", reasons.join("; "))))
        }
    }
}

const JSON: &str = "application/json";

/// Verifies a backup and returns its tables.
fn verified_tables(
    source: BackupFile,
    services: &[Arc<dyn Service>],
    progress: &mut Progress,
) -> Result<Connection, Failure> {
    let projections = |topic: &str| services.iter().find(|service| service.name() == topic)?.projection();
    let projections: &Projections<'_> = &projections;
    let (topic, file) = (source.topic.clone(), source.path.display().to_string());
    let mut report_progress =
        |what: &'static str, done, total| progress.update(&format!("{topic}: {what}"), done, total);
    let report = source.verify(projections, &mut report_progress);
    if let Some(problem) = report.problems.first() {
        let what_to_do = advice(&report).map(|_| "; use another backup, or see `node journal verify`");
        return Err(Failure::Refused(format!(
            "the backup {file} is damaged ({} {}: {}){}; nothing was written",
            problem.part,
            problem.place,
            problem.problem,
            what_to_do.unwrap_or_default()
        )));
    }
    let Some(projection) = projections(&topic) else {
        return Err(Failure::Refused(format!("this program has no plug-in for {topic:?}")));
    };
    let unreadable = |error| Failure::Failed(anyhow::anyhow!("cannot read {file}: {error}"));
    source.into_tables(projection.as_ref(), &mut report_progress).map_err(unreadable)
}

/// Returns the ids of this kind in `--only`.
fn selected_ids(only: &[String], kind: &str) -> Vec<String> {
    let of_kind = only.iter().filter_map(|only| only.split_once(':'));
    of_kind.filter(|(named, _)| *named == kind).map(|(_, id)| id.to_owned()).collect()
}

/// Requires that the backup has each item of `--only`.
fn check_selection(options: &RestoreOptions, topics: &[Topic]) -> Result<(), Failure> {
    for only in &options.only {
        let Some((kind, id)) = only.split_once(':') else {
            return Err(Failure::Usage(format!(
                "--only {only:?} is not an item; give KIND:ID, such as student:7"
            )));
        };
        let Some(topic) = topics.iter().find(|topic| topic.restore.kind() == kind) else {
            let kinds: Vec<_> = topics.iter().map(|topic| topic.restore.kind()).collect();
            return Err(Failure::Usage(format!(
                "--only {only:?}: there is no kind {kind:?} in this backup; choose from {}",
                kinds.join(", ")
            )));
        };
        if topic.items(ItemSelection::Only(id))?.is_empty() {
            return Err(Failure::NoMatch(format!("the backup has no {kind} {id}")));
        }
    }
    Ok(())
}

impl Topic {
    fn items(&self, which: ItemSelection<'_>) -> Result<Vec<RestoreItem>, Failure> {
        self.restore
            .items(&self.tables, which)
            .map_err(|error| Failure::Failed(anyhow::anyhow!("cannot read {}: {error}", self.file.display())))
    }
}

fn part_path(restore: &dyn RestoreSource, is_dry_run: bool) -> String {
    format!("{}{}", restore.path(), if is_dry_run { "?dry-run" } else { "" })
}

/// Sends all selected items. On failure, `outcome` has the results so far.
async fn send_all(
    topics: &mut [Topic],
    is_dry_run: bool,
    list_max: usize,
    outcome: &mut Outcome,
    progress: &mut Progress,
) -> Result<(), Failure> {
    for topic in topics {
        if topic.only.is_empty() {
            let total = topic.restore.count(&topic.tables).unwrap_or(0);
            let (mut cursor, mut done) = (None::<String>, 0);
            loop {
                let items = topic.items(ItemSelection::After(cursor.as_deref()))?;
                let Some(last) = items.last() else { break };
                cursor = Some(last.cursor.clone());
                // Rows are counted, and several consecutive items may belong to one row.
                let mut cursors: Vec<_> = items.iter().map(|item| &item.cursor).collect();
                cursors.dedup();
                done += cursors.len() as u64;
                send_items(topic, &items, is_dry_run, list_max, outcome).await?;
                progress.update(&format!("{}: {} differences", topic.name, outcome.differences), done, total);
            }
        } else {
            for id in topic.only.clone() {
                let items = topic.items(ItemSelection::Only(&id))?;
                send_items(topic, &items, is_dry_run, list_max, outcome).await?;
            }
        }
    }
    Ok(())
}

/// Sends items in parts of bounded size.
async fn send_items(
    topic: &mut Topic,
    items: &[RestoreItem],
    is_dry_run: bool,
    list_max: usize,
    outcome: &mut Outcome,
) -> Result<(), Failure> {
    let path = part_path(topic.restore.as_ref(), is_dry_run);
    let mut rest = items;
    while !rest.is_empty() {
        let (mut bytes, mut count) = (0, 0);
        for item in rest.iter().take(PART_ITEMS_MAX) {
            bytes += item.body.to_string().len();
            if count > 0 && bytes > PART_BYTES_MAX {
                break;
            }
            count += 1;
        }
        let (part, behind) = rest.split_at(count.max(1));
        rest = behind;
        let bodies: Vec<&Value> = part.iter().map(|item| &item.body).collect();
        let body = Bytes::from(json!({ "items": bodies }).to_string());
        let report: RestoreReport = topic
            .providers
            .post(Post { path: &path, content_type: JSON, key: None, body: &body })
            .await?
            .json()?;
        outcome.add(&topic.name, report, list_max);
    }
    Ok(())
}

impl Outcome {
    fn add(&mut self, topic: &str, report: RestoreReport, list_max: usize) {
        self.differences += report.differences.len() as u64;
        self.refused += report.differences.iter().filter(|d| d.change == Resolution::Refuse).count() as u64;
        self.entries += report.written;
        self.remaining += report.remaining;
        // Levels from the weakest to the strongest.
        const LEVELS: [&str; 3] = ["local", "replicated", "majority"];
        let place = |level: &str| LEVELS.iter().position(|known| *known == level).unwrap_or(0);
        if let Some(level) = report.ack
            && self.ack.as_ref().is_none_or(|lowest| place(&level) < place(lowest))
        {
            self.ack = Some(level);
        }
        let room = list_max.saturating_sub(self.listed.len());
        self.listed.extend(report.differences.into_iter().take(room).map(|d| (topic.to_owned(), d)));
    }
}

fn print_differences(
    options: &RestoreOptions,
    output: Output,
    outcome: &Outcome,
    left_out: &[(String, &'static str)],
    is_dry_run: bool,
) -> Result<(), Failure> {
    let unlisted = outcome.differences - outcome.listed.len() as u64;
    if output.json {
        let differences: Vec<Value> = outcome
            .listed
            .iter()
            .map(|(topic, d)| {
                json!({ "topic": topic, "item": d.item, "change": d.change, "now": d.now, "backup": d.backup,
                        "note": d.note })
            })
            .collect();
        let left_out: Vec<Value> =
            left_out.iter().map(|(topic, reason)| json!({ "topic": topic, "reason": reason })).collect();
        let summary = json!({
            "from": options.from.display().to_string(),
            "dryRun": is_dry_run,
            "differences": differences,
            "unlisted": unlisted,
            "refused": outcome.refused,
            "written": outcome.entries,
            "ack": outcome.ack,
            "remaining": outcome.remaining,
            "leftOut": left_out,
        });
        return output.json(summary.to_string().as_bytes());
    }
    if outcome.differences == 0 {
        return output.line(Tone::Good, "nothing to restore: the node has all rows of the backup");
    }
    let row = |(topic, d): &(String, Difference)| {
        let tone = if d.change == Resolution::Refuse { Tone::Bad } else { Tone::Plain };
        let cells = vec![
            topic.clone(),
            d.item.clone(),
            d.change.name().to_owned(),
            d.now.clone().unwrap_or_default(),
            d.backup.clone(),
            d.note.clone().unwrap_or_default(),
        ];
        (tone, cells)
    };
    let rows: Vec<_> = outcome.listed.iter().map(row).collect();
    output.table(&["TOPIC", "ITEM", "CHANGE", "NOW", "BACKUP", "NOTE"], &rows)?;
    if unlisted > 0 {
        output.line(Tone::Plain, &format!("and {unlisted} more"))?;
    }
    if is_dry_run {
        output.line(Tone::Plain, &format!("differences: {}; nothing was written", outcome.differences))?;
    }
    Ok(())
}

/// Prints what was written.
fn print_written(output: Output, outcome: &Outcome) -> Result<(), Failure> {
    if output.json {
        return Ok(());
    }
    let restored = outcome.differences - outcome.refused;
    let level = match outcome.ack.as_deref() {
        None => "all rows existed already".to_owned(),
        Some("local") => "acknowledged: local, on one disk".to_owned(),
        Some("replicated") => "acknowledged: replicated, on two disks".to_owned(),
        Some(level) => format!("acknowledged: {level}"),
    };
    output.line(
        Tone::Good,
        &format!("differences restored: {restored}, entries written: {}; {level}", outcome.entries),
    )
}

/// Asks for confirmation on the terminal; only "y" and "yes" confirm.
fn is_confirmed(differences: u64, input: &mut impl BufRead) -> io::Result<bool> {
    let mut err = io::stderr();
    write!(err, "write these differences ({differences})? [y/N] ")?;
    err.flush()?;
    let mut line = String::new();
    input.read_line(&mut line)?;
    Ok(["y", "yes"].contains(&line.trim().to_ascii_lowercase().as_str()))
}

/// Fails if a difference was not restored.
fn check_complete(outcome: &Outcome) -> Result<(), Failure> {
    if outcome.remaining > 0 {
        return Err(Failure::Refused(format!(
            "{} differences remain, because other writes happened at the same time; run it again",
            outcome.remaining
        )));
    }
    match outcome.refused {
        0 => Ok(()),
        refused => Err(Failure::Refused(format!(
            "{refused} differences were not restored; the notes have the reasons"
        ))),
    }
}

/// Prints how many entries were written before a failure.
fn report_interruption(outcome: &Outcome, passed: Result<(), Failure>) -> Result<(), Failure> {
    if passed.is_err() && outcome.entries > 0 {
        notice!(
            "the restore was interrupted after {} entries; run it again, nothing is written twice",
            outcome.entries
        );
    }
    passed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_yes_confirms() {
        for (line, expected) in [("y\n", true), ("YES \n", true), ("\n", false), ("", false), ("no\n", false)]
        {
            assert_eq!(is_confirmed(1, &mut line.as_bytes()).unwrap(), expected, "{line:?}");
        }
    }

    #[test]
    fn the_lowest_level_is_reported_and_the_list_is_bounded() {
        let mut outcome = Outcome::default();
        for level in ["majority", "local", "replicated"] {
            let differences = vec![Difference::default(); 3];
            let report = RestoreReport { differences, written: 1, ack: Some(level.into()), remaining: 0 };
            outcome.add("grading", report, 5);
        }
        assert_eq!((outcome.listed.len(), outcome.differences, outcome.entries), (5, 9, 3));
        assert_eq!(outcome.ack.as_deref(), Some("local"));
    }
}
