//! Clients that write to the grade book and the log without a pause, each at its own node, and record the
//! outcome of each write.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use serde_json::json;

use crate::{
    history::{History, Outcome},
    http::{Reply, SendError, send},
};

/// Limit of a request: longer than the time after which the node answers "indeterminate".
const PATIENCE: Duration = Duration::from_secs(8);
/// Prefix of the names that writes to the grade book get.
const STUDENT: &str = "student-";
const RECORD: &str = "record-";
/// First name of all students that writers add.
const WRITER: &str = "Writer";
/// Pause of a client whose node does not answer.
const PAUSE: Duration = Duration::from_millis(20);

/// Running writers.
pub struct Writers {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<History>>,
}

impl Writers {
    /// Starts one writer at each of these nodes. Every third write requests the level `local`. Every third
    /// write is retried with its key at any node until its outcome is certain.
    pub fn start(nodes: &[SocketAddr]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let threads = (0..nodes.len()).map(|i| {
            let (nodes, stop, acknowledged) = (nodes.to_vec(), Arc::clone(&stop), Arc::clone(&acknowledged));
            std::thread::spawn(move || write(&nodes, i, &stop, &acknowledged))
        });
        let threads = threads.collect();
        Self { stop, acknowledged, threads }
    }

    /// Returns the number of acknowledged writes so far.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Lets each writer finish its last write. Returns all outcomes.
    pub fn stop(self) -> History {
        self.stop.store(true, Ordering::Relaxed);
        let mut history = History::default();
        for thread in self.threads {
            history.join(thread.join().expect("a writer does not panic"));
        }
        history
    }
}

fn write(nodes: &[SocketAddr], me: usize, stop: &AtomicBool, acknowledged: &AtomicUsize) -> History {
    let mut history = History::default();
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("{}{me}-{n}", if n % 2 == 0 { STUDENT } else { RECORD });
        let outcome = match n % 3 {
            0 => once(nodes[me], &name, Some("local"), None),
            1 => once(nodes[me], &name, None, None),
            _ => until_certain(nodes, me, &name),
        };
        match outcome {
            // The node was down. The client sent no request, so no write is recorded.
            Err(SendError::NotSent) => std::thread::sleep(PAUSE),
            Err(SendError::Unknown) => history.note(&name, Outcome::Indeterminate),
            Ok(outcome) => {
                acknowledged.fetch_add(
                    usize::from(matches!(outcome, Outcome::Acknowledged { .. })),
                    Ordering::Relaxed,
                );
                history.note(&name, outcome);
            }
        }
    }
    history
}

fn once(to: SocketAddr, name: &str, ack: Option<&str>, key: Option<&str>) -> Result<Outcome, SendError> {
    let (path, content_type, body) = match is_student(name) {
        true => {
            ("/students", "application/json", json!({ "firstName": WRITER, "lastName": name }).to_string())
        }
        false => ("/log", "text/plain", name.to_owned()),
    };
    let request = match ack {
        Some(ack) => format!("POST {path}?ack={ack}"),
        None => format!("POST {path}"),
    };
    let mut headers = vec![("content-type", content_type)];
    headers.extend(key.map(|key| ("idempotency-key", key)));
    send(to, &request, &headers, &body, PATIENCE).map(|reply| outcome(&reply))
}

fn outcome(reply: &Reply) -> Outcome {
    match reply.status {
        200 | 201 => Outcome::Acknowledged {
            entry: reply.header("hearsay-token").unwrap_or_default().to_owned(),
            level: reply.header("hearsay-ack").unwrap_or_default().to_owned(),
        },
        504 => Outcome::Indeterminate,
        _ => Outcome::Refused,
    }
}

/// Retries a write with its key, at one node after another, until it is acknowledged.
fn until_certain(nodes: &[SocketAddr], me: usize, name: &str) -> Result<Outcome, SendError> {
    let mut sent = false;
    for turn in 0..200 {
        match once(nodes[(me + turn) % nodes.len()], name, None, Some(name)) {
            Ok(outcome @ Outcome::Acknowledged { .. }) => {
                // Simulates that the answer was lost: the client retries with the same key.
                _ = once(nodes[me], name, None, Some(name));
                return Ok(outcome);
            }
            Ok(Outcome::Refused | Outcome::Indeterminate) | Err(SendError::Unknown) => sent = true,
            Err(SendError::NotSent) => (),
        }
        std::thread::sleep(PAUSE);
    }
    Err(if sent { SendError::Unknown } else { SendError::NotSent })
}

fn is_student(name: &str) -> bool {
    name.starts_with(STUDENT)
}

/// Returns the names of all writes on a node. A name that occurs twice is listed twice.
fn written(node: SocketAddr) -> Option<Vec<String>> {
    let mut names = students(node)?;
    names.extend(records(node)?);
    Some(names)
}

fn records(node: SocketAddr) -> Option<Vec<String>> {
    let mut names = Vec::new();
    let mut request = "GET /log?limit=1000".to_owned();
    loop {
        let page = send(node, &request, &[], "", PATIENCE).ok()?.json();
        let messages = page["records"].as_array()?.iter().filter_map(|r| r["message"].as_str());
        // The log also has events of the nodes, which are skipped.
        names.extend(messages.filter(|message| message.starts_with(RECORD)).map(str::to_owned));
        let Some(next) = page["next"].as_str() else { return Some(names) };
        request = format!("GET /log?limit=1000&after={next}");
    }
}

fn students(node: SocketAddr) -> Option<Vec<String>> {
    let mut names = Vec::new();
    let mut after = 0;
    loop {
        let page = send(node, &format!("GET /students?after={after}"), &[], "", PATIENCE).ok()?;
        let students = page.json();
        let students = students.as_array()?;
        let Some(last) = students.last() else { return Some(names) };
        after = last["id"].as_u64()?;
        let writers = students.iter().filter(|s| s["firstName"] == WRITER);
        names.extend(writers.filter_map(|s| Some(s["lastName"].as_str()?.to_owned())));
    }
}

/// Reads all writes from each of these nodes. The keys are the nodes' addresses.
pub fn all_written(nodes: &[SocketAddr]) -> BTreeMap<String, Vec<String>> {
    nodes.iter().map(|node| (node.to_string(), written(*node).unwrap_or_default())).collect()
}
