//! `watch` check: holds a TCP connection open and passes while the service accepts connections.
//!
//! The kernel closes the connections of a process that ends, so its end is noticed at once, not at the next
//! interval. When the connection closes, the check connects again, and fails if the connection is refused. It
//! does not detect a process that hangs.
//!
//! A server that closes idle connections accepts each new one. After [`SHORT_LIVED_MAX`] connections that
//! were closed within [`SHORT_LIVED`] the check falls back to `tcp` for [`FALLBACK`]. The same holds for a
//! server that sends much data unprompted.

use std::{io, net::IpAddr, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::TcpStream,
    sync::Semaphore,
    time::{Instant, sleep, sleep_until, timeout},
};

use super::{connect::Connector, outcome::Outcome, reporter::Reporter, tcp::TcpProbe};
use crate::registry::address::Target;

/// The least time between two reconnects.
const RECONNECT_GAP: Duration = Duration::from_millis(100);
/// Delay of the second reconnect. The kernel closes the sockets of a process one by one, so its listener may
/// still accept the first reconnect after its connections are closed.
const SECOND_RECONNECT: Duration = Duration::from_millis(5);
/// A connection that the server closes within this time counts as short-lived.
const SHORT_LIVED: Duration = Duration::from_secs(2);
/// Consecutive short-lived connections before the check falls back to `tcp`.
const SHORT_LIVED_MAX: u32 = 3;
/// Duration of the fallback to `tcp`.
const FALLBACK: Duration = Duration::from_secs(3600);
/// Interval of TCP keepalive. It detects the failure of another host, which closes no connection.
const KEEPALIVE: Duration = Duration::from_secs(1);
const KEEPALIVE_PROBES: u32 = 3;
/// Bytes read and discarded per second. With more data, the check would notice late that the connection
/// ended.
const READ_BYTES_MAX_PER_SECOND: usize = 64 * 1024;

/// State of a running `watch` check.
#[derive(Debug)]
pub(super) struct Watch<'a> {
    pub(super) reporter: &'a Reporter,
    pub(super) connector: &'a Connector,
    /// Limit of concurrent connects, shared by all `watch` checks.
    pub(super) connects: &'a Semaphore,
    pub(super) target: Target,
    /// Duration of the fallback to `tcp`.
    pub(super) fallback: Duration,
}

impl<'a> Watch<'a> {
    /// Returns a check of this target.
    pub(super) fn new(
        reporter: &'a Reporter,
        connector: &'a Connector,
        connects: &'a Semaphore,
        target: Target,
    ) -> Self {
        Self { reporter, connector, connects, target, fallback: FALLBACK }
    }

    /// Runs the check. `interval` is the interval of the fallback and the longest delay of reconnects;
    /// `limit` is the timeout of a connect.
    pub(super) async fn run(self, interval: Duration, limit: Duration) {
        let mut short_lived = 0;
        let mut failures = 0_u32;
        let mut is_first = true;
        // Reconnects since the last long-lived connection, and the time of the last reconnect.
        let (mut reconnects, mut last_reconnect) = (0_u32, None);
        loop {
            let started = Instant::now();
            if !is_first {
                (reconnects, last_reconnect) = (reconnects.saturating_add(1), Some(started));
            }
            is_first = false;
            let mut flood = false;
            let next = match self.connect(limit).await {
                Ok(stream) => {
                    failures = 0;
                    let words = format!("a connection to {} is held open", self.target);
                    self.reporter.record(Outcome::passing(&words), started.elapsed(), None).await;
                    if self.hold(&stream, interval, &words).await == End::Flood {
                        flood = true;
                    }
                    if started.elapsed() < SHORT_LIVED {
                        short_lived += 1;
                    } else {
                        (short_lived, reconnects) = (0, 0);
                    }
                    // The check reconnects without delay, unless the last reconnect was very recent.
                    let gap = if reconnects <= 1 { SECOND_RECONNECT } else { RECONNECT_GAP };
                    last_reconnect.map_or(started, |last| last + gap)
                }
                Err(outcome) => {
                    short_lived = 0;
                    let gap = RECONNECT_GAP.saturating_mul(1 << failures.min(16));
                    let next = started + gap.min(interval);
                    failures = failures.saturating_add(1);
                    self.reporter.record(outcome, started.elapsed(), Some(next)).await;
                    next
                }
            };
            let why_not = if flood {
                Some(format!(
                    "the server sent more than {READ_BYTES_MAX_PER_SECOND} bytes in a second unasked"
                ))
            } else if short_lived >= SHORT_LIVED_MAX {
                Some(format!(
                    "the server closed {SHORT_LIVED_MAX} connections within {SHORT_LIVED:?} of opening"
                ))
            } else {
                None
            };
            if let Some(why_not) = why_not {
                self.fall_back(&why_not, interval, limit).await;
                (short_lived, reconnects) = (0, 0);
                (is_first, last_reconnect) = (true, None);
            } else {
                sleep_until(next).await;
            }
        }
    }

