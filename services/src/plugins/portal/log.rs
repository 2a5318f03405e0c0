//! Page of the log with the newest records of all nodes, filters, search and paging.
//!
//! A log node pages forward from a cursor (`after`, `next`). The page starts at the end with `before=end`; a
//! log node that does not support it is read from the beginning. Cursors are sent to the node that issued
//! them, as long as it is listed.

use askama::Template;
use axum::{
    extract::{RawQuery, State},
    response::Response,
};
use hearsay_protocol::NodeId;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    ActivePage,
    backend::{AnsweredBy, Backend, Outage, encoded, opaque_or_null, parameter},
    frame,
};
use crate::{
    http::{
        client::{Call, Reply, problem_detail},
        html::{Visible, render_page},
    },
    plugins::log::record::Level,
};

/// Maximum number of records on one page.
pub(super) const ROWS: usize = 100;
/// Position after the last record.
const END: &str = "end";
/// Selectable levels. Each includes the more severe ones; the lowest level would be the same as no filter.
const LEVELS: [Level; 4] = [Level::Error, Level::Warn, Level::Info, Level::Debug];

/// A record of a log node.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Record {
    #[serde(default, deserialize_with = "opaque_or_null")]
    pub(super) id: Option<String>,
    #[serde(default)]
    node: String,
    #[serde(default)]
    time: Value,
    #[serde(default)]
    service: Option<String>,
    #[serde(default)]
    level: Option<String>,
    message: String,
}

/// Answer of a log node.
#[derive(Debug, Deserialize)]
pub(super) struct LogPart {
    pub(super) records: Vec<Record>,
    /// Cursor of the next page; null at the end.
    #[serde(default, deserialize_with = "opaque_or_null")]
    next: Option<String>,
    /// Cursor of the previous page; null or missing at the beginning.
    #[serde(default, deserialize_with = "opaque_or_null")]
    prev: Option<String>,
}

/// A record for the page and its script. Invisible characters are spelt out; markup is not escaped yet.
#[derive(Clone, Debug, Serialize)]
pub(super) struct RecordLine {
    pub(super) id: String,
    /// Time as the record has it.
    time: String,
    day: String,
    clock: String,
    level: String,
    /// Class in the stylesheet.
    class: &'static str,
    service: String,
    node: String,
    message: String,
}

impl From<&Record> for RecordLine {
    fn from(record: &Record) -> Self {
        let visible = |text: &str| Visible(text).to_string();
        let time = match &record.time {
            Value::String(time) => visible(time),
            Value::Number(number) => number.to_string(),
            _ => String::new(),
        };
        let (day, clock) = match time.split_once('T') {
            Some((day, clock)) => (day.to_owned(), clock.trim_end_matches('Z').to_owned()),
            None => (String::new(), time.clone()),
        };
        let level = record.level.as_deref().unwrap_or_default();
        Self {
            id: record.id.as_deref().map(visible).unwrap_or_default(),
            time,
            day,
            clock,
            class: class_of(level),
            level: visible(level),
            service: visible(record.service.as_deref().unwrap_or_default()),
            node: visible(&short(&record.node)),
            message: visible(&record.message),
        }
    }
}

/// Shortens a node id. Names of nodes stay as they are.
fn short(node: &str) -> String {
    node.parse::<NodeId>().map_or_else(|_| node.to_owned(), |id| id.short())
}

fn class_of(level: &str) -> &'static str {
    match level.to_ascii_lowercase().as_str() {
        "error" | "err" | "fatal" | "critical" | "crit" | "panic" => "error",
        "warn" | "warning" => "warn",
        "info" | "notice" => "info",
        "debug" => "debug",
        "trace" => "trace",
        _ => "plain",
    }
}

/// Filter of the page. It is passed to the log node, for pages and for live records.
#[derive(Clone, Debug, Default)]
pub(super) struct Filter {
    pub(super) service: String,
    pub(super) level: Option<Level>,
    pub(super) q: String,
}

impl Filter {
    pub(super) fn read(query: Option<&str>) -> Self {
        let read = |name| parameter(query, name);
        Self { service: read("service"), level: read("level").parse().ok(), q: read("q") }
    }

    /// Encodes the filter for a query, with `&` before each parameter.
    pub(super) fn encoded(&self) -> String {
        let level = self.level.map(Level::name).unwrap_or_default();
        let parts = [("service", self.service.as_str()), ("level", level), ("q", &self.q)];
        let given = parts.into_iter().filter(|(_, value)| !value.is_empty());
        given.map(|(name, value)| format!("&{name}={}", encoded(value))).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.encoded().is_empty()
    }

    fn is_from(&self, level: &Level) -> bool {
        self.level == Some(*level)
    }
}

/// Position in the log.
#[derive(Debug)]
enum Place {
    /// The end, newest record first.
    Newest,
    /// Before a cursor, newest record first.
    Before(String),
    /// After a cursor, oldest record first.
    After(String),
    /// The beginning, oldest record first.
    Oldest,
}

/// Content of the page.
struct LogView {
    lines: Vec<RecordLine>,
    newest_first: bool,
    older: Option<String>,
    newer: Option<String>,
    /// Path of the live records. `None`: the page is not at the end, or is a search.
    tail: Option<String>,
    /// Id of the newest record on the page.
    last_id: String,
    by: AnsweredBy,
}

