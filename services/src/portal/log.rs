//! The log page: the newest records of all nodes, filtered, searched and paged.
//!
//! A log node pages forward from a cursor (`after`, `next`). To begin at the end, the page asks for what is `before=end`; a log node
//! that cannot do that says so, and is read from the beginning instead. Cursors are passed back to the node that gave them while it
//! is there.

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
    Here,
    desk::{By, Desk, Outage, encoded, opaque_or_null, parameter},
    frame,
};
use crate::{
    client::{Call, Reply, problem_detail},
    html::{Visible, page as html_page},
    log::record::Level,
};

/// Records on one page.
pub(super) const ROWS: usize = 100;
/// What stands before the first record and after the last.
const END: &str = "end";
/// The levels that can be chosen: each stands for itself and all that matter more, as in the log. The lowest is as good as none.
const LEVELS: [Level; 4] = [Level::Error, Level::Warn, Level::Info, Level::Debug];

/// A record, as a log node has it.
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

/// An answer of a log node.
#[derive(Debug, Deserialize)]
pub(super) struct Part {
    pub(super) records: Vec<Record>,
    /// Where to read on; null at the end.
    #[serde(default, deserialize_with = "opaque_or_null")]
    next: Option<String>,
    /// Before what to read back; null or missing at the beginning.
    #[serde(default, deserialize_with = "opaque_or_null")]
    prev: Option<String>,
}

/// A record as the page and its script show it. Texts have been made visible, and are still to be escaped.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Line {
    pub(super) id: String,
    /// As the record has it.
    time: String,
    day: String,
    clock: String,
    level: String,
    /// Of the stylesheet.
    class: &'static str,
    service: String,
    node: String,
    message: String,
}

impl From<&Record> for Line {
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

/// A node is mostly named; one that is given by its id is as recognisable by the end of it.
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

/// What of the log is wanted. What that means is the log node's to say: all of it is passed on, for pages and for what comes live.
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

    /// As a part of a query, with `&` before each.
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

/// Where in the log.
#[derive(Debug)]
enum Place {
    /// At its end, newest first.
    Newest,
    /// Before a cursor, newest first.
    Before(String),
    /// After a cursor, oldest first.
    After(String),
    /// From the beginning, oldest first.
    Oldest,
}

/// What is shown.
struct Shown {
    lines: Vec<Line>,
    newest_first: bool,
    older: Option<String>,
    newer: Option<String>,
    /// Where the script gets what is new. `None`: the page is not at the end, or searches.
    tail: Option<String>,
    /// The newest record that is shown.
    last_id: String,
    by: By,
}

#[derive(Template)]
#[template(path = "portal/log.html")]
struct LogPage {
    filter: Filter,
    levels: [Level; 4],
    /// Services that can be chosen: those on the page.
    services: Vec<String>,
    shown: Result<Shown, Outage>,
}

/// Shows the log.
pub(super) async fn page(State(desk): State<Desk>, RawQuery(query): RawQuery) -> Response {
    let query = query.as_deref();
    let filter = Filter::read(query);
    let place = match (parameter(query, "before"), parameter(query, "after")) {
        (before, _) if !before.is_empty() => Place::Before(before),
        (_, after) if !after.is_empty() => Place::After(after),
        _ if parameter(query, "from") == "start" => Place::Oldest,
        _ => Place::Newest,
    };
    let shown = show(&desk, &filter, place, parameter(query, "at").parse().ok()).await;
    let status = shown.as_ref().err().map_or(StatusCode::OK, Outage::front_status);
    let mut services: Vec<String> =
        shown.iter().flat_map(|shown| shown.lines.iter().map(|line| line.service.clone())).collect();
    services.retain(|service| !service.is_empty());
    services.sort();
    services.dedup();
    let content = LogPage { filter, levels: LEVELS, services, shown };
    html_page(status, &frame(desk.host.as_ref(), "Log", Here::Log), &content)
}

async fn show(desk: &Desk, filter: &Filter, place: Place, at: Option<NodeId>) -> Result<Shown, Outage> {
    let mut place = place;
    let cursor = match &place {
        Place::Newest => format!("&before={END}"),
        Place::Before(cursor) => format!("&before={}", encoded(cursor)),
        Place::After(cursor) => format!("&after={}", encoded(cursor)),
        Place::Oldest => String::new(),
    };
    let mut reply = ask(desk, filter, &cursor, at).await?;
    if matches!(place, Place::Newest) && reply.status == StatusCode::BAD_REQUEST {
        place = Place::Oldest;
        reply = ask(desk, filter, "", at).await?;
    }
    let part = part(&reply)?;
    let by = By::from(&reply.provider);
    let link = |name: &str, cursor: &str| {
        format!("/portal/log?{name}={}&at={}{}", encoded(cursor), by.id, filter.encoded())
    };
    let newest_first = matches!(place, Place::Newest | Place::Before(_));
    let at_end = matches!(place, Place::Newest) || !newest_first && part.next.is_none();
    let mut lines: Vec<Line> = part.records.iter().map(Line::from).collect();
    let last_id = lines.last().map(|line| line.id.clone()).unwrap_or_default();
    if newest_first {
        lines.reverse();
    }
    let tail = (at_end && filter.q.is_empty())
        .then(|| format!("/portal/log/tail?{}", filter.encoded().trim_start_matches('&')));
    Ok(Shown {
        newest_first,
        older: part.prev.as_deref().map(|cursor| link("before", cursor)),
        newer: if at_end { None } else { part.next.as_deref().map(|cursor| link("after", cursor)) },
        tail,
        last_id,
        lines,
        by,
    })
}

async fn ask(desk: &Desk, filter: &Filter, cursor: &str, at: Option<NodeId>) -> Result<Reply, Outage> {
    let call = Call::get(format!("/log?limit={ROWS}{cursor}{}", filter.encoded())).prefer(at);
    Ok(desk.ask("log", &call).await?)
}

/// Reads an answer.
pub(super) fn part(reply: &Reply) -> Result<Part, Outage> {
    if !reply.status.is_success() {
        let detail = problem_detail(&reply.body).unwrap_or_else(|| reply.status.to_string());
        let strange = Outage::strange(&reply.provider, detail);
        if !reply.status.is_client_error() {
            return Err(strange);
        }
        // Mostly a place that only a log node knew which has gone since.
        return Err(Outage {
            status: reply.status,
            heading: "The log cannot be read from there".to_owned(),
            text: "The address may be an old one: places in the log are those of one log node, and it may have gone.",
            ..strange
        });
    }
    reply.json().map_err(|error| Outage::strange(&reply.provider, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(json: Value) -> Line {
        Line::from(&serde_json::from_value::<Record>(json).unwrap())
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
