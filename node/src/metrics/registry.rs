//! [`RegistryMetrics`]: metrics of the service registry, collected when `/metrics` is read.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use hearsay_services::MetricKind;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric as _, MetricEncoder},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use crate::registry::{Registry, checks::metrics::CheckMetric};

/// Collector over the node's registry, which it does not keep alive.
#[derive(Debug, Default)]
pub(super) struct RegistryMetrics(pub(super) Mutex<Weak<Registry>>);

impl Collector for RegistryMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let registry = self.0.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
        let Some(registry): Option<Arc<Registry>> = registry else { return Ok(()) };
        let all = registry.metrics();
        // Samples of one name must be adjacent, under one description.
        for same in all.chunk_by(|a, b| a.name == b.name) {
            let Some(first) = same.first() else { continue };
            let kind = match first.kind {
                MetricKind::Counter => MetricType::Counter,
                MetricKind::Gauge => MetricType::Gauge,
            };
            if first.labels.is_empty() {
                write(first, encoder.encode_descriptor(first.name, first.help, None, kind)?)?;
                continue;
            }
            let mut family = encoder.encode_descriptor(first.name, first.help, None, kind)?;
            for metric in same {
                let labels = metric.labels.as_slice();
                write(metric, family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

fn write(metric: &CheckMetric, encoder: MetricEncoder<'_>) -> fmt::Result {
    match metric.kind {
        MetricKind::Counter => ConstCounter::new(metric.value).encode(encoder),
        MetricKind::Gauge => ConstGauge::new(metric.value).encode(encoder),
    }
}
