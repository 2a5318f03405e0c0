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
    let follower = Follower {
        service: parameters.single("service")?.map(str::to_owned),
        position: last_event_id(&headers),
        ready: VecDeque::new(),
        newest: state.view.subscribe(),
        permit: None,
        _permit: state.admit_stream()?,
        state,
    };
    let events = stream::unfold(follower, Follower::next);
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

/// Returns the index at which a client resumes. A malformed one counts as none.
fn last_event_id(headers: &HeaderMap) -> Option<Index> {
    headers.get("last-event-id")?.to_str().ok()?.trim().parse().ok().map(Index)
}

/// Source of the events of one client.
struct Follower {
    state: Arc<AppState>,
    /// Restricts the changes to one service.
    service: Option<String>,
    /// Index up to which the client has seen changes; `None` before the snapshot.
    position: Option<Index>,
    /// Events that were read from the table and are not yet sent.
    ready: VecDeque<Event>,
    newest: Receiver<Index>,
    /// Charge of the snapshot until the client has read it.
    permit: Option<OwnedSemaphorePermit>,
    _permit: StreamPermit,
}

/// Data from one read of the table.
enum Batch {
    Snapshot(Index, Vec<Arc<Provider>>),
    Changes(Index, Vec<(Index, ServiceChange)>),
}

impl Follower {
    /// Returns the next event; `None` when the node leaves.
    async fn next(mut self) -> Option<(Result<Event, Infallible>, Self)> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some((Ok(event), self));
            }
            // The client has read the last event.
            self.permit = None;
            // The index is marked as seen before the read, so that a later change wakes the task.
            self.newest.mark_unchanged();
            if self.refill()? {
                continue;
            }
            tokio::select! {
                changed = self.newest.changed() => changed.ok()?,
                () = self.state.leaving() => return None,
            }
        }
    }

    /// Reads the next batch and returns whether it has events. `None`: the response budget is exhausted, and
    /// the stream ends; the client reconnects.
    fn refill(&mut self) -> Option<bool> {
        let batch = self.state.read(|table| read(table, self.position, self.service.as_deref()));
        match batch {
            Batch::Snapshot(index, providers) => {
                self.position = Some(index);
                let providers = providers.iter().map(Arc::as_ref);
                let json = ServicesJson::new(&self.state, index, self.service.as_deref(), providers);
                let data = serde_json::to_string(&json).ok()?;
                self.permit = self.state.response_budget.acquire(data.len());
                if self.permit.is_none() {
                    self.state.metrics.http.refused("answers");
                    return None;
                }
                self.ready.push_back(event("snapshot", index, data));
                Some(true)
            }
            Batch::Changes(position, changes) => {
                self.position = Some(position);
                self.ready.extend(changes.iter().filter_map(|(index, change)| {
                    let (kind, replaced) = match change {
                        ServiceChange::Added(_) => ("added", None),
                        ServiceChange::Changed(_) => ("changed", None),
                        ServiceChange::Replaced { before, .. } => ("changed", Some(before.as_ref())),
                        ServiceChange::Removed(_) => ("removed", None),
                    };
                    // Serialisation of these types cannot fail.
                    let json = ChangedInstance::new(change.provider(), replaced);
                    Some(event(kind, *index, serde_json::to_string(&json).ok()?))
                }));
                Some(!changes.is_empty())
            }
        }
    }
}

/// Reads the changes after a position, or a snapshot if the history does not reach back to it.
fn read(table: &ProviderTable, position: Option<Index>, service: Option<&str>) -> Batch {
    let is_asked_for = |name: &str| service.is_none_or(|service| service == name);
    let Some((position, changes)) = position.and_then(|p| Some((p, table.changes_after(p)?))) else {
        let asked_for = table.services().filter(|name| is_asked_for(name));
        let providers = asked_for.flat_map(|name| table.providers_distinct(name)).cloned().collect();
        return Batch::Snapshot(table.services_index(), providers);
    };
    let (mut position, mut batch) = (position, Vec::new());
    for (index, change) in changes {
        position = *index;
        if is_asked_for(&change.provider().instance.service) {
            batch.push((*index, change.clone()));
            if batch.len() == BATCH {
                break;
            }
        }
    }
    Batch::Changes(position, batch)
}

fn event(kind: &str, index: Index, data: String) -> Event {
    Event::default().event(kind).id(index.0.to_string()).data(data)
}
