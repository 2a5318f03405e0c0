//! `Gateway`: the plug-in that starts the gateway's threads, and updates its routes with the provider table.

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use axum::{Json, Router, extract::State, routing::get};
use hearsay_services::{Host, Metric, Service, Task, network::Exempt};
use serde_json::{Value, json};

use crate::{
    limits::Limits,
    observe::status,
    routing::{options::GatewayOptions, policy::GatewayPolicy},
    server::listener::Serving,
    shared::Shared,
};

/// The name of the role.
const ROLE: &str = "gateway";
/// The first port that the listener tries.
const PORT: u16 = 8080;
/// Time for which changes of the provider table are collected before the routes are updated. Routes must
/// follow within 100 ms.
const UPDATE_DELAY: Duration = Duration::from_millis(5);
/// Interval at which forbidden addresses are checked again, because the policy depends on the members'
/// addresses.
const RECHECK: Duration = Duration::from_secs(2);
/// Maximum number of threads. One thread serves tens of thousands of requests a second.
const THREADS_MAX: usize = 8;

/// The gateway as a plug-in of a node.
#[derive(Debug)]
pub struct Gateway {
    limits: Limits,
    threads: usize,
    shared: Arc<OnceLock<Arc<Shared>>>,
    serving: Arc<Mutex<Option<Serving>>>,
}

impl Default for Gateway {
    /// Returns a gateway with one thread for every two cores. The other cores are for the kernel, and for
    /// instances on the same machine.
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self::new(Limits::default().within_this_process(), (cores / 2).clamp(1, THREADS_MAX))
    }
}

impl Gateway {
    /// Returns a gateway with these limits and this number of threads.
    pub fn new(limits: Limits, threads: usize) -> Self {
        Self { limits, threads, shared: Arc::default(), serving: Arc::default() }
    }

    fn shared(&self, host: &Arc<dyn Host>) -> Arc<Shared> {
        let make = || {
            let options =
                host.plugin_options(ROLE).and_then(|options| options.downcast_ref::<GatewayOptions>());
            let options = options.cloned().unwrap_or_default();
            let policy = GatewayPolicy::new(host.address_policy().clone(), options);
            Arc::new(Shared::new(Arc::clone(host), self.limits, self.threads, policy))
        };
        Arc::clone(self.shared.get_or_init(make))
    }
}

impl Service for Gateway {
    fn name(&self) -> &str {
        ROLE
    }

    fn prefixes(&self) -> &[&str] {
        &["/gateway"]
    }

    fn router(&self, _host: Arc<dyn Host>) -> Router {
        let describe = async |State(shared): State<Arc<OnceLock<Arc<Shared>>>>| {
            Json(status::describe(shared.get().map(Arc::as_ref)))
        };
        Router::new().route("/gateway", get(describe)).with_state(Arc::clone(&self.shared))
    }

    fn task(&self, host: Arc<dyn Host>) -> Option<Task> {
        let (shared, serving) = (self.shared(&host), Arc::clone(&self.serving));
        Some(Box::pin(run(host, shared, serving)))
    }

    fn listener(&self) -> Option<u16> {
        Some(PORT)
    }

    fn drain(&self) -> Option<Task> {
        let serving = self.serving.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        Some(Box::pin(serving.drain()))
    }

    fn metrics(&self) -> Vec<Metric> {
        self.shared.get().map(|shared| shared.counters.metrics()).unwrap_or_default()
    }

    fn openapi(&self) -> Value {
        json!({ "/gateway": { "get": {
            "summary": "Where the gateway listens, its routes, and how its instances are doing",
            "responses": { "200": { "description": "Its state", "content": { "application/json": { "schema": {
                "type": "object", "required": ["role", "state", "listener"], "properties": {
                    "role": { "type": "string" }, "state": { "type": "string" }, "listener": { "type": ["string", "null"] },
                    "routes": { "type": "array", "items": { "type": "object" } },
                    "instances": { "type": "array", "items": { "type": "object" } },
                } } } } } },
        } } })
    }
}

/// Starts the threads, and updates the routes for as long as the node runs.
async fn run(host: Arc<dyn Host>, shared: Arc<Shared>, serving: Arc<Mutex<Option<Serving>>>) {
    // The first clients would get 404 if the listener came before the routes.
    update_routes(host.as_ref(), &shared);
    let Some(listener) = host.take_listener(ROLE) else {
        tracing::error!("the gateway has no listener, so it does not serve");
        return;
    };
    let node = Arc::clone(&host);
    _ = shared.exempt.set(Exempt::new(move |ip| node.is_exempt_from_shares(ip)));
    let started = Serving::start(&shared, &listener);
    let address = listener.local_addr();
    drop(listener);
    match (started, address) {
        (Ok(started), Ok(address)) => {
            *serving.lock().unwrap_or_else(PoisonError::into_inner) = Some(started);
            _ = shared.address.set(address);
            tracing::info!(%address, threads = shared.threads, "gateway serves");
        }
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(%error, "the gateway cannot start");
            return;
        }
    }
    loop {
        let recheck = async {
            match shared.routes().has_forbidden() {
                true => tokio::time::sleep(RECHECK).await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            () = host.services_changed(shared.index()) => (),
            () = recheck => (),
        }
        let started = Instant::now();
        tokio::time::sleep(UPDATE_DELAY).await;
        update_routes(host.as_ref(), &shared);
        // A large table takes longer to update. This pause keeps updates below half of the time.
        tokio::time::sleep(started.elapsed().saturating_sub(UPDATE_DELAY)).await;
    }
}

fn update_routes(host: &dyn Host, shared: &Shared) {
    let (index, providers) = host.all_providers();
    shared.update_routes(index, &providers);
}
