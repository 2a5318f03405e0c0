//! `gateway`: a reverse proxy that learns its routes from the provider table, on a listener of its own.
//!
//! Nobody writes routes down: whoever is in the table can be reached by `/{service}/…` and by the prefixes it announces
//! ([`routes`] has the order), and whoever is gone is not asked any more. Which instance gets a request is up to [`choose`], whether it
//! may be sent twice to [`proxy`] and [`budget`], who is left out for a while to [`target`].
//!
//! | file | what |
//! | --- | --- |
//! | `listener`, `stream`, `head_timer` | threads, clients' connections and their bounds |
//! | `request`, `framing` | what is refused, smuggling above all |
//! | `routes`, `announced`, `ownership` | which instances a request is for, and who may announce that |
//! | `choose`, `target` | which of them; latency, ejection |
//! | `policy`, `options` | where instances may be, and what the operator allows |
//! | `proxy`, `passing`, `budget` | the way of a request, and of its repetitions |
//! | `pool`, `connect`, `driven` | connections to instances, at whichever of their addresses answers |
//! | `batch` | what is sent, to clients and instances |
//! | `forward`, `published`, `trace` | headers |
//! | `vouch` | what is signed for clients of built-in roles |
//! | `words`, `front_page` | what the gateway says itself |
//! | `body`, `tunnel` | bytes on their way, WebSocket |
//! | `write_stall` | answers of HTTP/2 that the client does not take |
//! | `status`, `counters`, `access` | what is told of all this |
//! | `limits` | every bound |
//!
//! A program gets the client's `Host`, so that what it checks it for (DNS rebinding, `Origin`) still means something. A role is asked
//! under its node's own authority, and told in `Forwarded` which name the gateway has admitted ([`published`]); a node that is asked
//! through a gateway sees `X-Forwarded-For`, so that nobody becomes local by asking through one.
//!
//! Not here: TLS on either side, CONNECT, a cache.

pub mod access;
pub mod announced;
pub mod batch;
pub mod body;
pub mod budget;
pub mod choose;
pub mod connect;
pub mod counters;
pub mod driven;
#[cfg(test)]
mod fixture;
pub mod forward;
pub mod framing;
pub mod front_page;
pub mod head_timer;
pub mod limits;
pub mod listener;
pub mod options;
pub mod ownership;
mod passing;
pub mod policy;
pub mod pool;
pub mod proxy;
pub mod published;
pub mod request;
pub mod routes;
pub mod shared;
pub mod status;
pub mod stream;
pub mod target;
pub mod trace;
pub mod tunnel;
pub mod vouch;
pub mod words;
pub mod write_stall;

use std::{
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

use axum::{Json, Router, extract::State, routing::get};
use serde_json::{Value, json};

use crate::{
    Host, Service,
    service::{Metric, Task},
    shares::Exempt,
};
use limits::Limits;
use listener::Serving;
use policy::GatewayPolicy;
use shared::Shared;

/// Its role.
const ROLE: &str = "gateway";
/// The first port of its ladder.
pub const PORT: u16 = 8080;
/// Changes of the table that come this close together are learnt together. Routes have 100 ms to follow.
const TOGETHER: Duration = Duration::from_millis(5);
/// How often instances that the address policy refuses are judged again: the members whose addresses it refuses come and go.
const JUDGE_AGAIN: Duration = Duration::from_secs(2);
/// The most threads. One serves tens of thousands of requests a second.
const THREADS_MAX: usize = 8;

/// The plug-in.
#[derive(Debug)]
pub struct Gateway {
    limits: Limits,
    threads: usize,
    shared: Arc<OnceLock<Arc<Shared>>>,
    serving: Arc<Mutex<Option<Serving>>>,
}

impl Default for Gateway {
    /// With half of the cores, at least one: the other half is for the kernel, and for the instances that are often on the same machine.
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self::new(Limits::default().within_this_process(), (cores / 2).clamp(1, THREADS_MAX))
    }
}

impl Gateway {
    /// With these bounds, on so many threads.
    pub fn new(limits: Limits, threads: usize) -> Self {
        Self { limits, threads, shared: Arc::default(), serving: Arc::default() }
    }

    fn shared(&self, host: &Arc<dyn Host>) -> Arc<Shared> {
        let make = || {
            let policy = GatewayPolicy::new(host.address_policy().clone(), host.gateway_options());
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

/// Starts serving, and learns what changes for as long as the node runs.
async fn run(host: Arc<dyn Host>, shared: Arc<Shared>, serving: Arc<Mutex<Option<Serving>>>) {
    // Before the first client: who comes early should not be told that there is nothing.
    learn(host.as_ref(), &shared);
    let Some(listener) = host.take_listener(ROLE) else {
        tracing::error!("the gateway has no listener, so it serves nobody");
        return;
    };
    let of_node = Arc::clone(&host);
    _ = shared.exempt.set(Exempt::new(move |ip| of_node.is_exempt_from_shares(ip)));
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
        let judge_again = async {
            match shared.routes().has_refused() {
                true => tokio::time::sleep(JUDGE_AGAIN).await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            () = host.services_changed(shared.index()) => (),
            () = judge_again => (),
        }
        let begun = Instant::now();
        tokio::time::sleep(TOGETHER).await;
        learn(host.as_ref(), &shared);
        // A large table takes longer to learn; no more than half of the time goes into that.
        tokio::time::sleep(begun.elapsed().saturating_sub(TOGETHER)).await;
    }
}

fn learn(host: &dyn Host, shared: &Shared) {
    let (index, providers) = host.all_providers();
    shared.learn(index, &providers);
}
