//! The node's log: to standard error, as text or JSON, one event a line.
//!
//! What is logged is up to `HEARSAY_LOG`, else `RUST_LOG`, in the usual form (`hearsay=debug,libp2p_gossipsub=info`). By default Hearsay
//! tells what it does, and its libraries only what worries them: a swarm that gossips with a hundred nodes would bury everything else.
//!
//! Names in the log come from other nodes, so every line is escaped as it is written. That is also why there are no colours: here, an
//! escape sequence is always somebody else's.

use std::io::{self, Write};

use tracing_subscriber::EnvFilter;

use crate::{
    config::{Environment, LogFormat},
    escape::escaped,
};

/// Libraries from warnings, everything of ours (`hearsay_node`, `hearsay_services`…) from information.
const DEFAULT_FILTER: &str = "warn,libp2p_gossipsub=error,hearsay=info";

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
}

/// Starts logging, for the whole process and once.
///
/// # Errors
/// Names the variable whose filter is wrong.
pub fn init(format: LogFormat, environment: &Environment) -> Result<(), LoggingError> {
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter(environment)?)
        .with_ansi(false)
        .with_writer(|| EscapingWriter(io::stderr()));
    let started = match format {
        LogFormat::Text => log.try_init(),
        LogFormat::Json => log.json().flatten_event(true).try_init(),
    };
    started.map_err(|_| LoggingError::Twice)
}

fn filter(environment: &Environment) -> Result<EnvFilter, LoggingError> {
    for variable in ["HEARSAY_LOG", "RUST_LOG"] {
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

    #[test]
    fn a_filter_that_cannot_be_read_is_named_by_its_variable() {
        assert!(filter(&Environment::default()).is_ok());
        let environment = Environment::from_iter([("HEARSAY_LOG", "hearsay=loud")]);
        let error = filter(&environment).unwrap_err().to_string();
        assert!(error.contains("HEARSAY_LOG"), "{error}");
    }
}
