//! Describes the gateway as JSON for `GET /gateway`: listener, routes, instances, totals, routes that several
//! services announce, and tags and instances that cannot be used, with the reason.

use std::sync::atomic::Ordering::Relaxed;

use serde_json::{Value, json};

use crate::{
    observe::counters::Counters,
    routing::routes::{Conflict, Ignored, Key, Member, Route, Routes},
    shared::Shared,
};

/// Maximum number of routes and instances that are listed; the counts include all.
const LISTED_MAX: usize = 1000;

/// Returns the state. `shared` is `None` before the gateway is started.
pub(crate) fn describe(shared: Option<&Shared>) -> Value {
    let Some(shared) = shared else {
        return json!({ "role": "gateway", "state": "not started", "listener": null });
    };
    let routes = shared.routes();
    let listener = shared.address.get().map(ToString::to_string);
    let state = if listener.is_some() { "serving" } else { "no listener" };
    json!({
        "role": "gateway",
        "state": state,
        "listener": listener,
        "threads": shared.threads,
        "index": shared.index().0,
        "routes": routes.iter().take(LISTED_MAX).map(|(key, route)| describe_route(key, route)).collect::<Vec<_>>(),
        "routesCount": routes.iter().count(),
        "instances": describe_instances(shared, &routes),
        "instancesCount": routes.endpoints().count(),
        "conflicts": routes.conflicts.iter().map(describe_conflict).collect::<Vec<_>>(),
        "conflictsCount": routes.conflicts_count,
        "ignored": routes.ignored.iter().map(describe_ignored).collect::<Vec<_>>(),
        "ignoredCount": routes.ignored_count,
        "totals": totals(&shared.counters),
    })
}

fn describe_route(key: &Key, route: &Route) -> Value {
    let (host, prefix, service) = match key {
        Key::Prefix(host, prefix) => (host.as_deref(), format!("{prefix}/"), None),
        Key::Service(name) => (None, format!("/{name}/"), Some(name)),
    };
    let members = &route.group.members;
    let first = members.first().map(|member| member.options.as_ref()).cloned().unwrap_or_default();
    let strip = match key {
        Key::Prefix(..) => first.strip.clone(),
        Key::Service(name) => Some(format!("/{name}")),
    };
    // Options are listed for each instance only if they differ.
    let options = if members.iter().all(|member| *member.options == first) {
        Value::Null
    } else {
        members.iter().take(LISTED_MAX).map(describe_options).collect()
    };
    json!({
        "host": host,
        "prefix": prefix,
        "service": service,
        "strip": strip,
        "http2": first.http2,
        "options": options,
        "instances": route.group.members.iter().take(LISTED_MAX).map(|m| &m.endpoint.id).collect::<Vec<_>>(),
        "healthy": route.group.healthy.len(),
        "unusable": route.group.unusable,
    })
}

fn describe_conflict(conflict: &Conflict) -> Value {
    let Conflict { host, prefix, services } = conflict;
    json!({ "host": host, "prefix": format!("{prefix}/"), "services": services })
}

fn describe_ignored(ignored: &Ignored) -> Value {
    let Ignored { subject, service, node, reason } = ignored;
    json!({ "what": subject, "service": service, "node": node, "why": reason })
}

fn describe_options(member: &Member) -> Value {
    let options = &member.options;
    json!({
        "instance": member.endpoint.id,
        "strip": options.strip,
        "http2": options.http2,
        "ownHost": options.own_host,
    })
}

fn describe_instances(shared: &Shared, routes: &Routes) -> Vec<Value> {
    let now_ms = shared.now_ms();
    // Each instance belongs to one service, so the routes by service list it once.
    let members = routes.iter().filter(|(key, _)| matches!(key, Key::Service(_)));
    let members = members.flat_map(|(_, route)| &route.group.members).take(LISTED_MAX);
    members
        .map(|member| {
            let (endpoint, provider) = (&member.endpoint, &member.provider);
            let (responses, failures) = endpoint.totals();
            json!({
                "id": endpoint.id,
                "service": provider.instance.service,
                "node": provider.node,
                "url": format!("http://{}", endpoint.authority),
                "addresses": provider.addresses,
                "health": provider.instance.health.as_str(),
                "h2c": endpoint.h2c,
                "inFlight": endpoint.in_flight(),
                "latencyMs": f64::from((endpoint.latency_us(now_ms) / 10.0).round()) / 100.0,
                "ejected": endpoint.outlier.is_ejected(now_ms),
                "ejectedForMs": u64::try_from(endpoint.outlier.ejected_for(now_ms).as_millis()).unwrap_or(u64::MAX),
                "answered": responses,
                "failed": failures,
                "connectionsKept": endpoint.idle_connections.load(Relaxed),
            })
        })
        .collect()
}

fn totals(counters: &Counters) -> Value {
    json!({
        "requests": counters.requests.load(Relaxed),
        "inFlight": counters.in_flight.load(Relaxed),
        "connections": counters.connections.load(Relaxed),
        "retries": counters.retries.load(Relaxed),
        "retriesRefused": counters.retries_refused.load(Relaxed),
        "ejections": counters.ejections.load(Relaxed),
    })
}
