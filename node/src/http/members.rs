//! `GET /members`: who belongs to the cluster, and whether all see the same.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::State,
    http::Uri,
    response::{IntoResponse, Response},
};
use hearsay_protocol::{
    NodeId,
    providers::{Member, ProviderTable},
};
use hearsay_services::{Problem, parameters::Parameters};
use serde::Serialize;

use super::{
    Site,
    wait::{INDEX_HEADER, Wait},
};
use crate::{metrics::hex, timestamp::rfc3339, view::Clock};

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
