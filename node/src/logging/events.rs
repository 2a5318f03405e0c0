//! [`Shipped`]: tracing layer that queues this process's log events for the log shipper.
//!
//! The layer runs inside every logging call, on the calling thread, so it never waits.

use std::{
    fmt::{self, Write as _},
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use hearsay_services::{
    LogEvent, LogOutbox, SHIPPER_THREAD,
    plugins::{Level, NAME_BYTES_MAX},
};
use tracing::{
    Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::layer::{Context, Layer};

/// Threads that log because of shipping: the shipper, and the journal that stores the records. If their
/// events were shipped, an event about a full disk would cause the next one.
const OWN_THREADS: [&str; 2] = [SHIPPER_THREAD, "journal-log"];

/// A tracing layer that queues events for the shipper.
#[derive(Debug)]
pub(super) struct Shipped(pub(super) LogOutbox);

impl<S: Subscriber> Layer<S> for Shipped {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if thread::current().name().is_some_and(|name| OWN_THREADS.contains(&name)) {
            return;
        }
        let mut text = Text::default();
        event.record(&mut text);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.0.push(LogEvent {
            time: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            level: level(*event.metadata().level()),
            service: source_name(event.metadata().target()),
            message: text.finish(),
        });
    }
}

fn level(level: tracing::Level) -> Level {
    match level {
        tracing::Level::TRACE => Level::Trace,
        tracing::Level::DEBUG => Level::Debug,
        tracing::Level::INFO => Level::Info,
        tracing::Level::WARN => Level::Warn,
        tracing::Level::ERROR => Level::Error,
    }
}

/// Returns the source of an event: the name of a plug-in, `node`, or the name of another crate.
fn source_name(target: &str) -> String {
    let mut path = target.split("::");
    let first = path.next().unwrap_or_default();
    let name = match (first, path.next()) {
        ("hearsay_gateway", _) => "gateway",
        ("hearsay_services", Some("plugins" | "http" | "network")) => path.next().unwrap_or("node"),
        ("hearsay_services", Some(module)) => module,
        (own, _) if own.starts_with("hearsay_") => "node",
        (other, _) => other,
    };
    let end = name.floor_char_boundary(NAME_BYTES_MAX);
    if name.is_empty() { "node".to_owned() } else { name[..end].to_owned() }
}

/// The text of an event: its message, then its fields.
#[derive(Default)]
pub(super) struct Text {
    message: String,
    fields: String,
}

impl Text {
    /// Returns the text.
    pub(super) fn finish(self) -> String {
        match (self.message.is_empty(), self.fields.is_empty()) {
            (false, true) => self.message,
            (false, false) => self.message + &self.fields,
            (true, false) => self.fields.trim_start().to_owned(),
            // The log refuses empty records.
            (true, true) => "(no message)".to_owned(),
        }
    }
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message.push_str(value);
        } else {
            // Writing to a String cannot fail.
            _ = write!(self.fields, " {}={value:?}", field.name());
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            _ = write!(self.message, "{value:?}");
        } else {
            _ = write!(self.fields, " {}={value:?}", field.name());
        }
    }
}

#[cfg(test)]
mod tests {
    use hearsay_services::log_queue;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    fn said(say: impl FnOnce()) -> LogEvent {
        let (outbox, mut waiting) = log_queue();
        let log = tracing_subscriber::registry().with(Shipped(outbox));
        tracing::subscriber::with_default(log, say);
        waiting.try_recv().unwrap()
    }

    #[test]
    fn an_event_is_its_message_and_its_fields() {
        let event =
            said(|| tracing::warn!(target: "hearsay_node::driver", name = "a b", count = 3, "member failed"));
        assert_eq!(event.message, "member failed name=\"a b\" count=3");
        assert_eq!((event.level, event.service.as_str()), (Level::Warn, "node"));
        assert!(event.time > 1_700_000_000_000);
        let event = said(|| tracing::info!(target: "hearsay_services::plugins::visits", total = 1));
        assert_eq!((event.message.as_str(), event.service.as_str()), ("total=1", "visits"));
        assert_eq!(said(|| tracing::info!(target: "my_plugin::deep::er", "x")).service, "my_plugin");
    }

    #[test]
    fn what_is_said_because_of_shipping_is_not_shipped() {
        for (thread, taken) in [(SHIPPER_THREAD, 0), ("journal-log", 0), ("journal-visits", 1), ("driver", 1)]
        {
            let (outbox, mut waiting) = log_queue();
            let speaking = thread::Builder::new().name(thread.to_owned()).spawn(move || {
                let log = tracing_subscriber::registry().with(Shipped(outbox));
                tracing::subscriber::with_default(log, || tracing::error!("the disk is full"));
            });
            speaking.unwrap().join().unwrap();
            assert_eq!(usize::from(waiting.try_recv().is_some()), taken, "{thread}");
        }
    }
}
