//! Held registrations: `POST /services?hold` registers for as long as the connection is open.
//!
//! The response is an event stream: `registered`, then `update` whenever the passing instances of a required
//! service change. A last event, `deregistered` or `replaced`, means that the registration has ended before
//! the connection: the client must not register again. When the connection closes, hyper drops the stream and
//! thereby the registration.

use std::{collections::BTreeSet, convert::Infallible, sync::Arc, time::Duration};

use axum::response::{
    IntoResponse, Response,
    sse::{Event, KeepAlive, Sse},
};
use futures::stream;
use hearsay_protocol::Index;
use hearsay_services::Problem;
use serde_json::json;
use tokio::sync::{oneshot, watch::Receiver};

use crate::{
    http::{
        api::registrations::required::RequiredInstances, server::stream_limit::StreamPermit, state::AppState,
    },
    registry::{
        Ending, Registered, Registry, RegistryError, Scope, record::Owner, registration::Registration,
    },
};

/// Interval of keep-alives on a stream without events. Their absence tells a client that its node is lost.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Registers a program and answers with the event stream.
pub(crate) async fn hold_registration(
    state: Arc<AppState>,
    registration: Registration,
    grace: Duration,
    scope: Scope,
) -> Result<Response, Problem> {
    let permit = state.admit_stream()?;
    let services = registration.requires.clone();
    let (connection, ending) = state.registry.begin_connection();
    let (sender, receiver) = oneshot::channel();
    let registry = Arc::clone(&state.registry);
    // A separate task: if the client disconnects while its registration is being stored, the registration is
    // still released.
    tokio::spawn(async move {
        let registered = registry.register(registration, Owner::Connection(connection), scope).await;
        if registered.is_err() {
            registry.end_connection(connection);
        }
        let hold = registered.map(|registered| HeldRegistration { registry, registered, connection, grace });
        // If the client has disconnected, the hold is dropped here, which releases the registration.
        _ = sender.send(hold);
    });
    let hold = receiver.await.unwrap_or(Err(RegistryError::Stopping))?;
    let required = RequiredInstances::look_up(&state, &services);
    let data = required.to_json(&hold.registered.id, &state.name);
    let first = Event::default().event("registered").data(data.to_string());
    let follower = EventSource {
        first: Some(first),
        services,
        required,
        changes: state.view.subscribe(),
        ending: Some(ending),
        _hold: hold,
        _permit: permit,
        state,
    };
    let events = stream::unfold(follower, EventSource::next);
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

/// A held registration, released on drop.
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

/// Source of the events of one held registration.
struct EventSource {
    first: Option<Event>,
    services: BTreeSet<String>,
    /// Last state that was sent to the client.
    required: RequiredInstances,
    changes: Receiver<Index>,
    /// `None` once the last event has been sent.
    ending: Option<oneshot::Receiver<Ending>>,
    state: Arc<AppState>,
    _hold: HeldRegistration,
    _permit: StreamPermit,
}

impl EventSource {
    /// Returns the next event; `None` when the node leaves.
    async fn next(mut self) -> Option<(Result<Event, Infallible>, Self)> {
        if let Some(first) = self.first.take() {
            return Some((Ok(first), self));
        }
        loop {
            let is_following = !self.services.is_empty();
            let ending = self.ending.as_mut()?;
            tokio::select! {
                ended = ending => {
                    let kind = match ended.ok()? {
                        Ending::Deregistered => "deregistered",
                        Ending::Replaced => "replaced",
                    };
                    self.ending = None;
                    return Some((Ok(Event::default().event(kind).data("{}")), self));
                }
                changed = self.changes.changed(), if is_following => changed.ok()?,
                () = self.state.leaving() => return None,
            }
            let required = RequiredInstances::look_up(&self.state, &self.services);
            if required != self.required {
                self.required = required;
                let data = json!({ "requires": self.required.instances_json() });
                return Some((Ok(Event::default().event("update").data(data.to_string())), self));
            }
        }
    }
}
