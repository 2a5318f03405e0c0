//! `node log append|tail|search`: writes, follows and searches the central log.
//!
//! The node need not have the role `log` itself: it lists the nodes that have this role.

mod append;
mod lines;

use bytes::Bytes;
use clap::{Args, Subcommand};
use hearsay_services::plugins::{NAME_BYTES_MAX, NotALevel};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::append::RecordFields;
use super::{
    client::{Client, Post},
    failure::Failure,
    follow::follow,
    output::{Output, Tone},
    responses::{Services, plain},
    sse::Event,
};
use crate::escape::{escaped, percent_encoded};

/// Subcommands of `node log`.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Append a record, or each line of standard input as a record
    #[command(
        after_help = "In standard input, empty lines are ignored, bytes that are not UTF-8 are replaced, and lines over 32 KiB are split. \
        While no log node answers, the command waits for one and stops reading, so no line is lost silently. A signal ends it: exit code \
        1 if lines that were read are not recorded, with their numbers.\n\nExamples:\n  \
        node log append \"deployed version 7\" --service web\n  journalctl -f | node log append --service \"$(hostname)\""
    )]
    Append {
        /// The message; without one, each line of standard input is a record
        message: Vec<String>,
        /// Service that the record belongs to
        #[arg(long)]
        service: Option<String>,
        /// Level: trace, debug, info, warn or error, or another logger's name for it [default: info]
        #[arg(long)]
        level: Option<String>,
    },
    /// Print records as they arrive, until interrupted
    #[command(after_help = "Examples:\n  node log tail\n  node log tail -n 50 --level warn --grep timeout")]
    Tail {
        /// Number of older records to start with
        #[arg(short = 'n', long, value_name = "NUMBER", default_value_t = 10)]
        last: u16,
        #[command(flatten)]
        filter: Filter,
        /// Only records whose message contains this text, ignoring case
        #[arg(long, value_name = "TEXT")]
        grep: Option<String>,
    },
    /// Print the last records with all of these words; exit code 2 if there are none
    #[command(
        after_help = "Examples:\n  node log search disk full\n  node log search '\"connection refused\"' --service web\n  \
                            node log search 'time*' --level warn --json | jq -r '.records[].message'"
    )]
    Search {
        /// Words; \"two words\" in quotation marks are a phrase, and err* is a prefix
        words: Vec<String>,
        #[command(flatten)]
        filter: Filter,
        /// The most records to print
        #[arg(long, value_name = "NUMBER", default_value_t = 50)]
        limit: u16,
    },
}

/// Filter of records.
#[derive(Debug, Args)]
pub(super) struct Filter {
    /// Only records of this service
    #[arg(long)]
    service: Option<String>,
    /// Only records of this level or above
    #[arg(long)]
    level: Option<String>,
}

impl Filter {
    fn query(&self) -> Vec<(&'static str, String)> {
        let pair = |name, value: &Option<String>| value.clone().map(|value| (name, value));
        [pair("service", &self.service), pair("level", &self.level)].into_iter().flatten().collect()
    }
}

/// A record, with the fields that are printed.
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

/// Runs a subcommand at this node or at a log node that it lists.
pub(super) async fn log(client: &Client, output: Output, command: &Command) -> Result<(), Failure> {
    if let Command::Append { message, service, level } = command {
        let fields = parse_fields(service.as_deref(), level.as_deref())?;
        return match message.join(" ") {
            lines if lines.is_empty() => append::append_lines(client, output, fields).await,
            message => append_record(client, output, &message, &fields).await,
        };
    }
    let log_node = find_log_node(client).await?;
    match command {
        Command::Append { .. } => Ok(()),
        Command::Tail { last, filter, grep } => {
            let mut query = filter.query();
            query.push(("last", last.to_string()));
            query.extend(grep.clone().map(|text| ("q", text)));
            follow(&log_node, &path("/log/tail", &query), |event| show(output, event)).await
        }
        Command::Search { words, filter, limit } => {
            let mut query = filter.query();
            query.extend([("before", "end".to_owned()), ("limit", limit.to_string())]);
            query.extend((!words.is_empty()).then(|| ("q", words.join(" "))));
            search(&log_node, output, &path("/log", &query)).await
        }
    }
}

fn path(path: &str, query: &[(&str, String)]) -> String {
    let pairs: Vec<String> =
        query.iter().map(|(name, value)| format!("{name}={}", percent_encoded(value))).collect();
    format!("{path}?{}", pairs.join("&"))
}

