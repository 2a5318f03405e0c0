//! [`Metrics`]: counts HTTP requests, collects the metrics of DNS, JSON-RPC, protocol, provider table,
//! plug-ins, journals and service registry, and writes them all as text for `/metrics`.
//!
//! The counters of HTTP, DNS and JSON-RPC are kept here. Figures of the provider table are computed when
//! `/metrics` is read. The protocol and the swarm keep their own counters, of which the driver publishes a
//! snapshot about once a second.

mod registry;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use hearsay_protocol::MemberState;
use hearsay_services::{Metric, MetricKind, Service};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, MetricEncoder, text},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use crate::{
    apis::{
        dns::DnsMetrics, grpc::metrics::GrpcMetrics, jsonrpc::metrics::JsonRpcMetrics,
        xds::metrics::XdsMetrics,
    },
    journal::Journals,
    view::View,
};
use registry::RegistryMetrics;

/// The media type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A metric that the driver publishes: name (without `hearsay_` and `_total`), help, value.
pub type Published<T> = (&'static str, &'static str, T);

/// All metrics of the node.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Metrics of HTTP.
    pub http: HttpMetrics,
    /// Counters of DNS.
    pub dns: Arc<DnsMetrics>,
    /// Counters of the xDS server.
    pub xds: Arc<XdsMetrics>,
    /// Counters of gRPC.
    pub grpc: GrpcMetrics,
    /// Counters of JSON-RPC.
    pub jsonrpc: JsonRpcMetrics,
    published: Arc<Publication>,
    plugins: Arc<PluginMetrics>,
    journals: Arc<JournalMetrics>,
    programs: Arc<RegistryMetrics>,
}

/// Labels of a request. Routes are patterns (`/services/{name}`), so their number is bounded.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct RequestLabels {
    route: String,
    method: &'static str,
    status: u16,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct RouteLabel {
    route: String,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// Counters of HTTP requests, refusals and ended connections, and gauges of open connections and waiting
/// requests.
#[derive(Debug)]
pub struct HttpMetrics {
    requests: Family<RequestLabels, Counter>,
    seconds: Family<RouteLabel, Histogram, fn() -> Histogram>,
    refused: Family<ReasonLabel, Counter>,
    ended: Family<ReasonLabel, Counter>,
    /// Open connections.
    pub connections: Gauge,
    /// Blocking queries and event streams under way.
    pub waiting: Gauge,
}

impl Metrics {
    /// Creates the metrics of a node with this table, all zero.
    pub fn new(view: Arc<View>) -> Self {
        let mut registry = Registry::with_prefix("hearsay");
        let http = HttpMetrics::register(&mut registry);
        let dns = Arc::new(DnsMetrics::register(&mut registry, Arc::clone(&view)));
        let xds = Arc::new(XdsMetrics::register(&mut registry));
        let grpc = GrpcMetrics::register(&mut registry);
        let jsonrpc = JsonRpcMetrics::register(&mut registry);
        let published = Arc::new(Publication::default());
        registry.register_collector(Box::new(TableGauges(view)));
        registry.register_collector(Box::new(Arc::clone(&published)));
        let plugins = Arc::new(PluginMetrics::default());
        registry.register_collector(Box::new(Arc::clone(&plugins)));
        let journals = Arc::new(JournalMetrics::default());
        registry.register_collector(Box::new(Arc::clone(&journals)));
        let programs = Arc::new(RegistryMetrics::default());
        registry.register_collector(Box::new(Arc::clone(&programs)));
        Self { registry, http, dns, xds, grpc, jsonrpc, published, plugins, journals, programs }
    }

    /// Replaces the counters of the driver: `hearsay_<name>_total`.
    pub fn set_protocol(&self, counters: Vec<Published<u64>>) {
        *self.published.counters.lock().unwrap_or_else(PoisonError::into_inner) = counters;
    }

    /// Replaces the gauges of the driver: `hearsay_<name>`.
    pub fn set_protocol_gauges(&self, gauges: Vec<Published<f64>>) {
        *self.published.gauges.lock().unwrap_or_else(PoisonError::into_inner) = gauges;
    }

    /// Adds the metrics of plug-ins.
    pub fn set_plugins(&self, plugins: Vec<Arc<dyn Service>>) {
        *self.plugins.0.lock().unwrap_or_else(PoisonError::into_inner) = plugins;
    }

    /// Adds the metrics of journals, until they are dropped.
    pub fn set_journals(&self, journals: &Arc<Journals>) {
        *self.journals.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(journals);
    }

    /// Adds the metrics of the registry, until it is dropped.
    pub fn set_programs(&self, programs: &Arc<crate::registry::Registry>) {
        *self.programs.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(programs);
    }

    /// Returns all metrics in the OpenMetrics text format.
    ///
    /// # Errors
    /// A collector failed to encode itself, which is a defect of this program.
    pub fn render(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

impl HttpMetrics {
    fn register(registry: &mut Registry) -> Self {
        // From 0.1 ms by factors of 4 to 6.6 s; longer requests are blocking queries.
        let histogram: fn() -> Histogram = || Histogram::new(exponential_buckets(0.0001, 4.0, 9));
        let http = Self {
            requests: Family::default(),
            seconds: Family::new_with_constructor(histogram),
            refused: Family::default(),
            ended: Family::default(),
            connections: Gauge::default(),
            waiting: Gauge::default(),
        };
        registry.register("http_requests", "HTTP requests answered", http.requests.clone());
        registry.register(
            "http_request_seconds",
            "Time to the head of an answer; blocking queries wait on purpose",
            http.seconds.clone(),
        );
        registry.register(
            "http_refused",
            "Requests and connections refused, by what they broke",
            http.refused.clone(),
        );
        registry.register(
            "http_connections_ended",
            "Connections that ended badly, by cause",
            http.ended.clone(),
        );
        registry.register("http_connections", "Connections open", http.connections.clone());
        registry.register("http_waiting", "Blocking queries and event streams held", http.waiting.clone());
        http
    }

    /// Counts a response.
    pub fn answered(&self, route: &str, method: &axum::http::Method, status: u16, took: Duration) {
        let route = route.to_owned();
        self.seconds.get_or_create_owned(&RouteLabel { route: route.clone() }).observe(took.as_secs_f64());
        self.requests
            .get_or_create_owned(&RequestLabels { route, method: method_label(method), status })
            .inc();
    }

    /// Counts a refusal. The reason is one of a few fixed words.
    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create_owned(&ReasonLabel { reason }).inc();
    }

    /// Returns the number of refusals for this reason.
    pub fn refused_count(&self, reason: &'static str) -> u64 {
        self.refused.get_or_create_owned(&ReasonLabel { reason }).get()
    }

    /// Counts a connection that was aborted. The cause is one of a few fixed words.
    pub fn ended(&self, cause: &'static str) {
        self.ended.get_or_create_owned(&ReasonLabel { reason: cause }).inc();
    }

    /// Returns the number of connections aborted for this cause.
    pub fn ended_count(&self, cause: &'static str) -> u64 {
        self.ended.get_or_create_owned(&ReasonLabel { reason: cause }).get()
    }
}

/// Returns the label of a method. Clients may invent methods, so unknown ones share a label.
fn method_label(method: &axum::http::Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "PATCH" => "PATCH",
        "OPTIONS" => "OPTIONS",
        _ => "other",
    }
}

/// Collector of the metrics of running plug-ins.
#[derive(Default)]
struct PluginMetrics(Mutex<Vec<Arc<dyn Service>>>);

impl fmt::Debug for PluginMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PluginMetrics")
    }
}

