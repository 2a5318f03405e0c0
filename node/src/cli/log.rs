//! `node log append|tail|search`: the central log from a terminal.
//!
//! The node that is asked need not keep the log itself: it knows who does.

mod append;
mod lines;

use bytes::Bytes;
use clap::{Args, Subcommand};
use hearsay_services::log::record::{NAME_BYTES_MAX, NotALevel};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::append::About;
use super::{
    answers::{Services, plain},
    client::{Client, segment},
    failure::Failure,
    follow::follow,
    output::{Output, Tone},
    sse::Event,
};
use crate::escape::escaped;

/// What to do with the log.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Add a record, or each line of standard input as one
    #[command(
        after_help = "Of standard input, empty lines are passed over, what is not UTF-8 is replaced, and a line over 32 KiB is split. While no \
        log node answers, it waits for one, and stops reading; nothing that was read is dropped without a word. A signal ends it: exit \
        code 1 if lines that were read are not recorded, and it says which.\n\nExamples:\n  \
        node log append \"deployed version 7\" --service web\n  journalctl -f | node log append --service \"$(hostname)\""
    )]
    Append {
        /// The message; without one, each line of standard input is a record
        message: Vec<String>,
        /// Which service says it
        #[arg(long)]
        service: Option<String>,
        /// How much it matters: trace, debug, info, warn or error, or what another logger calls it [default: info]
        #[arg(long)]
        level: Option<String>,
    },
    /// Print records as they come, until interrupted
    #[command(after_help = "Examples:\n  node log tail\n  node log tail -n 50 --level warn --grep timeout")]
    Tail {
        /// Begin with so many of the last records
        #[arg(short = 'n', long, value_name = "NUMBER", default_value_t = 10)]
        last: u16,
        #[command(flatten)]
        which: Which,
        /// Only records whose message contains this, in either case
        #[arg(long, value_name = "TEXT")]
        grep: Option<String>,
    },
    /// Print the last records with all of these words; exit code 2 if there are none
    #[command(
        after_help = "Examples:\n  node log search disk full\n  node log search '\"connection refused\"' --service web\n  \
                            node log search 'time*' --level warn --json | jq -r '.records[].message'"
    )]
    Search {
        /// Words; \"two words\" in quotation marks is a phrase, and err* any word that begins so
        words: Vec<String>,
        #[command(flatten)]
        which: Which,
        /// At most so many records
        #[arg(long, value_name = "NUMBER", default_value_t = 50)]
        limit: u16,
    },
}

/// Which records are meant.
#[derive(Debug, Args)]
pub(super) struct Which {
    /// Only records of this service
    #[arg(long)]
    service: Option<String>,
    /// Only records of this level or a more urgent one
    #[arg(long)]
    level: Option<String>,
}

impl Which {
    fn query(&self) -> Vec<(&'static str, String)> {
        let pair = |name, value: &Option<String>| value.clone().map(|value| (name, value));
        [pair("service", &self.service), pair("level", &self.level)].into_iter().flatten().collect()
    }
}

/// A record, as far as it is shown.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Record {
    time: String,
    level: String,
    service: Value,
    node: String,
    message: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Page {
    records: Vec<Record>,
}

/// Does it, at this node or at one that keeps the log.
pub(super) async fn log(client: &Client, output: Output, command: &Command) -> Result<(), Failure> {
    if let Command::Append { message, service, level } = command {
        let about = about(service.as_deref(), level.as_deref())?;
        return match message.join(" ") {
            lines if lines.is_empty() => append::append_lines(client, output, about).await,
            message => append_one(client, output, &message, &about).await,
        };
    }
    let keeper = keeper(client).await?;
    match command {
        Command::Append { .. } => Ok(()),
        Command::Tail { last, which, grep } => {
            let mut query = which.query();
            query.push(("last", last.to_string()));
            query.extend(grep.clone().map(|text| ("q", text)));
            follow(&keeper, &path("/log/tail", &query), |event| show(output, event)).await
        }
        Command::Search { words, which, limit } => {
            let mut query = which.query();
            query.extend([("before", "end".to_owned()), ("limit", limit.to_string())]);
            query.extend((!words.is_empty()).then(|| ("q", words.join(" "))));
            search(&keeper, output, &path("/log", &query)).await
        }
    }
}

fn path(path: &str, query: &[(&str, String)]) -> String {
    let pairs: Vec<String> = query.iter().map(|(name, value)| format!("{name}={}", segment(value))).collect();
    format!("{path}?{}", pairs.join("&"))
}

