//! Hearsay as a measured system: builds the node's command line, parses members' states from its log, reads
//! its event stream, and switches maintenance.
//!
//! Verdicts come from the log, with the node's own times. Changes that members state are not logged, so the
//! benchmark reads each node's `/services/watch`. The time of arrival counts, as for a client.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    clock::Moment,
    process::bound,
    sighting::{self, Sighting, What},
    system::{Start, control_port, swarm_port},
};

/// Limit of an answer. A slower node counts as failed.
const ANSWER_BOUND: Duration = Duration::from_secs(5);

/// Returns the node's binary, which the environment names.
pub(crate) fn binary() -> Option<String> {
    std::env::var("NODE_BIN").ok()
}

/// Builds the command line of a node.
pub(crate) fn command(start: &Start) -> Command {
    let mut command = node(start.index, None);
    command.args(["--ephemeral", "--role", "grading"]);
    for seed in &start.seeds {
        command.arg("--join").arg(format!("127.0.0.1:{}", swarm_port(*seed)));
    }
    command
}

/// Builds the common part of all command lines: name, ports, and an environment without options.
pub(crate) fn node(index: usize, processor: Option<usize>) -> Command {
    let mut command = bound(binary().unwrap_or_default(), processor);
    command.args(["--no-mdns", "--log-format", "text", "--name", &sighting::name(index)]);
    command.arg("--http").arg(format!("127.0.0.1:{}", control_port(index)));
    command.arg("--swarm").arg(format!("127.0.0.1:{}", swarm_port(index)));
    // Options can be environment variables, too. Those of the caller do not apply to these nodes.
    for (variable, _) in std::env::vars_os() {
        if variable.to_string_lossy().starts_with("HEARSAY_") {
            command.env_remove(variable);
        }
    }
    command.env("NO_COLOR", "1").env("HEARSAY_LOG", "warn,hearsay=info");
    command
}

/// Parses a line of the node's log that reports a member's new state.
pub(crate) fn read(line: &str) -> Option<Sighting> {
    let (at, rest) = line.trim_start().split_once(' ')?;
    let what = [
        (": member is alive ", What::Alive),
        (": member failed ", What::Failed),
        (": member left ", What::Left),
    ];
    let (text, what) = what.into_iter().find(|(text, _)| rest.contains(text))?;
    let fields = rest.split_once(text)?.1;
    let name = fields.split_once("name=\"")?.1.split_once('"')?.0;
    Some(Sighting { at: Moment::read(at)?, subject: sighting::index(name)?, what })
}

/// Takes a node out of service or back in, which changes its announced health. Returns the time of the
/// request.
///
/// # Errors
/// The node does not answer, or refuses.
pub(crate) fn set_maintenance(index: usize, enable: bool) -> Result<Moment> {
    let port = control_port(index);
    let mut stream = connect(port)?;
    let asked = Moment::now();
    write!(
        stream,
        "PUT /v1/agent/maintenance?enable={enable} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 0\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.lines().next().unwrap_or_default();
    ensure!(status.contains(" 200 "), "maintenance of {}: {status}", sighting::name(index));
    Ok(asked)
}

/// Opens a node's event stream. A separate thread calls back for every change of a role's health, until the
/// stream ends.
///
/// # Errors
/// See [`changes`].
pub(crate) fn watch(index: usize, tell: impl Fn(Sighting) + Send + 'static) -> Result<()> {
    changes(index, "", move |change| {
        if change.kind == "changed"
            && let Some(subject) = subject(change.data)
        {
            tell(Sighting { at: change.at, subject, what: What::Changed });
        }
    })
}

/// Event of a node's stream, and the time of its arrival.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StreamEvent<'a> {
    /// `added`, `changed` or `removed`.
    pub(crate) kind: &'a str,
    /// The instance, in JSON.
    pub(crate) data: &'a str,
    pub(crate) at: Moment,
}

/// Opens a node's event stream, with a query such as `?service=web`. A separate thread calls back for every
/// event after the snapshot, until the stream ends. Returns when the stream is open, so that the caller
/// misses no later change.
///
/// # Errors
/// The node does not answer with a stream.
pub(crate) fn changes(
    index: usize,
    query: &str,
    tell: impl Fn(StreamEvent<'_>) + Send + 'static,
) -> Result<()> {
    let port = control_port(index);
    let mut stream = connect(port)?;
    // HTTP/1.0, because its answers are not chunked.
    write!(stream, "GET /services/watch{query} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n\r\n")?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let snapshot = lines.find(|line| line.as_ref().map_or(true, |line| line == "event: snapshot"));
    snapshot.with_context(|| format!("{} streams no events", sighting::name(index)))??;
    stream.set_read_timeout(None)?;
    std::thread::spawn(move || {
        // Name of the current event. Empty during the snapshot.
        let mut event = String::new();
        for line in lines {
            let Ok(line) = line else { return };
            if let Some(kind) = line.strip_prefix("event: ") {
                event = kind.to_owned();
            } else if !event.is_empty()
                && let Some(data) = line.strip_prefix("data: ")
            {
                tell(StreamEvent { kind: &event, data, at: Moment::now() });
            }
        }
    });
    Ok(())
}

/// Returns the number of the node to which an event's instance belongs.
fn subject(event: &str) -> Option<usize> {
    let event: Value = serde_json::from_str(event).ok()?;
    sighting::index(event.get("node")?.as_str()?)
}

fn connect(port: u16) -> Result<TcpStream> {
    let address = (Ipv4Addr::LOCALHOST, port).into();
    let stream = TcpStream::connect_timeout(&address, ANSWER_BOUND)?;
    stream.set_read_timeout(Some(ANSWER_BOUND))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_read_from_the_log_with_their_moments() {
        let line =
            |text: &str| read(&format!("2026-11-21T07:54:40.000007Z  WARN hearsay_node::events: {text}"));
        let at = Moment::read("2026-11-21T07:54:40.000007Z").unwrap();
        let seen = |subject, what| Some(Sighting { at, subject, what });
        assert_eq!(line(r#"member failed name="n3" id=abc"#), seen(3, What::Failed));
        assert_eq!(line(r#"member is alive name="n12" id=abc"#), seen(12, What::Alive));
        assert_eq!(line(r#"member left name="n0" id=abc"#), seen(0, What::Left));
        assert_eq!(line(r#"started name="n0" id=abc"#), None);
        assert_eq!(line(r#"member failed name="other" id=abc"#), None);
        assert_eq!(read("no log line"), None);
    }

    #[test]
    fn an_event_names_the_node_it_tells_of() {
        assert_eq!(subject(r#"{"id":"x","name":"grading","node":"n4","health":"critical"}"#), Some(4));
        assert_eq!(subject("{}"), None);
    }
}
