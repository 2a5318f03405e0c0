//! `GET /ui/events`: says when the cluster page has something new to show (server-sent events).
//!
//! An event carries no content: the page is then read again, at the reader's own speed, and is the same for everybody. The first is
//! `now` with the table's index, by which a page sees whether something changed since it was made; then comes `changed`, at most once a
//! second, however much happens.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::State,
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures::stream;
use hearsay_protocol::providers::Index;
use hearsay_services::Problem;
use tokio::{
    sync::watch::Receiver,
    time::{Instant, sleep_until},
};

use super::super::site::{Seat, Site};
use crate::driver::Neighbourhood;

/// Changes come in bursts (a death is accused, confirmed, concluded); this long after the first, most of a burst is there.
const BURST: Duration = Duration::from_millis(60);
/// No reader is told more often than this.
const EVERY: Duration = Duration::from_secs(1);
/// How often a stream without news shows that it lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Answers with the stream.
pub(in super::super) async fn events(State(site): State<Arc<Site>>) -> Result<Response, Problem> {
    let reader = Reader {
        newest: site.view.subscribe(),
        neighbours: site.neighbours.clone(),
        begun: false,
        not_before: Instant::now(),
        _seat: site.seat()?,
        site,
    };
    let events = stream::unfold(reader, Reader::next);
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response())
}

struct Reader {
    site: Arc<Site>,
    newest: Receiver<Index>,
    neighbours: Receiver<Neighbourhood>,
    /// Whether it was told the index.
    begun: bool,
    not_before: Instant,
    _seat: Seat,
}

impl Reader {
    /// The next event; `None` when the node leaves.
    async fn next(mut self) -> Option<(Result<Event, Infallible>, Self)> {
        if self.begun {
            tokio::select! {
                changed = self.newest.changed() => changed.ok()?,
                changed = self.neighbours.changed() => changed.ok()?,
                () = self.site.leaving() => return None,
            }
            sleep_until(self.not_before.max(Instant::now() + BURST)).await;
        }
        let kind = if std::mem::replace(&mut self.begun, true) { "changed" } else { "now" };
        self.not_before = Instant::now() + EVERY;
        self.neighbours.mark_unchanged();
        let index = self.newest.borrow_and_update().0;
        Some((Ok(Event::default().event(kind).data(index.to_string())), self))
    }
}
