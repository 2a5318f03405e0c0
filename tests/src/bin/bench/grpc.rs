//! Encodes and parses unary gRPC calls to etcd, as HTTP/2 frames (RFC 9113, section 4.1), without I/O. The
//! frames are built once per request. The headers do not refer to HPACK's tables (RFC 7541, section 6.2.2),
//! so that only the stream's number differs from call to call. [`load`](crate::load) sends them.
//!
//! A library would parse and allocate for each call, on the processors that the server needs. This client
//! costs about as little as the one for HTTP/1.1, so that both sides of a comparison pay the same.

use crate::protocol::Parsed;

/// The connection preface (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD_BYTES: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
/// Flag END_STREAM of DATA and HEADERS, and ACK of SETTINGS and PING.
const END_OR_ACK: u8 = 1;
const END_HEADERS: u8 = 4;
/// Flow-control window of the connection: the maximum, so that no update is needed.
const WINDOW: u32 = (1 << 31) - 1 - 65_535;

/// Returns the first bytes of a connection: preface, empty settings, and window for all answers.
pub(crate) fn hello() -> Vec<u8> {
    let mut bytes = PREFACE.to_vec();
    frame(&mut bytes, SETTINGS, 0, 0, &[]);
    frame(&mut bytes, WINDOW_UPDATE, 0, 0, &WINDOW.to_be_bytes());
    bytes
}

/// Builds a call of an etcd method with a message. The stream's number is set when the call is sent.
pub(crate) fn call(path: &str, message: &[u8]) -> Vec<u8> {
    let headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "127.0.0.1"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    ];
    let mut block = Vec::new();
    for (name, value) in headers {
        // Literal header field without indexing, with a new name. All of these texts are shorter than 127
        // bytes.
        block.push(0);
        for text in [name, value] {
            block.push(text.len() as u8);
            block.extend(text.as_bytes());
        }
    }
    // Prefix of the message: the flag "not compressed", and the length.
    let mut body = vec![0];
    body.extend((message.len() as u32).to_be_bytes());
    body.extend(message);
    let mut bytes = Vec::new();
    frame(&mut bytes, HEADERS, END_HEADERS, 0, &block);
    frame(&mut bytes, DATA, END_OR_ACK, 0, &body);
    bytes
}

/// Builds etcd's `Put` of a value under a key.
pub(crate) fn put(key: &[u8], value: &[u8]) -> Vec<u8> {
    call("/etcdserverpb.KV/Put", &message(&[(1, Field::Bytes(key)), (2, Field::Bytes(value))]))
}

/// Value of a field of a message.
pub(crate) enum Field<'a> {
    Bytes(&'a [u8]),
    Number(u64),
}

