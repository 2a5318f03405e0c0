//! Metrics of the DNS server: counts responses by transport and code, requests that were dropped, limited or
//! refused, examined instances, and open connections.

use std::sync::Arc;

use hickory_proto::op::ResponseCode;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{
    clashes::ClashGauges,
    message::{Client, Response, Transport},
};
use crate::view::View;

/// The counters of the DNS server.
#[derive(Debug, Default)]
pub struct DnsMetrics {
    responses: Family<ResponseLabels, Counter>,
    dropped: Counter,
    truncated: Counter,
    limited: Counter,
    private: Counter,
    examined: Counter,
    /// Connections refused or closed for others, because the limit of their host or of all was reached.
    pub(super) refused: Counter,
    connections: Gauge,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ResponseLabels {
    transport: &'static str,
    code: &'static str,
}

/// A connection, until it is dropped.
pub(super) struct OpenConnection<'a>(&'a Gauge);

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl DnsMetrics {
    /// Registers the counters, all zero, and the gauges of name clashes.
    pub fn register(registry: &mut Registry, view: Arc<View>) -> Self {
        registry.register_collector(Box::new(ClashGauges(view)));
        let dns = Self::default();
        let mut add =
            |name: &str, help: &str, counter: &Counter| registry.register(name, help, counter.clone());
        add(
            "dns_dropped",
            "DNS requests without a response: too short, or responses themselves",
            &dns.dropped,
        );
        add("dns_truncated", "DNS responses with TC, which send the client to TCP", &dns.truncated);
        add("dns_limited", "DNS requests beyond the rate of their network", &dns.limited);
        add("dns_refused", "DNS connections refused or closed for others", &dns.refused);
        add("dns_private", "DNS requests of other machines, refused by a private node", &dns.private);
        add("dns_examined", "Instances examined for DNS responses", &dns.examined);
        registry.register("dns_responses", "DNS responses", dns.responses.clone());
        registry.register("dns_connections", "DNS connections now open", dns.connections.clone());
        dns
    }

    pub(super) fn count(&self, client: Client, response: Option<&Response>) {
        let transport = client.transport;
        if transport == Transport::LimitedUdp {
            self.limited.inc();
        }
        if !client.may_read {
            self.private.inc();
        }
        let Some(response) = response else {
            self.dropped.inc();
            return;
        };
        self.examined.inc_by(response.examined as u64);
        if response.is_truncated {
            self.truncated.inc();
        }
        let transport = if transport == Transport::Tcp { "tcp" } else { "udp" };
        let code = match response.code {
            ResponseCode::NoError => "noerror",
            ResponseCode::NXDomain => "nxdomain",
            ResponseCode::Refused => "refused",
            ResponseCode::FormErr => "formerr",
            ResponseCode::NotImp => "notimp",
            _ => "other",
        };
        self.responses.get_or_create(&ResponseLabels { transport, code }).inc();
    }

    pub(super) fn open_connection(&self) -> OpenConnection<'_> {
        self.connections.inc();
        OpenConnection(&self.connections)
    }
}
