//! Clients that send requests during a scenario, and what became of each request.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Instant,
};

use hearsay_tests::{
    Host,
    http::{self, Reply, SendError},
};

use super::{S, envoy_process::ENTRY_PORT};

/// Clients that send requests at once, each one request at a time.
pub(super) const CLIENTS: usize = 4;

/// Outcomes of the requests so far.
#[derive(Default)]
pub(super) struct Load {
    is_over: AtomicBool,
    good: AtomicUsize,
    /// Start of each failed request, and what came instead of 200.
    failed: Mutex<Vec<(Instant, String)>>,
}

impl Load {
    /// Returns the number of successful requests.
    pub(super) fn good(&self) -> usize {
        self.good.load(Ordering::Relaxed)
    }

    /// Returns the start of each failed request, and what came instead of 200.
    pub(super) fn failed(&self) -> Vec<(Instant, String)> {
        self.failed.lock().unwrap().clone()
    }

    /// Asserts that no request has failed.
    pub(super) fn assert_none_failed(&self) {
        let (good, failed) = (self.good(), self.failed());
        assert!(failed.is_empty(), "{good} requests succeeded, {} failed: {failed:?}", failed.len());
    }

    /// Asserts that no failed request began at or after this time, and that at most one failed for each
    /// client.
    pub(super) fn assert_only_in_flight_failed(&self, crash: Instant) {
        let (good, failed) = (self.good(), self.failed());
        println!("{good} requests succeeded, {} in flight failed", failed.len());
        let later: Vec<_> = failed
            .iter()
            .filter(|(began, _)| *began >= crash)
            .map(|(began, what)| (*began - crash, what))
            .collect();
        assert!(later.is_empty(), "requests failed that began after the crash: {later:?}");
        assert!(failed.len() <= CLIENTS, "{failed:?}");
    }

    fn send_all(&self, client: usize) {
        while !self.is_over.load(Ordering::Relaxed) {
            let began = Instant::now();
            // Half of the clients choose the service by the host, the others by the prefix of the path.
            let (host, path) = match client.is_multiple_of(2) {
                true => ("127.0.0.1", "/web/load"),
                false => ("web.hearsay", "/load"),
            };
            match send(host, path) {
                Ok(reply) if reply.status == 200 => _ = self.good.fetch_add(1, Ordering::Relaxed),
                other => self.failed.lock().unwrap().push((began, format!("{other:?}"))),
            }
        }
    }
}

/// Sends requests to Envoy on a host until `act` has ended, and returns what `act` returns.
pub(super) fn under_load<R>(host: &Host, act: impl FnOnce(&Load) -> R) -> R {
    let load = Load::default();
    let ended = std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            let load = &load;
            scope.spawn(move || host.enter(|| load.send_all(client)));
        }
        // A claim that fails must not leave the threads of the requests waiting.
        let ended = catch_unwind(AssertUnwindSafe(|| act(&load)));
        load.is_over.store(true, Ordering::Relaxed);
        ended
    });
    ended.unwrap_or_else(|panic| resume_unwind(panic))
}

/// Sends a request to Envoy by the prefix of a service, and returns the status. To be called inside a host.
pub(super) fn by_prefix(service: &str, path: &str) -> Result<u16, SendError> {
    by_host("127.0.0.1", &format!("/{service}{path}"))
}

/// Sends a request to Envoy with this host, and returns the status. To be called inside a host.
pub(super) fn by_host(name: &str, path: &str) -> Result<u16, SendError> {
    send(name, path).map(|reply| reply.status)
}

fn send(host: &str, path: &str) -> Result<Reply, SendError> {
    let to = ([127, 0, 0, 1], ENTRY_PORT).into();
    http::send_under(host, to, &format!("GET {path}"), &[], "", 10 * S)
}
