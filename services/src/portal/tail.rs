//! What the log page adds while it is open: records as server-sent events, from whichever log node is alive.
//!
//! The page's script listens here and not at the log node, so that it needs no other origin, and so that it does not matter which
//! log node dies: the next one is followed, and what came in between is read from it. Each event is a line ready to be shown.
//! Nothing is queued here: what the browser does not take is not read from the log node.

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
    desk::{By, Desk, parameter},
    log::{Filter, Line, ROWS, Record, part},
};
use crate::{Problem, client::Call};

/// A line of the stream from a log node; a longer one is skipped. A log node takes no larger records.
const LINE_BYTES_MAX: usize = 512 * 1024;
/// Ids remembered, so that what is read again after a change of nodes is not shown twice.
const SEEN_MAX: usize = 1024;
/// How often it is checked that the log node is still listed: a dead one's connection may stay open for minutes.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A log node shows every 15 s that it lives; one that does not for this long is left.
const SILENCE_MAX: Duration = Duration::from_secs(45);
/// How long to wait before the next try, at first and at last.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(4));
/// How often the browser is shown that the stream lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Answers with the stream.
pub(super) async fn tail(State(desk): State<Desk>, RawQuery(query): RawQuery) -> Result<Response, Problem> {
    let query = query.as_deref();
    let Ok(place) = desk.tails.clone().try_acquire_owned() else {
        let detail = "too many log pages are kept up to date here; ask another node";
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail));
    };
    let mut seen = Seen::default();
    let since = parameter(query, "since");
    if !since.is_empty() {
        seen.insert(&since);
    }
    let follower = Follower {
        desk,
        filter: Filter::read(query),
        seen,
        source: None,
        ready: VecDeque::new(),
        retry: RETRY.0,
        told_absent: false,
        _place: place,
    };
    let events = stream::unfold(follower, async |mut follower| {
        Some((Ok::<_, Infallible>(follower.next().await), follower))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

/// One open page.
struct Follower {
    desk: Desk,
    filter: Filter,
    seen: Seen,
    source: Option<Source>,
    /// Events for the browser.
    ready: VecDeque<Event>,
    retry: Duration,
    /// Whether the browser knows that nobody is there.
    told_absent: bool,
    _place: OwnedSemaphorePermit,
}

/// The log node that is followed.
struct Source {
    by: By,
    provider_id: String,
    body: Incoming,
    lines: Lines,
    last_heard: Instant,
}

impl Follower {
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

    /// Finds a log node, and reads from it what came while none was followed.
    async fn connect(&mut self) {
        let filter = self.filter.encoded();
        let path = format!("/log/tail?{}", filter.trim_start_matches('&'));
        let call = Call::get(path).header(header::ACCEPT, "text/event-stream");
        let stream = self.desk.host.client().stream(self.desk.host.as_ref(), "log", &call).await;
        match stream {
            Ok(stream) => {
                let by = By::from(&stream.provider);
                self.ready.push_back(event("from", &json!({ "node": by.node })));
                // After the stream is open, so that nothing falls between.
                self.catch_up(&by).await;
                self.source = Some(Source {
                    provider_id: stream.provider.id.clone(),
                    by,
                    body: stream.body,
                    lines: Lines::default(),
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

    /// Shows the last records after those that have been shown. Where none of them has been, nothing was missed, or too much.
    async fn catch_up(&mut self, by: &By) {
        if self.seen.is_empty() {
            return;
        }
        let path = format!("/log?limit={ROWS}&before=end{}", self.filter.encoded());
        let Ok(reply) = self.desk.ask("log", &Call::get(path).prefer(Some(by.id))).await else { return };
        let Ok(part) = part(&reply) else { return };
        let known =
            part.records.iter().rposition(|record| record.id.as_deref().is_some_and(|id| self.seen.has(id)));
        match known {
            Some(last) => part.records.iter().skip(last + 1).for_each(|record| self.show(record)),
            None if part.records.is_empty() => (),
            None => self.ready.push_back(event("gap", &json!({}))),
        }
    }

    /// Waits for something from the log node. False: it is gone.
    async fn listen(&mut self) -> bool {
        let Some(source) = &mut self.source else { return false };
        match timeout(LOOK_EVERY, source.body.frame()).await {
            Ok(Some(Ok(frame))) => {
                source.last_heard = Instant::now();
                let Ok(data) = frame.into_data() else { return true };
                let records: Vec<Record> = source.lines.take(&data);
                records.iter().for_each(|record| self.show(record));
                true
            }
            Ok(None | Some(Err(_))) => false,
            Err(_) => {
                let listed = self.desk.host.providers("log");
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
        if let Ok(line) = serde_json::to_value(Line::from(record)) {
            self.ready.push_back(event("record", &line));
        }
    }
}

fn event(kind: &str, data: &serde_json::Value) -> Event {
    Event::default().event(kind).data(data.to_string())
}

/// The ids that were lately shown.
#[derive(Default)]
struct Seen {
    ids: BTreeSet<String>,
    order: VecDeque<String>,
}

impl Seen {
    /// Whether it is new.
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

/// Takes records out of a stream of server-sent events, in whatever pieces it arrives.
#[derive(Default)]
struct Lines {
    line: Vec<u8>,
    /// The line is too long, and the rest of it is skipped.
    overlong: bool,
    data: Vec<u8>,
}

impl Lines {
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

    /// A whole line; an empty one ends an event.
    fn end_of(&mut self, line: &[u8]) -> Option<Record> {
        if line.is_empty() {
            let data = std::mem::take(&mut self.data);
            // What is no record is something that a newer log node says.
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
            let mut lines = Lines::default();
            let found: Vec<Record> = text
                .as_bytes()
                .chunks(size)
                .flat_map(|piece| lines.take(&Bytes::copy_from_slice(piece)))
                .collect();
            assert_eq!(found.len(), 2, "in pieces of {size}");
            assert_eq!(found[0].id.as_deref(), Some("1"));
        }
    }

    #[test]
    fn an_overlong_line_costs_no_memory_and_no_other_record() {
        let mut lines = Lines::default();
        lines.take(&Bytes::from_static(b"data: "));
        let piece = Bytes::from(vec![b'x'; 100_000]);
        for _ in 0..20 {
            assert!(lines.take(&piece).is_empty());
            assert!(lines.line.len() <= LINE_BYTES_MAX);
        }
        let found = lines.take(&Bytes::from_static(b"\n\ndata: {\"message\":\"next\"}\n\n"));
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn what_was_seen_is_remembered_for_a_while() {
        let mut seen = Seen::default();
        assert!(seen.insert("a") && !seen.insert("a"));
        (0..SEEN_MAX).for_each(|i| _ = seen.insert(&i.to_string()));
        assert!(!seen.has("a") && seen.order.len() == SEEN_MAX);
    }
}