#[derive(Template)]
#[template(path = "portal/log.html")]
struct LogPage {
    filter: Filter,
    levels: [Level; 4],
    /// Services for the filter: those of the records on the page.
    services: Vec<String>,
    view: Result<LogView, Outage>,
}

/// Handles `GET /portal/log`.
pub(super) async fn log_page(State(backend): State<Backend>, RawQuery(query): RawQuery) -> Response {
    let query = query.as_deref();
    let filter = Filter::read(query);
    let place = match (parameter(query, "before"), parameter(query, "after")) {
        (before, _) if !before.is_empty() => Place::Before(before),
        (_, after) if !after.is_empty() => Place::After(after),
        _ if parameter(query, "from") == "start" => Place::Oldest,
        _ => Place::Newest,
    };
    let view = read_view(&backend, &filter, place, parameter(query, "at").parse().ok()).await;
    let status = view.as_ref().err().map_or(StatusCode::OK, Outage::front_status);
    let mut services: Vec<String> =
        view.iter().flat_map(|view| view.lines.iter().map(|line| line.service.clone())).collect();
    services.retain(|service| !service.is_empty());
    services.sort();
    services.dedup();
    let content = LogPage { filter, levels: LEVELS, services, view };
    render_page(status, &frame(backend.host.as_ref(), "Log", ActivePage::Log), &content)
}

async fn read_view(
    backend: &Backend,
    filter: &Filter,
    place: Place,
    at: Option<NodeId>,
) -> Result<LogView, Outage> {
    let mut place = place;
    let cursor = match &place {
        Place::Newest => format!("&before={END}"),
        Place::Before(cursor) => format!("&before={}", encoded(cursor)),
        Place::After(cursor) => format!("&after={}", encoded(cursor)),
        Place::Oldest => String::new(),
    };
    let mut reply = request_records(backend, filter, &cursor, at).await?;
    if matches!(place, Place::Newest) && reply.status == StatusCode::BAD_REQUEST {
        place = Place::Oldest;
        reply = request_records(backend, filter, "", at).await?;
    }
    let part = part(&reply)?;
    let by = AnsweredBy::from(&reply.provider);
    let link = |name: &str, cursor: &str| {
        format!("/portal/log?{name}={}&at={}{}", encoded(cursor), by.id, filter.encoded())
    };
    let newest_first = matches!(place, Place::Newest | Place::Before(_));
    let at_end = matches!(place, Place::Newest) || !newest_first && part.next.is_none();
    let mut lines: Vec<RecordLine> = part.records.iter().map(RecordLine::from).collect();
    let last_id = lines.last().map(|line| line.id.clone()).unwrap_or_default();
    if newest_first {
        lines.reverse();
    }
    let tail = (at_end && filter.q.is_empty())
        .then(|| format!("/portal/log/tail?{}", filter.encoded().trim_start_matches('&')));
    Ok(LogView {
        newest_first,
        older: part.prev.as_deref().map(|cursor| link("before", cursor)),
        newer: if at_end { None } else { part.next.as_deref().map(|cursor| link("after", cursor)) },
        tail,
        last_id,
        lines,
        by,
    })
}

async fn request_records(
    backend: &Backend,
    filter: &Filter,
    cursor: &str,
    at: Option<NodeId>,
) -> Result<Reply, Outage> {
    let call = Call::get(format!("/log?limit={ROWS}{cursor}{}", filter.encoded())).prefer(at);
    Ok(backend.call("log", &call).await?)
}

/// Parses the answer of a log node.
pub(super) fn part(reply: &Reply) -> Result<LogPart, Outage> {
    if !reply.status.is_success() {
        let detail = problem_detail(&reply.body).unwrap_or_else(|| reply.status.to_string());
        let unexpected = Outage::unexpected(&reply.provider, detail);
        if !reply.status.is_client_error() {
            return Err(unexpected);
        }
        // The usual cause is a cursor of a log node that has left since.
        return Err(Outage {
            status: reply.status,
            heading: "The log cannot be read from there".to_owned(),
            text: "The link may be an old one: it belongs to one log node, which may have left.",
            ..unexpected
        });
    }
    reply.json().map_err(|error| Outage::unexpected(&reply.provider, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(json: Value) -> RecordLine {
        RecordLine::from(&serde_json::from_value::<Record>(json).unwrap())
    }

    #[test]
    fn a_record_shows_everything_that_is_in_it() {
        let line = line(serde_json::json!({
            "id": "a-1", "node": "n1", "offset": 3, "time": "2026-02-11T12:00:03.250Z", "service": "web",
            "level": "WARNING", "message": "a\u{1b}[31mred\u{0}",
        }));
        assert_eq!((line.day.as_str(), line.clock.as_str()), ("2026-02-11", "12:00:03.250"));
        assert_eq!((line.class, line.message.as_str()), ("warn", "a\\u001b[31mred\\u0000"));
    }

    #[test]
    fn a_record_of_a_message_alone_is_a_record() {
        let line = line(serde_json::json!({ "message": "m", "time": null, "level": null }));
        assert_eq!((line.class, line.clock.as_str(), line.message.as_str()), ("plain", "", "m"));
    }
}
