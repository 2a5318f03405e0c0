//! [`History`] of writes, and its checker, which compares the clients' answers with the content of every
//! replica.
//!
//! Each client gives each write a unique name. Afterwards the test reads every replica. An acknowledged write
//! must be on every replica exactly once, and a refused write on none. An indeterminate write may be there at
//! most once.

use std::collections::{BTreeMap, BTreeSet};

/// Outcome of a write, as its client saw it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The write was acknowledged, with this id and level.
    Acknowledged {
        /// Id of the entry.
        entry: String,
        /// `local`, `replicated` or `majority`.
        level: String,
    },
    /// The write was refused: it is not in the journal and never will be.
    Refused,
    /// The outcome is not known: no answer arrived, or the answer says so.
    Indeterminate,
}

/// Outcomes of all writes, by name.
#[derive(Clone, Debug, Default)]
pub struct History(BTreeMap<String, Outcome>);

/// A guarantee that the journal broke.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fault {
    /// The write was acknowledged, but is missing on this replica.
    Lost {
        /// Name of the write.
        write: String,
        /// Replica.
        replica: String,
        /// Acknowledged level.
        level: String,
    },
    /// The write is on this replica more than once.
    Duplicated {
        /// Name of the write.
        write: String,
        /// Replica.
        replica: String,
    },
    /// The write was refused, but is on this replica.
    Undead {
        /// Name of the write.
        write: String,
        /// Replica.
        replica: String,
    },
    /// The entry is on this replica, but no client wrote it.
    Invented {
        /// Content of the entry.
        write: String,
        /// Replica.
        replica: String,
    },
    /// Two writes were acknowledged with the same id.
    Reused {
        /// Id of the two entries.
        entry: String,
    },
    /// The contents of two replicas differ.
    Different {
        /// One replica.
        one: String,
        /// The other replica.
        other: String,
    },
}

impl History {
    /// Records the outcome of a write. The last outcome counts, because a retry with the same key is the same
    /// write.
    pub fn note(&mut self, write: &str, outcome: Outcome) {
        self.0.insert(write.to_owned(), outcome);
    }

    /// Adds the outcomes that another client recorded.
    pub fn join(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// Returns the numbers of acknowledged, refused and indeterminate writes.
    pub fn counts(&self) -> (usize, usize, usize) {
        let count = |which: fn(&Outcome) -> bool| self.0.values().filter(|outcome| which(outcome)).count();
        (
            count(|outcome| matches!(outcome, Outcome::Acknowledged { .. })),
            count(|outcome| *outcome == Outcome::Refused),
            count(|outcome| *outcome == Outcome::Indeterminate),
        )
    }

    /// Compares the history with the content of each replica. Returns all faults.
    pub fn check(&self, replicas: &BTreeMap<String, Vec<String>>) -> BTreeSet<Fault> {
        let mut faults = BTreeSet::new();
        let mut names = BTreeSet::new();
        for outcome in self.0.values() {
            if let Outcome::Acknowledged { entry, .. } = outcome
                && !names.insert(entry)
            {
                faults.insert(Fault::Reused { entry: entry.clone() });
            }
        }
        for (replica, has) in replicas {
            let mut counted: BTreeMap<&str, usize> = BTreeMap::new();
            has.iter().for_each(|write| *counted.entry(write).or_default() += 1);
            let at = |write: &str| (write.to_owned(), replica.clone());
            for (write, outcome) in &self.0 {
                let count = counted.remove(write.as_str()).unwrap_or(0);
                let (write, replica) = at(write);
                match (outcome, count) {
                    (Outcome::Acknowledged { level, .. }, 0) => {
                        let level = level.clone();
                        faults.insert(Fault::Lost { write, replica, level });
                    }
                    (Outcome::Refused, 1..) => _ = faults.insert(Fault::Undead { write, replica }),
                    (_, 2..) => _ = faults.insert(Fault::Duplicated { write, replica }),
                    _ => (),
                }
            }
            for write in counted.keys() {
                let (write, replica) = at(write);
                faults.insert(Fault::Invented { write, replica });
            }
        }
        let sorted = |has: &Vec<String>| {
            let mut has = has.clone();
            has.sort();
            has
        };
        if let Some((one, first)) = replicas.iter().next() {
            let different = replicas.iter().find(|(_, has)| sorted(has) != sorted(first));
            faults.extend(
                different.map(|(other, _)| Fault::Different { one: one.clone(), other: other.clone() }),
            );
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(outcome: &[(&str, Outcome)]) -> History {
        let mut history = History::default();
        outcome.iter().for_each(|(write, outcome)| history.note(write, outcome.clone()));
        history
    }

    fn acknowledged(entry: &str) -> Outcome {
        Outcome::Acknowledged { entry: entry.into(), level: "local".into() }
    }

    fn replicas(has: &[&[&str]]) -> BTreeMap<String, Vec<String>> {
        let list = |has: &&[&str]| has.iter().map(|write| (*write).to_owned()).collect();
        has.iter().enumerate().map(|(i, has)| (format!("r{i}"), list(has))).collect()
    }

    #[test]
    fn a_kept_word_has_no_faults() {
        let outcome = [
            ("a", acknowledged("1")),
            ("b", Outcome::Refused),
            ("c", Outcome::Indeterminate),
            ("d", Outcome::Indeterminate),
        ];
        assert_eq!(history(&outcome).check(&replicas(&[&["a", "c"], &["c", "a"]])), BTreeSet::new());
        assert_eq!(history(&outcome).counts(), (1, 1, 2));
    }

    #[test]
    fn each_kind_of_broken_word_is_named() {
        let names = |outcome: &[(&str, Outcome)], has: &[&[&str]]| -> Vec<String> {
            let faults = history(outcome).check(&replicas(has));
            faults.iter().map(|fault| format!("{fault:?}").split(' ').next().unwrap().to_owned()).collect()
        };
        assert_eq!(names(&[("a", acknowledged("1"))], &[&[]]), ["Lost"]);
        assert_eq!(names(&[("a", acknowledged("1"))], &[&["a"], &[]]), ["Lost", "Different"]);
        assert_eq!(names(&[("a", acknowledged("1"))], &[&["a", "a"]]), ["Duplicated"]);
        assert_eq!(names(&[("a", Outcome::Refused)], &[&["a"]]), ["Undead"]);
        assert_eq!(names(&[("a", Outcome::Indeterminate)], &[&["a", "a"]]), ["Duplicated"]);
        assert_eq!(names(&[], &[&["a"]]), ["Invented"]);
        assert_eq!(names(&[("a", acknowledged("1")), ("b", acknowledged("1"))], &[&["a", "b"]]), ["Reused"]);
        assert_eq!(names(&[("a", Outcome::Indeterminate)], &[&["a"], &[]]), ["Different"]);
    }
}