/// The node itself if it keeps the log, else one that does.
async fn keeper(client: &Client) -> Result<Client, Failure> {
    let nobody = || Failure::NoMatch("no node keeps the log; start one: node --role log".into());
    let answer = match client.get("/services/log").await {
        Err(Failure::NoMatch(_)) => return Err(nobody()),
        answer => answer?,
    };
    let asked: Asked = answer.json()?;
    let services: Services = answer.json()?;
    let keepers = services.services.get("log").map(Vec::as_slice).unwrap_or_default();
    if keepers.iter().any(|keeper| keeper.node == asked.node) {
        return Ok(client.clone());
    }
    let healthy = keepers.iter().find(|keeper| keeper.health == "passing");
    let keeper = healthy.or(keepers.first()).ok_or_else(nobody)?;
    Ok(Client::at_any_of(&keeper.url, &keeper.addresses)?.named(&keeper.node))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Asked {
    node: String,
}

/// Reads the fields that every record gets.
fn about(service: Option<&str>, level: Option<&str>) -> Result<About, Failure> {
    if let Some(service) = service.filter(|name| name.is_empty() || name.len() > NAME_BYTES_MAX) {
        let length = service.len();
        return Err(Failure::Usage(format!("--service: 1 to {NAME_BYTES_MAX} bytes, this has {length}")));
    }
    let read = |text: &str| {
        text.parse().map_err(|wrong: NotALevel| Failure::Usage(format!("--level: {text:?} is not {wrong}")))
    };
    Ok(About { service: service.map(str::to_owned), level: level.map(read).transpose()? })
}

async fn append_one(client: &Client, output: Output, message: &str, about: &About) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Record<'a> {
        message: &'a str,
        #[serde(flatten)]
        about: &'a About,
    }
    let record =
        serde_json::to_vec(&Record { message, about }).map_err(|error| Failure::Failed(error.into()))?;
    let (keeper, record) = (keeper(client).await?, Bytes::from(record));
    let answer =
        keeper.post_through(client, "/log", "application/json", None, record).await?.expect_success()?;
    if output.json {
        return output.json(&answer.body);
    }
    let told: Value = answer.json()?;
    let line = format!("recorded as {} ({})", plain(&told["id"]), plain(&told["ack"]));
    output.line(Tone::Good, &line)
}

async fn search(client: &Client, output: Output, path: &str) -> Result<(), Failure> {
    let answer = client.get(path).await?;
    let page: Page = answer.json()?;
    if output.json {
        output.json(&answer.body)?;
    }
    if page.records.is_empty() {
        return Err(Failure::NoMatch("no such record".into()));
    }
    if output.json {
        return Ok(());
    }
    let rows: Vec<_> = page
        .records
        .into_iter()
        .map(|r| (tone(&r.level), vec![r.time, r.level, plain(&r.service), r.node, r.message]))
        .collect();
    output.table(&["TIME", "LEVEL", "SERVICE", "NODE", "MESSAGE"], &rows)
}

fn show(output: Output, event: &Event) -> Result<(), Failure> {
    let data: Value = serde_json::from_str(&event.data)
        .map_err(|error| Failure::Refused(format!("that event is not a node's: {error}")))?;
    if !event.name.is_empty() && event.name != "message" {
        // What the node has to say about the stream itself.
        notice!("{}", escaped(&plain(&data["detail"])));
        return Ok(());
    }
    if output.json {
        return output.print(&format!("{}\n", escaped(&event.data)));
    }
    let record: Record = serde_json::from_value(data).unwrap_or_default();
    let (tone, line) = describe(&record);
    output.line(tone, &line)
}

/// A record as a line.
fn describe(record: &Record) -> (Tone, String) {
    let Record { time, level, service, node, message } = record;
    let speaker = match plain(service) {
        service if service.is_empty() => node.clone(),
        service => format!("{service}@{node}"),
    };
    (tone(level), format!("{time}  {level:<5}  {speaker}  {message}"))
}

fn tone(level: &str) -> Tone {
    match level {
        "error" => Tone::Bad,
        "warn" => Tone::Warning,
        "debug" | "trace" => Tone::Faint,
        _ => Tone::Plain,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_record_is_a_line_with_who_speaks() {
        let record =
            json!({ "time": "T", "level": "warn", "service": "web", "node": "n1", "message": "slow" });
        let record: Record = serde_json::from_value(record).unwrap();
        assert_eq!(describe(&record), (Tone::Warning, "T  warn   web@n1  slow".to_owned()));
        let record: Record =
            serde_json::from_value(json!({ "level": "info", "service": null, "node": "n1" })).unwrap();
        assert_eq!(describe(&record).1, "  info   n1  ");
    }

    #[test]
    fn what_is_typed_stays_within_its_parameter() {
        let query = [("q", "a&b=\"c\" #".to_owned()), ("limit", "5".to_owned())];
        assert_eq!(path("/log", &query), "/log?q=a%26b%3D%22c%22%20%23&limit=5");
    }
}
