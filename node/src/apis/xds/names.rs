//! [`NameBudget`]: bound on the names that all streams together subscribe to.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// Names of all streams. 200 clients can subscribe to the endpoints of 10,000 services each; a name takes
/// about 60 bytes.
const NAMES_TOTAL_MAX: usize = 2_000_000;

/// The names that all streams keep.
#[derive(Clone, Default, Debug)]
pub(super) struct NameBudget(Arc<AtomicUsize>);

/// The names that one stream keeps; given back on drop.
#[derive(Debug)]
pub(super) struct NameShare {
    budget: NameBudget,
    names: usize,
}

impl NameBudget {
    /// Begins with no names.
    pub(super) fn share(&self) -> NameShare {
        NameShare { budget: self.clone(), names: 0 }
    }
}

impl NameShare {
    /// Sets the number of names. Returns whether there is room for them.
    pub(super) fn set(&mut self, names: usize) -> bool {
        let before = std::mem::replace(&mut self.names, names);
        match names.checked_sub(before) {
            Some(more) => self.budget.0.fetch_add(more, Relaxed).saturating_add(more) <= NAMES_TOTAL_MAX,
            None => {
                self.budget.0.fetch_sub(before - names, Relaxed);
                true
            }
        }
    }
}

impl Drop for NameShare {
    fn drop(&mut self) {
        self.budget.0.fetch_sub(self.names, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_share_the_names_and_give_them_back() {
        let budget = NameBudget::default();
        let (mut first, mut second) = (budget.share(), budget.share());
        assert!(first.set(NAMES_TOTAL_MAX - 1) && second.set(1));
        assert!(!second.set(2) && second.set(1));
        drop(first);
        assert!(second.set(NAMES_TOTAL_MAX));
        drop(second);
        assert_eq!(budget.0.load(Relaxed), 0);
    }
}
