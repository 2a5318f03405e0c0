//! `GET /services/watch`: an event stream of changes (server-sent events).
//!
//! The first event is a `snapshot` with the JSON of `/services`. Then come `added`, `changed` and `removed`,
//! each with one instance. A program that is registered with several nodes is one instance, as in
//! `/services`. When the registration with another node begins to count, the event is `changed`, and
//! `replaces` names the earlier one. The id of an event is the table's index. A client that reconnects with
//! `Last-Event-ID`, as browsers do, resumes there. If the table's history does not reach back that far, the
//! client gets a new snapshot.
//!
//! There is no queue for each client. When a client's socket has room, the next changes are read from the
//! table's history. So a slow client takes the memory of one batch. If the history no longer reaches back to
//! a client's position, the client gets a snapshot, which is charged to the response budget.

use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::{HeaderMap, Uri},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures::stream;
use hearsay_protocol::{Index, Provider, ProviderTable, ServiceChange};
use hearsay_services::{Problem, http::Parameters};
use tokio::sync::{OwnedSemaphorePermit, watch::Receiver};

use crate::http::{
    api::instance::{ChangedInstance, ServicesJson},
    server::stream_limit::StreamPermit,
    state::AppState,
};

/// Changes read from the table at a time. Guess: enough to make the lock cheap, few enough to keep for a slow
/// client.
const BATCH: usize = 64;
/// Interval of keep-alives on a stream without events. Proxies commonly close silent connections after a
/// minute.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Answers with the event stream.
pub(crate) async fn watch(
    State(state): State<Arc<AppState>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let parameters = Parameters::read(uri.query(), &["service"])?;
    let service = parameters.single("service")?.map(str::to_owned);
    let follower = Follower::new(state, service, last_event_id(&headers))?;
    let events = stream::unfold(follower, async |mut follower| {
        let event = follower.next().await?;
        let event = follower.render(event)?;
        Some((Ok::<_, Infallible>(event), follower))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

/// Returns the index at which a client resumes. A malformed one counts as none.
fn last_event_id(headers: &HeaderMap) -> Option<Index> {
    headers.get("last-event-id")?.to_str().ok()?.trim().parse().ok().map(Index)
}

/// An event for a client that follows the table.
pub(crate) enum TableEvent {
    /// All instances at this index.
    Snapshot(Index, Vec<Arc<Provider>>),
    /// A change at this index.
    Change(Index, ServiceChange),
}

/// Source of the events of one client. gRPC's `Watch` uses it, too.
pub(crate) struct Follower {
    state: Arc<AppState>,
    /// Restricts the changes to one service.
    service: Option<String>,
    /// Index up to which the client has seen changes; `None` before the snapshot.
    position: Option<Index>,
    /// Events that were read from the table and are not yet sent.
    ready: VecDeque<TableEvent>,
    newest: Receiver<Index>,
    /// Charge of the snapshot until the client has read it.
    permit: Option<OwnedSemaphorePermit>,
    _permit: StreamPermit,
}

impl Follower {
    /// Follows the table after a position, or from a snapshot on.
    ///
    /// # Errors
    /// 429 when too many streams are open.
    pub(crate) fn new(
        state: Arc<AppState>,
        service: Option<String>,
        position: Option<Index>,
    ) -> Result<Self, Problem> {
        Ok(Self {
            service,
            position,
            ready: VecDeque::new(),
            newest: state.view.subscribe(),
            permit: None,
            _permit: state.admit_stream()?,
            state,
        })
    }

    /// Returns the next event; `None` when the node leaves. The client has read the event before.
    pub(crate) async fn next(&mut self) -> Option<TableEvent> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            self.permit = None;
            // The index is marked as seen before the read, so that a later change wakes the task.
            self.newest.mark_unchanged();
            self.refill();
            if !self.ready.is_empty() {
                continue;
            }
            tokio::select! {
                changed = self.newest.changed() => changed.ok()?,
                () = self.state.leaving() => return None,
            }
        }
    }

    /// Charges a snapshot of this size to the response budget until the next batch of events. `false`: the
    /// budget is exhausted, and the stream ends; the client reconnects.
    pub(crate) fn charge(&mut self, bytes: usize) -> bool {
        self.permit = self.state.response_budget.acquire(bytes);
        if self.permit.is_none() {
            self.state.metrics.http.refused("answers");
        }
        self.permit.is_some()
    }

    /// Reads the next batch of events.
    fn refill(&mut self) {
        let (position, events) = self.state.read(|table| read(table, self.position, self.service.as_deref()));
        self.position = Some(position);
        self.ready.extend(events);
    }

    fn render(&mut self, event: TableEvent) -> Option<Event> {
        // Serialisation of these types cannot fail.
        match event {
            TableEvent::Snapshot(index, providers) => {
                let providers = providers.iter().map(Arc::as_ref);
                let json = ServicesJson::new(&self.state, index, self.service.as_deref(), providers);
                let data = serde_json::to_string(&json).ok()?;
                self.charge(data.len()).then(|| sse("snapshot", index, data))
            }
            TableEvent::Change(index, change) => {
                let (kind, replaced) = match &change {
                    ServiceChange::Added(_) => ("added", None),
                    ServiceChange::Changed(_) => ("changed", None),
                    ServiceChange::Replaced { before, .. } => ("changed", Some(before.as_ref())),
                    ServiceChange::Removed(_) => ("removed", None),
                };
                let json = ChangedInstance::new(change.provider(), replaced);
                Some(sse(kind, index, serde_json::to_string(&json).ok()?))
            }
        }
    }
}

/// Reads the changes after a position, or a snapshot if the history does not reach back to it. Returns the
/// new position and the events up to it.
fn read(table: &ProviderTable, position: Option<Index>, service: Option<&str>) -> (Index, Vec<TableEvent>) {
    let is_asked_for = |name: &str| service.is_none_or(|service| service == name);
    let Some((position, changes)) = position.and_then(|p| Some((p, table.changes_after(p)?))) else {
        let asked_for = table.services().filter(|name| is_asked_for(name));
        let providers = asked_for.flat_map(|name| table.providers_distinct(name)).cloned().collect();
        let index = table.services_index();
        return (index, vec![TableEvent::Snapshot(index, providers)]);
    };
    let (mut position, mut batch) = (position, Vec::new());
    for (index, change) in changes {
        position = *index;
        if is_asked_for(&change.provider().instance.service) {
            batch.push(TableEvent::Change(*index, change.clone()));
            if batch.len() == BATCH {
                break;
            }
        }
    }
    (position, batch)
}

fn sse(kind: &str, index: Index, data: String) -> Event {
    Event::default().event(kind).id(index.0.to_string()).data(data)
}
