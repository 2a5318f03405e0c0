//! What the gateway bounds, each with where its value comes from. What is over a bound is counted ([`super::counters`]).

use std::time::Duration;

use rustix::process::{Resource, getrlimit};

/// Every bound of the gateway.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Clients' connections open at once, over all threads; another one is told 503.
    pub connections: usize,
    /// Requests in flight at once, over all threads: HTTP/2 has many on a connection. Another one is told 503.
    pub in_flight: usize,
    /// Time to send a request's head, and for which an HTTP/1 connection may stay idle. Kept short: it is what a slowloris has.
    pub head: Duration,
    /// Size of a request's head; more is 431. As the node's own HTTP.
    pub head_bytes: usize,
    /// Lines of a head, of requests and of answers; more are 431, or 502. Hyper's default.
    pub headers: usize,
    /// HTTP/2 requests at once on a connection. RFC 9113, section 6.5.2 recommends at least 100.
    pub streams: u32,
    /// HTTP/2 streams that were reset before they were looked at; more end the connection (rapid reset, CVE-2023-44487). h2's default.
    pub pending_resets: usize,
    /// An HTTP/2 connection without a request is closed after this.
    pub http2_idle: Duration,
    /// Bytes of upload that one HTTP/2 connection may have waiting here. Four times the default of RFC 9113.
    pub window_bytes: u32,
    /// Time to open a connection to an instance: the first lost SYN is repeated after one second, so it survives one loss.
    pub connect: Duration,
    /// Time from a request to the head of its answer. nginx's default, above Consul's usual waits of blocking queries.
    pub answer: Duration,
    /// Time for which nothing may move in a body, either way. Above the usual 15–60 s of event streams' keep-alives.
    pub stall: Duration,
    /// Time for which a client may take nothing of its answer: the connection ends, or with HTTP/2 the stream. As the node's own HTTP.
    pub write_stall: Duration,
    /// Time for which nothing may move in what was upgraded (WebSocket).
    pub tunnel: Duration,
    /// Time for which an idle connection to an instance is kept. Below the 5 s after which a node, Node.js and Apache close theirs, so
    /// that a request seldom meets a connection that is being closed.
    pub keep: Duration,
    /// Idle connections kept to one instance, by one thread. Enough for 64 clients that all went to one instance.
    pub kept_per_instance: usize,
    /// Idle connections kept by one thread.
    pub kept: usize,
    /// The body of a safe request that is kept for a repetition; a larger one is streamed, and the request not repeated.
    pub replay_bytes: u64,
    /// How many instances one request may try.
    pub attempts: usize,
    /// Time that requests have to finish when the node stops.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 8192,
            in_flight: 8192,
            head: Duration::from_secs(10),
            head_bytes: 32 * 1024,
            headers: 100,
            streams: 128,
            pending_resets: 20,
            http2_idle: Duration::from_secs(60),
            window_bytes: 256 * 1024,
            connect: Duration::from_secs(3),
            answer: Duration::from_secs(60),
            stall: Duration::from_secs(300),
            write_stall: Duration::from_secs(30),
            tunnel: Duration::from_secs(300),
            keep: Duration::from_secs(4),
            kept_per_instance: 128,
            kept: 1024,
            replay_bytes: 64 * 1024,
            attempts: 5,
            drain: Duration::from_secs(8),
        }
    }
}

impl Limits {
    /// As these, for a process that may open so many files. A client takes two: its own connection and one to an instance. Half of all
    /// files are left to the node.
    #[must_use]
    pub fn within(mut self, files: u64) -> Self {
        let quarter = usize::try_from(files / 4).unwrap_or(usize::MAX).max(16);
        self.connections = self.connections.min(quarter);
        self.in_flight = self.in_flight.min(quarter);
        self.kept = self.kept.min(quarter / 2);
        self
    }

    /// As these, for this process.
    #[must_use]
    pub fn within_this_process(self) -> Self {
        self.within(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_few_files_takes_few_connections() {
        let of = |files| Limits::default().within(files);
        assert_eq!(of(u64::MAX).connections, 8192);
        assert_eq!((of(1024).connections, of(1024).in_flight, of(1024).kept), (256, 256, 128));
    }
}
