//! `node journal restore`: what a backup has and a running node has not is written again, as new entries.
//!
//! The backup is only read. What it holds is sent to a node that runs the plug-in, in parts, and that node
//! compares and writes (`hearsay_services::restore`). A part can be sent again without harm. So a part whose
//! answer is lost goes to the next node, and a restore that broke off is simply run again.

use std::{
    io::{self, BufRead, IsTerminal as _, Write as _},
    path::PathBuf,
    sync::Arc,
};

use bytes::Bytes;
use clap::Args;
use hearsay_services::{
    Service,
    restore::{Difference, Item, Kind, Report, Restore, Restoring, Which},
};
use rusqlite::Connection;
use serde_json::{Value, json};

use super::{advice, named};
use crate::{
    cli::{
        answers::Members,
        client::Client,
        failure::Failure,
        output::{Output, Tone},
        progress::Progress,
        providers::{Post, Probe, Providers, Role},
    },
    config::Environment,
    journal::{Projections, Source},
};

/// Differences that are listed for people. The rest is counted.
const LISTED_MAX: usize = 1000;
/// Differences that are listed for programs.
const LISTED_JSON_MAX: usize = 100_000;
/// Bytes of items in a request: a quarter of what a node takes.
const PART_BYTES_MAX: usize = 256 * 1024;
/// Items in a request.
const PART_ITEMS_MAX: usize = 200;

/// Options of `node journal restore`.
#[derive(Args, Debug)]
pub(in crate::cli) struct RestoreOptions {
    /// What `node journal backup` made: a directory, or a file of it
    #[arg(long, value_name = "BACKUP")]
    from: PathBuf,
    /// Only this, such as student:7; may be repeated
    #[arg(long, value_name = "KIND:ID")]
    only: Vec<String>,
    /// Show the difference and write nothing
    #[arg(long, conflicts_with = "yes")]
    dry_run: bool,
    /// Write without asking
    #[arg(long)]
    yes: bool,
    /// Only this topic, such as grading
    topic: Option<String>,
}

/// A topic of the backup that is restored.
struct Topic {
    name: String,
    file: PathBuf,
    tables: Connection,
    restore: Arc<dyn Restore>,
    providers: Providers,
    /// The ids that `--only` names; empty: everything.
    only: Vec<String>,
}

/// Differences that were found, and entries that were written for them.
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

