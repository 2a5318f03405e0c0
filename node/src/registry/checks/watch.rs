//! The `watch` check: a TCP connection to the service is held open, and its end shows the service's death.
//!
//! The kernel closes the connections of a process that dies, so a held connection shows a death at once,
//! where a check at an interval finds it at the next run. When the connection closes, the node connects
//! again: refused is a failure, accepted is alive. It finds death, not hanging.
//!
//! A server that closes idle connections differs from one that dies: it accepts each new connection.
//! After [`SHORT_LIVED_MAX`] connections that were closed within [`SHORT_LIVED`] the check falls back to
//! `tcp` for [`FALLBACK`], as it does for a server that sends much without being asked.

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
/// The time until the second reconnect. The kernel closes the sockets of a process that dies one after the
/// other, so its listener may accept the first reconnect when its connections are closed already.
const SECOND_RECONNECT: Duration = Duration::from_millis(5);
/// A connection that the server closed within this was not held.
const SHORT_LIVED: Duration = Duration::from_secs(2);
/// The connections in a row that were not held, after which the check falls back to `tcp`.
const SHORT_LIVED_MAX: u32 = 3;
/// How long it checks by `tcp` before a connection is held again.
const FALLBACK: Duration = Duration::from_secs(3600);
/// Keepalive finds the death of another host, which closes no connection: 1 s idle, then 3 probes 1 s apart.
const KEEPALIVE: Duration = Duration::from_secs(1);
const KEEPALIVE_PROBES: u32 = 3;
/// How much is read and dropped in a second. A server that sends more is not watched: its end would be found
/// behind all that it has sent.
const READ_BYTES_MAX_PER_SECOND: usize = 64 * 1024;

/// A connection that is held.
#[derive(Debug)]
pub(super) struct Watch<'a> {
    pub(super) reporter: &'a Reporter,
    pub(super) connector: &'a Connector,
    /// Bounds the connects that are under way, of all watches together.
    pub(super) connects: &'a Semaphore,
    pub(super) target: Target,
    /// How long it checks by `tcp` after the server did not hold connections.
    pub(super) fallback: Duration,
}

impl<'a> Watch<'a> {
    /// A watch of this target.
    pub(super) fn new(
        reporter: &'a Reporter,
        connector: &'a Connector,
        connects: &'a Semaphore,
        target: Target,
    ) -> Self {
        Self { reporter, connector, connects, target, fallback: FALLBACK }
    }

    /// Runs the check. `interval` is between runs by `tcp`, and at most between two reconnects; a connect
    /// takes at most `limit`.
    pub(super) async fn run(self, interval: Duration, limit: Duration) {
        let mut short_lived = 0;
        let mut failures = 0_u32;
        let mut is_first = true;
        // Since a connection was held, and when the last of them was.
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
                    // At once, unless the last reconnect was just now.
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

    /// Returns when the connection has ended. Until the check passes, each interval that the connection stays
    /// open is one more success.
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

    /// Checks by `tcp`, and states the reason in the output.
    async fn fall_back(&self, why: &str, interval: Duration, limit: Duration) {
        let words = format!(
            "watch: {why}; checked by tcp every {interval:?}, a connection is held again after {:?}",
            self.fallback
        );
        let probe = TcpProbe { target: self.target.clone() };
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
        // Without it a host that vanishes is found by the other checks of the instance.
        let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive.with_retries(KEEPALIVE_PROBES));
    }
}

fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// How a held connection ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// The server, or its host, closed it.
    Closed,
    /// The server sent too much.
    Flood,
}

/// Reads and drops what the server sends, until the connection ends.
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

/// Reads once. `None`: there is nothing yet. The buffer is not part of the task, which waits for hours.
fn drop_some(stream: &TcpStream) -> io::Result<Option<usize>> {
    match stream.try_read(&mut [0; 4096]) {
        Ok(read) => Ok(Some(read)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}