impl Collector for PluginMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let plugins = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let all: Vec<Metric> = plugins.iter().flat_map(|plugin| plugin.metrics()).collect();
        // Samples of one name must be adjacent, under one description.
        for same in all.chunk_by(|a, b| a.name == b.name) {
            let Some(first) = same.first() else { continue };
            let kind = type_of(first);
            if first.label.is_none() {
                write_number(first, encoder.encode_descriptor(first.name, first.help, None, kind)?)?;
                continue;
            }
            let mut family = encoder.encode_descriptor(first.name, first.help, None, kind)?;
            for metric in same {
                write_number(metric, family.encode_family(&metric.label.as_slice())?)?;
            }
        }
        Ok(())
    }
}

/// Collector of the metrics of journals, labelled by topic. It does not keep the journals open.
#[derive(Default)]
struct JournalMetrics(Mutex<Weak<Journals>>);

impl fmt::Debug for JournalMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JournalMetrics")
    }
}

impl Collector for JournalMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let journals = self.0.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        let Some(journals) = journals else { return Ok(()) };
        let mut all: Vec<(&str, Metric)> = journals
            .metrics()
            .flat_map(|(topic, metrics)| metrics.into_iter().map(move |metric| (topic, metric)))
            .collect();
        // Samples of one name must be adjacent, under one description.
        all.sort_by_key(|(_, metric)| metric.name);
        for same in all.chunk_by(|(_, a), (_, b)| a.name == b.name) {
            let Some((_, first)) = same.first() else { continue };
            let mut family = encoder.encode_descriptor(first.name, first.help, None, type_of(first))?;
            for (topic, metric) in same {
                let labels: Vec<_> = [("topic", *topic)].into_iter().chain(metric.label).collect();
                write_number(metric, family.encode_family(&labels.as_slice())?)?;
            }
        }
        Ok(())
    }
}

