//! `GET /ui/events`: notifies the pages of changes (server-sent events).
//!
//! An event has only the index of the table; the script fetches the page again. The first event is `now` with
//! the table's index, by which a page sees whether it is current. Then comes `changed`, at most once a
//! second.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::State,
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures::stream;
use hearsay_protocol::Index;
use hearsay_services::Problem;
use tokio::{
    sync::watch::Receiver,
    time::{Instant, sleep_until},
};

use crate::{
    driver_command::Neighbourhood,
    http::{server::stream_limit::StreamPermit, state::AppState},
};

/// Delay after a change. Changes come in bursts (a failure is reported, confirmed, concluded); after this
/// time most of a burst has arrived.
const BURST: Duration = Duration::from_millis(60);
/// Least interval between events.
const INTERVAL_MIN: Duration = Duration::from_secs(1);
/// Interval of keep-alives on a stream without events.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Answers with the event stream.
pub(crate) async fn events(State(state): State<Arc<AppState>>) -> Result<Response, Problem> {
    let source = EventSource {
        newest: state.view.subscribe(),
        neighbours: state.neighbours.clone(),
        begun: false,
        not_before: Instant::now(),
        _permit: state.admit_stream()?,
        state,
    };
    let events = stream::unfold(source, EventSource::next);
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

/// Source of the events of one page.
struct EventSource {
    state: Arc<AppState>,
    newest: Receiver<Index>,
    neighbours: Receiver<Neighbourhood>,
    /// Whether `now` was sent.
    begun: bool,
    not_before: Instant,
    _permit: StreamPermit,
}

impl EventSource {
    /// Returns the next event; `None` when the node leaves.
    async fn next(mut self) -> Option<(Result<Event, Infallible>, Self)> {
        if self.begun {
            tokio::select! {
                changed = self.newest.changed() => changed.ok()?,
                changed = self.neighbours.changed() => changed.ok()?,
                () = self.state.leaving() => return None,
            }
            sleep_until(self.not_before.max(Instant::now() + BURST)).await;
        }
        let kind = if std::mem::replace(&mut self.begun, true) { "changed" } else { "now" };
        self.not_before = Instant::now() + INTERVAL_MIN;
        self.neighbours.mark_unchanged();
        let index = self.newest.borrow_and_update().0;
        Some((Ok(Event::default().event(kind).data(index.to_string())), self))
    }
}
