//! What `GET /gateway` says: where the gateway listens, its routes, and how its instances are doing.

use std::sync::atomic::Ordering::Relaxed;

use serde_json::{Value, json};

use super::{
    counters::Counters,
    routes::{Conflict, Ignored, Key, Member, Route, Routes},
    shared::Shared,
};

/// Of routes and of instances, so many are shown; the counts are of all.
const SHOWN_MAX: usize = 1000;

/// All of it. `shared` is `None` while the gateway has not been started.
pub fn describe(shared: Option<&Shared>) -> Value {
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
        "routes": routes.iter().take(SHOWN_MAX).map(|(key, route)| describe_route(key, route)).collect::<Vec<_>>(),
        "routesCount": routes.iter().count(),
        "instances": describe_instances(shared, &routes),
        "instancesCount": routes.targets().count(),
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
    let first = members.first().map(|member| member.manner.as_ref()).cloned().unwrap_or_default();
    let strip = match key {
        Key::Prefix(..) => first.strip.clone(),
        Key::Service(name) => Some(format!("/{name}")),
    };
    // What each instance announces for itself, where they do not agree.
    let options = if members.iter().all(|member| *member.manner == first) {
        Value::Null
    } else {
        members.iter().take(SHOWN_MAX).map(describe_options).collect()
    };
    json!({
        "host": host,
        "prefix": prefix,
        "service": service,
        "strip": strip,
        "http2": first.http2,
        "options": options,
        "instances": route.group.members.iter().take(SHOWN_MAX).map(|m| &m.target.id).collect::<Vec<_>>(),
        "healthy": route.group.healthy.len(),
        "unusable": route.group.unusable,
    })
}

fn describe_conflict(conflict: &Conflict) -> Value {
    let Conflict { host, prefix, services } = conflict;
    json!({ "host": host, "prefix": format!("{prefix}/"), "services": services })
}

fn describe_ignored(ignored: &Ignored) -> Value {
    let Ignored { what, service, node, why } = ignored;
    json!({ "what": what, "service": service, "node": node, "why": why })
}

fn describe_options(member: &Member) -> Value {
    let manner = &member.manner;
    json!({
        "instance": member.target.id,
        "strip": manner.strip,
        "http2": manner.http2,
        "ownHost": manner.own_host,
    })
}

fn describe_instances(shared: &Shared, routes: &Routes) -> Vec<Value> {
    let now_ms = shared.now_ms();
    // By service, each instance is listed once: one is of one service.
    let members = routes.iter().filter(|(key, _)| matches!(key, Key::Service(_)));
    let members = members.flat_map(|(_, route)| &route.group.members).take(SHOWN_MAX);
    members
        .map(|member| {
            let (target, provider) = (&member.target, &member.provider);
            let (answered, failed) = target.totals();
            let waiting: usize = target.kept.iter().map(super::pool::Kept::len).sum();
            json!({
                "id": target.id,
                "service": provider.instance.service,
                "node": provider.node,
                "url": format!("http://{}", target.authority),
                "addresses": provider.addresses,
                "health": provider.instance.health.as_str(),
                "h2c": target.h2c,
                "inFlight": target.in_flight(),
                "latencyMs": f64::from((target.latency_us(now_ms) / 10.0).round()) / 100.0,
                "ejected": target.is_ejected(now_ms),
                "ejectedForMs": u64::try_from(target.ejected_for(now_ms).as_millis()).unwrap_or(u64::MAX),
                "answered": answered,
                "failed": failed,
                "connectionsKept": waiting,
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