/// Returns the node itself if it has the role `log`, else a node that has it.
pub(super) async fn find_log_node(client: &Client) -> Result<Client, Failure> {
    let no_log_node =
        || Failure::NoMatch("no node has the role log; start one with `node --role log`".into());
    let answer = match client.get("/services/log").await {
        Err(Failure::NoMatch(_)) => return Err(no_log_node()),
        answer => answer?,
    };
    let responder: Responder = answer.json()?;
    let services: Services = answer.json()?;
    let log_nodes = services.services.get("log").map(Vec::as_slice).unwrap_or_default();
    if log_nodes.iter().any(|log_node| log_node.node == responder.node) {
        return Ok(client.clone());
    }
    let healthy = log_nodes.iter().find(|log_node| log_node.health == "passing");
    let log_node = healthy.or(log_nodes.first()).ok_or_else(no_log_node)?;
    Ok(Client::with_addresses(&log_node.url, &log_node.addresses)?.with_name(&log_node.node))
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Responder {
    node: String,
}

/// Parses the fields that all records get.
fn parse_fields(service: Option<&str>, level: Option<&str>) -> Result<RecordFields, Failure> {
    if let Some(service) = service.filter(|name| name.is_empty() || name.len() > NAME_BYTES_MAX) {
        let length = service.len();
        return Err(Failure::Usage(format!("--service has {length} bytes; give 1 to {NAME_BYTES_MAX}")));
    }
    let read = |text: &str| {
        text.parse().map_err(|wrong: NotALevel| Failure::Usage(format!("--level: {text:?} is not {wrong}")))
    };
    Ok(RecordFields { service: service.map(str::to_owned), level: level.map(read).transpose()? })
}

async fn append_record(
    client: &Client,
    output: Output,
    message: &str,
    fields: &RecordFields,
) -> Result<(), Failure> {
    #[derive(Serialize)]
    struct Record<'a> {
        message: &'a str,
        #[serde(flatten)]
        fields: &'a RecordFields,
    }
    let record =
        serde_json::to_vec(&Record { message, fields }).map_err(|error| Failure::Failed(error.into()))?;
    let (log_node, record) = (find_log_node(client).await?, Bytes::from(record));
    let post = Post { path: "/log", content_type: "application/json", key: None, body: &record };
    let answer = log_node.post_through(client, post).await?.expect_success()?;
    if output.json {
        return output.json(&answer.body);
    }
    let receipt: Value = answer.json()?;
    let line = format!("recorded as {} ({})", plain(&receipt["id"]), plain(&receipt["ack"]));
    output.line(Tone::Good, &line)
}

async fn search(client: &Client, output: Output, path: &str) -> Result<(), Failure> {
    let answer = client.get(path).await?;
    let page: Page = answer.json()?;
    if output.json {
        output.json(&answer.body)?;
    }
    if page.records.is_empty() {
        return Err(Failure::NoMatch("no record matches".into()));
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
        .map_err(|error| Failure::Refused(format!("the event is not one of a Hearsay node: {error}")))?;
    if !event.name.is_empty() && event.name != "message" {
        // A notice about the stream itself.
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

/// Formats a record as a line.
fn describe(record: &Record) -> (Tone, String) {
    let Record { time, level, service, node, message } = record;
    let origin = match plain(service) {
        service if service.is_empty() => node.clone(),
        service => format!("{service}@{node}"),
    };
    (tone(level), format!("{time}  {level:<5}  {origin}  {message}"))
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
    fn a_record_is_a_line_with_its_origin() {
        let record =
            json!({ "time": "T", "level": "warn", "service": "web", "node": "n1", "message": "slow" });
        let record: Record = serde_json::from_value(record).unwrap();
        assert_eq!(describe(&record), (Tone::Warning, "T  warn   web@n1  slow".to_owned()));
        let record: Record =
            serde_json::from_value(json!({ "level": "info", "service": null, "node": "n1" })).unwrap();
        assert_eq!(describe(&record).1, "  info   n1  ");
    }

    #[test]
    fn parameters_are_encoded() {
        let query = [("q", "a&b=\"c\" #".to_owned()), ("limit", "5".to_owned())];
        assert_eq!(path("/log", &query), "/log?q=a%26b%3D%22c%22%20%23&limit=5");
    }
}