/// Encodes a Protocol Buffers message: fields with their numbers, which are below 16.
pub(crate) fn message(fields: &[(u8, Field<'_>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (number, field) in fields {
        match field {
            Field::Number(value) => {
                bytes.push(number << 3);
                varint(&mut bytes, *value);
            }
            Field::Bytes(value) => {
                bytes.push(number << 3 | 2);
                varint(&mut bytes, value.len() as u64);
                bytes.extend(*value);
            }
        }
    }
    bytes
}

fn varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value > 0x7f {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// Returns the request with the stream number that it has after this many others. Streams of clients have odd
/// numbers.
pub(crate) fn number(request: &[u8], sent: u32) -> Vec<u8> {
    let mut bytes = request.to_vec();
    let stream = (2 * sent + 1).to_be_bytes();
    let mut at = 0;
    while at + HEAD_BYTES <= bytes.len() {
        bytes[at + 5..at + HEAD_BYTES].copy_from_slice(&stream);
        at += HEAD_BYTES + length(&bytes[at..]);
    }
    bytes
}

/// Parses the beginning of the received bytes. An answer ends with its stream. A successful one has a
/// message; an error has none.
pub(crate) fn parse(bytes: &[u8]) -> Option<Parsed> {
    let (mut at, mut message) = (0, None);
    loop {
        let head = bytes.get(at..at + HEAD_BYTES)?;
        let (kind, flags, end) = (head[3], head[4], at + HEAD_BYTES + length(head));
        let payload = bytes.get(at + HEAD_BYTES..end)?;
        let aside = |say: &[u8]| Some(Parsed::Aside { length: end, say: say.to_vec() });
        match kind {
            DATA | HEADERS | RST_STREAM | GOAWAY => {
                if kind == DATA {
                    message = Some(payload.len());
                }
                let is_over = kind != DATA && kind != HEADERS || flags & END_OR_ACK != 0;
                if is_over {
                    let is_good = message.is_some() && kind == HEADERS;
                    return Some(Parsed::Answer { length: end, body: 0, is_good });
                }
            }
            // Control frames between the frames of an answer are handled with the next call, because no call
            // depends on them.
            _ if at > 0 => (),
            SETTINGS | PING if flags & END_OR_ACK == 0 => {
                let mut say = Vec::new();
                let payload = if kind == PING { payload } else { &[] };
                frame(&mut say, kind, END_OR_ACK, 0, payload);
                return aside(&say);
            }
            _ => return aside(&[]),
        }
        at = end;
    }
}

fn frame(bytes: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    bytes.extend(&(payload.len() as u32).to_be_bytes()[1..]);
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
}

/// Returns the length of the payload, from a frame's head.
fn length(head: &[u8]) -> usize {
    head[..3].iter().fold(0, |length, byte| length << 8 | usize::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_call_has_a_stream_of_its_own() {
        let request = put(b"key", b"value");
        let streams = |bytes: &[u8]| {
            let data = HEAD_BYTES + length(bytes);
            (bytes[5..9].to_vec(), bytes[data + 5..data + 9].to_vec())
        };
        assert_eq!(streams(&number(&request, 0)), (vec![0, 0, 0, 1], vec![0, 0, 0, 1]));
        assert_eq!(streams(&number(&request, 200)), (vec![0, 0, 1, 0x91], vec![0, 0, 1, 0x91]));
        assert!(request.ends_with(b"\x00\x00\x00\x00\x0c\x0a\x03key\x12\x05value"));
    }

    #[test]
    fn an_answer_ends_with_its_stream() {
        let mut bytes = Vec::new();
        frame(&mut bytes, HEADERS, END_HEADERS, 1, b"head");
        frame(&mut bytes, PING, 0, 0, &[1; 8]);
        frame(&mut bytes, DATA, 0, 1, b"message");
        assert_eq!(parse(&bytes), None);
        frame(&mut bytes, HEADERS, END_HEADERS | END_OR_ACK, 1, b"trailers");
        let whole = bytes.len();
        bytes.extend(b"next");
        assert_eq!(parse(&bytes), Some(Parsed::Answer { length: whole, body: 0, is_good: true }));
        let mut refused = Vec::new();
        frame(&mut refused, HEADERS, END_HEADERS | END_OR_ACK, 1, b"grpc-status: 13");
        assert!(matches!(parse(&refused), Some(Parsed::Answer { is_good: false, .. })));
    }

    #[test]
    fn settings_and_pings_are_acknowledged() {
        for (kind, payload) in [(SETTINGS, &[][..]), (PING, &[2, 4, 16, 16, 9, 14, 7, 7])] {
            let (mut bytes, mut say) = (Vec::new(), Vec::new());
            frame(&mut bytes, kind, 0, 0, payload);
            frame(&mut say, kind, END_OR_ACK, 0, payload);
            assert_eq!(parse(&bytes), Some(Parsed::Aside { length: bytes.len(), say }));
        }
        let mut update = Vec::new();
        frame(&mut update, WINDOW_UPDATE, 0, 0, &[0, 0, 0, 9]);
        assert_eq!(parse(&update), Some(Parsed::Aside { length: update.len(), say: Vec::new() }));
    }
}
