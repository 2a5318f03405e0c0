//! `GET /network`: the hosts that announced a node by mDNS, and outsiders (nodes that were announced or
//! named, but cannot be reached as members).

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::Uri,
    response::{IntoResponse, Response},
};
use hearsay_services::{Problem, http::Parameters};
use serde::Serialize;

use crate::{
    driver_command::{Outsider, Reason},
    http::state::AppState,
};

/// Answers with the state of the last second.
pub(crate) async fn network(State(state): State<Arc<AppState>>, uri: Uri) -> Result<Response, Problem> {
    Parameters::read(uri.query(), &[])?;
    let around = state.neighbours.borrow().clone();
    let json = NetworkJson {
        cluster: &state.cluster,
        node: &state.name,
        mdns: around.mdns,
        heard: around.heard.iter().map(ToString::to_string).collect(),
        outsiders: around.outsiders.iter().map(OutsiderJson::new).collect(),
    };
    Ok(Json(json).into_response())
}

#[derive(Serialize)]
struct NetworkJson<'a> {
    cluster: &'a str,
    node: &'a str,
    /// Whether the node uses mDNS.
    mdns: bool,
    /// Other hosts that have announced a node by mDNS.
    heard: Vec<String>,
    outsiders: Vec<OutsiderJson<'a>>,
}

/// An outsider as JSON. The field names are part of the API.
#[derive(Serialize)]
struct OutsiderJson<'a> {
    id: Option<String>,
    address: &'a str,
    reason: &'static str,
    /// The cluster that the outsider states.
    cluster: Option<&'a str>,
}

impl<'a> OutsiderJson<'a> {
    fn new(outsider: &'a Outsider) -> Self {
        Self {
            id: outsider.id.map(|id| id.to_string()),
            address: &outsider.address,
            reason: outsider.reason.as_str(),
            cluster: match &outsider.reason {
                Reason::OtherCluster(cluster) => Some(cluster),
                Reason::AnotherKey | Reason::NoAnswer => None,
            },
        }
    }
}