fn type_of(metric: &Metric) -> MetricType {
    match metric.kind {
        MetricKind::Counter => MetricType::Counter,
        MetricKind::Gauge => MetricType::Gauge,
    }
}

fn write_number(metric: &Metric, encoder: MetricEncoder<'_>) -> fmt::Result {
    match metric.kind {
        MetricKind::Counter => ConstCounter::new(metric.value).encode(encoder),
        MetricKind::Gauge => ConstGauge::new(metric.value).encode(encoder),
    }
}

/// The last snapshot that the driver published.
#[derive(Debug, Default)]
struct Publication {
    counters: Mutex<Vec<Published<u64>>>,
    gauges: Mutex<Vec<Published<f64>>>,
}

impl Collector for Publication {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for (name, help, value) in self.counters.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let counter = ConstCounter::new(*value);
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        for (name, help, value) in self.gauges.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let gauge = ConstGauge::new(*value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        Ok(())
    }
}

/// Collector of figures of the provider table.
#[derive(Debug)]
struct TableGauges(Arc<View>);

impl Collector for TableGauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (members, services, instances, index, root_hash, guarded) = self.0.read(|table| {
            let mut members: BTreeMap<MemberState, u64> = BTreeMap::new();
            table.members().for_each(|member| *members.entry(member.state).or_default() += 1);
            (
                members,
                table.services().count(),
                table.providers_len(),
                table.index(),
                table.root_hash(),
                table.guarded_total(),
            )
        });
        let gauge = ConstGauge::new(0u64);
        let mut family = encoder.encode_descriptor(
            "members",
            "Members remembered, by state",
            None,
            gauge.metric_type(),
        )?;
        for state in [MemberState::Alive, MemberState::Suspect, MemberState::Failed, MemberState::Left] {
            let count = ConstGauge::new(members.get(&state).copied().unwrap_or(0));
            count.encode(family.encode_family(&[("state", state.as_str())])?)?;
        }
        for (name, help, value) in [
            ("services", "Services with at least one instance", services as u64),
            ("instances", "Instances listed", instances as u64),
            ("index", "The index of the newest change of this node's table", index.0),
        ] {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)?;
        }
        let counter = ConstCounter::new(guarded);
        let help = "Instances kept as unverified because several hosts fell silent at once";
        counter.encode(encoder.encode_descriptor("instances_kept", help, None, counter.metric_type())?)?;
        let info = prometheus_client::metrics::info::Info::new([("hash", hex(&root_hash))]);
        let help = "The hash of everything that anti-entropy compares; equal on nodes that see the same";
        info.encode(encoder.encode_descriptor("root_hash", help, None, info.metric_type())?)
    }
}

/// Formats bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use hearsay_protocol::{Change, Index, Time};

    use super::*;
    use crate::view::Clock;

    struct Counting;

    impl Service for Counting {
        fn name(&self) -> &str {
            "counting"
        }
        fn prefixes(&self) -> &[&str] {
            &[]
        }
        fn router(&self, _: Arc<dyn hearsay_services::Host>) -> axum::Router {
            axum::Router::new()
        }
        fn metrics(&self) -> Vec<Metric> {
            let metric = |name, kind, label, value| Metric { name, help: "Things", kind, label, value };
            vec![
                metric("things", MetricKind::Counter, None, 1),
                metric("kinds", MetricKind::Gauge, Some(("kind", "a")), 2),
                metric("kinds", MetricKind::Gauge, Some(("kind", "b")), 3),
            ]
        }
    }

    #[test]
    fn what_the_table_holds_and_what_the_driver_publishes_is_shown() {
        let view = Arc::new(View::new(Index(7), Clock::start()));
        view.apply(Time::ZERO, [Change::RootHash([0xab; 16])]);
        let metrics = Metrics::new(view);
        metrics.set_plugins(vec![Arc::new(Counting)]);
        metrics.set_protocol(vec![("messages_dropped", "Messages dropped", 3)]);
        metrics.set_protocol_gauges(vec![("neighbours", "Open connections", 6.0)]);
        metrics.http.refused("host");
        let text = metrics.render().unwrap();
        for line in [
            "hearsay_members{state=\"alive\"} 0",
            "hearsay_index 7",
            "hearsay_messages_dropped_total 3",
            "hearsay_neighbours 6.0",
            "hearsay_things_total 1",
            "hearsay_kinds{kind=\"a\"} 2",
            "hearsay_kinds{kind=\"b\"} 3",
            "hearsay_http_refused_total{reason=\"host\"} 1",
            &format!("hearsay_root_hash_info{{hash=\"{}\"}} 1", "ab".repeat(16)),
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in:\n{text}");
        }
    }
}
