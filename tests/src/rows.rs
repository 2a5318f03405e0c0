//! Clients that rename students at one node after another, and check that each acknowledged name takes
//! effect.

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use serde_json::json;

use crate::http::{Reply, SendError, send};

/// Limit of a request: longer than the time after which the node answers "indeterminate".
const PATIENCE: Duration = Duration::from_secs(8);
/// Pause of a client whose node does not answer.
const PAUSE: Duration = Duration::from_millis(20);
/// Attempts to read a row, while its node is down or does not have the write yet.
const READS_MAX: usize = 200;

/// Observations of one client on its row.
#[derive(Clone, Debug, Default)]
pub struct RowHistory {
    /// Id of the student.
    pub row: u64,
    /// Last acknowledged name.
    pub last: Option<String>,
    /// Names with an indeterminate outcome.
    pub indeterminate: BTreeSet<String>,
    /// Number of acknowledged names.
    pub acknowledged: usize,
    /// Acknowledged names that a later read with the write's token did not show: the name, the one shown
    /// instead, and the node's address.
    pub without_effect: Vec<(String, String, SocketAddr)>,
}

impl RowHistory {
    /// Checks the name that a node shows for the row at the end.
    pub fn check(&self, shown: Option<&str>) -> Result<(), String> {
        let is_explained = match (shown, &self.last) {
            (Some(shown), Some(last)) => shown == last || self.indeterminate.contains(shown),
            (Some(shown), None) => self.indeterminate.contains(shown),
            (None, last) => last.is_none(),
        };
        match is_explained {
            true => Ok(()),
            false => Err(format!("the row {} shows {shown:?}; acknowledged last: {:?}", self.row, self.last)),
        }
    }
}

/// Clients that run in threads.
pub struct RowWriters {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<RowHistory>>,
}

impl RowWriters {
    /// Starts one client for each row.
    pub fn start(nodes: &[SocketAddr], rows: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let threads = (1..=rows).map(|row| {
            let (nodes, stop, acknowledged) = (nodes.to_vec(), Arc::clone(&stop), Arc::clone(&acknowledged));
            std::thread::spawn(move || rename(&nodes, 10 + row, &stop, &acknowledged))
        });
        let threads = threads.collect();
        Self { stop, acknowledged, threads }
    }

    /// Returns the number of acknowledged names so far.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Lets each client finish its last write. Returns their observations.
    pub fn stop(self) -> Vec<RowHistory> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().map(|thread| thread.join().expect("a client does not panic")).collect()
    }
}

fn rename(nodes: &[SocketAddr], row: u64, stop: &AtomicBool, acknowledged: &AtomicUsize) -> RowHistory {
    let mut history = RowHistory { row, ..RowHistory::default() };
    // Token of the last acknowledged write. The next write sends it.
    let (mut token, mut is_there) = (None, false);
    let mut rng = fastrand::Rng::with_seed(row);
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let (name, writer) = (format!("Name{n}"), nodes[rng.usize(..nodes.len())]);
        match write(writer, row, &name, (is_there, token.as_deref())) {
            Ok(reply) if matches!(reply.status, 200 | 201) => {
                token = reply.header("hearsay-token").map(str::to_owned);
                is_there = true;
                history.last = Some(name.clone());
                history.acknowledged += 1;
                acknowledged.fetch_add(1, Ordering::Relaxed);
                let reader = nodes[rng.usize(..nodes.len())];
                let shown = token.as_deref().and_then(|token| read(reader, row, Some(token)));
                if let Some(shown) = shown
                    && shown != name
                    && !history.indeterminate.contains(&shown)
                {
                    history.without_effect.push((name, shown, reader));
                }
            }
            Ok(reply) if reply.status == 504 => _ = history.indeterminate.insert(name),
            Err(SendError::Unknown) => _ = history.indeterminate.insert(name),
            // The row already exists: an earlier attempt with an unknown outcome had added it.
            Ok(reply) if reply.status == 409 => is_there = true,
            // The node refused, because it does not have the token's write yet or is starting.
            Ok(_) | Err(SendError::NotSent) => std::thread::sleep(PAUSE),
        }
    }
    history
}

fn write(
    to: SocketAddr,
    row: u64,
    name: &str,
    (is_there, token): (bool, Option<&str>),
) -> Result<Reply, SendError> {
    let mut headers = vec![("content-type", "application/json")];
    headers.extend(token.map(|token| ("hearsay-token", token)));
    let (request, body) = match is_there {
        false => ("POST /students".to_owned(), json!({ "id": row, "firstName": "Row", "lastName": name })),
        true => (format!("PUT /students/{row}"), json!({ "firstName": "Row", "lastName": name })),
    };
    send(to, &request, &headers, &body.to_string(), PATIENCE)
}

/// Returns the name in a row at a node, once the node has the token's write; `None` without an answer.
pub fn read(from: SocketAddr, row: u64, token: Option<&str>) -> Option<String> {
    let headers: Vec<_> = token.map(|token| ("hearsay-token", token)).into_iter().collect();
    for _ in 0..READS_MAX {
        if let Ok(reply) = send(from, &format!("GET /students/{row}"), &headers, "", PATIENCE) {
            match reply.status {
                200 => return Some(reply.json()["lastName"].as_str()?.to_owned()),
                404 => return None,
                _ => (),
            }
        }
        std::thread::sleep(PAUSE);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_shows_what_was_acknowledged_last_or_what_nobody_knows() {
        let history = RowHistory {
            last: Some("b".into()),
            indeterminate: ["c".to_owned()].into(),
            ..RowHistory::default()
        };
        assert_eq!(history.check(Some("b")), Ok(()));
        assert_eq!(history.check(Some("c")), Ok(()));
        assert!(history.check(Some("a")).is_err() && history.check(None).is_err());
        assert_eq!(RowHistory::default().check(None), Ok(()));
        assert!(RowHistory::default().check(Some("a")).is_err());
    }
}
