//! `GET /why/{subject}`: the history of a member, service or instance, with observers and times.
//!
//! A member is found by its id or name, a service by its name, an instance by its id. A name may match
//! several: the response has the events of all. Each event has fields for programs (`event` and others) and a
//! sentence (`text`).

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    http::Uri,
    response::{IntoResponse, Response},
};
use hearsay_protocol::{Explanation, MemberState, NodeId, ProviderTable, Time};
use hearsay_services::{Problem, http::Parameters};
use serde::Serialize;

use hearsay_services::rfc3339;

use crate::http::state::AppState;

/// Answers with the events, oldest first.
///
/// # Errors
/// 404: the subject is unknown here.
pub(crate) async fn why(
    State(state): State<Arc<AppState>>,
    subject: Result<Path<String>, PathRejection>,
    uri: Uri,
) -> Result<Response, Problem> {
    let Path(subject) = subject.map_err(|_| Problem::not_found("the name is not UTF-8"))?;
    Parameters::read(uri.query(), &[])?;
    let events = state.read(|table| {
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
        known.then(|| describe(table, lines))
    });
    let Some(lines) = events else {
        let detail = format!(
            "no member, service or instance {subject:?} is known here; /members and /services list those that are"
        );
        return Err(Problem::not_found(detail));
    };
    let clock = state.view.clock();
    let lines: Vec<LineJson> =
        lines.into_iter().map(|(at, line)| LineJson { time: rfc3339(clock.wall(at)), line }).collect();
    Ok(Json(WhyJson { cluster: &state.cluster, node: &state.name, subject: &subject, events: lines })
        .into_response())
}

/// Whether an event of a service says that this instance was added, changed, removed or kept. Changes of
/// checks are events of the instance.
fn is_listing_of(line: &Explanation, instance: &str) -> bool {
    match line {
        Explanation::Added(_, id)
        | Explanation::Changed(_, id)
        | Explanation::Removed(_, id)
        | Explanation::Kept(_, id) => id == instance,
        _ => false,
    }
}

/// The response. An object, so that fields can be added later.
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

/// An event as JSON.
#[derive(Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Line {
    pub(crate) event: &'static str,
    /// Name of the node that the event is about.
    pub(crate) node: String,
    pub(crate) node_id: String,
    /// Name of the observer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) by_id: Option<String>,
    /// For an accusation: true if the process is known to be gone, false if it did not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) strong: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) state: Option<&'static str>,
    /// For a node that appeared: its incarnation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) incarnation: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) service: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) instance: Option<String>,
    /// For a change of a check: the id of the check. `state` is its new status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) check: Option<String>,
    /// The event as a sentence.
    pub(crate) text: String,
}

/// Describes events. The first report against a node is an accusation; further ones confirm it, until the
/// node joins, refutes or becomes alive.
pub(crate) fn describe(table: &ProviderTable, lines: Vec<(Time, NodeId, Explanation)>) -> Vec<(Time, Line)> {
    let mut accused: BTreeSet<NodeId> = BTreeSet::new();
    let describe = |(at, about, explanation): (Time, NodeId, Explanation)| {
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
    lines.into_iter().map(describe).collect()
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
            let observation = if strong { "its process is gone" } else { "it does not answer" };
            let text = if confirms {
                format!("{observer} confirmed the report on {node}: {observation}.")
            } else {
                format!("{observer} reported {node}: {observation}.")
            };
            Line {
                event: if confirms { "confirmed" } else { "accused" },
                text,
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
            // The output may contain anything, so it is quoted.
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
