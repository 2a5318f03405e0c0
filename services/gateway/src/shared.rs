//! [`Shared`]: state that all threads of the gateway share (routes, limits, retry budget, counters). It
//! counts requests in flight, and refuses one over the limit or over the share of the client's host.

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use hearsay_protocol::{Index, Provider};
use hearsay_services::{
    Host, Problem,
    network::{Exempt, RequestShare, Share, ShareRefusal, Shares},
};
use http::StatusCode;
use tower::retry::budget::TpsBudget;

use crate::{
    forward::{headers::ViaName, role_auth::RoleAuth},
    limits::Limits,
    observe::counters::Counters,
    refusal::{Reason, Refusal},
    routing::{policy::GatewayPolicy, routes::Routes},
    upstream::endpoint::Endpoint,
};

/// Time for which a request counts towards the retry budget. Short, so that an outage at a high rate does not
/// release the retries of many seconds at once.
const RETRY_WINDOW: Duration = Duration::from_secs(2);
/// Retries per second that are allowed without any requests. The 250 of one window suffice for all requests
/// in flight at an instance that fails.
const RETRIES_PER_SECOND: u32 = 125;
/// Retries that each request adds to the budget; tower's default.
const RETRY_RATIO: f32 = 0.2;

/// State that all threads share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// All limits.
    pub(crate) limits: Limits,
    /// All counters.
    pub(crate) counters: Counters,
    /// The retry budget: without it, an outage would multiply the load on the instances that are left.
    pub(crate) retry_budget: TpsBudget,
    /// The name of this gateway in `Via`.
    pub(crate) via: ViaName,
    /// Authorization of requests to roles.
    pub(crate) role_auth: RoleAuth,
    /// The address of the listener, once it serves.
    pub(crate) address: OnceLock<SocketAddr>,
    /// The number of threads that serve.
    pub(crate) threads: usize,
    /// The addresses that the gateway may connect to.
    pub(crate) policy: GatewayPolicy,
    /// The shares of client hosts in the connections.
    pub(crate) shares: Arc<Shares>,
    /// The hosts that are exempt from shares, once the node has named them.
    pub(crate) exempt: OnceLock<Exempt>,
    routes: RwLock<Arc<Routes>>,
    /// The index of the provider table from which the routes were made.
    index: AtomicU64,
    started: Instant,
}

fn retry_budget() -> TpsBudget {
    TpsBudget::new(RETRY_WINDOW, RETRIES_PER_SECOND, RETRY_RATIO)
}

impl Shared {
    /// Returns the state of a gateway without routes.
    pub(crate) fn new(host: Arc<dyn Host>, limits: Limits, threads: usize, policy: GatewayPolicy) -> Self {
        let name = format!("hearsay-{}", host.node_id().short());
        Self {
            limits,
            counters: Counters::default(),
            retry_budget: retry_budget(),
            via: ViaName::new(&name),
            role_auth: RoleAuth::new(host),
            address: OnceLock::new(),
            threads,
            policy,
            shares: Shares::new(limits.connections),
            exempt: OnceLock::new(),
            routes: RwLock::default(),
            index: AtomicU64::new(0),
            started: Instant::now(),
        }
    }

    /// Returns the milliseconds since the gateway's start.
    pub(crate) fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Returns the current routes. The lock is held only to clone the pointer.
    pub(crate) fn routes(&self) -> Arc<Routes> {
        Arc::clone(&self.routes.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the index of the provider table from which the routes were made.
    pub(crate) fn index(&self) -> Index {
        Index(self.index.load(Relaxed))
    }

    /// Replaces the routes by those for a new provider table. Must not be called concurrently.
    pub(crate) fn update_routes(&self, index: Index, providers: &[Arc<Provider>]) {
        let routes = Arc::new(self.routes().updated(providers, &self.policy, self.now_ms()));
        self.counters.conflicts.store(routes.conflicts_count, Relaxed);
        self.counters.ignored.store(routes.ignored_count, Relaxed);
        *self.routes.write().unwrap_or_else(PoisonError::into_inner) = routes;
        self.index.store(index.0, Relaxed);
    }

    /// Counts a request as in flight, on a connection with this share.
    ///
    /// # Errors
    /// 503: too many requests are in flight, from the client's host or in total.
    pub(crate) fn start_request(self: &Arc<Self>, share: &Share) -> Result<InFlight, Refusal> {
        let before = self.counters.in_flight.fetch_add(1, Relaxed);
        let mut in_flight = InFlight { shared: Arc::clone(self), endpoint: None, _share: None };
        let limit = self.limits.in_flight;
        let share = share.begin_request(limit, usize::try_from(before).unwrap_or(0));
        in_flight._share = Some(share.map_err(|refusal| {
            let (reason, detail) = match refusal {
                ShareRefusal::Share => (
                    Reason::InFlightShare,
                    "your host holds its share of the requests in flight, which are close to the limit; try again when some of them have \
                     responses"
                        .to_owned(),
                ),
                ShareRefusal::Full => (
                    Reason::InFlight,
                    format!("{limit} requests are in flight here, which is the limit; try again"),
                ),
            };
            (reason, Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail))
        })?);
        Ok(in_flight)
    }
}

/// Counts a request as in flight, at the gateway and at an endpoint, until it is dropped.
#[derive(Debug)]
pub(crate) struct InFlight {
    shared: Arc<Shared>,
    endpoint: Option<Arc<Endpoint>>,
    _share: Option<RequestShare>,
}

impl InFlight {
    /// Counts the request as in flight at this endpoint, and at no other.
    pub(crate) fn assign(&mut self, endpoint: &Arc<Endpoint>) {
        self.release();
        endpoint.start_request();
        self.endpoint = Some(Arc::clone(endpoint));
    }

    fn release(&mut self) {
        if let Some(endpoint) = self.endpoint.take() {
            endpoint.end_request();
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.release();
        self.shared.counters.in_flight.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tower::retry::budget::Budget as _;

    use super::*;

    /// Checks upper bounds only, because deposits expire in a slow run.
    #[test]
    fn the_retry_budget_is_a_reserve_and_a_fifth_of_the_requests() {
        let budget = retry_budget();
        let withdraw_all = || (0..10_000).take_while(|_| budget.withdraw()).count();
        let reserve = withdraw_all();
        assert!((1..=250).contains(&reserve), "{reserve}");
        (0..1000).for_each(|_| budget.deposit());
        let earned = withdraw_all();
        assert!((1..=200).contains(&earned), "{earned}");
    }
}
