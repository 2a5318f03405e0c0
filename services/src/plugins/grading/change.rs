//! [`Change`]s of the grade book: encodes them as bodies of journal entries, decodes and checks them, and
//! makes ids for new students and grades.
//!
//! An entry holds changes that belong together, as JSON. A version skips changes that it does not know.

use std::hash::{BuildHasher, RandomState};

use serde::{Deserialize, Serialize};

use super::book::{Grade, GradeType};
use crate::journal::EpochFormat;

/// Greatest id. The greatest integer that every JSON reader represents exactly (RFC 8259, section 6).
pub(crate) const ID_MAX: u64 = (1 << 53) - 1;

/// A change of the grade book.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "change")]
pub(crate) enum Change {
    /// Adds the sample students. Counts as older than every other change.
    Sample,
    /// Adds a student, or renames it.
    #[serde(rename_all = "camelCase")]
    Put {
        /// Id of the student.
        student: u64,
        /// Given name.
        first_name: String,
        /// Family name.
        last_name: String,
    },
    /// Removes a student and all its earlier grades.
    Remove {
        /// Id of the student.
        student: u64,
    },
    /// Removes the earlier grades of a student, those of the same entry excepted.
    Clear {
        /// Id of the student.
        student: u64,
    },
    /// Adds a grade, or replaces the one with the same id.
    Grade {
        /// Id of the student.
        student: u64,
        /// The grade.
        grade: Grade,
    },
    /// Removes a grade. Its id is never used again.
    Ungrade {
        /// Id of the student.
        student: u64,
        /// Id of the grade.
        grade: u64,
    },
}

/// Body of an entry, without its epoch.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Changes {
    /// Changes in order.
    pub changes: Vec<Change>,
}

/// Encoding of the epoch in a body: the last member of the JSON object, which versions without epochs ignore.
pub(super) const EPOCHS: EpochFormat = EpochFormat { read: epoch_of, write: with_epoch };

/// Start of that member.
const EPOCH_MEMBER: &str = ",\"epoch\":";

fn epoch_of(body: &[u8]) -> u64 {
    let Some(members) = body.strip_suffix(b"}") else { return 0 };
    let digits = members.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    let (before, digits) = members.split_at(members.len() - digits);
    match before.ends_with(EPOCH_MEMBER.as_bytes()) {
        true => str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()).unwrap_or(0),
        false => 0,
    }
}

fn with_epoch(body: &[u8], epoch: u64) -> Vec<u8> {
    let mut with = body.strip_suffix(b"}").unwrap_or(body).to_vec();
    with.extend_from_slice(format!("{EPOCH_MEMBER}{epoch}}}").as_bytes());
    with
}

impl Changes {
    /// Encodes the body of an entry.
    pub(crate) fn to_body(&self) -> Vec<u8> {
        // Serialising numbers, strings and lists cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Decodes the changes that this version knows.
    pub(crate) fn from_body(body: &[u8]) -> Vec<Change> {
        #[derive(Deserialize)]
        struct Loose {
            changes: Vec<serde_json::Value>,
        }
        let loose: Loose = serde_json::from_slice(body).unwrap_or(Loose { changes: Vec::new() });
        let known = loose.changes.into_iter().filter_map(|change| serde_json::from_value(change).ok());
        known.filter(is_sound).collect()
    }
}

/// Returns whether a change respects the bounds of the book. A peer's version may have other bounds.
fn is_sound(change: &Change) -> bool {
    let id = |id: &u64| (1..=ID_MAX).contains(id);
    match change {
        Change::Sample => true,
        Change::Put { student, .. } | Change::Remove { student } | Change::Clear { student } => id(student),
        Change::Grade { student, grade } => {
            id(student) && id(&grade.id) && (0.0..=100.0).contains(&grade.score)
        }
        Change::Ungrade { student, grade } => id(student) && id(grade),
    }
}

/// Returns a new id of 48 bits: random, or derived from an idempotency key. A write that is repeated on
/// another node gives the same id. Among a million random ids, two are equal with a probability of 1 in 560.
pub(crate) fn new_id(key: Option<&str>, index: usize) -> u64 {
    let mut hasher = blake3::Hasher::new();
    match key {
        Some(key) => hasher.update(b"key").update(key.as_bytes()),
        // `RandomState` takes its keys from the system's random numbers.
        None => hasher.update(b"random").update(&RandomState::new().hash_one(0).to_le_bytes()),
    };
    hasher.update(&index.to_le_bytes());
    let mut bytes = [0; 8];
    bytes[..6].copy_from_slice(&hasher.finalize().as_bytes()[..6]);
    // Zero is not an id. Ids below 1000 are left for clients to choose.
    u64::from_le_bytes(bytes).max(1000)
}

/// A grade that may have no id yet.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct NewGrade {
    /// The id, if the client has set one.
    pub id: Option<u64>,
    /// Title of the graded work.
    pub title: String,
    /// Type of the graded work.
    pub kind: GradeType,
    /// From 0 to 100.
    pub score: f64,
}

