//! Wire protocols of the measured systems: building of requests, and detection of the end of answers. Only
//! the parts that these benchmarks need.

use std::borrow::Cow;

use crate::grpc;

/// Protocol that a measured system speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum WireProtocol {
    /// HTTP/1.1, with answers that state their length.
    Http,
    /// Redis, RESP2.
    Redis,
    /// NATS. An answer is a message to the connection's inbox.
    Nats,
    /// gRPC, with one unary call after another.
    Grpc,
}

/// Result of parsing received bytes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Parsed {
    /// The answer is incomplete.
    Part,
    /// An answer with this length. Its last bytes are the body.
    Answer { length: usize, body: usize, is_good: bool },
    /// Bytes of this length that are not an answer, and the bytes to send in reply.
    Aside { length: usize, say: Vec<u8> },
}

impl WireProtocol {
    /// Parses the beginning of the received bytes.
    pub(crate) fn parse(self, bytes: &[u8]) -> Parsed {
        let heard = match self {
            Self::Http => http(bytes),
            Self::Redis => redis(bytes),
            Self::Nats => nats(bytes),
            Self::Grpc => grpc::parse(bytes),
        };
        heard.unwrap_or(Parsed::Part)
    }

    /// Returns the request as it is sent after this many others on the same connection.
    pub(crate) fn number(self, request: &[u8], sent: u32) -> Cow<'_, [u8]> {
        match self {
            Self::Grpc => Cow::Owned(grpc::number(request, sent)),
            Self::Http | Self::Redis | Self::Nats => Cow::Borrowed(request),
        }
    }

    /// Returns a request to append these bytes, on the connection with this number.
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

    /// Returns the first bytes of a connection; empty if the protocol has none.
    pub(crate) fn hello(self, connection: usize) -> Vec<u8> {
        match self {
            Self::Http | Self::Redis => Vec::new(),
            Self::Grpc => grpc::hello(),
            Self::Nats => format!("CONNECT {{\"verbose\":false}}\r\nSUB {} 1\r\n", inbox(connection)).into(),
        }
    }
}

/// Returns a GET request that keeps the connection open.
pub(crate) fn get(path: &str) -> Vec<u8> {
    get_with(path, "")
}

/// Returns a GET request with further header lines, each with its line end.
pub(crate) fn get_with(path: &str, lines: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n{lines}\r\n").into()
}

/// Returns a POST request that keeps the connection open.
pub(crate) fn post(path: &str, content_type: &str, body: &str) -> Vec<u8> {
    format!(
        "POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: {content_type}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into()
}

/// Returns the subject of the answers to a connection.
pub(crate) fn inbox(connection: usize) -> String {
    format!("inbox.{connection}")
}

fn http(bytes: &[u8]) -> Option<Parsed> {
    let head = bytes.windows(4).position(|end| end == b"\r\n\r\n")? + 4;
    let text = std::str::from_utf8(&bytes[..head]).ok()?;
    let is_good = text.split(' ').nth(1).is_some_and(|status| status.starts_with('2'));
    let length = |line: &str| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    };
    let body: usize = text.lines().find_map(length).unwrap_or(0);
    (bytes.len() >= head + body).then_some(Parsed::Answer { length: head + body, body, is_good })
}

/// Parses a Redis answer. A number or a status is a success; all other answers are failures.
fn redis(bytes: &[u8]) -> Option<Parsed> {
    let length = bytes.windows(2).position(|end| end == b"\r\n")? + 2;
    Some(Parsed::Answer { length, body: length, is_good: matches!(bytes[0], b':' | b'+') })
}

fn nats(bytes: &[u8]) -> Option<Parsed> {
    let line = bytes.windows(2).position(|end| end == b"\r\n")? + 2;
    let text = std::str::from_utf8(&bytes[..line]).ok()?;
    let mut words = text.split_ascii_whitespace();
    match words.next() {
        Some("MSG") => {
            let body: usize = words.last()?.parse().ok()?;
            let length = line + body + 2;
            let payload = bytes.get(line..length)?;
            // A refused request has an error in its answer.
            let is_good = !payload.windows(8).any(|part| part == b"\"error\":");
            Some(Parsed::Answer { length, body: body + 2, is_good })
        }
        Some("PING") => Some(Parsed::Aside { length: line, say: b"PONG\r\n".to_vec() }),
        Some("-ERR") => Some(Parsed::Answer { length: line, body: 0, is_good: false }),
        _ => Some(Parsed::Aside { length: line, say: Vec::new() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_http_answer_ends_where_it_says() {
        let answer = b"HTTP/1.1 201 Created\r\nContent-Length: 3\r\n\r\nabcHTTP";
        let length = answer.len() - 4;
        assert_eq!(WireProtocol::Http.parse(answer), Parsed::Answer { length, body: 3, is_good: true });
        assert_eq!(WireProtocol::Http.parse(&answer[..length - 1]), Parsed::Part);
        let refused = WireProtocol::Http.parse(b"HTTP/1.1 503 Busy\r\n\r\n");
        assert!(matches!(refused, Parsed::Answer { is_good: false, .. }));
    }

    #[test]
    fn redis_answers_in_a_line() {
        assert_eq!(
            WireProtocol::Redis.parse(b":12\r\n"),
            Parsed::Answer { length: 5, body: 5, is_good: true }
        );
        assert!(matches!(WireProtocol::Redis.parse(b"-ERR no\r\n"), Parsed::Answer { is_good: false, .. }));
        assert_eq!(WireProtocol::Redis.parse(b":1"), Parsed::Part);
    }

    #[test]
    fn nats_answers_with_messages_and_pings_between() {
        let message = b"MSG inbox.1 1 11\r\n{\"seq\":123}\r\n";
        let whole = Parsed::Answer { length: message.len(), body: 13, is_good: true };
        assert_eq!(WireProtocol::Nats.parse(message), whole);
        assert_eq!(WireProtocol::Nats.parse(&message[..20]), Parsed::Part);
        assert_eq!(
            WireProtocol::Nats.parse(b"PING\r\n"),
            Parsed::Aside { length: 6, say: b"PONG\r\n".to_vec() }
        );
        let refused = WireProtocol::Nats.parse(b"MSG inbox.1 1 12\r\n{\"error\":{}}\r\n");
        assert!(matches!(refused, Parsed::Answer { is_good: false, .. }));
    }
}
