//! Sends new records to an open log page as server-sent events (`GET /portal/log/tail`). It reads them from a
//! log node, and from another one if that fails.
//!
//! The script of the page connects to the portal, not to the log node, so that it needs no other origin. When
//! the log node fails, the portal follows another one and reads the missed records from it. Each event is a
//! row of the page. There is no queue: a slow browser slows the reading from the log node.

use std::{
    collections::{BTreeSet, VecDeque},
    convert::Infallible,
    time::Duration,
};

use axum::{
    body::Bytes,
    extract::{RawQuery, State},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures::stream;
use http::{StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::json;
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Instant, sleep, timeout},
};

use super::{
    backend::{AnsweredBy, Backend, parameter},
    log::{Filter, ROWS, Record, RecordLine, part},
};
use crate::{Problem, http::client::Call};

/// Maximum number of bytes of a line from a log node, more than its largest record has. A longer line is
/// skipped.
const LINE_BYTES_MAX: usize = 512 * 1024;
/// Maximum number of remembered ids of records. They prevent repetitions after a change of log nodes.
const SEEN_MAX: usize = 1024;
/// Interval of checks that the log node is still listed. The connection to a failed node may stay open for
/// minutes.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Silence after which the portal leaves a log node. A log node sends a comment every 15 s.
const SILENCE_MAX: Duration = Duration::from_secs(45);
/// Shortest and longest pause before a retry.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(4));
/// Interval of comments to the browser.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Handles `GET /portal/log/tail`.
pub(super) async fn follow(
    State(backend): State<Backend>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let query = query.as_deref();
    let Ok(place) = backend.tails.clone().try_acquire_owned() else {
        let detail = "too many log pages are open here. Use another node";
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail));
    };
    let mut seen = SeenIds::default();
    let since = parameter(query, "since");
    if !since.is_empty() {
        seen.insert(&since);
    }
    let tail = LiveTail {
        backend,
        filter: Filter::read(query),
        seen,
        source: None,
        ready: VecDeque::new(),
        retry: RETRY.0,
        told_absent: false,
        _place: place,
    };
    let events = stream::unfold(tail, async |mut tail| Some((Ok::<_, Infallible>(tail.next().await), tail)));
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

/// Live records of one open page.
struct LiveTail {
    backend: Backend,
    filter: Filter,
    seen: SeenIds,
    source: Option<Source>,
    /// Events for the browser.
    ready: VecDeque<Event>,
    retry: Duration,
    /// Whether the browser knows that there is no log node.
    told_absent: bool,
    _place: OwnedSemaphorePermit,
}

/// The followed log node.
struct Source {
    by: AnsweredBy,
    provider_id: String,
    body: Incoming,
    parser: EventParser,
    last_heard: Instant,
}

impl LiveTail {
    async fn next(&mut self) -> Event {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return event;
            }
            if self.source.is_none() {
                self.connect().await;
                continue;
            }
            if !self.listen().await {
                self.source = None;
                self.ready.push_back(event("lost", &json!({})));
            }
        }
    }

    /// Connects to a log node, and reads the records since the last connection.
    async fn connect(&mut self) {
        let filter = self.filter.encoded();
        let path = format!("/log/tail?{}", filter.trim_start_matches('&'));
        let call = Call::get(path).header(header::ACCEPT, "text/event-stream");
        let stream = self.backend.host.client().stream(self.backend.host.as_ref(), "log", &call).await;
        match stream {
            Ok(stream) => {
                let by = AnsweredBy::from(&stream.provider);
                self.ready.push_back(event("from", &json!({ "node": by.node })));
                // The missed records are read only once the stream is open, so that there is no gap.
                self.catch_up(&by).await;
                self.source = Some(Source {
                    provider_id: stream.provider.id.clone(),
                    by,
                    body: stream.body,
                    parser: EventParser::default(),
                    last_heard: Instant::now(),
                });
                (self.retry, self.told_absent) = (RETRY.0, false);
            }
            Err(error) => {
                if !self.told_absent {
                    self.told_absent = true;
                    self.ready.push_back(event("absent", &json!({ "why": error.to_string() })));
                    return;
                }
                sleep(self.retry).await;
                self.retry = (self.retry * 2).min(RETRY.1);
            }
        }
    }

    /// Shows the records after the last known one. If none of the newest records is known, some may have been
    /// missed, so the page shows a gap.
    async fn catch_up(&mut self, by: &AnsweredBy) {
        if self.seen.is_empty() {
            return;
        }
        let path = format!("/log?limit={ROWS}&before=end{}", self.filter.encoded());
        let Ok(reply) = self.backend.call("log", &Call::get(path).prefer(Some(by.id))).await else { return };
        let Ok(part) = part(&reply) else { return };
        let known =
            part.records.iter().rposition(|record| record.id.as_deref().is_some_and(|id| self.seen.has(id)));
        match known {
            Some(last) => part.records.iter().skip(last + 1).for_each(|record| self.show(record)),
            None if part.records.is_empty() => (),
            None => self.ready.push_back(event("gap", &json!({}))),
        }
    }

    /// Waits for data from the log node. Returns `false` if it is gone.
    async fn listen(&mut self) -> bool {
        let Some(source) = &mut self.source else { return false };
        match timeout(LOOK_EVERY, source.body.frame()).await {
            Ok(Some(Ok(frame))) => {
                source.last_heard = Instant::now();
                let Ok(data) = frame.into_data() else { return true };
                let records: Vec<Record> = source.parser.take(&data);
                records.iter().for_each(|record| self.show(record));
                true
            }
            Ok(None | Some(Err(_))) => false,
            Err(_) => {
                let listed = self.backend.host.providers("log");
                let is_listed =
                    listed.iter().any(|p| p.node_id == source.by.id && p.id == source.provider_id);
                is_listed && source.last_heard.elapsed() < SILENCE_MAX
            }
        }
    }

    fn show(&mut self, record: &Record) {
        if let Some(id) = &record.id
            && !self.seen.insert(id)
        {
            return;
        }
        if let Ok(line) = serde_json::to_value(RecordLine::from(record)) {
            self.ready.push_back(event("record", &line));
        }
    }
}

