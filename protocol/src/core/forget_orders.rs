//! [`ForgetOrders`]: operators' orders to forget a member, which this node has obeyed. Keeps a bounded number
//! of them for peers that connect later.

use std::{collections::BTreeMap, time::Duration};

use crate::{NodeId, Time, wire::Forget};

/// Orders kept. Guess: an operator forgets a rack at a time. Each order takes 150 bytes, so all of them fit
/// into a fifth of one message. If there are more, the oldest is dropped. Anti-entropy still spreads the
/// forgetting, but not the name of the node that ordered it.
const ORDERS_MAX: usize = 256;

/// Orders to forget that this node has obeyed.
#[derive(Debug, Default)]
pub(super) struct ForgetOrders {
    /// Orders by subject, each with the time at which this node obeyed it.
    pub(super) orders: BTreeMap<NodeId, (Time, Forget)>,
}

impl ForgetOrders {
    /// Keeps an order. Returns whether an older one was dropped to make room.
    pub(super) fn keep(&mut self, now: Time, forget: Forget) -> bool {
        self.orders.insert(forget.claim.subject, (now, forget));
        if self.orders.len() <= ORDERS_MAX {
            return false;
        }
        let oldest = self.orders.iter().min_by_key(|(_, (at, _))| *at).map(|(subject, _)| *subject);
        oldest.and_then(|subject| self.orders.remove(&subject)).is_some()
    }

    /// Removes the order for a member that is back.
    pub(super) fn withdraw(&mut self, subject: NodeId) {
        self.orders.remove(&subject);
    }

    pub(super) fn drop_older_than(&mut self, now: Time, age: Duration) {
        self.orders.retain(|_, (at, _)| now.since(*at) <= age);
    }
}
