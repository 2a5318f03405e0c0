//! What is said in this process, handed to [`shipping`] as events.
//!
//! This runs inside every call that says something, on whatever thread, so it formats, hands over and never waits.

use std::{
    fmt::{self, Write as _},
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use hearsay_services::{
    log::record::{Level, NAME_BYTES_MAX},
    shipping::{self, Event, Outbox},
};
use tracing::{
    Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::layer::{Context, Layer};

/// Threads on which things are said because events are shipped: by the work itself, and by the journal that it ends up in. Shipped in turn, one
/// event about a full disk would make the next.
const OWN_THREADS: [&str; 2] = [shipping::THREAD, "journal-log"];

/// Hands over what it hears.
#[derive(Debug)]
pub(super) struct Shipped(pub(super) Outbox);

impl<S: Subscriber> Layer<S> for Shipped {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if thread::current().name().is_some_and(|name| OWN_THREADS.contains(&name)) {
            return;
        }
        let mut text = Text::default();
        event.record(&mut text);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.0.put(Event {
            time: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            level: level(*event.metadata().level()),
            service: speaker(event.metadata().target()),
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

/// Who speaks: a plug-in by its name, the node itself as `node`, anybody else by the name of the crate.
fn speaker(target: &str) -> String {
    let mut path = target.split("::");
    let first = path.next().unwrap_or_default();
    let name = match (first, path.next()) {
        ("hearsay_services", Some(plugin)) => plugin,
        (own, _) if own.starts_with("hearsay_") => "node",
        (other, _) => other,
    };
    let end = name.floor_char_boundary(NAME_BYTES_MAX);
    if name.is_empty() { "node".to_owned() } else { name[..end].to_owned() }
}

/// The message, and the fields behind it.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Text {
    fn finish(self) -> String {
        match (self.message.is_empty(), self.fields.is_empty()) {
            (false, true) => self.message,
            (false, false) => self.message + &self.fields,
            (true, false) => self.fields.trim_start().to_owned(),
            // The log takes no empty record.
            (true, true) => "(nothing was said)".to_owned(),
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
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    fn said(say: impl FnOnce()) -> Event {
        let (outbox, mut waiting) = shipping::queue();
        let log = tracing_subscriber::registry().with(Shipped(outbox));
        tracing::subscriber::with_default(log, say);
        waiting.take().unwrap()
    }

    #[test]
    fn an_event_is_its_message_and_its_fields() {
        let event =
            said(|| tracing::warn!(target: "hearsay_node::driver", name = "a b", count = 3, "member failed"));
        assert_eq!(event.message, "member failed name=\"a b\" count=3");
        assert_eq!((event.level, event.service.as_str()), (Level::Warn, "node"));
        assert!(event.time > 1_700_000_000_000);
        let event = said(|| tracing::info!(target: "hearsay_services::visits", total = 1));
        assert_eq!((event.message.as_str(), event.service.as_str()), ("total=1", "visits"));
        assert_eq!(said(|| tracing::info!(target: "my_plugin::deep::er", "x")).service, "my_plugin");
    }

    #[test]
    fn what_is_said_because_of_shipping_is_not_shipped() {
        for (thread, taken) in
            [(shipping::THREAD, 0), ("journal-log", 0), ("journal-visits", 1), ("driver", 1)]
        {
            let (outbox, mut waiting) = shipping::queue();
            let speaking = thread::Builder::new().name(thread.to_owned()).spawn(move || {
                let log = tracing_subscriber::registry().with(Shipped(outbox));
                tracing::subscriber::with_default(log, || tracing::error!("the disk is full"));
            });
            speaking.unwrap().join().unwrap();
            assert_eq!(usize::from(waiting.take().is_some()), taken, "{thread}");
        }
    }
}
