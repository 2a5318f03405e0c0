//! Endpoints and the connections to them: connecting, connection pools, expected latency and outlier
//! ejection.

pub(crate) mod connect;
pub(crate) mod endpoint;
pub(crate) mod latency;
pub(crate) mod outlier;
pub(crate) mod pool;
