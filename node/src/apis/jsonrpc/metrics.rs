//! Metrics of JSON-RPC: counts calls by method and code, refusals by reason, and open connections over TCP.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// The counters of JSON-RPC.
#[derive(Debug, Default)]
pub struct JsonRpcMetrics {
    calls: Family<CallLabels, Counter>,
    refused: Family<ReasonLabel, Counter>,
    connections: Gauge,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct CallLabels {
    /// Name of a method, `unknown`, or `none` for a message that is no request.
    method: &'static str,
    /// 0: no error.
    code: i32,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// A connection, until it is dropped.
pub(super) struct OpenConnection<'a>(&'a Gauge);

impl Drop for OpenConnection<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl JsonRpcMetrics {
    /// Registers the counters, all zero.
    pub fn register(registry: &mut Registry) -> Self {
        let jsonrpc = Self::default();
        registry.register(
            "jsonrpc_calls",
            "JSON-RPC calls by method and error code; 0 is success",
            jsonrpc.calls.clone(),
        );
        registry.register(
            "jsonrpc_refused",
            "JSON-RPC batches, results and connections over a limit",
            jsonrpc.refused.clone(),
        );
        registry.register(
            "jsonrpc_connections",
            "Connections of --jsonrpc-tcp now open",
            jsonrpc.connections.clone(),
        );
        jsonrpc
    }

    /// Counts a call.
    pub(super) fn answered(&self, method: &'static str, code: i32) {
        self.calls.get_or_create_owned(&CallLabels { method, code }).inc();
    }

    /// Counts a refusal. The reason is one of a few fixed words.
    pub(super) fn refused(&self, reason: &'static str) {
        self.refused.get_or_create_owned(&ReasonLabel { reason }).inc();
    }

    /// Returns the number of refusals for this reason.
    #[cfg(test)]
    pub(crate) fn refused_count(&self, reason: &'static str) -> u64 {
        self.refused.get_or_create_owned(&ReasonLabel { reason }).get()
    }

    pub(super) fn open_connection(&self) -> OpenConnection<'_> {
        self.connections.inc();
        OpenConnection(&self.connections)
    }
}
