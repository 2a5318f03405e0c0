//! Forwarding of a request to an endpoint: admission, headers, attempts and retries, bodies, tunnels, and
//! proofs for built-in roles.

pub(crate) mod admission;
pub(crate) mod attempts;
pub(crate) mod forwarded;
pub(crate) mod headers;
pub(crate) mod in_flight;
pub(crate) mod proxy;
pub(crate) mod request_body;
pub(crate) mod response_body;
pub(crate) mod role_auth;
pub(crate) mod tunnel;
