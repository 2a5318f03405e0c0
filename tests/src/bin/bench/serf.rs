//! Benchmark adapter for `serf`: starts its agents, reads their log, and calls their RPC.
//!
//! The times in the agent's log are whole seconds, so the arrival of a line through a pipe counts. The agent
//! logs `serf: EventMember…` when serf learns of the event. It passes events to handlers and `serf monitor` a
//! second later, because it coalesces them; that delay does not count.
//!
//! Changes and leaves use the RPC socket directly, because `serf tags` and `serf leave` would add the start
//! of a process.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    process::Command,
    time::Duration,
};

use anyhow::{Result, bail, ensure};

use crate::{
    clock::Moment,
    process::bound,
    sighting::{self, Sighting, What},
    system::{Start, control_port, swarm_port},
};

/// Limit of an RPC. An agent answers at once, except to a leave, which takes seconds and is not awaited here.
const ANSWER_BOUND: Duration = Duration::from_secs(10);

/// Builds the command line of an agent.
pub(crate) fn command(start: &Start, profile: &str) -> Command {
    let mut command = bound("serf", None);
    command.args(["agent", "-log-level=info"]);
    command.arg(format!("-profile={profile}"));
    command.arg(format!("-node={}", sighting::name(start.index)));
    command.arg(format!("-bind=127.0.0.1:{}", swarm_port(start.index)));
    command.arg(format!("-rpc-addr=127.0.0.1:{}", control_port(start.index)));
    // The join is retried, because a seed may still be starting.
    command.arg("-retry-interval=1s");
    for seed in &start.seeds {
        command.arg(format!("-retry-join=127.0.0.1:{}", swarm_port(*seed)));
    }
    command
}

/// Parses a line of the log: `2026/11/21 07:54:56 [INFO] serf: EventMemberFailed: n2 127.0.0.1`.
pub(crate) fn read(line: &str, arrived: Moment) -> Option<Sighting> {
    let (event, rest) = line.split_once("serf: EventMember")?.1.split_once(": ")?;
    let what = match event {
        "Join" => What::Alive,
        "Failed" => What::Failed,
        "Leave" => What::Left,
        "Update" => What::Changed,
        _ => return None,
    };
    let subject = sighting::index(rest.split_whitespace().next()?)?;
    Some(Sighting { at: arrived, subject, what })
}

/// Value in MessagePack. Only the types that the RPC needs.
enum Pack<'a> {
    Number(u8),
    Text(&'a str),
    Map(&'a [(&'a str, Pack<'a>)]),
}

impl Pack<'_> {
    /// Appends the encoded value. All values fit the short forms: numbers below 128, texts below 32 bytes,
    /// maps below 16 entries.
    fn write(&self, to: &mut Vec<u8>) {
        match self {
            Self::Number(number) => to.push(number & 0x7f),
            Self::Text(text) => {
                to.push(0xa0 | u8::try_from(text.len()).unwrap_or(31) & 31);
                to.extend(text.bytes().take(31));
            }
            Self::Map(entries) => {
                to.push(0x80 | u8::try_from(entries.len()).unwrap_or(15) & 15);
                for (key, value) in entries.iter().take(15) {
                    Pack::Text(key).write(to);
                    value.write(to);
                }
            }
        }
    }
}

/// Connection to an agent, after the handshake.
pub(crate) struct Rpc(TcpStream);

impl Rpc {
    /// # Errors
    /// The agent does not answer.
    pub(crate) fn connect(index: usize) -> Result<Self> {
        let address = (Ipv4Addr::LOCALHOST, control_port(index)).into();
        let stream = TcpStream::connect_timeout(&address, ANSWER_BOUND)?;
        stream.set_read_timeout(Some(ANSWER_BOUND))?;
        stream.set_nodelay(true)?;
        let mut rpc = Self(stream);
        rpc.ask("handshake", 0, Some(Pack::Map(&[("Version", Pack::Number(1))])))?;
        rpc.answer()?;
        Ok(rpc)
    }

    /// Sets a tag. Returns the time of the request.
    ///
    /// # Errors
    /// The agent does not answer, or refuses.
    pub(crate) fn set_tag(&mut self, value: &str) -> Result<Moment> {
        let asked = Moment::now();
        let tags = [("change", Pack::Text(value))];
        self.ask("tags", 1, Some(Pack::Map(&[("Tags", Pack::Map(&tags))])))?;
        self.answer()?;
        Ok(asked)
    }

    /// Makes the agent leave. Returns the time of the request, without waiting for the agent's end.
    ///
    /// # Errors
    /// The agent cannot be reached.
    pub(crate) fn leave(&mut self) -> Result<Moment> {
        let asked = Moment::now();
        self.ask("leave", 2, None)?;
        Ok(asked)
    }

    fn ask(&mut self, command: &str, number: u8, body: Option<Pack<'_>>) -> Result<()> {
        let mut bytes = Vec::new();
        Pack::Map(&[("Command", Pack::Text(command)), ("Seq", Pack::Number(number))]).write(&mut bytes);
        if let Some(body) = body {
            body.write(&mut bytes);
        }
        Ok(self.0.write_all(&bytes)?)
    }

    /// Reads and parses an answer without a body: a map of `Seq` and `Error`. An empty error means success.
    fn answer(&mut self) -> Result<()> {
        let mut answer = Vec::new();
        let mut buffer = [0; 256];
        while !is_complete(&answer) {
            let count = self.0.read(&mut buffer)?;
            ensure!(count > 0, "serf closed the connection");
            answer.extend_from_slice(&buffer[..count]);
        }
        if !answer.windows(6).any(|window| window == b"Error\xa0") {
            bail!("serf refused: {}", String::from_utf8_lossy(&answer));
        }
        Ok(())
    }
}

/// Returns whether both fields and the error's text were read. A long error may be cut off; it is an error
/// nevertheless.
fn is_complete(answer: &[u8]) -> bool {
    let has = |field: &[u8]| answer.windows(field.len() + 1).any(|window| window.starts_with(field));
    has(b"Error") && has(b"Seq")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_from_the_log_with_their_arrival() {
        let line = |text: &str| read(&format!("    2026/11/21 07:54:56 [INFO] {text}"), Moment(7));
        let seen = |subject, what| Some(Sighting { at: Moment(7), subject, what });
        assert_eq!(line("serf: EventMemberJoin: n2 127.0.0.1"), seen(2, What::Alive));
        assert_eq!(line("serf: EventMemberFailed: n2 127.0.0.1"), seen(2, What::Failed));
        assert_eq!(line("serf: EventMemberLeave: n31 127.0.0.1"), seen(31, What::Left));
        assert_eq!(line("serf: EventMemberUpdate: n1"), seen(1, What::Changed));
        assert_eq!(line("serf: EventMemberReap: n1"), None);
        assert_eq!(line("agent: Received event: member-failed"), None);
        assert_eq!(line("memberlist: Suspect n2 has failed, no acks received"), None);
    }

    #[test]
    fn requests_are_written_in_messagepack() {
        let mut bytes = Vec::new();
        Pack::Map(&[("Command", Pack::Text("leave")), ("Seq", Pack::Number(2))]).write(&mut bytes);
        assert_eq!(bytes, b"\x82\xa7Command\xa5leave\xa3Seq\x02");
    }

    #[test]
    fn an_answer_is_complete_when_both_fields_are_there() {
        assert!(!is_complete(b"\x82\xa5Error\xa0\xa3Seq"));
        assert!(is_complete(b"\x82\xa5Error\xa0\xa3Seq\x01"));
        assert!(is_complete(b"\x82\xa3Seq\x01\xa5Error\xa0"));
    }
}