impl NewGrade {
    /// Converts to a grade. `new` supplies a missing id.
    pub(crate) fn with_id(self, new: impl FnOnce() -> u64) -> Grade {
        Grade { id: self.id.unwrap_or_else(new), title: self.title, kind: self.kind, score: self.score }
    }
}

#[cfg(test)]
mod tests {
    use hearsay_protocol::journal::EPOCH_BYTES_MAX;

    use super::*;

    #[test]
    fn a_body_carries_its_epoch_where_an_older_version_passes_over_it() {
        let names = ["B", ",\"epoch\":7}", "},\"epoch\":7", "\\"];
        for last_name in names.map(String::from) {
            let change = Change::Put { student: 7, first_name: "A".into(), last_name };
            let changes = Changes { changes: vec![change] };
            let body = changes.to_body();
            assert_eq!((EPOCHS.read)(&body), 0);
            for epoch in [1, 300, u64::MAX] {
                let with = (EPOCHS.write)(&body, epoch);
                assert!(with.len() <= body.len() + EPOCH_BYTES_MAX);
                assert_eq!((EPOCHS.read)(&with), epoch);
                // Every version ignores unknown members.
                assert_eq!(Changes::from_body(&with), changes.changes);
            }
        }
        for senseless in [
            "",
            "x",
            ",\"epoch\":",
            ",\"epoch\":}",
            ",\"epoch\":1",
            ",\"epoch\":-1}",
            ",\"epoch\":99999999999999999999}",
        ] {
            assert_eq!((EPOCHS.read)(senseless.as_bytes()), 0, "{senseless}");
        }
    }

    #[test]
    fn a_body_is_readable_and_what_is_unknown_in_it_is_left_out() {
        let changes = Changes {
            changes: vec![
                Change::Put { student: 7, first_name: "A".into(), last_name: "B".into() },
                Change::Ungrade { student: 7, grade: 3 },
            ],
        };
        let body = changes.to_body();
        let text = String::from_utf8(body.clone()).unwrap();
        assert!(text.contains(r#"{"change":"put","student":7,"firstName":"A","lastName":"B"}"#), "{text}");
        assert_eq!(Changes::from_body(&body), changes.changes);
        let newer = text.replace(r#"{"change":"put""#, r#"{"change":"promote","to":9},{"change":"put""#);
        assert_eq!(Changes::from_body(newer.as_bytes()), changes.changes);
        let hostile = r#"{"changes":[{"change":"grade","student":1,"grade":{"id":1,"title":"x","type":"Quiz","score":101}}]}"#;
        assert_eq!(Changes::from_body(hostile.as_bytes()), []);
        assert_eq!(Changes::from_body(b"\xff"), []);
    }

    #[test]
    fn one_key_gives_one_id_and_no_key_gives_another_each_time() {
        assert_eq!(new_id(Some("k"), 0), new_id(Some("k"), 0));
        assert_ne!(new_id(Some("k"), 0), new_id(Some("k"), 1));
        assert_ne!(new_id(None, 0), new_id(None, 0));
        assert!((0..1000).all(|i| (1000..=ID_MAX).contains(&new_id(None, i))));
    }
}
