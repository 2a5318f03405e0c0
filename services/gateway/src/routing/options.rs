//! [`GatewayOptions`]: which address ranges may get requests, and which services may announce which routes.

use hearsay_services::network::Cidr;

use crate::routing::ownership::RouteRule;

/// The options of the gateway.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct GatewayOptions {
    /// `--gateway-allow`: address ranges of the programs that get requests. Empty: all that the address
    /// policy allows.
    pub allow: Vec<Cidr>,
    /// `--gateway-routes`: which services may announce which hosts and prefixes. Empty: every service may
    /// announce all except the paths of built-in roles.
    pub routes: Vec<RouteRule>,
}
