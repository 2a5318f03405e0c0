//! `GET /why/{service-or-member}`: what happened to it, who said so, and when.
//!
//! A member is found by its id or its name, a service by its name; where a name is both, the lines of both are told. Each line
//! says one thing, for programs (`event` and its fields) and for people (`text`).

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    http::Uri,
    response::{IntoResponse, Response},
};
use hearsay_protocol::{
    NodeId, Time,
    providers::{Explanation, MemberState, ProviderTable},
};
use hearsay_services::{Problem, parameters::Parameters};
use serde::Serialize;

use super::site::Site;
use crate::timestamp::rfc3339;

/// Tells it, oldest first.
pub(super) async fn why(
    State(site): State<Arc<Site>>,
    subject: Result<Path<String>, PathRejection>,
    uri: Uri,
) -> Result<Response, Problem> {
    let Path(subject) = subject.map_err(|_| Problem::not_found("the name is not UTF-8"))?;
    Parameters::read(uri.query(), &[])?;
    let found = site.read(|table| {
        let id =
            subject.parse::<NodeId>().ok().or_else(|| table.member_named(&subject).map(|member| member.id));
        let of_member = id.into_iter().flat_map(|id| table.why_member(id));
        let mut lines: Vec<(Time, NodeId, Explanation)> = of_member
            .chain(table.why_service(&subject))
            .chain(table.why_instance(&subject))
            .cloned()
            .collect();
        let services: BTreeSet<&str> =
            table.providers_with_id(&subject).map(|provider| provider.instance.service.as_str()).collect();
        let of_services = services
            .iter()
            .filter(|service| **service != subject)
            .flat_map(|service| table.why_service(service));
        lines.extend(of_services.filter(|(_, _, line)| is_listing_of(line, &subject)).cloned());
        let known = !lines.is_empty()
            || !services.is_empty()
            || id.is_some_and(|id| table.member(id).is_some())
            || table.providers(&subject).next().is_some();
        lines.sort_by_key(|(at, ..)| *at);
        known.then(|| tell(table, lines))
    });
    let Some(told) = found else {
        let detail = format!(
            "no member, service or instance {subject:?} is remembered here; see /members and /services"
        );
        return Err(Problem::not_found(detail));
    };
    let clock = site.view.clock();
    let lines: Vec<LineJson> =
        told.into_iter().map(|(at, line)| LineJson { time: rfc3339(clock.wall(at)), line }).collect();
    Ok(Json(WhyJson { cluster: &site.cluster, node: &site.name, subject: &subject, events: lines })
        .into_response())
}

/// Whether a line of a service says how an instance came into the table, or changed in it. Its checks have lines of their own.
fn is_listing_of(line: &Explanation, instance: &str) -> bool {
    match line {
        Explanation::Added(_, id)
        | Explanation::Changed(_, id)
        | Explanation::Removed(_, id)
        | Explanation::Kept(_, id) => id == instance,
        _ => false,
    }
}

/// An object, so that more can be said of the whole later.
#[derive(Serialize)]
struct WhyJson<'a> {
    cluster: &'a str,
    node: &'a str,
    subject: &'a str,
    events: Vec<LineJson>,
}

#[derive(Serialize)]
struct LineJson {
    time: String,
    #[serde(flatten)]
    line: Line,
}

/// One thing that happened.
#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Line {
    pub(super) event: &'static str,
    /// The node that it happened to.
    pub(super) node: String,
    pub(super) node_id: String,
    /// The node that observed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) by_id: Option<String>,
    /// Of an accusation: whether the process is known to be gone, or was only not heard.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) strong: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) state: Option<&'static str>,
    /// Of a node that appeared: which of its lives it is in. A higher one is a later one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) incarnation: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) service: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) instance: Option<String>,
    /// Of a check that changed: its id. `state` is its status from then on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) check: Option<String>,
    /// All of it as a sentence.
    pub(super) text: String,
}

/// Puts lines into words. Who reports first accuses; whoever reports the same after it, with nothing between that settled the
/// matter, confirms.
pub(super) fn tell(table: &ProviderTable, lines: Vec<(Time, NodeId, Explanation)>) -> Vec<(Time, Line)> {
    let mut accused: BTreeSet<NodeId> = BTreeSet::new();
    let tell = |(at, about, explanation): (Time, NodeId, Explanation)| {
        let confirms = match &explanation {
            Explanation::Accused { .. } => !accused.insert(about),
            Explanation::Joined(_) | Explanation::Refuted(_) | Explanation::Became(MemberState::Alive) => {
                accused.remove(&about);
                false
            }
            _ => false,
        };
        (at, line(table, about, explanation, confirms))
    };
    lines.into_iter().map(tell).collect()
}

fn line(table: &ProviderTable, about: NodeId, explanation: Explanation, confirms: bool) -> Line {
    let name = |id: NodeId| table.member(id).map_or_else(|| id.short(), |member| member.name.clone());
    let node = name(about);
    let base = Line { node: node.clone(), node_id: about.to_string(), ..Line::default() };
    let instance = |event, service: String, id: String, what: &str| Line {
        event,
        text: format!("{node} {what} {service} ({id})."),
        service: Some(service),
        instance: Some(id),
        ..Line::default()
    };
    let line = match explanation {
        Explanation::Joined(incarnation) => Line {
            event: "joined",
            text: format!("{node} appeared."),
            incarnation: Some(incarnation.0),
            ..Line::default()
        },
        Explanation::Accused { by, strong } => {
            let observer = name(by);
            let verb = if confirms { "confirmed" } else { "reported" };
            let seen = if strong { "its process is gone" } else { "it does not answer" };
            Line {
                event: if confirms { "confirmed" } else { "accused" },
                text: format!("{observer} {verb} of {node} that {seen}."),
                by: Some(observer),
                by_id: Some(by.to_string()),
                strong: Some(strong),
                ..Line::default()
            }
        }
        Explanation::Refuted(_) => {
            Line { event: "refuted", text: format!("{node} answered that it is alive."), ..Line::default() }
        }
        Explanation::Became(state) => Line {
            event: "became",
            text: format!("{node} is now {state}."),
            state: Some(state.as_str()),
            ..Line::default()
        },
        Explanation::Added(service, id) => instance("added", service, id, "now offers"),
        Explanation::Changed(service, id) => instance("changed", service, id, "changed"),
        Explanation::Removed(service, id) => instance("removed", service, id, "no longer offers"),
        Explanation::Kept(service, id) => {
            instance("kept", service, id, "does not answer; the table guard keeps its")
        }
        Explanation::CheckChanged { service, instance, check, status, output, took_ms } => Line {
            event: "check",
            // The output may hold anything, so it is quoted.
            text: format!(
                "{node}'s check {check} of {service} ({instance}) is {status} after {took_ms} ms: {output:?}."
            ),
            state: Some(status.as_str()),
            service: Some(service),
            instance: Some(instance),
            check: Some(check),
            ..Line::default()
        },
    };
    Line { node: base.node, node_id: base.node_id, ..line }
}
