//! Whether a journal kept its word: what clients were told, held against what the replicas have.
//!
//! Every write has a name of its own, given by its client, outside of the nodes. Afterwards each replica is read as a whole. What was acknowledged must be
//! there exactly once, on all; what was refused must not be there; of the rest nobody knows, and it may be there once.

use std::collections::{BTreeMap, BTreeSet};

/// What a client was told of a write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Told {
    /// It is written: under this name, at this level.
    Acknowledged {
        /// The entry's name.
        entry: String,
        /// `local`, `replicated` or `majority`.
        level: String,
    },
    /// It is not, and will not be.
    Refused,
    /// Nothing, or that nobody knows.
    Indeterminate,
}

/// What was told of each write.
#[derive(Clone, Debug, Default)]
pub struct History(BTreeMap<String, Told>);

/// A broken promise.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fault {
    /// Acknowledged, and not on this replica.
    Lost {
        /// Which write.
        write: String,
        /// Where it is missing.
        replica: String,
        /// The level at which it was acknowledged.
        level: String,
    },
    /// More than once on this replica.
    Duplicated {
        /// Which write.
        write: String,
        /// Where.
        replica: String,
    },
    /// Refused, and there all the same.
    Undead {
        /// Which write.
        write: String,
        /// Where.
        replica: String,
    },
    /// Nobody wrote this.
    Invented {
        /// What is there.
        write: String,
        /// Where.
        replica: String,
    },
    /// Two writes were acknowledged under one name.
    Reused {
        /// The name.
        entry: String,
    },
    /// Two replicas have different things.
    Different {
        /// One.
        one: String,
        /// The other.
        other: String,
    },
}

impl History {
    /// Notes what was told of a write. The last word counts: a retry under the same key is the same write.
    pub fn note(&mut self, write: &str, told: Told) {
        self.0.insert(write.to_owned(), told);
    }

    /// Adds what another client was told.
    pub fn join(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// How many writes were acknowledged, refused, and neither.
    pub fn counts(&self) -> (usize, usize, usize) {
        let count = |which: fn(&Told) -> bool| self.0.values().filter(|told| which(told)).count();
        (
            count(|told| matches!(told, Told::Acknowledged { .. })),
            count(|told| *told == Told::Refused),
            count(|told| *told == Told::Indeterminate),
        )
    }

    /// Holds the history against what each replica has.
    pub fn check(&self, replicas: &BTreeMap<String, Vec<String>>) -> BTreeSet<Fault> {
        let mut faults = BTreeSet::new();
        let mut names = BTreeSet::new();
        for told in self.0.values() {
            if let Told::Acknowledged { entry, .. } = told
                && !names.insert(entry)
            {
                faults.insert(Fault::Reused { entry: entry.clone() });
            }
        }
        for (replica, has) in replicas {
            let mut counted: BTreeMap<&str, usize> = BTreeMap::new();
            has.iter().for_each(|write| *counted.entry(write).or_default() += 1);
            let at = |write: &str| (write.to_owned(), replica.clone());
            for (write, told) in &self.0 {
                let count = counted.remove(write.as_str()).unwrap_or(0);
                let (write, replica) = at(write);
                match (told, count) {
                    (Told::Acknowledged { level, .. }, 0) => {
                        let level = level.clone();
                        faults.insert(Fault::Lost { write, replica, level });
                    }
                    (Told::Refused, 1..) => _ = faults.insert(Fault::Undead { write, replica }),
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

    fn history(told: &[(&str, Told)]) -> History {
        let mut history = History::default();
        told.iter().for_each(|(write, told)| history.note(write, told.clone()));
        history
    }

    fn acknowledged(entry: &str) -> Told {
        Told::Acknowledged { entry: entry.into(), level: "local".into() }
    }

    fn replicas(has: &[&[&str]]) -> BTreeMap<String, Vec<String>> {
        let list = |has: &&[&str]| has.iter().map(|write| (*write).to_owned()).collect();
        has.iter().enumerate().map(|(i, has)| (format!("r{i}"), list(has))).collect()
    }

    #[test]
    fn a_kept_word_has_no_faults() {
        let told = [
            ("a", acknowledged("1")),
            ("b", Told::Refused),
            ("c", Told::Indeterminate),
            ("d", Told::Indeterminate),
        ];
        assert_eq!(history(&told).check(&replicas(&[&["a", "c"], &["c", "a"]])), BTreeSet::new());
        assert_eq!(history(&told).counts(), (1, 1, 2));
    }

    #[test]
    fn each_kind_of_broken_word_is_named() {
        let names = |told: &[(&str, Told)], has: &[&[&str]]| -> Vec<String> {
            let faults = history(told).check(&replicas(has));
            faults.iter().map(|fault| format!("{fault:?}").split(' ').next().unwrap().to_owned()).collect()
        };
        assert_eq!(names(&[("a", acknowledged("1"))], &[&[]]), ["Lost"]);
        assert_eq!(names(&[("a", acknowledged("1"))], &[&["a"], &[]]), ["Lost", "Different"]);
        assert_eq!(names(&[("a", acknowledged("1"))], &[&["a", "a"]]), ["Duplicated"]);
        assert_eq!(names(&[("a", Told::Refused)], &[&["a"]]), ["Undead"]);
        assert_eq!(names(&[("a", Told::Indeterminate)], &[&["a", "a"]]), ["Duplicated"]);
        assert_eq!(names(&[], &[&["a"]]), ["Invented"]);
        assert_eq!(names(&[("a", acknowledged("1")), ("b", acknowledged("1"))], &[&["a", "b"]]), ["Reused"]);
        assert_eq!(names(&[("a", Told::Indeterminate)], &[&["a"], &[]]), ["Different"]);
    }
}
