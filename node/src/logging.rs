//! Log of the node: writes each event as one line, text or JSON, to standard error, and queues events for
//! shipping to the cluster's log.
//!
//! `HEARSAY_LOG`, else `RUST_LOG`, selects events as in `hearsay=debug,libp2p_gossipsub=info`. By default
//! Hearsay logs from the level info, and its libraries from warn: in a swarm of a hundred nodes, gossip alone
//! would hide all other lines.
//!
//! Names in the log come from other nodes, so every line is escaped when it is written. For the same reason
//! the log has no colours: then any escape sequence in an event must be foreign, and all can be escaped.
//!
//! A thread writes the lines from a bounded queue. The reader of standard error may be slow or gone, which
//! must not delay this node's answers to pings. Lines that do not fit into the queue are dropped and counted.
//!
//! The same events are shipped to the log of the cluster (`events`, and `hearsay_services::log_shipper`).
//! `HEARSAY_SHIP` selects them in the same form, with the same default; `off` ships none. Clients of
//! `/v1/agent/monitor` follow the events while they are connected (`monitor`).

mod events;
mod monitor;

use std::{
    io::{self, Write},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Duration,
};

use hearsay_services::{LogQueue, ShipperCounters, log_queue};
use tracing_subscriber::{EnvFilter, Layer as _, layer::SubscriberExt as _, util::SubscriberInitExt as _};

pub use monitor::{LineFormat, LogLines, follow, readers_dropped};

use crate::{
    config::{Environment, LogFormat},
    escape::escaped,
};

/// Default filter: libraries from the level warn, Hearsay's crates (`hearsay_node`, `hearsay_services`…) from
/// info.
///
/// mDNS logs an error every ten seconds for each address from which it cannot send. One example is an IPv6
/// address that the kernel still checks for duplicates (RFC 4862, section 5.4). `node doctor` reports the
/// state of multicast. rmcp logs each error that a client of `/mcp` causes, with texts of the client.
/// h2 warns of each connection that it closes because of a flood; the node counts them.
const DEFAULT_FILTER: &str =
    "warn,libp2p_gossipsub=error,libp2p_mdns::behaviour::iface=off,rmcp=off,h2=error,hearsay=info";

/// Maximum number of queued lines: a few seconds of the highest rate observed, about a megabyte.
const LINES_MAX: usize = 4096;
/// Longest wait for the last lines when the process ends.
const FLUSH_MAX: Duration = Duration::from_secs(1);

static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Returns the number of lines dropped because the queue was full.
pub fn lines_dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// The queue of events to ship, until the node takes it.
static TO_SHIP: Mutex<Option<LogQueue>> = Mutex::new(None);
static SHIPPED: Mutex<Option<Arc<ShipperCounters>>> = Mutex::new(None);

