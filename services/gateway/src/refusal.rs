//! [`Reason`]: why the gateway refuses or aborts a request or a connection.

use hearsay_services::Problem;

/// A refused request: the reason that is counted, and the problem that the client gets.
pub(crate) type Refusal = (Reason, Problem);

/// Why the gateway refused or aborted something. The list is fixed, so the number of counters is bounded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reason {
    /// Too many client connections.
    Connections,
    /// A request head took too long to arrive.
    HeadTime,
    /// The bytes are not HTTP, or exceed the limits of a head.
    Malformed,
    /// The end of the body is ambiguous (request smuggling).
    Framing,
    /// The authority is missing, malformed or ambiguous, or is none of the gateway's names.
    Host,
    /// The target is not a path, or the path has dot segments.
    Path,
    /// The gateway does not forward this method.
    Method,
    /// The request has passed this gateway before.
    Loop,
    /// No service has this name or prefix.
    Unknown,
    /// The service has no reachable instance.
    Unreachable,
    /// An instance broke off before its response, or switched to a protocol that the client did not ask for.
    Broken,
    /// An instance did not respond in time.
    AnswerTime,
    /// Too many requests in flight.
    InFlight,
    /// The request body did not arrive in time, or was malformed.
    BodyTime,
    /// The request body is too large to be signed.
    BodySize,
    /// The request bodies that wait to be signed use too much memory.
    BodyRoom,
    /// A write to a built-in role without proof of the caller.
    Unproven,
    /// The HTTP/2 connection broke the protocol, or stayed open after it was asked to close.
    Http2,
    /// The client did not read its response in time.
    WriteTime,
    /// The system had no socket for a client.
    Accept,
    /// Requests were cut off because the node stopped.
    Drain,
    /// The client's host has used its share of the connections.
    ConnectionShare,
    /// The client's host has used its share of the requests in flight.
    InFlightShare,
    /// An idle connection was closed in favour of a new one.
    Evicted,
}

impl Reason {
    /// All reasons, in the order of the enum.
    pub(crate) const ALL: [Self; 24] = [
        Self::Connections,
        Self::HeadTime,
        Self::Malformed,
        Self::Framing,
        Self::Host,
        Self::Path,
        Self::Method,
        Self::Loop,
        Self::Unknown,
        Self::Unreachable,
        Self::Broken,
        Self::AnswerTime,
        Self::InFlight,
        Self::BodyTime,
        Self::BodySize,
        Self::BodyRoom,
        Self::Unproven,
        Self::Http2,
        Self::WriteTime,
        Self::Accept,
        Self::Drain,
        Self::ConnectionShare,
        Self::InFlightShare,
        Self::Evicted,
    ];

    /// Returns the label value in the metrics.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::HeadTime => "head_time",
            Self::Malformed => "malformed",
            Self::Framing => "framing",
            Self::Host => "host",
            Self::Path => "path",
            Self::Method => "method",
            Self::Loop => "loop",
            Self::Unknown => "unknown",
            Self::Unreachable => "unreachable",
            Self::Broken => "broken",
            Self::AnswerTime => "answer_time",
            Self::InFlight => "in_flight",
            Self::BodyTime => "body_time",
            Self::BodySize => "body_size",
            Self::BodyRoom => "body_room",
            Self::Unproven => "unproven",
            Self::Http2 => "http2",
            Self::WriteTime => "write_time",
            Self::Accept => "accept",
            Self::Drain => "drain",
            Self::ConnectionShare => "connection_share",
            Self::InFlightShare => "in_flight_share",
            Self::Evicted => "evicted",
        }
    }
}
