//! The node's log: to standard error, as text or JSON, one event a line.
//!
//! What is logged is up to `HEARSAY_LOG`, else `RUST_LOG`, in the usual form (`hearsay=debug,libp2p_gossipsub=info`). By default Hearsay
//! tells what it does, and its libraries only what worries them: a swarm that gossips with a hundred nodes would bury everything else.
//!
//! Names in the log come from other nodes, so every line is escaped as it is written. That is also why there are no colours: here, an
//! escape sequence is always somebody else's.
//!
//! Lines wait in a bounded queue for a thread of their own. Whoever reads standard error may be slow, stuck or gone, and none of that may
//! make a node late at answering pings; what does not fit is dropped and counted.
//!
//! The same events go to the log of the cluster (`events`, and [`shipping`]). What goes there is up to `HEARSAY_SHIP`, in the same form, by
//! default what goes to standard error by default; `off` ships nothing.

mod events;

use std::{
    io::{self, Write},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    time::Duration,
};

use hearsay_services::shipping::{self, Counters, Waiting};
use tracing_subscriber::{EnvFilter, Layer as _, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::{
    config::{Environment, LogFormat},
    escape::escaped,
};

/// Libraries from warnings, everything of ours (`hearsay_node`, `hearsay_services`…) from information.
///
/// Each address that mDNS cannot send from is an error to it, every ten seconds: an IPv6 address that the
/// kernel still checks for duplicates (RFC 4862, section 5.4) is one. What multicast can do here, `node
/// doctor` tells.
const DEFAULT_FILTER: &str = "warn,libp2p_gossipsub=error,libp2p_mdns::behaviour::iface=off,hearsay=info";

/// Lines that wait to be written. A few seconds of the worst that was seen, and at most about a megabyte.
const LINES_MAX: usize = 4096;
/// How long the last lines are waited for when the process ends.
const FLUSH_MAX: Duration = Duration::from_secs(1);

static DROPPED: AtomicU64 = AtomicU64::new(0);

/// Lines dropped so far because nobody took them.
pub fn lines_dropped() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// What is to be shipped, until a node of this process takes it over.
static TO_SHIP: Mutex<Option<Waiting>> = Mutex::new(None);
static SHIPPED: Mutex<Option<Arc<Counters>>> = Mutex::new(None);

/// What this process says, to be shipped to the log. There is one, for whoever asks first.
pub fn to_ship() -> Option<Waiting> {
    TO_SHIP.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// What became of it so far: name, help, value.
pub fn shipped() -> Vec<(&'static str, &'static str, u64)> {
    let counters = SHIPPED.lock().unwrap_or_else(PoisonError::into_inner);
    counters.as_ref().map_or_else(Vec::new, |counters| counters.list().to_vec())
}

enum Line {
    Text(String),
    /// Everything before is to be written now.
    Flush(SyncSender<()>),
}

/// The log of this process. Dropped, it waits for its last lines to be written, for a second at most.
#[derive(Debug)]
pub struct Log(SyncSender<Line>);

impl Drop for Log {
    fn drop(&mut self) {
        let (written, told) = sync_channel(1);
        // A queue that is full is one that nobody reads.
        if self.0.try_send(Line::Flush(written)).is_ok() {
            _ = told.recv_timeout(FLUSH_MAX);
        }
    }
}

/// Why there is no log. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter cannot be understood.
    #[error("{variable}: {problem}; write it like hearsay=debug,libp2p=warn")]
    Filter {
        /// The variable it stands in.
        variable: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// Somebody has already set up a log for this process.
    #[error("this process has a log already")]
    Twice,
    /// The system gives no thread.
    #[error("cannot start the thread that writes the log: {0}")]
    Thread(#[from] io::Error),
}

/// Starts logging, for the whole process and once.
///
/// # Errors
/// Names the variable whose filter is wrong.
pub fn init(format: LogFormat, environment: &Environment) -> Result<Log, LoggingError> {
    let to_stderr = filter(environment, &["HEARSAY_LOG", "RUST_LOG"])?;
    let to_log = filter(environment, &["HEARSAY_SHIP"])?;
    let (lines, to_write) = sync_channel(LINES_MAX);
    std::thread::Builder::new().name("log".into()).spawn(move || write_all(&to_write, io::stderr()))?;
    let queue = lines.clone();
    let text = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        // They would be told on standard error, which is what failed.
        .log_internal_errors(false)
        .with_writer(move || EscapingWriter(Queue(queue.clone())));
    let text = match format {
        LogFormat::Text => text.boxed(),
        LogFormat::Json => text.json().flatten_event(true).boxed(),
    };
    let (outbox, waiting) = shipping::queue();
    let counters = Arc::clone(outbox.counters());
    let started = tracing_subscriber::registry()
        .with(text.with_filter(to_stderr))
        .with(events::Shipped(outbox).with_filter(to_log))
        .try_init();
    started.map_err(|_| LoggingError::Twice)?;
    *TO_SHIP.lock().unwrap_or_else(PoisonError::into_inner) = Some(waiting);
    *SHIPPED.lock().unwrap_or_else(PoisonError::into_inner) = Some(counters);
    Ok(Log(lines))
}

/// Writes what comes. A line that cannot be written is lost: there is nobody left to tell.
fn write_all(lines: &Receiver<Line>, mut to: impl Write) {
    let mut told = 0;
    for line in lines {
        match line {
            Line::Text(text) => _ = to.write_all(text.as_bytes()),
            Line::Flush(written) => {
                _ = to.flush();
                _ = written.send(());
            }
        }
        let dropped = lines_dropped();
        if dropped > told {
            _ = writeln!(to, "{} lines of this log were dropped: nobody read them in time", dropped - told);
            told = dropped;
        }
    }
}

/// The way to the thread that writes.
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

/// What the first of these variables says that is there.
fn filter(environment: &Environment, variables: &[&'static str]) -> Result<EnvFilter, LoggingError> {
    for variable in variables.iter().copied() {
        if let Some(text) = environment.get(variable) {
            return EnvFilter::try_new(text.to_string_lossy())
                .map_err(|error| LoggingError::Filter { variable, problem: error.to_string() });
        }
    }
    Ok(EnvFilter::new(DEFAULT_FILTER))
}

/// Escapes each event but for the end of its line. The formatter hands over an event in one piece.
struct EscapingWriter<W>(W);

impl<W: Write> Write for EscapingWriter<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let (line, end) = match text.strip_suffix('\n') {
            Some(line) => (line, "\n"),
            None => (&*text, ""),
        };
        // In one write: lines of several threads must not mix.
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

    /// Takes a line when it is let, and none when nobody lets it.
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
    fn a_reader_that_is_stuck_or_gone_holds_nobody_up() {
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
        // Two in the queue and at most one being written.
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
