//! Reading server-sent events (the HTML standard, section 9.2.6): bytes in, events out.
//!
//! Pure, so that it can be tested byte by byte; the connection is `watch`'s business.

/// An event whose text is longer is not a node's. As large as the largest answer: a snapshot is one.
const EVENT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// One event.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Event {
    /// What happened; empty where the server did not say.
    pub(super) name: String,
    /// Where to resume after it.
    pub(super) id: Option<String>,
    /// Its data, lines joined by newlines.
    pub(super) data: String,
}

/// The server sent more than [`EVENT_BYTES_MAX`] without an end.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event is longer than {EVENT_BYTES_MAX} bytes")]
pub(super) struct EventTooLong;

/// Puts events together out of pieces of a stream, however they are cut.
#[derive(Debug, Default)]
pub(super) struct Parser {
    line: Vec<u8>,
    event: Event,
    has_data: bool,
    /// A CR ended the last line, so a LF that follows belongs to it.
    after_cr: bool,
}

impl Parser {
    /// Takes in the next piece and gives the events that it completes.
    pub(super) fn feed(&mut self, piece: &[u8]) -> Result<Vec<Event>, EventTooLong> {
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
            // It goes into a header when we resume, where a NUL has no place.
            "id" if !value.contains('\0') => self.event.id = Some(value.to_owned()),
            "data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.event.data.push('\n');
                }
                self.event.data += value;
            }
            // A comment (the field before its colon is empty) or a field that we have no use for.
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
        assert_eq!(Parser::default().feed(STREAM.as_bytes()).unwrap(), expected());
        let mut parser = Parser::default();
        let bytewise: Vec<_> = STREAM.bytes().flat_map(|byte| parser.feed(&[byte]).unwrap()).collect();
        assert_eq!(bytewise, expected());
    }

    #[test]
    fn an_event_without_end_is_refused() {
        let mut parser = Parser::default();
        let piece = vec![b'x'; EVENT_BYTES_MAX];
        assert_eq!(parser.feed(&piece), Ok(vec![]));
        assert_eq!(parser.feed(b"x"), Err(EventTooLong));
    }
}
