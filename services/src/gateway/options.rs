//! What an operator says about the gateway beyond where it listens.

use super::ownership::RouteRule;
use crate::cidr::Cidr;

/// The options of the gateway.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct GatewayOptions {
    /// `--gateway-allow`: where programs may be that requests are passed on to. Empty: wherever the address
    /// policy allows.
    pub allow: Vec<Cidr>,
    /// `--gateway-routes`: which services may announce which hosts and prefixes. Empty: every service all of
    /// them, but the paths of built-in roles.
    pub routes: Vec<RouteRule>,
}
