//! [`Flooding`]: the kinds of floods, which are idle connections, unfinished heads and handshakes, streams,
//! and answers that the client does not read.

/// Kind of flood, and the metrics by which the node shows it.
#[derive(Clone, Debug)]
pub struct Flooding {
    /// Name, in a few words.
    pub name: &'static str,
    /// Port of the node that is flooded.
    pub port: u16,
    /// First bytes of each connection.
    pub first: Vec<u8>,
    /// Number of connections.
    pub holding: usize,
    /// Gauge of the node that shows the flood, and the value to reach.
    pub gauge: (&'static str, f64),
    /// Counter of the node that shows that a limit was applied.
    pub counter: &'static str,
}

impl Flooding {
    /// Idle connections to the HTTP port of a node.
    pub fn silent_connections() -> Self {
        Self {
            name: "silent connections to the node",
            port: 7500,
            first: vec![],
            holding: 4500,
            gauge: ("hearsay_http_connections ", 2000.0),
            counter: "hearsay_http_connections_ended_total{reason=\"evicted\"}",
        }
    }

    /// Connections to the HTTP port, each with a head that never ends.
    pub fn endless_heads() -> Self {
        let first = b"GET /services HTTP/1.1\r\nhost: x\r\n".to_vec();
        Self { name: "heads that never end", first, ..Self::silent_connections() }
    }

    /// Idle connections to the gateway.
    pub fn silent_at_the_gateway() -> Self {
        Self {
            name: "silent connections to the gateway",
            port: 8080,
            first: vec![],
            holding: 1500,
            gauge: ("hearsay_gateway_connections ", 700.0),
            counter: "hearsay_gateway_refused_total{reason=\"evicted\"}",
        }
    }

    /// Event streams of a node at this address.
    pub fn streams(ip: &str) -> Self {
        Self {
            name: "event streams",
            port: 7500,
            first: format!("GET /services/watch HTTP/1.1\r\nhost: {ip}:7500\r\n\r\n").into_bytes(),
            holding: 3000,
            gauge: ("hearsay_http_waiting ", 2000.0),
            counter: "hearsay_http_refused_total{reason=\"waiting_share\"}",
        }
    }

    /// HTTP/2 requests to the gateway of a node at this address. The client does not read the answers.
    pub fn untaken_answers(ip: &str) -> Self {
        const STREAMS: u32 = 100;
        let host = format!("{ip}:8080");
        let length = u8::try_from(host.len()).expect("an address is short");
        // GET /students in HPACK, without Huffman coding; SETTINGS_INITIAL_WINDOW_SIZE 0.
        let head = [b"\x82\x86\x04\x09/students\x01".as_slice(), &[length], host.as_bytes()].concat();
        let mut first = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        first.extend(frame(4, 0, 0, &[0, 4, 0, 0, 0, 0]));
        (0..STREAMS).for_each(|n| first.extend(frame(1, 0x5, 2 * n + 1, &head)));
        Self {
            name: "answers that are not taken, at the gateway",
            port: 8080,
            first,
            holding: 20,
            gauge: ("hearsay_gateway_in_flight ", 700.0),
            counter: "hearsay_gateway_refused_total{reason=\"in_flight_share\"}",
        }
    }

    /// Idle connections to the swarm port, which never begin the handshake.
    pub fn silent_handshakes() -> Self {
        Self {
            name: "silent handshakes of the swarm",
            port: 7600,
            first: vec![],
            holding: 600,
            gauge: ("hearsay_http_connections ", 0.0),
            counter: "hearsay_handshakes_refused_total",
        }
    }

    /// Returns all kinds, against a node at this address.
    pub fn all(ip: &str) -> [Self; 6] {
        [
            Self::silent_connections(),
            Self::endless_heads(),
            Self::silent_at_the_gateway(),
            Self::streams(ip),
            Self::untaken_answers(ip),
            Self::silent_handshakes(),
        ]
    }
}

/// Encodes one frame (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame is short").to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}