fn event(kind: &str, data: &serde_json::Value) -> Event {
    Event::default().event(kind).data(data.to_string())
}

/// Ids of the newest records.
#[derive(Default)]
struct SeenIds {
    ids: BTreeSet<String>,
    order: VecDeque<String>,
}

impl SeenIds {
    /// Adds an id. Returns whether it is new.
    fn insert(&mut self, id: &str) -> bool {
        if !self.ids.insert(id.to_owned()) {
            return false;
        }
        self.order.push_back(id.to_owned());
        if self.order.len() > SEEN_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
        true
    }

    fn has(&self, id: &str) -> bool {
        self.ids.contains(id)
    }

    fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

/// Incremental parser of server-sent events with records.
#[derive(Default)]
struct EventParser {
    line: Vec<u8>,
    /// Whether the rest of the current line is skipped.
    overlong: bool,
    data: Vec<u8>,
}

impl EventParser {
    fn take(&mut self, bytes: &Bytes) -> Vec<Record> {
        let mut records = Vec::new();
        for piece in bytes.split_inclusive(|b| *b == b'\n') {
            let (text, ends) = match piece.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (piece, false),
            };
            if self.line.len() + text.len() > LINE_BYTES_MAX {
                (self.overlong, self.line) = (true, Vec::new());
            }
            if !self.overlong {
                self.line.extend_from_slice(text);
            }
            if ends {
                let line = std::mem::take(&mut self.line);
                if !std::mem::take(&mut self.overlong) {
                    records.extend(self.end_of(line.strip_suffix(b"\r").unwrap_or(&line)));
                }
            }
        }
        records
    }

    /// Handles a complete line; an empty one ends an event.
    fn end_of(&mut self, line: &[u8]) -> Option<Record> {
        if line.is_empty() {
            let data = std::mem::take(&mut self.data);
            // Other events of newer log nodes are ignored.
            return serde_json::from_slice(&data).ok();
        }
        if let Some(data) = line.strip_prefix(b"data:") {
            let data = data.strip_prefix(b" ").unwrap_or(data);
            if self.data.len() + data.len() <= LINE_BYTES_MAX {
                self.data.extend_from_slice(data);
                self.data.push(b'\n');
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_found_however_the_stream_is_cut() {
        let text = ": hello\n\nid: 1\nevent: record\ndata: {\"id\":1,\"message\":\"a\"}\n\ndata:{\"message\":\r\ndata: \"b\"}\r\n\r\n";
        for size in [1, 3, 7, text.len()] {
            let mut parser = EventParser::default();
            let found: Vec<Record> = text
                .as_bytes()
                .chunks(size)
                .flat_map(|piece| parser.take(&Bytes::copy_from_slice(piece)))
                .collect();
            assert_eq!(found.len(), 2, "in pieces of {size}");
            assert_eq!(found[0].id.as_deref(), Some("1"));
        }
    }

    #[test]
    fn an_overlong_line_costs_no_memory_and_no_other_record() {
        let mut parser = EventParser::default();
        parser.take(&Bytes::from_static(b"data: "));
        let piece = Bytes::from(vec![b'x'; 100_000]);
        for _ in 0..20 {
            assert!(parser.take(&piece).is_empty());
            assert!(parser.line.len() <= LINE_BYTES_MAX);
        }
        let found = parser.take(&Bytes::from_static(b"\n\ndata: {\"message\":\"next\"}\n\n"));
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn what_was_seen_is_remembered_for_a_while() {
        let mut seen = SeenIds::default();
        assert!(seen.insert("a") && !seen.insert("a"));
        (0..SEEN_MAX).for_each(|i| _ = seen.insert(&i.to_string()));
        assert!(!seen.has("a") && seen.order.len() == SEEN_MAX);
    }
}