/// Compares a backup with a running node, and writes what differs. `services`: the plug-ins of this program.
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
    let is_asked = !options.dry_run && !options.yes && !output.json && io::stdin().is_terminal();
    let only_looks = !options.yes;
    let mut outcome = Outcome::default();
    let passed = send_all(&mut topics, only_looks, list_max, &mut outcome, &mut progress).await;
    progress.clear();
    if passed.is_ok() || outcome.differences > 0 {
        print_differences(options, output, &outcome, &left_out, only_looks)?;
    }
    report_interruption(&outcome, passed)?;
    if options.dry_run || outcome.differences == outcome.refused {
        return check_complete(&outcome);
    }
    if !only_looks {
        print_written(output, &outcome)?;
        return check_complete(&outcome);
    }
    if !is_asked {
        return Err(Failure::Usage(
            "nothing was written; add --yes to write this, or --dry-run to only look".into(),
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

/// Opens and checks the topics that are restored. Returns them, and those that are left out with the reason.
async fn open_topics(
    options: &RestoreOptions,
    client: &Client,
    services: &[Arc<dyn Service>],
    progress: &mut Progress,
) -> Result<(Vec<Topic>, Vec<(String, &'static str)>), Failure> {
    let (mut topics, mut left_out) = (Vec::new(), Vec::new());
    let cluster = client.get("/members").await?.json::<Members>()?.cluster;
    for database in named(&options.from)? {
        let source = Source::open(&database.path).map_err(|error| Failure::Refused(error.to_string()))?;
        let name = source.topic.clone();
        if options.topic.as_ref().is_some_and(|topic| *topic != name) {
            continue;
        }
        let Some(service) = services.iter().find(|service| service.name() == name) else {
            left_out.push((name, "this program has no plug-in for it"));
            continue;
        };
        let restore = match service.restoring() {
            Restoring::Refused(reason) => {
                left_out.push((name, reason));
                continue;
            }
            Restoring::Possible(restore) => restore,
        };
        if source.cluster != cluster {
            return Err(Failure::Refused(format!(
                "{} is of the cluster {:?}, and the node at {} of {cluster:?}; nothing was written",
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

/// Checks a backup, and returns its tables.
fn verified_tables(
    source: Source,
    services: &[Arc<dyn Service>],
    progress: &mut Progress,
) -> Result<Connection, Failure> {
    let projections = |topic: &str| services.iter().find(|service| service.name() == topic)?.projection();
    let projections: &Projections<'_> = &projections;
    let (topic, file) = (source.topic.clone(), source.path.display().to_string());
    let mut tell = |what: &'static str, done, total| progress.tell(&format!("{topic}: {what}"), done, total);
    let report = source.verify(projections, &mut tell);
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
    source.into_tables(projection.as_ref(), &mut tell).map_err(unreadable)
}

/// The ids of this kind.
fn selected_ids(only: &[String], kind: &str) -> Vec<String> {
    let of_kind = only.iter().filter_map(|only| only.split_once(':'));
    of_kind.filter(|(named, _)| *named == kind).map(|(_, id)| id.to_owned()).collect()
}

/// Whether each `--only` names something that the backup has.
fn check_selection(options: &RestoreOptions, topics: &[Topic]) -> Result<(), Failure> {
    for only in &options.only {
        let Some((kind, id)) = only.split_once(':') else {
            return Err(Failure::Usage(format!("--only {only:?}: write KIND:ID, such as student:7")));
        };
        let Some(topic) = topics.iter().find(|topic| topic.restore.kind() == kind) else {
            let kinds: Vec<_> = topics.iter().map(|topic| topic.restore.kind()).collect();
            return Err(Failure::Usage(format!(
                "--only {only:?}: there is no kind {kind:?} in this backup; there is {}",
                kinds.join(", ")
            )));
        };
        if topic.items(Which::Only(id))?.is_empty() {
            return Err(Failure::NoMatch(format!("the backup has no {kind} {id}")));
        }
    }
    Ok(())
}

impl Topic {
    fn items(&self, which: Which<'_>) -> Result<Vec<Item>, Failure> {
        self.restore
            .items(&self.tables, which)
            .map_err(|error| Failure::Failed(anyhow::anyhow!("cannot read {}: {error}", self.file.display())))
    }
}

fn part_path(restore: &dyn Restore, is_dry_run: bool) -> String {
    format!("{}{}", restore.path(), if is_dry_run { "?dry-run" } else { "" })
}

/// Sends all selected items. What was found and written before a failure is in `outcome`.
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
                let items = topic.items(Which::After(cursor.as_deref()))?;
                let Some(last) = items.last() else { break };
                cursor = Some(last.cursor.clone());
                // One thing may be several items, one behind the other.
                let mut cursors: Vec<_> = items.iter().map(|item| &item.cursor).collect();
                cursors.dedup();
                done += cursors.len() as u64;
                send_items(topic, &items, is_dry_run, list_max, outcome).await?;
                progress.tell(&format!("{}: {} differences", topic.name, outcome.differences), done, total);
            }
        } else {
            for id in topic.only.clone() {
                let items = topic.items(Which::Only(&id))?;
                send_items(topic, &items, is_dry_run, list_max, outcome).await?;
            }
        }
    }
    Ok(())
}

/// Sends items in parts that are not too large.
async fn send_items(
    topic: &mut Topic,
    items: &[Item],
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
        let report: Report = topic
            .providers
            .post(Post { path: &path, content_type: JSON, key: None, body: &body })
            .await?
            .json()?;
        outcome.add(&topic.name, report, list_max);
    }
    Ok(())
}

impl Outcome {
    fn add(&mut self, topic: &str, report: Report, list_max: usize) {
        self.differences += report.differences.len() as u64;
        self.refused += report.differences.iter().filter(|d| d.change == Kind::Refuse).count() as u64;
        self.entries += report.written;
        self.remaining += report.remaining;
        // From the weakest promise to the strongest.
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
    only_looks: bool,
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
        let told = json!({
            "from": options.from.display().to_string(),
            "dryRun": only_looks,
            "differences": differences,
            "unlisted": unlisted,
            "refused": outcome.refused,
            "written": outcome.entries,
            "ack": outcome.ack,
            "remaining": outcome.remaining,
            "leftOut": left_out,
        });
        return output.json(told.to_string().as_bytes());
    }
    if outcome.differences == 0 {
        return output.line(Tone::Good, "nothing to restore: all that the backup has is there");
    }
    let row = |(topic, d): &(String, Difference)| {
        let tone = if d.change == Kind::Refuse { Tone::Bad } else { Tone::Plain };
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
    if only_looks {
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
        None => "all of it was there already".to_owned(),
        Some("local") => "acknowledged: local, on one disk".to_owned(),
        Some("replicated") => "acknowledged: replicated, on two disks".to_owned(),
        Some(level) => format!("acknowledged: {level}"),
    };
    output.line(
        Tone::Good,
        &format!("differences restored: {restored}, entries written: {}; {level}", outcome.entries),
    )
}

/// Asks at the terminal. Every answer but yes is a no.
fn is_confirmed(differences: u64, input: &mut impl BufRead) -> io::Result<bool> {
    let mut err = io::stderr();
    write!(err, "write this? differences: {differences} [y/N] ")?;
    err.flush()?;
    let mut line = String::new();
    input.read_line(&mut line)?;
    Ok(["y", "yes"].contains(&line.trim().to_ascii_lowercase().as_str()))
}

/// Fails if a difference was not restored.
fn check_complete(outcome: &Outcome) -> Result<(), Failure> {
    if outcome.remaining > 0 {
        return Err(Failure::Refused(format!(
            "{} differences are still there, because something else was written meanwhile; run it again",
            outcome.remaining
        )));
    }
    match outcome.refused {
        0 => Ok(()),
        refused => Err(Failure::Refused(format!("not restored: {refused} differences; the notes say why"))),
    }
}

/// Says that what was written before the failure stays.
fn report_interruption(outcome: &Outcome, passed: Result<(), Failure>) -> Result<(), Failure> {
    if passed.is_err() && outcome.entries > 0 {
        notice!(
            "the restore broke off after {} entries; run it again, nothing is written twice",
            outcome.entries
        );
    }
    passed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_yes_is_a_yes() {
        for (line, expected) in [("y\n", true), ("YES \n", true), ("\n", false), ("", false), ("no\n", false)]
        {
            assert_eq!(is_confirmed(1, &mut line.as_bytes()).unwrap(), expected, "{line:?}");
        }
    }

    #[test]
    fn the_lowest_level_is_told_and_the_list_is_bounded() {
        let mut outcome = Outcome::default();
        for level in ["majority", "local", "replicated"] {
            let differences = vec![Difference::default(); 3];
            let report = Report { differences, written: 1, ack: Some(level.into()), remaining: 0 };
            outcome.add("grading", report, 5);
        }
        assert_eq!((outcome.listed.len(), outcome.differences, outcome.entries), (5, 9, 3));
        assert_eq!(outcome.ack.as_deref(), Some("local"));
    }
}
