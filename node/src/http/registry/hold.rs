//! `POST /services?hold`: a registration that lasts as long as its connection.
//!
//! The answer is a stream of events that stays open: `registered`, then `update` whenever the passing instances of a required service change.
//! A last event, `deregistered` or `replaced`, says that the registration has ended before the connection: a client that sees it does not register again.
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

use super::required::Required;
use crate::{
    http::site::{Seat, Site},
    registry::{Ending, Registered, Registry, RegistryError, record::Owner, registration::Registration},
};

/// How often a stream without news shows that it lives. A client whose node is gone without a word sees it by this.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Registers, and answers with the stream.
pub(super) async fn hold(
    site: Arc<Site>,
    registration: Registration,
    grace: Duration,
) -> Result<Response, Problem> {
    let seat = site.seat()?;
    let services = registration.requires.clone();
    let (connection, ending) = site.registry.begin_connection();
    let (answer, answered) = oneshot::channel();
    let registry = Arc::clone(&site.registry);
    // A task of its own: a client that goes while its registration is being stored must still have it released.
    tokio::spawn(async move {
        let registered = registry.register(registration, Owner::Connection(connection)).await;
        if registered.is_err() {
            registry.end_connection(connection);
        }
        let held = registered.map(|registered| Hold { registry, registered, connection, grace });
        // The handler is gone with its client: the hold is dropped here, which releases the registration.
        _ = answer.send(held);
    });
    let hold = answered.await.unwrap_or(Err(RegistryError::Stopping))?;
    let required = Required::read(&site, &services);
    let data = required.answer(&hold.registered.id, &site.name);
    let first = Event::default().event("registered").data(data.to_string());
    let follower = Follower {
        first: Some(first),
        services,
        required,
        newest: site.view.subscribe(),
        ending: Some(ending),
        _hold: hold,
        _seat: seat,
        site,
    };
    let events = stream::unfold(follower, Follower::next);
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

/// Releases a held registration when it is dropped.
struct Hold {
    registry: Arc<Registry>,
    registered: Registered,
    connection: u64,
    grace: Duration,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.registry.release(&self.registered, self.connection, self.grace);
    }
}

struct Follower {
    first: Option<Event>,
    services: BTreeSet<String>,
    /// As the client knows them.
    required: Required,
    newest: Receiver<Index>,
    /// `None` once it has been told.
    ending: Option<oneshot::Receiver<Ending>>,
    site: Arc<Site>,
    _hold: Hold,
    _seat: Seat,
}

impl Follower {
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
                changed = self.newest.changed(), if is_following => changed.ok()?,
                () = self.site.leaving() => return None,
            }
            let required = Required::read(&self.site, &self.services);
            if required != self.required {
                self.required = required;
                let data = json!({ "requires": self.required.instances() });
                return Some((Ok(Event::default().event("update").data(data.to_string())), self));
            }
        }
    }
}
