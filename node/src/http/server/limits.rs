//! [`Limits`] of the HTTP server: maximum numbers of connections and streams, sizes of heads and bodies, and
//! timeouts; reduced if the process may open few file descriptors.

use std::time::Duration;

use hearsay_services::network::Exempt;

use crate::config::{MAX_CONNECTIONS, MAX_STREAMS};

/// Limits of the HTTP server.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Open connections. Further ones are answered with 503 and closed. An idle connection takes about 10 kB.
    pub connections: usize,
    /// Blocking queries, event streams and held registrations. More are answered with 429. Fewer than
    /// connections, so that waiting requests leave room for others.
    pub streams: usize,
    /// Time to send a request's head, and for which a connection may be idle. Node.js and Apache close idle
    /// connections after 5 s too.
    pub head: Duration,
    /// Size of a request's head. More is answered with 431.
    pub head_bytes: usize,
    /// Header lines of a request. More are answered with 431. Hyper's default.
    pub headers: usize,
    /// Time to send a body. More is answered with 408.
    pub body: Duration,
    /// Size of a body. More is answered with 413.
    pub body_bytes: usize,
    /// Memory for all bodies together. A body that finds none left is answered with 503.
    pub bodies_bytes: usize,
    /// Time without progress after which a write to a client fails, or a stream of HTTP/2 is reset.
    pub write_stall: Duration,
    /// Time without a stream after which a connection of HTTP/2 ends, at the latest after twice that. gRPC
    /// clients connect again for the next call.
    pub idle: Duration,
    /// Time for requests to finish when the node stops.
    pub drain: Duration,
    /// Hosts to which shares of connections and streams do not apply.
    pub exempt: Exempt,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: MAX_CONNECTIONS,
            streams: MAX_STREAMS,
            head: Duration::from_secs(5),
            head_bytes: 32 * 1024,
            headers: 100,
            body: Duration::from_secs(10),
            body_bytes: 1024 * 1024,
            bodies_bytes: 64 * 1024 * 1024,
            write_stall: Duration::from_secs(30),
            idle: Duration::from_secs(60),
            drain: Duration::from_secs(5),
            exempt: Exempt::default(),
        }
    }
}

/// File descriptors that HTTP leaves to the swarm's connections, the data directory and the log. Guess.
const FILES_FOR_OTHERS: u64 = 512;

impl Limits {
    /// Reduces the limits for a process that may open `files` file descriptors. Without a free descriptor the
    /// process could neither refuse clients with 503 nor connect to other nodes.
    #[must_use]
    pub fn within(mut self, files: u64) -> Self {
        let left = files.saturating_sub(FILES_FOR_OTHERS).max(files / 2);
        self.connections = self.connections.min(usize::try_from(left).unwrap_or(usize::MAX));
        self.streams = self.streams.min(self.connections / 5 * 4);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_the_swarm() {
        let connections = |files| Limits::default().within(files).connections;
        assert_eq!(connections(u64::MAX), 20_000);
        assert_eq!(connections(4096), 3584);
        assert_eq!(Limits::default().within(u64::MAX).streams, 16_000);
        assert_eq!(Limits::default().within(1024).streams, 408);
        assert_eq!(connections(1024), 512);
        assert_eq!(connections(256), 128);
    }
}
