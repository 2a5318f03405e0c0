//! What all threads of the gateway share.

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Instant,
};

use hearsay_protocol::providers::{Index, Provider};
use http::StatusCode;

use super::{
    budget::Budget,
    counters::{Counters, Reason},
    forward::Pseudonym,
    limits::Limits,
    policy::GatewayPolicy,
    published::OwnNames,
    request::Refusal,
    routes::Routes,
    target::Target,
    vouch::Vouching,
};
use crate::{
    Host, Problem,
    shares::{self, Exempt, RequestShare, Share, Shares},
};

/// The gateway, as every thread of it sees it.
#[derive(Debug)]
pub struct Shared {
    /// Every bound.
    pub limits: Limits,
    /// What is counted.
    pub counters: Counters,
    /// How many retries there may be.
    pub budget: Budget,
    /// This gateway in `Via`.
    pub me: Pseudonym,
    /// What it says for clients of roles.
    pub vouching: Vouching,
    /// Where it listens, once it does.
    pub address: OnceLock<SocketAddr>,
    /// How many threads serve.
    pub threads: usize,
    /// Where instances may be.
    pub policy: GatewayPolicy,
    /// What each host holds of the connections.
    pub shares: Arc<Shares>,
    /// The hosts that have no share, once the node says which.
    pub exempt: OnceLock<Exempt>,
    /// The names under which clients reach roles through it.
    pub names: OwnNames,
    routes: RwLock<Arc<Routes>>,
    /// The state of the table that the routes are of.
    index: AtomicU64,
    started: Instant,
}

impl Shared {
    /// A gateway that knows nobody.
    pub fn new(host: Arc<dyn Host>, limits: Limits, threads: usize, policy: GatewayPolicy) -> Self {
        let name = format!("hearsay-{}", host.node_id().short());
        Self {
            limits,
            counters: Counters::default(),
            budget: Budget::default(),
            me: Pseudonym::new(&name),
            vouching: Vouching::new(Arc::clone(&host)),
            address: OnceLock::new(),
            threads,
            policy,
            shares: Shares::new(limits.connections),
            exempt: OnceLock::new(),
            names: OwnNames::of(&host),
            routes: RwLock::default(),
            index: AtomicU64::new(0),
            started: Instant::now(),
        }
    }

    /// Milliseconds since the start.
    pub fn now_ms(&self) -> u64 {
        self.ms_at(Instant::now())
    }

    /// Milliseconds from the start to then, for whoever has looked at the clock already.
    pub fn ms_at(&self, then: Instant) -> u64 {
        u64::try_from(then.saturating_duration_since(self.started).as_millis()).unwrap_or(u64::MAX)
    }

    /// The routes as they are now. The lock is held for as long as it takes to count a pointer.
    pub fn routes(&self) -> Arc<Routes> {
        Arc::clone(&self.routes.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The state of the table that the routes are of.
    pub fn index(&self) -> Index {
        Index(self.index.load(Relaxed))
    }

    /// Replaces the routes by what the table says. For one caller at a time.
    pub fn learn(&self, index: Index, providers: &[Arc<Provider>]) {
        let routes = Arc::new(self.routes().learn(providers, &self.policy, self.threads, self.now_ms()));
        self.counters.conflicts.store(routes.conflicts_count, Relaxed);
        self.counters.ignored.store(routes.ignored_count, Relaxed);
        *self.routes.write().unwrap_or_else(PoisonError::into_inner) = routes;
        self.index.store(index.0, Relaxed);
    }

    /// Counts a request of a connection with this share as in flight.
    ///
    /// # Errors
    /// There are too many, of its host or of all.
    pub fn begin(self: &Arc<Self>, share: &Share) -> Result<Flight, Refusal> {
        let before = self.counters.in_flight.fetch_add(1, Relaxed);
        let mut flight = Flight { shared: Arc::clone(self), target: None, _share: None };
        let before = usize::try_from(before).unwrap_or(0);
        flight._share = Some(share.begin_request(self.limits.in_flight, before).map_err(|refusal| match refusal {
            shares::Refusal::Share => {
                let detail = "your host has its share of the requests in flight here, which are nearly as many as the limit; try again when some of \
                              them are answered";
                (Reason::InFlightShare, Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail))
            }
            shares::Refusal::Full => {
                let limit = self.limits.in_flight;
                let detail = format!("{limit} requests are in flight here, which is the limit; try again");
                (Reason::InFlight, Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail))
            }
        })?);
        Ok(flight)
    }
}

/// A request in flight, here and at the instance that it was sent to, until this is dropped.
#[derive(Debug)]
pub struct Flight {
    shared: Arc<Shared>,
    target: Option<Arc<Target>>,
    _share: Option<RequestShare>,
}

impl Flight {
    /// It is sent to this instance now, and to no other.
    pub fn to(&mut self, target: &Arc<Target>) {
        self.leave();
        target.begin();
        self.target = Some(Arc::clone(target));
    }

    fn leave(&mut self) {
        if let Some(before) = self.target.take() {
            before.end();
        }
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.leave();
        self.shared.counters.in_flight.fetch_sub(1, Relaxed);
    }
}
