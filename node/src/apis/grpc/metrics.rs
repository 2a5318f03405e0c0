//! Metrics of gRPC: counts calls by method and status code.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use tonic::Code;

/// The counters of gRPC.
#[derive(Debug, Default)]
pub struct GrpcMetrics {
    calls: Family<CallLabels, Counter>,
    /// Refusals of reports that were dropped because the client of the stream does not read.
    pub(crate) refusals_dropped: Counter,
}

/// Labels of a call. The methods are those of the guard's table, and one for all others.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
struct CallLabels {
    method: &'static str,
    code: &'static str,
}

impl GrpcMetrics {
    /// Registers the counters.
    pub fn register(registry: &mut Registry) -> Self {
        let grpc = Self::default();
        registry.register("grpc_calls", "gRPC calls that ended, by method and status", grpc.calls.clone());
        registry.register(
            "grpc_refusals_dropped",
            "Refusals of reports that were dropped, because the client of the Register stream does not read",
            grpc.refusals_dropped.clone(),
        );
        grpc
    }

    pub(super) fn count(&self, method: &'static str, code: Code) {
        self.calls.get_or_create_owned(&CallLabels { method, code: name_of(code) }).inc();
    }
}

/// Returns the name of a code, as the specification of gRPC writes it.
fn name_of(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
