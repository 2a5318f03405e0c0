//! DNS server of a node: answers queries for the services and nodes of the cluster from the provider table.
//!
//! | file | content |
//! | --- | --- |
//! | `name` | the forms of names, and what each asks for |
//! | `answer`, `browse` | the records of the provider table; those of DNS-SD |
//! | `endpoints`, `sample` | the choice of a service's instances, with bounded work |
//! | `clashes` | names that need one label |
//! | `message` | a request's checks, a response's size |
//! | `clients`, `rate_limit` | which clients get records; the limit for those whose address may be forged |
//! | `server`, `datagrams`, `metrics` | sockets, connections, counters |
//! | `fuzzing`, `fixture` | properties of responses, for a fuzz target; the table that they are about |

mod answer;
mod browse;
pub(crate) mod clashes;
mod clients;
mod datagrams;
mod endpoints;
#[cfg(any(test, fuzzing))]
mod fixture;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod message;
mod metrics;
mod name;
mod rate_limit;
mod sample;
mod server;
#[cfg(test)]
mod tests;

use std::{io, sync::Arc};

use hearsay_protocol::NodeId;
use hearsay_services::network::Exempt;
use tokio::sync::watch;

use crate::{config::Config, system::ports::DnsSockets, view::View};
use answer::Source;
use clients::OwnAddresses;
pub use metrics::DnsMetrics;
use rate_limit::RateLimit;
use server::Server;

/// What a node answers DNS from.
#[derive(Debug)]
pub struct Dns {
    view: Arc<View>,
    node: NodeId,
    /// How long resolvers may keep a record, in seconds.
    ttl: u32,
    /// Whether only clients of this machine get records.
    is_private: bool,
    metrics: Arc<DnsMetrics>,
}

impl Dns {
    /// A server that answers from the provider table of a node.
    pub fn new(config: &Config, node: NodeId, view: Arc<View>, metrics: Arc<DnsMetrics>) -> Self {
        Self { view, node, ttl: config.dns_ttl, is_private: config.private, metrics }
    }

    /// Answers at these sockets until `stop` is true or its sender is dropped. `exempt`: hosts without a
    /// share of the connections.
    ///
    /// # Errors
    /// The sockets cannot be used.
    pub async fn serve(
        self,
        sockets: DnsSockets,
        exempt: Exempt,
        stop: watch::Receiver<bool>,
    ) -> io::Result<()> {
        let source = Source { view: self.view, node: self.node, ttl: self.ttl };
        let only = self.is_private.then(OwnAddresses::default);
        let server = Arc::new(Server { source, metrics: self.metrics, limit: RateLimit::default(), only });
        server::serve(server, sockets, exempt, stop).await
    }
}
