//! The offsets of what was just written, looked up together.
//!
//! What was synced together is also answered together, so dozens of requests want to know the offsets of their records at the same moment. One
//! read for each costs more than the append: a thread, a connection and a snapshot. So at most one look is under way, and
//! what comes meanwhile shares the next.

use std::sync::{Arc, Mutex, PoisonError};

use hearsay_protocol::NodeId;
use tokio::sync::oneshot;

use super::numbers;
use crate::journal::{EntryId, Journal, read};

/// Who asks for which; bounded by the requests that the node takes at the same time.
type Asked = (Vec<EntryId>, oneshot::Sender<Vec<Option<u64>>>);

#[derive(Debug, Default)]
struct Waiting {
    asked: Vec<Asked>,
    /// Somebody is looking, and will look again.
    is_busy: bool,
}

/// Looks up the offsets of one node.
#[derive(Clone, Debug)]
pub(super) struct Offsets {
    me: NodeId,
    waiting: Arc<Mutex<Waiting>>,
}

impl Offsets {
    pub(super) fn new(me: NodeId) -> Self {
        Self { me, waiting: Arc::default() }
    }

    /// The offsets of these entries. None where one is the repetition of a write to another node, or cannot be read: written it is.
    pub(super) async fn look_up(&self, journal: &Arc<dyn Journal>, of: Vec<EntryId>) -> Vec<Option<u64>> {
        let count = of.len();
        let (answer, answered) = oneshot::channel();
        let begins = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.asked.push((of, answer));
            !std::mem::replace(&mut waiting.is_busy, true)
        };
        if begins {
            // On a task of its own: the client that began may go, and the others still wait.
            tokio::spawn(self.clone().look(Arc::clone(journal)));
        }
        answered.await.unwrap_or_else(|_| vec![None; count])
    }

    /// Looks until nobody waits.
    async fn look(self, journal: Arc<dyn Journal>) {
        loop {
            let asked = {
                let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
                waiting.is_busy = !waiting.asked.is_empty();
                std::mem::take(&mut waiting.asked)
            };
            if asked.is_empty() {
                return;
            }
            let (ids, answers): (Vec<_>, Vec<_>) = asked.into_iter().unzip();
            let counts: Vec<usize> = ids.iter().map(Vec::len).collect();
            let me = self.me;
            let found = read(journal.as_ref(), move |db| {
                let own =
                    |id: &EntryId| if id.feed.writer == me { numbers::offset(db, *id, me) } else { Ok(None) };
                ids.iter().map(|ids| ids.iter().map(own).collect()).collect::<rusqlite::Result<Vec<Vec<_>>>>()
            });
            let found =
                found.await.unwrap_or_else(|_| counts.iter().map(|count| vec![None; *count]).collect());
            for (answer, offsets) in answers.into_iter().zip(found) {
                // Whoever asked may have gone.
                _ = answer.send(offsets);
            }
        }
    }
}
