//! Metrics of the xDS server: streams, responses and their bytes by type, refused responses, ignored
//! requests, streams that were ended, and the bounds on memory that took effect.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::kind::Kind;

/// The counters of the xDS server.
#[derive(Debug, Default)]
pub struct XdsMetrics {
    pub(super) streams: Gauge,
    left_out: Gauge,
    responses: Family<KindLabel, Counter>,
    bytes: Family<KindLabel, Counter>,
    refused: Family<KindLabel, Counter>,
    ignored: Family<ReasonLabel, Counter>,
    ended: Family<ReasonLabel, Counter>,
    memory_waits: Counter,
    removed_early: Counter,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

impl XdsMetrics {
    /// Registers the counters.
    pub fn register(registry: &mut Registry) -> Self {
        let xds = Self::default();
        registry.register("xds_streams", "xDS streams now open", xds.streams.clone());
        registry.register(
            "xds_left_out",
            "Instances that are no xDS endpoints, because they have no IP address or no port; counted while streams are open",
            xds.left_out.clone(),
        );
        registry.register("xds_responses", "xDS responses", xds.responses.clone());
        registry.register("xds_response_bytes", "Bytes of xDS responses", xds.bytes.clone());
        registry.register("xds_nacks", "xDS responses that clients refused", xds.refused.clone());
        registry.register("xds_ignored", "xDS requests without effect", xds.ignored.clone());
        registry.register("xds_ended", "xDS streams that the node ended", xds.ended.clone());
        registry.register(
            "xds_memory_waits",
            "xDS responses that had to wait until other clients read theirs",
            xds.memory_waits.clone(),
        );
        registry.register(
            "xds_removed_early",
            "Services without instances that xDS clients lost before their time, because there were too many",
            xds.removed_early.clone(),
        );
        xds
    }

    pub(super) fn set_left_out(&self, instances: usize) {
        self.left_out.set(i64::try_from(instances).unwrap_or(i64::MAX));
    }

    pub(super) fn count_response(&self, kind: Kind, bytes: usize) {
        let label = KindLabel { kind: kind.label() };
        self.responses.get_or_create(&label).inc();
        self.bytes.get_or_create(&label).inc_by(bytes as u64);
    }

    pub(super) fn count_nack(&self, kind: Kind) {
        self.refused.get_or_create(&KindLabel { kind: kind.label() }).inc();
    }

    pub(super) fn count_ignored(&self, reason: &'static str) {
        self.ignored.get_or_create(&ReasonLabel { reason }).inc();
    }

    pub(super) fn count_memory_wait(&self) {
        self.memory_waits.inc();
    }

    pub(super) fn count_removed_early(&self, services: u64) {
        self.removed_early.inc_by(services);
    }

    pub(super) fn count_ended(&self, reason: &'static str) {
        self.ended.get_or_create(&ReasonLabel { reason }).inc();
    }
}
