//! [`Namesakes`]: decides which of several members of one name keeps it.
//!
//! Names are stated by their members, so each of them can state the name of another. Each node decides for
//! itself: of the present members of one name, the one that it knew first keeps the name, and the others are
//! shown as `name-<short id>`. A member that is gone gives its name free, because a machine that lost its
//! data directory comes back under its old name with a new id. When the first one returns, it has its name
//! again. Names that have one DNS label count as one name, because DNS can serve only one of them.
//!
//! A node knows itself first, and the members of its last run before new ones. None of this is replicated,
//! so different nodes may decide differently; ids are the same everywhere.

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

use crate::{NodeId, providers::dns_label};

/// Present members by name, in the order in which this node came to know them.
#[derive(Debug, Default)]
pub(super) struct Namesakes {
    ranks: BTreeMap<NodeId, u64>,
    next: u64,
    /// The name that each present member states.
    stated: BTreeMap<NodeId, String>,
    /// By DNS label, or by name where a name has no label.
    present: BTreeMap<String, BTreeSet<(u64, NodeId)>>,
}

impl Namesakes {
    /// Records that this node knows a member from now on. One that it knew before keeps its rank.
    pub(super) fn know(&mut self, id: NodeId) {
        if let Entry::Vacant(vacant) = self.ranks.entry(id) {
            vacant.insert(self.next);
            self.next += 1;
        }
    }

    /// Records the name that a member states while it is present; `None` when it is gone. Returns other
    /// members that are shown under another name from now on.
    pub(super) fn set(&mut self, id: NodeId, name: Option<&str>) -> Vec<NodeId> {
        if self.stated.get(&id).map(String::as_str) == name {
            return Vec::new();
        }
        self.know(id);
        let rank = self.rank(id);
        let mut renamed = Vec::new();
        if let Some(before) = self.stated.remove(&id)
            && let Some(bearers) = self.present.get_mut(&key_of(&before))
        {
            let was_first = bearers.first() == Some(&(rank, id));
            bearers.remove(&(rank, id));
            renamed.extend(bearers.first().filter(|_| was_first).map(|(_, heir)| *heir));
            if bearers.is_empty() {
                self.present.remove(&key_of(&before));
            }
        }
        if let Some(name) = name {
            self.stated.insert(id, name.to_owned());
            let bearers = self.present.entry(key_of(name)).or_default();
            let first = bearers.first().copied();
            bearers.insert((rank, id));
            renamed.extend(first.filter(|first| *first > (rank, id)).map(|(_, first)| first));
        }
        renamed
    }

    /// Whether a member is recorded as present under this name.
    pub(super) fn has(&self, id: NodeId, name: &str) -> bool {
        self.stated.get(&id).is_some_and(|stated| stated == name)
    }

    /// Position of a member in the order in which this node came to know its members; 0 is this node.
    pub(super) fn rank(&self, id: NodeId) -> u64 {
        self.ranks.get(&id).copied().unwrap_or(self.next)
    }

    /// Removes a member that is forgotten, after [`Namesakes::set`] without a name.
    pub(super) fn forget(&mut self, id: NodeId) {
        self.ranks.remove(&id);
    }

    /// The member that keeps a name.
    pub(super) fn first(&self, name: &str) -> Option<NodeId> {
        self.present.get(&key_of(name))?.first().map(|(_, id)| *id)
    }

    /// The name under which a member is shown.
    pub(super) fn shown(&self, id: NodeId, name: &str) -> String {
        match self.first(name) {
            Some(first) if first != id => format!("{name}-{}", id.short()),
            _ => name.to_owned(),
        }
    }
}

/// What names that clash have in common.
fn key_of(name: &str) -> String {
    dns_label(name).unwrap_or_else(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Identity;

    fn id(seed: u8) -> NodeId {
        Identity::from_seed(&[seed; 32]).id()
    }

    #[test]
    fn the_member_known_first_keeps_the_name_while_it_is_present() {
        let mut namesakes = Namesakes::default();
        assert!(namesakes.set(id(1), Some("a")).is_empty());
        assert!(namesakes.set(id(2), Some("a")).is_empty(), "the first one keeps its name");
        assert!(namesakes.set(id(3), Some("a")).is_empty());
        assert!(namesakes.set(id(4), Some("A")).is_empty(), "DNS tells no capitals apart");
        assert_eq!(namesakes.shown(id(4), "A"), format!("A-{}", id(4).short()));
        assert!(namesakes.set(id(4), None).is_empty());
        assert_eq!(namesakes.shown(id(1), "a"), "a");
        assert_eq!(namesakes.shown(id(2), "a"), format!("a-{}", id(2).short()));
        assert_eq!(namesakes.set(id(1), None), [id(2)], "the next one gets it");
        assert_eq!(namesakes.shown(id(2), "a"), "a");
        assert_eq!(namesakes.set(id(1), Some("a")), [id(2)], "the first one is back");
        assert_eq!(namesakes.shown(id(2), "a"), format!("a-{}", id(2).short()));
        assert!(namesakes.set(id(3), None).is_empty());
        assert_eq!(namesakes.set(id(1), Some("b")), [id(2)], "the first one has another name");
        assert_eq!(namesakes.set(id(2), None), []);
        assert!(namesakes.set(id(1), None).is_empty());
        assert!(namesakes.present.is_empty() && namesakes.stated.is_empty());
    }

    #[test]
    fn a_forgotten_member_is_known_anew() {
        let mut namesakes = Namesakes::default();
        namesakes.know(id(2));
        namesakes.set(id(1), Some("a"));
        assert_eq!(namesakes.set(id(2), Some("a")), [id(1)], "it was known before");
        namesakes.set(id(2), None);
        namesakes.forget(id(2));
        namesakes.set(id(2), Some("a"));
        assert_eq!(namesakes.first("a"), Some(id(1)));
    }
}
