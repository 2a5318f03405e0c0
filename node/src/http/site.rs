//! What handlers know of their node and may ask of it.

use std::{collections::BTreeSet, net::IpAddr, sync::Arc};

use axum::http::StatusCode;
use hearsay_protocol::{NodeId, providers::ProviderTable};
use hearsay_services::{
    Problem,
    cidr::Cidr,
    shares::{Holder, Refusal, Share, Shares},
};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};

use super::accept::HOLDER;
use crate::{
    control::Control, driver::Neighbourhood, metrics::Metrics, registry::Registry, signing::Signing,
    storage::Secret, view::View, warnings::Warnings,
};

/// Whether a node should be sent requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Readiness {
    /// Not yet: it still reads its data or looks for others.
    Starting,
    /// Yes, also when it is alone.
    Ready,
    /// No longer: it says goodbye.
    Leaving,
}

/// Who may write.
#[derive(Default, Debug)]
pub struct Access {
    /// What others present; without one, none of them can.
    pub token: Option<Secret<String>>,
    /// Strangers cannot join this cluster, so private addresses are no members either.
    pub is_keyed: bool,
    /// Anybody may write to the plug-ins' paths (`--open`).
    pub is_open: bool,
    /// Proxies that say truly for whom they ask (`--trusted-proxy`).
    pub trusted_proxies: Vec<Cidr>,
    /// Not even who asks by loopback (`--loopback-needs-token`); the Unix socket remains.
    pub loopback_needs_token: bool,
}

/// A node as its HTTP handlers see it. The driver makes one and hands it to [`router`](super::router).
#[derive(Debug)]
pub struct Site {
    /// The table that is answered from.
    pub view: Arc<View>,
    /// The node's own identity.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// The cluster's name.
    pub cluster: String,
    /// Where requests are counted.
    pub metrics: Arc<Metrics>,
    /// The programs that this node speaks for.
    pub registry: Arc<Registry>,
    /// The way to the driver.
    pub control: mpsc::Sender<Control>,
    /// Who may write.
    pub access: Arc<Access>,
    /// Requests that members sign.
    pub signing: Arc<Signing>,
    /// Whether to send requests here. The driver changes it.
    pub readiness: watch::Receiver<Readiness>,
    /// What a person should mend, though the node serves.
    pub warnings: Arc<Warnings>,
    /// To whom this node is connected. The driver changes it.
    pub neighbours: watch::Receiver<Neighbourhood>,
    /// Names under which this node may be addressed.
    pub names: HostNames,
    /// Places for requests that wait.
    pub waiters: Waiters,
    /// Room for answers that are being read.
    pub answers: Answers,
}

impl Site {
    /// Looks into the table. Clone pointers in there, and write JSON outside.
    pub(super) fn read<R>(&self, look: impl FnOnce(&ProviderTable) -> R) -> R {
        self.view.read(look)
    }

    /// Resolves when the node leaves: then nobody is to be kept waiting.
    pub(super) async fn leaving(&self) {
        // An error: the driver is gone, which is as good as leaving.
        let _ = self.readiness.clone().wait_for(|readiness| *readiness == Readiness::Leaving).await;
    }

    /// A place for a request that waits, until it is dropped. Charged to the host of the connection that the task serves.
    ///
    /// # Errors
    /// 503 when all places are taken, or the share of the host.
    pub(super) fn seat(&self) -> Result<Seat, Problem> {
        // Without a connection it is the node itself that asks.
        let holder = HOLDER.try_with(|holder| *holder).unwrap_or(Holder::Exempt);
        let (reason, detail) = match self.waiters.0.take(holder, None) {
            Ok(share) => {
                let waiting = self.metrics.http.waiting.clone();
                waiting.inc();
                return Ok(Seat { _share: share, waiting });
            }
            Err(Refusal::Full) => (
                "waiting",
                "too many blocking queries and event streams are held here; ask another node, or without index",
            ),
            Err(Refusal::Share) => (
                "waiting_share",
                "your host has its share of the blocking queries and event streams here, which are nearly as many as the limit; \
                 close some, ask another node, or ask without index",
            ),
        };
        self.metrics.http.refused(reason);
        Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail))
    }
}

/// Places for blocking queries and event streams. Fewer than connections, so that those who wait cannot keep out those who ask.
#[derive(Debug)]
pub struct Waiters(Arc<Shares>);

impl Waiters {
    /// So many places.
    pub fn new(places: usize) -> Self {
        Self(Shares::new(places))
    }
}

impl Default for Waiters {
    /// As many as [`Limits`](super::Limits) say. Guess; watch `hearsay_http_waiting`.
    fn default() -> Self {
        Self::new(super::Limits::default().streams)
    }
}

/// Memory for large answers, until their readers have taken them. A slow reader may take as long as it likes, but many of them together may
/// not take everything.
#[derive(Debug)]
pub struct Answers(Arc<Semaphore>);

impl Answers {
    /// So many bytes.
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS))))
    }

    /// Room for so many, until it is dropped.
    pub(super) fn take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.0).try_acquire_many_owned(u32::try_from(bytes).ok()?).ok()
    }
}

impl Default for Answers {
    /// 256 MiB: a thousand readers of a table of a thousand instances.
    fn default() -> Self {
        Self::new(256 * 1024 * 1024)
    }
}

/// A taken place.
#[derive(Debug)]
pub(super) struct Seat {
    _share: Share,
    waiting: Gauge,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.waiting.dec();
    }
}

/// The names under which a node may be addressed over HTTP.
///
/// A web page may point a name of its own at 127.0.0.1 (DNS rebinding) and would then share an origin with this node. So a name
/// is accepted only if nobody can register it in the public DNS (an address, `localhost`, a single label, a reserved suffix), or
/// if it is known to be this node's.
#[derive(Clone, Debug, Default)]
pub struct HostNames(BTreeSet<String>);

/// Suffixes that the public DNS does not delegate: RFC 6761, RFC 6762, RFC 8375, `.internal` (ICANN, 2024), and the names that
/// this cluster's own DNS answers.
const LOCAL_SUFFIXES: [&str; 6] = [".localhost", ".local", ".home.arpa", ".internal", ".hearsay", ".consul"];

impl HostNames {
    /// The names that this node is advertised under, its host name, and whatever else was configured; without ports.
    pub fn new(names: impl IntoIterator<Item = String>) -> Self {
        Self(names.into_iter().map(|name| canonical(&name)).collect())
    }

    /// Whether a request for this host (without its port) is meant for this node.
    pub fn accept(&self, host: &str) -> bool {
        let host = canonical(host);
        let literal = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(&host);
        literal.parse::<IpAddr>().is_ok()
            || (!host.is_empty() && !host.contains('.'))
            || LOCAL_SUFFIXES.iter().any(|suffix| host.ends_with(suffix))
            || self.0.contains(&host)
    }
}

fn canonical(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_nobody_else_can_own_are_accepted() {
        let names = HostNames::new(["Node1.Example.org".to_owned()]);
        for host in [
            "127.0.0.1",
            "10.0.0.7",
            "[::1]",
            "localhost",
            "LOCALHOST",
            "a.localhost",
            "n1",
            "n1.local",
            "n1.local.",
            "node1.example.org",
            "grading.service.consul",
            "n.svc.cluster.local",
        ] {
            assert!(names.accept(host), "{host}");
        }
        for host in ["evil.example", "example.org", "127.0.0.1.evil.example", "local.evil.example", "", "."] {
            assert!(!names.accept(host), "{host}");
        }
    }
}
