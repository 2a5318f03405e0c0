//! Test fixture: writes the journal of a grade book with ten students into a data directory.

#![allow(clippy::unwrap_used, reason = "in a test, an unwrap that fails is the test failing")]

use std::path::{Path, PathBuf};

use hearsay_node::Store;
use hearsay_protocol::{
    Identity, Version,
    journal::{ChainHash, EntryId, FeedId, HybridTime, JournalEntry, Run},
};

const TOPIC: &str = "grading";

/// Writes the journal of a grade book with ten students, one run each, into a data directory.
pub(crate) fn fill(dir: &Path, cluster: &str) -> PathBuf {
    std::fs::create_dir_all(dir.join("journal")).unwrap();
    let path = dir.join("journal/grading.db");
    let plugin = hearsay_node::builtin().into_iter().find(|s| s.name() == TOPIC).unwrap();
    let projection = plugin.projection().unwrap();
    let mut store = Store::open(&path, cluster, TOPIC, projection.as_ref()).unwrap();
    let me = Identity::from_seed(&[1; 32]);
    let feed = FeedId { writer: me.id(), boot: 7 };
    let mut before = ChainHash::root(cluster, TOPIC, feed);
    for number in 1..=10 {
        let entry = JournalEntry {
            time: HybridTime(number),
            key: None,
            body: format!(
                r#"{{"changes":[{{"change":"put","student":{number},"firstName":"A","lastName":"B{number}"}}]}}"#
            )
            .into_bytes(),
        };
        let at = (EntryId { feed, seq: Version(number) }, before);
        let (run, hashes) = Run::sign(&me, cluster, TOPIC, at, vec![entry]);
        before = hashes[0];
        store.append_run(&run, projection.as_ref()).unwrap();
    }
    store.commit().unwrap();
    path
}
