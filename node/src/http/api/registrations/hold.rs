//! Held registrations: a program is registered for as long as a connection or a stream of it is open. `POST
//! /services?hold` and gRPC's `Register` share [`HeldRegistration`].
//!
//! The response to `POST /services?hold` is an event stream: `registered`, then `update` whenever the passing
//! instances of a required service change. A last event, `deregistered` or `replaced`, means that the
//! registration has ended before the connection: the client must not register again. When the connection
//! closes, hyper drops the stream and thereby the registration.

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

/// An event of a held registration.
pub(crate) enum HoldEvent {
    /// The registration is stored and listed.
    Registered,
    /// The passing instances of a required service have changed.
    Updated,
    /// The registration was deregistered. The last event.
    Deregistered,
    /// A newer owner registered the same id. The last event.
    Replaced,
}

/// A held registration. It ends when it is dropped.
pub(crate) struct HeldRegistration {
    is_announced: bool,
    services: BTreeSet<String>,
    /// Last state that was sent to the client.
    required: RequiredInstances,
    changes: Receiver<Index>,
    /// `None` once the last event has been sent.
    ending: Option<oneshot::Receiver<Ending>>,
    state: Arc<AppState>,
    lease: Lease,
    _permit: StreamPermit,
}

impl HeldRegistration {
    /// Registers a program.
    ///
    /// # Errors
    /// As a registration without hold, and 429 when too many streams are open. Nothing was registered.
    pub(crate) async fn begin(
        state: Arc<AppState>,
        registration: Registration,
        grace: Duration,
        scope: Scope,
    ) -> Result<Self, Problem> {
        let permit = state.admit_stream()?;
        let services = registration.requires.clone();
        let (connection, ending) = state.registry.begin_connection();
        let (sender, receiver) = oneshot::channel();
        let registry = Arc::clone(&state.registry);
        // A separate task: if the client disconnects while its registration is being stored, the registration
        // is still released.
        tokio::spawn(async move {
            let registered = registry.register(registration, Owner::Connection(connection), scope).await;
            if registered.is_err() {
                registry.end_connection(connection);
            }
            let lease = registered.map(|registered| Lease { registry, registered, connection, grace });
            // If the client has disconnected, the lease is dropped here, which releases the registration.
            _ = sender.send(lease);
        });
        let lease = receiver.await.unwrap_or(Err(RegistryError::Stopping))?;
        Ok(Self {
            is_announced: false,
            required: RequiredInstances::look_up(&state, &services),
            services,
            changes: state.view.subscribe(),
            ending: Some(ending),
            state,
            lease,
            _permit: permit,
        })
    }

    /// The id of the instance.
    pub(crate) fn id(&self) -> &str {
        &self.lease.registered.id
    }

    /// The passing instances of the required services, at the last event.
    pub(crate) fn required(&self) -> &RequiredInstances {
        &self.required
    }

    /// Ends the registration at once, without the time of grace.
    pub(crate) fn end_at_once(mut self) {
        self.lease.grace = Duration::ZERO;
    }

    /// Returns the next event; `None` after the last one, or when the node leaves. Can be dropped and called
    /// again without losing an event.
    pub(crate) async fn next(&mut self) -> Option<HoldEvent> {
        if !self.is_announced {
            self.is_announced = true;
            return Some(HoldEvent::Registered);
        }
        loop {
            let is_following = !self.services.is_empty();
            let ending = self.ending.as_mut()?;
            tokio::select! {
                ended = ending => {
                    self.ending = None;
                    return Some(match ended.ok()? {
                        Ending::Deregistered => HoldEvent::Deregistered,
                        Ending::Replaced => HoldEvent::Replaced,
                    });
                }
                changed = self.changes.changed(), if is_following => changed.ok()?,
                () = self.state.leaving() => return None,
            }
            let required = RequiredInstances::look_up(&self.state, &self.services);
            if required != self.required {
                self.required = required;
                return Some(HoldEvent::Updated);
            }
        }
    }

    /// Returns the response with the event stream.
    pub(super) fn into_events(self) -> Response {
        let events = stream::unfold(self, async |mut held| {
            let event = held.next().await?;
            let event = held.to_sse(&event);
            Some((Ok::<_, Infallible>(event), held))
        });
        Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
    }

    fn to_sse(&self, event: &HoldEvent) -> Event {
        let (kind, data) = match event {
            HoldEvent::Registered => ("registered", self.required.to_json(self.id(), &self.state.name)),
            HoldEvent::Updated => ("update", json!({ "requires": self.required.instances_json() })),
            HoldEvent::Deregistered => ("deregistered", json!({})),
            HoldEvent::Replaced => ("replaced", json!({})),
        };
        Event::default().event(kind).data(data.to_string())
    }
}

/// Releases a registration on drop.
struct Lease {
    registry: Arc<Registry>,
    registered: Registered,
    connection: u64,
    grace: Duration,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.registry.release(&self.registered, self.connection, self.grace);
    }
}
