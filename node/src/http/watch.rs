//! `GET /services/watch`: a stream of what changes (server-sent events).
//!
//! The first event is a `snapshot`, the same JSON as `/services`; then come `added`, `changed` and `removed`, each with one
//! instance. A program that is registered with several nodes is one instance, as in `/services`: where the registration with another node
//! begins to count, the event is `changed` and `replaces` names the one that counted before. Every event carries the table's index as its id, so a reader that was cut off resumes with `Last-Event-ID` where it
//! was, as browsers do by themselves. When the table no longer remembers that far, it gets a new snapshot instead.
//!
//! There is no queue per reader. A reader pulls: when its socket takes more, the next few changes are read out of the table's own
//! history. So a slow reader costs one batch, and one that falls behind the history gets a snapshot like one that was away, for which there
//! must be room (see `unread`).

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
use hearsay_protocol::providers::{Index, Provider, ProviderTable, ServiceChange};
use hearsay_services::{Problem, parameters::Parameters};
use tokio::sync::{OwnedSemaphorePermit, watch::Receiver};

use super::{
    instance::{ChangedInstance, ServicesJson},
    site::{Seat, Site},
};

/// Changes taken from the table at a time. Guess: enough to make the lock cheap, few enough to hold for a slow reader.
const BATCH: usize = 64;
/// How often a stream without news shows that it lives. Below the minute after which proxies commonly give up.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Answers with the stream.
pub(super) async fn watch(
    State(site): State<Arc<Site>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let parameters = Parameters::read(uri.query(), &["service"])?;
    let follower = Follower {
        service: parameters.one("service")?.map(str::to_owned),
        position: last_event_id(&headers),
        ready: VecDeque::new(),
        newest: site.view.subscribe(),
        room: None,
        _seat: site.seat()?,
        site,
    };
    let events = stream::unfold(follower, Follower::next);
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

/// Where a reader was. What is no index of ours is as good as none: it gets a snapshot.
fn last_event_id(headers: &HeaderMap) -> Option<Index> {
    headers.get("last-event-id")?.to_str().ok()?.trim().parse().ok().map(Index)
}

/// One reader.
struct Follower {
    site: Arc<Site>,
    /// Only changes of this service.
    service: Option<String>,
    /// What it has seen; `None`: nothing.
    position: Option<Index>,
    /// Read from the table, not yet written to the reader.
    ready: VecDeque<Event>,
    newest: Receiver<Index>,
    /// For the snapshot, until the reader has it.
    room: Option<OwnedSemaphorePermit>,
    _seat: Seat,
}

/// What was read from the table, under its lock.
enum Batch {
    Snapshot(Index, Vec<Arc<Provider>>),
    Changes(Index, Vec<(Index, ServiceChange)>),
}

impl Follower {
    /// The next event; `None` when the node leaves.
    async fn next(mut self) -> Option<(Result<Event, Infallible>, Self)> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some((Ok(event), self));
            }
            // Asked for more: what was given is taken.
            self.room = None;
            // Marked as seen before looking, so that a change after the look wakes us.
            self.newest.mark_unchanged();
            if self.refill()? {
                continue;
            }
            tokio::select! {
                changed = self.newest.changed() => changed.ok()?,
                () = self.site.leaving() => return None,
            }
        }
    }

    /// Reads on, and says whether there was anything; `None`: there is no room for it, and the reader must come again.
    fn refill(&mut self) -> Option<bool> {
        let batch = self.site.read(|table| read(table, self.position, self.service.as_deref()));
        match batch {
            Batch::Snapshot(index, providers) => {
                self.position = Some(index);
                let providers = providers.iter().map(Arc::as_ref);
                let json = ServicesJson::new(&self.site, index, self.service.as_deref(), providers);
                let data = serde_json::to_string(&json).ok()?;
                self.room = self.site.answers.take(data.len());
                if self.room.is_none() {
                    self.site.metrics.http.refused("answers");
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
                    // These shapes always serialise; should one not, the reader misses it rather than the node its life.
                    let json = ChangedInstance::new(change.provider(), replaced);
                    Some(event(kind, *index, serde_json::to_string(&json).ok()?))
                }));
                Some(!changes.is_empty())
            }
        }
    }
}

/// The next changes after a position, or a snapshot where there is none to go on from.
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
