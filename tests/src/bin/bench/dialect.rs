//! How requests look and where answers end, in each of the protocols that are spoken to what is measured. Only what these benchmarks send is
//! understood.

use std::borrow::Cow;

use crate::grpc;

/// A protocol.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Dialect {
    /// HTTP/1.1, with answers that say their length.
    Http,
    /// Redis's, RESP2.
    Redis,
    /// NATS, where an answer is a message to the connection's inbox.
    Nats,
    /// gRPC, one unary call after the other.
    Grpc,
}

/// What has come so far.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Heard {
    /// Not yet a whole answer.
    Part,
    /// An answer of so many bytes, the last of which are its body.
    Answer { length: usize, body: usize, is_good: bool },
    /// So many bytes that are no answer; and what has to be said to them.
    Aside { length: usize, say: Vec<u8> },
}

impl Dialect {
    /// Understands the beginning of what has come.
    pub(crate) fn hear(self, bytes: &[u8]) -> Heard {
        let heard = match self {
            Self::Http => http(bytes),
            Self::Redis => redis(bytes),
            Self::Nats => nats(bytes),
            Self::Grpc => grpc::hear(bytes),
        };
        heard.unwrap_or(Heard::Part)
    }

    /// The request as it is sent after so many others over the same connection.
    pub(crate) fn number(self, request: &[u8], sent: u32) -> Cow<'_, [u8]> {
        match self {
            Self::Grpc => Cow::Owned(grpc::number(request, sent)),
            Self::Http | Self::Redis | Self::Nats => Cow::Borrowed(request),
        }
    }

    /// A request to append these bytes, over the connection of this number.
    pub(crate) fn append(self, path: &str, connection: usize, record: &str) -> Vec<u8> {
        match self {
            Self::Http => post(path, "text/plain", record),
            Self::Redis => {
                format!("*3\r\n$5\r\nRPUSH\r\n${}\r\n{path}\r\n${}\r\n{record}\r\n", path.len(), record.len())
                    .into_bytes()
            }
            Self::Nats => {
                format!("PUB {path} {} {}\r\n{record}\r\n", inbox(connection), record.len()).into_bytes()
            }
            Self::Grpc => grpc::put(path.as_bytes(), record.as_bytes()),
        }
    }

    /// What is said first over a connection, if anything.
    pub(crate) fn hello(self, connection: usize) -> Vec<u8> {
        match self {
            Self::Http | Self::Redis => Vec::new(),
            Self::Grpc => grpc::hello(),
            Self::Nats => format!("CONNECT {{\"verbose\":false}}\r\nSUB {} 1\r\n", inbox(connection)).into(),
        }
    }
}

/// A GET that keeps the connection.
pub(crate) fn get(path: &str) -> Vec<u8> {
    get_with(path, "")
}

/// A GET with further lines in its head, each with its end.
pub(crate) fn get_with(path: &str, lines: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n{lines}\r\n").into()
}

/// A POST that keeps the connection.
pub(crate) fn post(path: &str, content_type: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into()
}

/// Where a connection gets its answers.
pub(crate) fn inbox(connection: usize) -> String {
    format!("inbox.{connection}")
}

fn http(bytes: &[u8]) -> Option<Heard> {
    let head = bytes.windows(4).position(|end| end == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&bytes[..head]).ok()?;
    let is_good = text.split(' ').nth(1).is_some_and(|status| status.starts_with('2'));
    let length = |line: &str| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    };
    let body: usize = text.lines().find_map(length).unwrap_or(0);
    (bytes.len() >= head + body).then_some(Heard::Answer { length: head + body, body, is_good })
}

/// A number or a status; anything else is no success.
fn redis(bytes: &[u8]) -> Option<Heard> {
    let length = bytes.windows(2).position(|end| end == b"\r\n")? + 2;
    Some(Heard::Answer { length, body: length, is_good: matches!(bytes[0], b':' | b'+') })
}

fn nats(bytes: &[u8]) -> Option<Heard> {
    let line = bytes.windows(2).position(|end| end == b"\r\n")? + 2;
    let text = std::str::from_utf8(&bytes[..line]).ok()?;
    let mut words = text.split_ascii_whitespace();
    match words.next() {
        Some("MSG") => {
            let body: usize = words.last()?.parse().ok()?;
            let length = line + body + 2;
            let payload = bytes.get(line..length)?;
            // What was refused carries an error.
            let is_good = !payload.windows(8).any(|part| part == b"\"error\":");
            Some(Heard::Answer { length, body: body + 2, is_good })
        }
        Some("PING") => Some(Heard::Aside { length: line, say: b"PONG\r\n".to_vec() }),
        Some("-ERR") => Some(Heard::Answer { length: line, body: 0, is_good: false }),
        _ => Some(Heard::Aside { length: line, say: Vec::new() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_http_answer_ends_where_it_says() {
        let answer = b"HTTP/1.1 201 Created\r\nContent-Length: 3\r\n\r\nabcHTTP";
        let length = answer.len() - 4;
        assert_eq!(Dialect::Http.hear(answer), Heard::Answer { length, body: 3, is_good: true });
        assert_eq!(Dialect::Http.hear(&answer[..length - 1]), Heard::Part);
        let refused = Dialect::Http.hear(b"HTTP/1.1 503 Busy\r\n\r\n");
        assert!(matches!(refused, Heard::Answer { is_good: false, .. }));
    }

    #[test]
    fn redis_answers_in_a_line() {
        assert_eq!(Dialect::Redis.hear(b":12\r\n"), Heard::Answer { length: 5, body: 5, is_good: true });
        assert!(matches!(Dialect::Redis.hear(b"-ERR no\r\n"), Heard::Answer { is_good: false, .. }));
        assert_eq!(Dialect::Redis.hear(b":1"), Heard::Part);
    }

    #[test]
    fn nats_answers_with_messages_and_pings_between() {
        let message = b"MSG inbox.1 1 11\r\n{\"seq\":123}\r\n";
        let whole = Heard::Answer { length: message.len(), body: 13, is_good: true };
        assert_eq!(Dialect::Nats.hear(message), whole);
        assert_eq!(Dialect::Nats.hear(&message[..20]), Heard::Part);
        assert_eq!(Dialect::Nats.hear(b"PING\r\n"), Heard::Aside { length: 6, say: b"PONG\r\n".to_vec() });
        let refused = Dialect::Nats.hear(b"MSG inbox.1 1 12\r\n{\"error\":{}}\r\n");
        assert!(matches!(refused, Heard::Answer { is_good: false, .. }));
    }
}
