//! `GET /members`: the members of the cluster, and the hash by which nodes compare their tables.
//! `DELETE /members/{id}`: forgets a member that has failed or left.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    http::{StatusCode, Uri},
    response::{IntoResponse, Response},
};
use hearsay_protocol::{Member, NodeId, ProviderTable};
use hearsay_services::{Problem, http::Parameters};
use serde::Serialize;
use tokio::sync::oneshot;

use hearsay_services::rfc3339;

use crate::{
    driver_command::ForgetOutcome,
    http::{
        api::{
            agent,
            blocking_query::{INDEX_HEADER, Wait},
        },
        state::AppState,
    },
    metrics::hex,
    operator_request::OperatorRequest,
    view::Clock,
};

/// Lists all known members, this node included.
pub(crate) async fn list(State(state): State<Arc<AppState>>, uri: Uri) -> Result<Response, Problem> {
    let parameters = Parameters::read(uri.query(), &Wait::PARAMETERS)?;
    Wait::read(&parameters)?.hold(&state, ProviderTable::members_index).await?;
    let (index, root_hash, members) = state.read(|table| {
        let members: Vec<Member> = table.members_from_here().collect();
        (table.members_index(), table.root_hash(), members)
    });
    let json = MembersJson {
        cluster: &state.cluster,
        node: &state.name,
        root_hash: hex(&root_hash),
        members: members.iter().map(|member| MemberJson::new(member, state.id, state.view.clock())).collect(),
    };
    Ok(([(INDEX_HEADER, index.0.to_string())], Json(json)).into_response())
}

/// Forgets a failed or left member on every node that sees the member in one of these states.
///
/// # Errors
/// 404: there is no such member. 409: this node sees it as alive or suspect; nothing was changed. 503: the
/// node is stopping.
pub(crate) async fn forget(
    State(state): State<Arc<AppState>>,
    id: Result<Path<String>, PathRejection>,
    uri: Uri,
) -> Result<Response, Problem> {
    Parameters::read(uri.query(), &[])?;
    let unknown = || Problem::not_found("no member has this id; /members lists them");
    let Path(id) = id.map_err(|_| unknown())?;
    let id: NodeId = id.parse().map_err(|_| unknown())?;
    let name = state.read(|table| table.member(id).map(|member| member.name.clone())).unwrap_or_default();
    let (sender, outcome) = oneshot::channel();
    agent::send(&state, OperatorRequest::Forget(id, sender))?;
    match outcome.await {
        Ok(ForgetOutcome::Done) => Ok(Json(ForgottenJson { id: id.to_string(), name }).into_response()),
        Ok(ForgetOutcome::Unknown) => Err(unknown()),
        Ok(ForgetOutcome::Present(state)) => {
            let detail = format!(
                "the member {name:?} is {state} here; only a member that has failed or left can be forgotten. To stop a node: `node leave`"
            );
            Err(Problem::new(StatusCode::CONFLICT, detail))
        }
        Err(_) => Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the node is already stopping")),
    }
}

/// The forgotten member as JSON.
#[derive(Serialize)]
struct ForgottenJson {
    id: String,
    name: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MembersJson<'a> {
    cluster: &'a str,
    node: &'a str,
    root_hash: String,
    members: Vec<MemberJson<'a>>,
}

/// A member as JSON. The field names are part of the API.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MemberJson<'a> {
    id: String,
    name: &'a str,
    /// Whether a member known earlier has the name that this one states.
    namesake: bool,
    state: &'static str,
    roles: &'a [String],
    addresses: &'a [String],
    http: Option<&'a str>,
    /// Address of gRPC; null if the node does not serve it.
    grpc: Option<&'a str>,
    incarnation: u64,
    version: u64,
    since: String,
    /// Last round trip in milliseconds: 0 for this node, null without a connection.
    rtt_ms: Option<f64>,
}

impl<'a> MemberJson<'a> {
    fn new(member: &'a Member, me: NodeId, clock: Clock) -> Self {
        let rtt = if member.id == me { Some(Duration::ZERO) } else { member.rtt };
        Self {
            id: member.id.to_string(),
            name: &member.name,
            namesake: member.namesake,
            state: member.state.as_str(),
            roles: &member.roles,
            addresses: &member.addresses,
            http: member.http.as_deref(),
            grpc: member.grpc.as_deref(),
            incarnation: member.incarnation.0,
            version: member.version.0,
            since: rfc3339(clock.wall(member.since)),
            // The measurement is exact to a microsecond.
            rtt_ms: rtt.map(|rtt| rtt.as_micros() as f64 / 1000.0),
        }
    }
}
