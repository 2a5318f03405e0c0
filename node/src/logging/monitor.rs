//! Readers that follow this process's log over HTTP: a tracing layer that formats each event for them.
//!
//! The layer runs inside every logging call, so it never waits: each reader has a bounded queue, and a reader
//! whose queue is full loses its place, which is counted. Without readers the layer's filter is off, so the
//! events of lower levels cost nothing.

use std::{
    sync::{
        Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use hearsay_services::rfc3339;
use serde_json::json;
use tokio::sync::mpsc;
use tracing::{Level, Subscriber};
use tracing_subscriber::{
    EnvFilter, Registry,
    layer::{Context, Layer},
    reload,
};

use super::events::Text;
use crate::escape::escaped;

/// Readers at the same time. Guess: each operator has one.
const READERS_MAX: usize = 16;
/// Lines queued for one reader: usually some hundred kilobytes, at most 4 MiB.
const LINES_MAX: usize = 1024;
/// The longest message, in bytes.
const LINE_BYTES_MAX: usize = 4 * 1024;

/// The readers of this process's log.
static READERS: Readers = Readers::new();

/// Returns the number of readers that were dropped because they read too slowly.
pub fn readers_dropped() -> u64 {
    READERS.dropped.load(Ordering::Relaxed)
}

/// Returns the lines of the log from now on, of this level and above; `None`: there are too many readers.
pub fn follow(level: Level, format: LineFormat) -> Option<LogLines> {
    READERS.add(level, format)
}

/// Returns the layer, which is the first one of the registry. Libraries pass as in the filter `base`.
pub(super) fn layer(base: &'static str) -> impl Layer<Registry> {
    READERS.layer(base)
}

/// Format of a line for a reader, as Consul's agent writes its log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LineFormat {
    /// Time, level, source, message.
    Text,
    /// A JSON object with `@timestamp`, `@level`, `@module` and `@message`.
    Json,
}

/// Readers, and the filter of their layer.
#[derive(Debug)]
struct Readers {
    readers: Mutex<Vec<Reader>>,
    /// Number of the next reader.
    next: AtomicU64,
    dropped: AtomicU64,
    filter: OnceLock<ReaderFilter>,
    /// Held while the filter changes. Changes are applied in order, so that the last one knows all readers.
    change: Mutex<()>,
}

/// The place of a reader.
#[derive(Debug)]
struct Reader {
    number: u64,
    level: Level,
    format: LineFormat,
    lines: mpsc::Sender<String>,
}

/// The filter of the layer, which changes with the readers.
#[derive(Debug)]
struct ReaderFilter {
    handle: reload::Handle<EnvFilter, Registry>,
    /// The filter of the log, to which the level of Hearsay's own crates is added.
    base: &'static str,
}

impl Readers {
    const fn new() -> Self {
        Self {
            readers: Mutex::new(Vec::new()),
            next: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            filter: OnceLock::new(),
            change: Mutex::new(()),
        }
    }

    fn layer(&'static self, base: &'static str) -> impl Layer<Registry> {
        let (filter, handle) = reload::Layer::new(EnvFilter::new("off"));
        // Set once, because a process has one log.
        _ = self.filter.set(ReaderFilter { handle, base });
        Monitored(self).with_filter(filter)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Reader>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&'static self, level: Level, format: LineFormat) -> Option<LogLines> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, lines) = mpsc::channel(LINES_MAX);
        {
            let mut readers = self.lock();
            if readers.len() >= READERS_MAX {
                return None;
            }
            readers.push(Reader { number, level, format, lines: sender });
        }
        self.apply_levels();
        Some(LogLines { readers: self, number, lines })
    }

    /// Lets the events pass that a reader wants. The lock on the readers is not held during the change: a
    /// change that logs would take it.
    fn apply_levels(&self) {
        let _change = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let level = self.lock().iter().map(|reader| reader.level).max();
        if let Some(filter) = self.filter.get() {
            let directives = level.map(|level| format!("{},hearsay={level}", filter.base));
            // An error means that the process has no log any more.
            _ = filter.handle.reload(EnvFilter::new(directives.as_deref().unwrap_or("off")));
        }
    }
}

/// The lines for one reader. Dropping it ends the reading.
#[derive(Debug)]
pub struct LogLines {
    readers: &'static Readers,
    number: u64,
    lines: mpsc::Receiver<String>,
}

impl LogLines {
    /// Returns the next line, with its newline; `None` after the reader was dropped for reading too slowly.
    pub async fn next(&mut self) -> Option<String> {
        self.lines.recv().await
    }
}

impl Drop for LogLines {
    fn drop(&mut self) {
        self.readers.lock().retain(|reader| reader.number != self.number);
        self.readers.apply_levels();
    }
}

/// Tracing layer that queues events for the readers.
struct Monitored(&'static Readers);

impl<S: Subscriber> Layer<S> for Monitored {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let level = *event.metadata().level();
        let wanted = |format: LineFormat| {
            self.0.lock().iter().any(|reader| reader.format == format && level <= reader.level)
        };
        let formats = [LineFormat::Text, LineFormat::Json].map(|format| wanted(format).then_some(format));
        if formats.iter().all(Option::is_none) {
            return;
        }
        // Without the lock: what is recorded may log, too.
        let mut text = Text::default();
        event.record(&mut text);
        let message = text.finish();
        let lines = formats.map(|format| {
            let format = format?;
            Some((format, line(format, level, event.metadata().target(), &message)))
        });
        self.0.lock().retain(|reader| {
            let of_reader = lines.iter().flatten().find(|(format, _)| *format == reader.format);
            let Some((_, line)) = of_reader.filter(|_| level <= reader.level) else { return true };
            let is_taken = reader.lines.try_send(line.clone()).is_ok();
            if !is_taken {
                self.0.dropped.fetch_add(1, Ordering::Relaxed);
            }
            is_taken
        });
    }
}

fn line(format: LineFormat, level: Level, target: &str, message: &str) -> String {
    let now = rfc3339(SystemTime::now());
    let message = &message[..message.floor_char_boundary(LINE_BYTES_MAX)];
    let mut line = match format {
        LineFormat::Text => {
            let level = format!("[{level}]");
            escaped(&format!("{now} {level:<7} {target}: {message}")).into_owned()
        }
        LineFormat::Json => {
            let level = level.as_str().to_ascii_lowercase();
            let json = json!({"@timestamp": now, "@level": level, "@module": target, "@message": message});
            escaped(&json.to_string()).into_owned()
        }
    };
    line.push('\n');
    line
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    const TARGET: &str = "hearsay_node::x";

    /// Returns readers of a test's own.
    fn readers() -> &'static Readers {
        Box::leak(Box::new(Readers::new()))
    }

    fn waiting(lines: &mut LogLines) -> Vec<String> {
        std::iter::from_fn(|| lines.next().now_or_never().flatten()).collect()
    }

    #[test]
    fn a_reader_gets_the_lines_of_its_level_in_its_format_and_lower_levels_cost_nothing_without_it() {
        let readers = readers();
        let log = tracing_subscriber::registry().with(readers.layer("warn,hearsay=info"));
        tracing::subscriber::with_default(log, || {
            let is_on = |level| match level {
                Level::DEBUG => tracing::enabled!(target: TARGET, Level::DEBUG),
                _ => tracing::enabled!(target: TARGET, Level::INFO),
            };
            assert!(!is_on(Level::INFO) && !is_on(Level::DEBUG));
            let mut text = readers.add(Level::INFO, LineFormat::Text).unwrap();
            assert!(is_on(Level::INFO) && !is_on(Level::DEBUG));
            let mut json = readers.add(Level::DEBUG, LineFormat::Json).unwrap();
            assert!(is_on(Level::DEBUG));
            tracing::debug!(target: TARGET, "detail");
            tracing::info!(target: TARGET, name = %"a\nb\x1b", "joined");
            tracing::info!(target: "libp2p_swarm", "chatter");
            let (text_lines, json_lines) = (waiting(&mut text), waiting(&mut json));
            assert_eq!(text_lines.len(), 1, "{text_lines:?}");
            let (time, line) = text_lines[0].split_once(' ').unwrap();
            assert!(time.ends_with('Z'), "{time}");
            assert_eq!(line, "[INFO]  hearsay_node::x: joined name=a\\nb\\u001b\n");
            let parsed: Vec<serde_json::Value> =
                json_lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
            assert_eq!(parsed.len(), 2, "{parsed:?}");
            assert_eq!((&parsed[0]["@level"], &parsed[0]["@message"]), (&json!("debug"), &json!("detail")));
            assert_eq!(parsed[1]["@message"], "joined name=a\nb\u{1b}");
            drop(json);
            assert!(is_on(Level::INFO) && !is_on(Level::DEBUG));
            drop(text);
            assert!(!is_on(Level::INFO));
        });
    }

    #[test]
    fn a_reader_that_is_too_slow_is_dropped_and_the_others_go_on() {
        let readers = readers();
        let mut slow = readers.add(Level::INFO, LineFormat::Text).unwrap();
        let mut other = readers.add(Level::WARN, LineFormat::Text).unwrap();
        tracing::subscriber::with_default(tracing_subscriber::registry().with(Monitored(readers)), || {
            for n in 0..=LINES_MAX {
                tracing::info!(target: TARGET, n, "flood");
            }
            tracing::warn!(target: TARGET, "still there");
        });
        assert_eq!(readers.dropped.load(Ordering::Relaxed), 1);
        assert_eq!(waiting(&mut slow).len(), LINES_MAX);
        assert_eq!(slow.next().now_or_never(), Some(None), "its lines end");
        assert_eq!(waiting(&mut other).len(), 1);
    }

    #[test]
    fn readers_are_bounded_and_a_long_line_is_cut() {
        let readers = readers();
        let mut all: Vec<LogLines> =
            (0..READERS_MAX).map(|_| readers.add(Level::INFO, LineFormat::Text).unwrap()).collect();
        assert!(readers.add(Level::INFO, LineFormat::Text).is_none());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(Monitored(readers)), || {
            tracing::info!(target: TARGET, "{}", "ü".repeat(LINE_BYTES_MAX));
        });
        for reader in &mut all {
            let lines = waiting(reader);
            assert!(lines.len() == 1 && lines[0].len() < LINE_BYTES_MAX + 100, "{}", lines[0].len());
        }
        all.pop();
        assert!(readers.add(Level::INFO, LineFormat::Text).is_some());
    }
}