/// Takes the queue of events to ship. There is one for each process.
pub fn take_records_to_ship() -> Option<LogQueue> {
    TO_SHIP.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Returns the counters of shipping: name, help, value.
pub fn shipped() -> Vec<(&'static str, &'static str, u64)> {
    let counters = SHIPPED.lock().unwrap_or_else(PoisonError::into_inner);
    counters.as_ref().map_or_else(Vec::new, |counters| counters.list().to_vec())
}

enum Line {
    Text(String),
    /// Request to flush. All earlier lines are written first.
    Flush(SyncSender<()>),
}

/// The log of this process. Dropping it waits for its last lines, for a second at most.
#[derive(Debug)]
pub struct Log(SyncSender<Line>);

impl Drop for Log {
    fn drop(&mut self) {
        let (written, flushed) = sync_channel(1);
        // A full queue means that standard error is not read.
        if self.0.try_send(Line::Flush(written)).is_ok() {
            _ = flushed.recv_timeout(FLUSH_MAX);
        }
    }
}

/// Why logging could not be started. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter is invalid.
    #[error("{variable}: {problem}; write it like hearsay=debug,libp2p=warn")]
    Filter {
        /// The variable with the filter.
        variable: &'static str,
        /// The problem.
        problem: String,
    },
    /// Logging was already started.
    #[error("this process has a log already")]
    Twice,
    /// The thread could not be started.
    #[error("cannot start the thread that writes the log: {0}")]
    Thread(#[from] io::Error),
}

/// Starts logging, once for the process.
///
/// # Errors
/// See [`LoggingError`].
pub fn init(format: LogFormat, environment: &Environment) -> Result<Log, LoggingError> {
    let to_stderr = filter(environment, &["HEARSAY_LOG", "RUST_LOG"])?;
    let to_log = filter(environment, &["HEARSAY_SHIP"])?;
    let (lines, to_write) = sync_channel(LINES_MAX);
    std::thread::Builder::new().name("log".into()).spawn(move || write_all(&to_write, io::stderr()))?;
    let queue = lines.clone();
    let text = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        // Internal errors would go to standard error, which is the part that failed.
        .log_internal_errors(false)
        .with_writer(move || EscapingWriter(Queue(queue.clone())));
    let text = match format {
        LogFormat::Text => text.boxed(),
        LogFormat::Json => text.json().flatten_event(true).boxed(),
    };
    let (outbox, waiting) = log_queue();
    let counters = Arc::clone(outbox.counters());
    let started = tracing_subscriber::registry()
        .with(monitor::layer(DEFAULT_FILTER))
        .with(text.with_filter(to_stderr))
        .with(events::Shipped(outbox).with_filter(to_log))
        .try_init();
    started.map_err(|_| LoggingError::Twice)?;
    *TO_SHIP.lock().unwrap_or_else(PoisonError::into_inner) = Some(waiting);
    *SHIPPED.lock().unwrap_or_else(PoisonError::into_inner) = Some(counters);
    Ok(Log(lines))
}

/// Writes all lines. A line that cannot be written is lost, and there is no other place to report it.
fn write_all(lines: &Receiver<Line>, mut to: impl Write) {
    let mut reported = 0;
    for line in lines {
        match line {
            Line::Text(text) => _ = to.write_all(text.as_bytes()),
            Line::Flush(written) => {
                _ = to.flush();
                _ = written.send(());
            }
        }
        let dropped = lines_dropped();
        if dropped > reported {
            _ = writeln!(
                to,
                "{} lines of this log were dropped, because the reader was too slow",
                dropped - reported
            );
            reported = dropped;
        }
    }
}

/// Writer to the queue of the thread that writes the log.
struct Queue(SyncSender<Line>);

impl Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.0.try_send(Line::Text(String::from_utf8_lossy(line).into_owned())).is_err() {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns the filter in the first of these variables that is set.
fn filter(environment: &Environment, variables: &[&'static str]) -> Result<EnvFilter, LoggingError> {
    for variable in variables.iter().copied() {
        if let Some(text) = environment.get(variable) {
            return EnvFilter::try_new(text.to_string_lossy())
                .map_err(|error| LoggingError::Filter { variable, problem: error.to_string() });
        }
    }
    Ok(EnvFilter::new(DEFAULT_FILTER))
}

/// Writer that escapes each event except its final newline. The formatter writes an event in one piece.
struct EscapingWriter<W>(W);

impl<W: Write> Write for EscapingWriter<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let (line, end) = match text.strip_suffix('\n') {
            Some(line) => (line, "\n"),
            None => (&*text, ""),
        };
        // One write, so that lines of several threads do not mix.
        self.0.write_all(format!("{}{end}", escaped(line)).as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Captured {
        type Writer = EscapingWriter<Self>;
        fn make_writer(&'a self) -> Self::Writer {
            EscapingWriter(self.clone())
        }
    }

    impl Captured {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    #[test]
    fn a_name_cannot_forge_a_line_or_command_the_terminal() {
        let captured = Captured::default();
        let log = tracing_subscriber::fmt().with_ansi(false).with_writer(captured.clone()).finish();
        tracing::subscriber::with_default(log, || {
            tracing::info!(name = %"a\nERROR all is lost\x1b[2J\u{9b}", "joined");
        });
        let text = captured.text();
        assert_eq!(text.matches('\n').count(), 1, "{text}");
        assert!(!text.trim_end().contains(char::is_control), "{text}");
    }

    #[test]
    fn json_stays_json() {
        let captured = Captured::default();
        let log = tracing_subscriber::fmt().json().flatten_event(true).with_writer(captured.clone()).finish();
        tracing::subscriber::with_default(log, || tracing::info!(name = %"a\u{9b}\n\"b", "joined"));
        let event: serde_json::Value = serde_json::from_str(&captured.text()).unwrap();
        assert_eq!(event["name"], "a\u{9b}\n\"b");
    }

    /// Writer that writes one line for each permit.
    struct Slow(Receiver<()>, Captured);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.recv().map_err(io::Error::other)?;
            self.1.write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_is_stuck_or_gone_delays_no_thread() {
        let (lines, to_write) = sync_channel(2);
        let (let_go, gate) = sync_channel(64);
        let captured = Captured::default();
        let slow = Slow(gate, captured.clone());
        let writer = std::thread::spawn(move || write_all(&to_write, slow));
        let before = lines_dropped();
        let mut queue = Queue(lines.clone());
        for n in 0..10 {
            queue.write_all(format!("line {n}\n").as_bytes()).unwrap();
        }
        // Two lines are in the queue, and at most one is being written.
        let dropped = lines_dropped() - before;
        assert!((7..=8).contains(&dropped), "{dropped}");
        (0..64).for_each(|_| _ = let_go.try_send(()));
        drop((queue, let_go, Log(lines)));
        writer.join().unwrap();
        let text = captured.text();
        assert!(text.starts_with("line 0\n") && text.contains("were dropped"), "{text}");
    }

    #[test]
    fn a_filter_that_cannot_be_read_is_named_by_its_variable() {
        for variable in ["HEARSAY_LOG", "HEARSAY_SHIP"] {
            assert!(filter(&Environment::default(), &[variable]).is_ok());
            let environment = Environment::from_iter([(variable, "hearsay=loud")]);
            let error = filter(&environment, &["RUST_LOG", variable]).unwrap_err().to_string();
            assert!(error.contains(variable), "{error}");
        }
    }
}