    async fn connect(&self, limit: Duration) -> Result<TcpStream, Outcome> {
        let _permit = self.connects.acquire().await;
        match timeout(limit, self.connector.connect(&self.target)).await {
            Ok(Ok(stream)) => {
                keep_alive(&stream);
                Ok(stream)
            }
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(Outcome::timed_out(limit)),
        }
    }

    /// Waits for the end of the connection. Until the check passes, each interval with an open connection
    /// counts as a success.
    async fn hold(&self, stream: &TcpStream, interval: Duration, words: &str) -> End {
        loop {
            tokio::select! {
                end = read_until_closed(stream) => return end,
                () = sleep(interval), if !self.reporter.shared().is_passing() => {
                    self.reporter.record(Outcome::passing(words), Duration::ZERO, None).await;
                }
            }
        }
    }

    /// Runs the fallback to `tcp`; the output has the reason.
    async fn fall_back(&self, why: &str, interval: Duration, limit: Duration) {
        let words = format!(
            "watch: {why}; checked by tcp every {interval:?}, a connection is held again after {:?}",
            self.fallback
        );
        let probe = TcpProbe { target: self.target.clone(), tls: None };
        let end = Instant::now() + self.fallback;
        while Instant::now() < end {
            let started = Instant::now();
            let outcome = {
                let _permit = self.connects.acquire().await;
                timeout(limit, probe.run(self.connector)).await
            };
            let outcome = outcome.unwrap_or_else(|_| Outcome::timed_out(limit));
            let next = (started + interval).min(end);
            self.reporter.record(outcome.introduced_by(&words), started.elapsed(), Some(next)).await;
            sleep_until(next).await;
        }
    }
}

fn keep_alive(stream: &TcpStream) {
    let is_local = stream.peer_addr().is_ok_and(|peer| is_loopback(peer.ip()));
    if !is_local {
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
        // On an error, only the instance's other checks detect a host that vanishes.
        let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive.with_retries(KEEPALIVE_PROBES));
    }
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// Why a held connection ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// The server or its host closed the connection.
    Closed,
    /// The server sent more than [`READ_BYTES_MAX_PER_SECOND`].
    Flood,
}

/// Reads and discards data until the connection ends.
async fn read_until_closed(stream: &TcpStream) -> End {
    let mut second = Instant::now();
    let mut bytes = 0;
    loop {
        if stream.readable().await.is_err() {
            return End::Closed;
        }
        match drop_some(stream) {
            Ok(Some(0)) | Err(_) => return End::Closed,
            Ok(Some(read)) => bytes += read,
            Ok(None) => (),
        }
        if second.elapsed() >= Duration::from_secs(1) {
            (second, bytes) = (Instant::now(), 0);
        } else if bytes > READ_BYTES_MAX_PER_SECOND {
            return End::Flood;
        }
    }
}

/// Reads once; `None`: no data. A separate function keeps the buffer out of the long-lived task.
fn drop_some(stream: &TcpStream) -> io::Result<Option<usize>> {
    match stream.try_read(&mut [0; 4096]) {
        Ok(read) => Ok(Some(read)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}
