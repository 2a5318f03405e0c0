//! Limits of the gateway, each with the source of its value. A refusal because of a limit is counted by its
//! [reason](crate::refusal::Reason).

use std::time::Duration;

use rustix::process::{Resource, getrlimit};

/// All limits of the gateway.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Client connections open at once, over all threads. A further one gets 503.
    pub connections: usize,
    /// Requests in flight at once, over all threads: HTTP/2 has many on a connection. A further one gets 503.
    pub in_flight: usize,
    /// Time for a request head to arrive, and for an HTTP/1 connection to stay idle. Short, because a
    /// slowloris attack can hold a connection for this time.
    pub head: Duration,
    /// Bytes of a request head; more get 431. The same as on the node's own HTTP.
    pub head_bytes: usize,
    /// Lines of a head; more get 431 in a request and 502 in a response. hyper's default.
    pub headers: usize,
    /// Concurrent requests on an HTTP/2 connection. RFC 9113, section 6.5.2 recommends at least 100.
    pub streams: u32,
    /// HTTP/2 streams that were reset before the gateway accepted them; more end the connection (rapid reset,
    /// CVE-2023-44487). h2's default.
    pub pending_resets: usize,
    /// Time after which an HTTP/2 connection without requests is closed.
    pub http2_idle: Duration,
    /// Receive window of an HTTP/2 connection. Four times the default of RFC 9113.
    pub window_bytes: u32,
    /// Time to open a connection to an instance. TCP repeats a lost SYN after one second, so an attempt
    /// survives one loss.
    pub connect: Duration,
    /// Time from a request to the head of its response. nginx's default, and longer than blocking queries of
    /// Consul usually wait.
    pub response: Duration,
    /// Time without progress after which a body is aborted, in either direction. Longer than the usual
    /// keep-alive interval of event streams, 15 to 60 s.
    pub stall: Duration,
    /// Time for which a client may leave its response unread; then the connection, or the HTTP/2 stream, is
    /// closed. The same as on the node's own HTTP.
    pub write_stall: Duration,
    /// Time without progress after which a tunnel (WebSocket) is closed.
    pub tunnel: Duration,
    /// Time for which an idle connection to an instance stays open. It is below the 5 s after which a node,
    /// Node.js and Apache close idle connections. So few requests are sent on a connection that is being
    /// closed.
    pub idle: Duration,
    /// Idle connections to one instance, of one thread. Enough for 64 clients that all use one instance.
    pub idle_per_endpoint: usize,
    /// Idle connections to all instances, of one thread.
    pub idle_connections: usize,
    /// Bytes of the body of a safe request that is buffered for a retry. A larger body is streamed, and its
    /// request is not repeated.
    pub replay_bytes: u64,
    /// Instances that one request may try.
    pub attempts: usize,
    /// Time for requests to finish when the node stops.
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
            response: Duration::from_secs(60),
            stall: Duration::from_secs(300),
            write_stall: Duration::from_secs(30),
            tunnel: Duration::from_secs(300),
            idle: Duration::from_secs(4),
            idle_per_endpoint: 128,
            idle_connections: 1024,
            replay_bytes: 64 * 1024,
            attempts: 5,
            drain: Duration::from_secs(8),
        }
    }
}

impl Limits {
    /// Returns these limits for a process with this many file descriptors. Each client needs two: its own
    /// connection and one to an instance. Half of all descriptors are left to the node.
    #[must_use]
    pub fn within(mut self, files: u64) -> Self {
        let quarter = usize::try_from(files / 4).unwrap_or(usize::MAX).max(16);
        self.connections = self.connections.min(quarter);
        self.in_flight = self.in_flight.min(quarter);
        self.idle_connections = self.idle_connections.min(quarter / 2);
        self
    }

    /// Returns these limits for this process.
    #[must_use]
    pub fn within_this_process(self) -> Self {
        self.within(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_with_few_descriptors_takes_few_connections() {
        let of = |files| Limits::default().within(files);
        assert_eq!(of(u64::MAX).connections, 8192);
        assert_eq!((of(1024).connections, of(1024).in_flight, of(1024).idle_connections), (256, 256, 128));
    }
}
