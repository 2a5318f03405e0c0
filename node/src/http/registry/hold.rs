//! `POST /services?hold`: a registration that lasts as long as its connection.
//!
//! The answer is a stream of events that stays open: `registered`, then `update` whenever the passing instances of a required service change.
//! A last event, `deregistered` or `replaced`, means that the registration has ended before the connection: a client that reads it does not register again.
//! When the connection closes, hyper drops the stream, and with it the registration.

use std::{collections::BTreeSet, convert::Infallible, sync::Arc, time::Duration};

use axum::response::{
    IntoResponse, Response,
    sse::{Event, KeepAlive, Sse},
};
use futures::stream;
use hearsay_protocol::providers::Index;
use hearsay_services::Problem;
use serde_json::json;
use tokio::sync::{oneshot, watch::Receiver};

use super::required::RequiredInstances;
use crate::{
    http::site::{Seat, Site},
    registry::{
        Ending, Registered, Registry, RegistryError, Scope, record::Owner, registration::Registration,
    },
};

/// The interval of keep-alives on a stream without events. A client notices the loss of its node by their absence.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Registers a program, and answers with the stream of events.
pub(super) async fn hold_registration(
    site: Arc<Site>,
    registration: Registration,
    grace: Duration,
    scope: Scope,
) -> Result<Response, Problem> {
    let seat = site.seat()?;
    let services = registration.requires.clone();
    let (connection, ending) = site.registry.begin_connection();
    let (answer, answered) = oneshot::channel();
    let registry = Arc::clone(&site.registry);
    // A task of its own: a client that goes while its registration is being stored must still have it released.
    tokio::spawn(async move {
        let registered = registry.register(registration, Owner::Connection(connection), scope).await;
        if registered.is_err() {
            registry.end_connection(connection);
        }
        let hold = registered.map(|registered| HeldRegistration { registry, registered, connection, grace });
        // The handler is gone with its client: the hold is dropped here, which releases the registration.
        _ = answer.send(hold);
    });
    let hold = answered.await.unwrap_or(Err(RegistryError::Stopping))?;
    let required = RequiredInstances::look_up(&site, &services);
    let data = required.to_json(&hold.registered.id, &site.name);
    let first = Event::default().event("registered").data(data.to_string());
    let follower = EventSource {
        first: Some(first),
        services,
        required,
        changes: site.view.subscribe(),
        ending: Some(ending),
        _hold: hold,
        _seat: seat,
        site,
    };
    let events = stream::unfold(follower, EventSource::next);
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

/// Releases a held registration when it is dropped.
struct HeldRegistration {
    registry: Arc<Registry>,
    registered: Registered,
    connection: u64,
    grace: Duration,
}

impl Drop for HeldRegistration {
    fn drop(&mut self) {
        self.registry.release(&self.registered, self.connection, self.grace);
    }
}

struct EventSource {
    first: Option<Event>,
    services: BTreeSet<String>,
    /// As the client knows them.
    required: RequiredInstances,
    changes: Receiver<Index>,
    /// `None` once the last event has been sent.
    ending: Option<oneshot::Receiver<Ending>>,
    site: Arc<Site>,
    _hold: HeldRegistration,
    _seat: Seat,
}

impl EventSource {
    /// The next event; `None` when the node leaves.
    async fn next(mut self) -> Option<(Result<Event, Infallible>, Self)> {
        if let Some(first) = self.first.take() {
            return Some((Ok(first), self));
        }
        loop {
            let is_following = !self.services.is_empty();
            let ending = self.ending.as_mut()?;
            tokio::select! {
                ended = ending => {
                    let word = match ended.ok()? {
                        Ending::Deregistered => "deregistered",
                        Ending::Replaced => "replaced",
                    };
                    self.ending = None;
                    return Some((Ok(Event::default().event(word).data("{}")), self));
                }
                changed = self.changes.changed(), if is_following => changed.ok()?,
                () = self.site.leaving() => return None,
            }
            let required = RequiredInstances::look_up(&self.site, &self.services);
            if required != self.required {
                self.required = required;
                let data = json!({ "requires": self.required.instances_json() });
                return Some((Ok(Event::default().event("update").data(data.to_string())), self));
            }
        }
    }
}
