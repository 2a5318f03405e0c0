//! What is written down: changes of the grade book, as the entries of its journal carry them.
//!
//! An entry holds changes that belong together. They are JSON, so that they can be read in twenty years, and a version that does not know a change
//! leaves it out.

use std::hash::{BuildHasher, RandomState};

use serde::{Deserialize, Serialize};

use super::book::{Grade, GradeType};
use crate::journal::EpochFormat;

/// The largest id that every JSON reader can hold exactly: a double's 53 bits (RFC 8259, section 6).
pub const ID_MAX: u64 = (1 << 53) - 1;

/// One change.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "change")]
pub enum Change {
    /// The sample students are in the book, unless somebody has changed or removed them: this counts as older than everything.
    Sample,
    /// A student is in the book under this name.
    #[serde(rename_all = "camelCase")]
    Put {
        /// Who.
        student: u64,
        /// Given name.
        first_name: String,
        /// Family name.
        last_name: String,
    },
    /// A student, and all grades given before, are not in the book any more.
    Remove {
        /// Who.
        student: u64,
    },
    /// No grade given before counts any more. Those of the same entry do.
    Clear {
        /// Whose.
        student: u64,
    },
    /// A student has this grade.
    Grade {
        /// Who.
        student: u64,
        /// The grade. A later one with the same id replaces it.
        grade: Grade,
    },
    /// A student does not have this grade any more. Its id is never given again.
    Ungrade {
        /// Who.
        student: u64,
        /// Which.
        grade: u64,
    },
}

/// The body of an entry, but for its epoch.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Changes {
    /// In order.
    pub changes: Vec<Change>,
}

/// How a body carries its epoch: as the last member of the JSON object, which versions that know no epochs pass over.
pub(super) const EPOCHS: EpochFormat = EpochFormat { read: epoch_of, write: with_epoch };

/// How the member begins.
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
    /// As an entry's body.
    pub fn to_body(&self) -> Vec<u8> {
        // Numbers, texts and lists have a JSON form.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// What this version understands of an entry's body.
    pub fn from_body(body: &[u8]) -> Vec<Change> {
        #[derive(Deserialize)]
        struct Loose {
            changes: Vec<serde_json::Value>,
        }
        let loose: Loose = serde_json::from_slice(body).unwrap_or(Loose { changes: Vec::new() });
        let known = loose.changes.into_iter().filter_map(|change| serde_json::from_value(change).ok());
        known.filter(is_sound).collect()
    }
}

/// Whether a change is one that this book would write: a peer's version may not keep to its bounds.
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

/// An id that nobody else gives: 48 bits at random, or out of an idempotency key, so that the same write twice, on whatever nodes, gives the same id
/// twice. Two of a million such ids are equal with a chance of 1 in 560.
pub fn new_id(key: Option<&str>, index: usize) -> u64 {
    let mut hasher = blake3::Hasher::new();
    match key {
        Some(key) => hasher.update(b"key").update(key.as_bytes()),
        // The standard library keys each of these with fresh random bits of the system's.
        None => hasher.update(b"random").update(&RandomState::new().hash_one(0).to_le_bytes()),
    };
    hasher.update(&index.to_le_bytes());
    let mut bytes = [0; 8];
    bytes[..6].copy_from_slice(&hasher.finalize().as_bytes()[..6]);
    // Zero is nobody's id, and the first thousand are for people to give.
    u64::from_le_bytes(bytes).max(1000)
}

/// A grade without its id.
#[derive(Clone, PartialEq, Debug)]
pub struct NewGrade {
    /// The id that it had, if it is one that is known.
    pub id: Option<u64>,
    /// What was graded.
    pub title: String,
    /// Of which kind it was.
    pub kind: GradeType,
    /// From 0 to 100.
    pub score: f64,
}

impl NewGrade {
    /// With its id, or a new one.
    pub fn with_id(self, new: impl FnOnce() -> u64) -> Grade {
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
                // As every version reads it: unknown members are left out.
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
