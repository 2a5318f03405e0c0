//! [`Parser`] of server-sent events (HTML standard, section 9.2.6): bytes in, events out, without I/O.

/// The longest event, in bytes. As large as the largest answer, because a snapshot is one event.
const EVENT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A server-sent event.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Event {
    /// Event type; empty if the server sent none.
    pub(super) name: String,
    /// Id for `Last-Event-ID`, to resume after this event.
    pub(super) id: Option<String>,
    /// The data; lines are joined by newlines.
    pub(super) data: String,
}

/// An event exceeds [`EVENT_BYTES_MAX`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event is longer than {EVENT_BYTES_MAX} bytes, so it is not one of a Hearsay node")]
pub(super) struct EventTooLong;

/// Incremental parser; pieces may be cut anywhere.
#[derive(Debug, Default)]
pub(super) struct Parser {
    line: Vec<u8>,
    event: Event,
    has_data: bool,
    /// The last line ended with CR, so a following LF belongs to it.
    after_cr: bool,
}

impl Parser {
    /// Parses the next piece and returns the events that it completes.
    pub(super) fn push(&mut self, piece: &[u8]) -> Result<Vec<Event>, EventTooLong> {
        let mut events = Vec::new();
        for &byte in piece {
            let after_cr = std::mem::replace(&mut self.after_cr, byte == b'\r');
            match byte {
                b'\n' if after_cr => {}
                b'\n' | b'\r' => events.extend(self.end_line()),
                _ if self.line.len() + self.event.data.len() >= EVENT_BYTES_MAX => return Err(EventTooLong),
                byte => self.line.push(byte),
            }
        }
        Ok(events)
    }

    fn end_line(&mut self) -> Option<Event> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            return std::mem::take(&mut self.has_data).then_some(event);
        }
        let line = String::from_utf8_lossy(&line);
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => self.event.name = value.to_owned(),
            // The id is sent in a header, which must not contain NUL.
            "id" if !value.contains('\0') => self.event.id = Some(value.to_owned()),
            "data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.event.data.push('\n');
                }
                self.event.data += value;
            }
            // A comment (empty field name) or an unused field.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = ": hello\n\nevent: added\r\nid: 7\r\ndata: {\"a\":\r\ndata: 1}\r\n\r\nevent: ping\n\ndata\n\ndata: cut off";

    fn expected() -> Vec<Event> {
        vec![
            Event { name: "added".into(), id: Some("7".into()), data: "{\"a\":\n1}".into() },
            Event::default(),
        ]
    }

    #[test]
    fn events_are_the_same_however_the_stream_is_cut() {
        assert_eq!(Parser::default().push(STREAM.as_bytes()).unwrap(), expected());
        let mut parser = Parser::default();
        let bytewise: Vec<_> = STREAM.bytes().flat_map(|byte| parser.push(&[byte]).unwrap()).collect();
        assert_eq!(bytewise, expected());
    }

    #[test]
    fn an_event_without_end_is_refused() {
        let mut parser = Parser::default();
        let piece = vec![b'x'; EVENT_BYTES_MAX];
        assert_eq!(parser.push(&piece), Ok(vec![]));
        assert_eq!(parser.push(b"x"), Err(EventTooLong));
    }
}
