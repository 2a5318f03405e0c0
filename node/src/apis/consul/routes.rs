//! The paths of Consul's interface and their handlers.

use super::{
    agent, agent_writes as writes, catalog, catalog_writes, event, health, kv, monitor, refused, status,
};
use crate::http::{guard::class::Class, route_table::RouteTable};

/// Adds the paths to the node's own. They are documented by Consul, so `/openapi.json` does not list them.
/// An id is the whole rest of its path, because old clients do not escape the slashes in it.
pub(crate) fn consul_routes(table: RouteTable) -> RouteTable {
    let table = table
        .get("/v1/agent/self", agent::own)
        .get("/v1/agent/host", agent::host)
        .get("/v1/agent/version", agent::version)
        .get("/v1/agent/metrics", agent::metrics)
        .get("/v1/agent/monitor", monitor::follow_log)
        .get("/v1/agent/members", agent::members)
        .get("/v1/agent/services", agent::services)
        .get("/v1/agent/service/{*id}", agent::service)
        .get("/v1/agent/checks", agent::checks)
        .get("/v1/agent/health/service/id/{*id}", agent::health_of_id)
        .get("/v1/agent/health/service/name/{name}", agent::health_of_name)
        .get("/v1/catalog/services", catalog::services)
        .get("/v1/catalog/service/{name}", catalog::service)
        .get("/v1/catalog/connect/{name}", health::nothing)
        .get("/v1/catalog/nodes", catalog::nodes)
        .get("/v1/catalog/node/{node}", catalog::node)
        .get("/v1/catalog/node-services/{node}", catalog::node_services)
        .get("/v1/catalog/datacenters", catalog::datacenters)
        .get("/v1/health/service/{name}", health::service)
        .get("/v1/health/connect/{name}", health::nothing)
        .get("/v1/health/ingress/{name}", health::nothing)
        .get("/v1/health/checks/{name}", health::checks)
        .get("/v1/health/state/{state}", health::in_state)
        .get("/v1/health/node/{node}", health::node)
        .get("/v1/status/leader", status::leader)
        .get("/v1/status/peers", status::peers)
        .get("/v1/coordinate/nodes", health::nothing)
        .get("/v1/coordinate/datacenters", status::coordinates_of_datacenters);
    let table = table
        .put("/v1/agent/service/register", Class::Registry, writes::register)
        .put("/v1/agent/service/deregister/{*id}", Class::Registry, writes::deregister)
        .put("/v1/agent/service/maintenance/{*id}", Class::Registry, writes::maintenance)
        .put("/v1/agent/check/register", Class::Registry, writes::register_check)
        .put("/v1/agent/check/deregister/{*id}", Class::Registry, writes::deregister_check)
        .put("/v1/agent/check/pass/{*id}", Class::Registry, writes::pass)
        .put("/v1/agent/check/warn/{*id}", Class::Registry, writes::warn)
        .put("/v1/agent/check/fail/{*id}", Class::Registry, writes::fail)
        .put("/v1/agent/check/update/{*id}", Class::Registry, writes::update)
        .put("/v1/catalog/register", Class::Registry, catalog_writes::register)
        .put("/v1/catalog/deregister", Class::Registry, catalog_writes::deregister)
        .put("/v1/agent/force-leave/{node}", Class::Admin, writes::force_leave);
    let table = table
        .get("/v1/kv", kv::read_all)
        .delete("/v1/kv", Class::Kv, kv::delete_all)
        .get("/v1/kv/{*key}", kv::read)
        .put("/v1/kv/{*key}", Class::Kv, kv::write)
        .delete("/v1/kv/{*key}", Class::Kv, kv::delete)
        .put("/v1/event/fire/{*name}", Class::Kv, event::fire)
        .post("/v1/event/fire/{*name}", Class::Kv, event::fire)
        .get("/v1/event/list", event::list);
    refuse_others(table)
}

/// Paths that Consul has and a node refuses, whatever the method.
fn refuse_others(table: RouteTable) -> RouteTable {
    let table = table
        .refuse("/v1/agent/join/{address}", refused::join)
        .refuse("/v1/agent/reload", refused::reload)
        .refuse("/v1/txn", refused::transactions)
        .refuse("/v1/query", refused::prepared_queries);
    table
        .refuse("/v1/query/{*rest}", refused::prepared_queries)
        .refuse("/v1/session/{*rest}", refused::sessions)
        .refuse("/v1/connect/{*rest}", refused::mesh)
        .refuse("/v1/agent/connect/{*rest}", refused::mesh)
}
