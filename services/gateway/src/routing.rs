//! Routing: finds the route of a request by host and path, and chooses one of the route's endpoints.

pub(crate) mod balance;
pub(crate) mod options;
pub(crate) mod ownership;
pub(crate) mod policy;
pub(crate) mod route_tags;
pub(crate) mod routes;
