//! `GET /members`: which nodes belong to the cluster, and whether all see the same. `DELETE /members/{id}`: forgets one that is gone.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Path, State, rejection::PathRejection},
    http::{StatusCode, Uri},
    response::{IntoResponse, Response},
};
use hearsay_protocol::{
    NodeId,
    providers::{Member, ProviderTable},
};
use hearsay_services::{Problem, parameters::Parameters};
use serde::Serialize;
use tokio::sync::oneshot;

use super::{
    agent,
    site::Site,
    wait::{INDEX_HEADER, Wait},
};
use crate::{
    control::{Control, Forgetting},
    metrics::hex,
    timestamp::rfc3339,
    view::Clock,
};

/// All members that are remembered, this node among them.
pub(super) async fn list(State(site): State<Arc<Site>>, uri: Uri) -> Result<Response, Problem> {
    let parameters = Parameters::read(uri.query(), &Wait::PARAMETERS)?;
    Wait::read(&parameters)?.hold(&site, ProviderTable::members_index).await?;
    let (index, root_hash, members) = site.read(|table| {
        let members: Vec<Member> = table.members_from_here().collect();
        (table.members_index(), table.root_hash(), members)
    });
    let json = MembersJson {
        cluster: &site.cluster,
        node: &site.name,
        root_hash: hex(&root_hash),
        members: members.iter().map(|member| MemberJson::new(member, site.id, site.view.clock())).collect(),
    };
    Ok(([(INDEX_HEADER, index.0.to_string())], Json(json)).into_response())
}

/// Forgets a member that has failed or left, on every node that holds it so.
///
/// # Errors
/// 404: there is no such member. 409: it is alive or suspect here; nothing was changed. 503: the node is stopping.
pub(super) async fn forget(
    State(site): State<Arc<Site>>,
    id: Result<Path<String>, PathRejection>,
    uri: Uri,
) -> Result<Response, Problem> {
    Parameters::read(uri.query(), &[])?;
    let unknown = || Problem::not_found("no member has this id; /members lists them");
    let Path(id) = id.map_err(|_| unknown())?;
    let id: NodeId = id.parse().map_err(|_| unknown())?;
    let name = site.read(|table| table.member(id).map(|member| member.name.clone())).unwrap_or_default();
    let (tell, told) = oneshot::channel();
    agent::send(&site, Control::Forget(id, tell))?;
    match told.await {
        Ok(Forgetting::Done) => Ok(Json(ForgottenJson { id: id.to_string(), name }).into_response()),
        Ok(Forgetting::Unknown) => Err(unknown()),
        Ok(Forgetting::Present(state)) => {
            let detail = format!(
                "the member {name:?} is {state} here; only one that has failed or left can be forgotten. To stop a node: `node leave`"
            );
            Err(Problem::new(StatusCode::CONFLICT, detail))
        }
        Err(_) => Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "the node is already stopping")),
    }
}

/// The member that was forgotten.
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

/// A member. The names of the fields are a contract.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MemberJson<'a> {
    id: String,
    name: &'a str,
    state: &'static str,
    roles: &'a [String],
    addresses: &'a [String],
    http: Option<&'a str>,
    incarnation: u64,
    version: u64,
    since: String,
    /// Milliseconds of the last round trip: 0 to itself, null without a connection.
    rtt_ms: Option<f64>,
}

impl<'a> MemberJson<'a> {
    fn new(member: &'a Member, me: NodeId, clock: Clock) -> Self {
        let rtt = if member.id == me { Some(Duration::ZERO) } else { member.rtt };
        Self {
            id: member.id.to_string(),
            name: &member.name,
            state: member.state.as_str(),
            roles: &member.roles,
            addresses: &member.addresses,
            http: member.http.as_deref(),
            incarnation: member.incarnation.0,
            version: member.version.0,
            since: rfc3339(clock.wall(member.since)),
            // A microsecond is as exact as it is measured.
            rtt_ms: rtt.map(|rtt| rtt.as_micros() as f64 / 1000.0),
        }
    }
}
