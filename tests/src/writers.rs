//! Clients that write into the grade book and the log without a pause, each to a node of its own, and remember what they were told.

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
    history::{History, Told},
    http::{Reply, Silence, send},
};

/// How long a client waits for an answer: longer than the node takes to say that it does not know.
const PATIENCE: Duration = Duration::from_secs(8);
/// How the names of writes begin.
const STUDENT: &str = "student-";
const RECORD: &str = "record-";
/// The first name of all students that writers add.
const WRITER: &str = "Writer";
/// The pause of a client whose node is not there.
const PAUSE: Duration = Duration::from_millis(20);

/// Writers at work.
pub struct Writers {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<History>>,
}

impl Writers {
    /// Starts one at each of these nodes. Every third write asks for `local`, every third retries under its key wherever it can until it
    /// is told something certain.
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

    /// How many writes were acknowledged so far.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Lets each finish its last write. Returns what all were told.
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
        let told = match n % 3 {
            0 => once(nodes[me], &name, Some("local"), None),
            1 => once(nodes[me], &name, None, None),
            _ => until_certain(nodes, me, &name),
        };
        match told {
            // Nobody was there: it is not a write yet.
            Err(Silence::NotSent) => std::thread::sleep(PAUSE),
            Err(Silence::Unknown) => history.note(&name, Told::Indeterminate),
            Ok(told) => {
                acknowledged
                    .fetch_add(usize::from(matches!(told, Told::Acknowledged { .. })), Ordering::Relaxed);
                history.note(&name, told);
            }
        }
    }
    history
}

fn once(to: SocketAddr, name: &str, ack: Option<&str>, key: Option<&str>) -> Result<Told, Silence> {
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
    send(to, &request, &headers, &body, PATIENCE).map(|reply| told(&reply))
}

fn told(reply: &Reply) -> Told {
    match reply.status {
        200 | 201 => Told::Acknowledged {
            entry: reply.header("hearsay-token").unwrap_or_default().to_owned(),
            level: reply.header("hearsay-ack").unwrap_or_default().to_owned(),
        },
        504 => Told::Indeterminate,
        _ => Told::Refused,
    }
}

/// Under one key, at one node after the other, until somebody says that it is written.
fn until_certain(nodes: &[SocketAddr], me: usize, name: &str) -> Result<Told, Silence> {
    let mut sent = false;
    for turn in 0..200 {
        match once(nodes[(me + turn) % nodes.len()], name, None, Some(name)) {
            Ok(told @ Told::Acknowledged { .. }) => {
                // Whoever did not hear the answer says it again.
                _ = once(nodes[me], name, None, Some(name));
                return Ok(told);
            }
            Ok(Told::Refused | Told::Indeterminate) | Err(Silence::Unknown) => sent = true,
            Err(Silence::NotSent) => (),
        }
        std::thread::sleep(PAUSE);
    }
    Err(if sent { Silence::Unknown } else { Silence::NotSent })
}

fn is_student(name: &str) -> bool {
    name.starts_with(STUDENT)
}

/// The names of all writes that a node has, each as often as it is there.
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
        // Nodes tell the log what happens to them, too.
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

/// What each of these nodes has, by its address.
pub fn all_written(nodes: &[SocketAddr]) -> BTreeMap<String, Vec<String>> {
    nodes.iter().map(|node| (node.to_string(), written(*node).unwrap_or_default())).collect()
}
