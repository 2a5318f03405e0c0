//! `GET /network`: what the node hears on the network around it, and which nodes there it cannot talk to.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::Uri,
    response::{IntoResponse, Response},
};
use hearsay_services::{Problem, parameters::Parameters};
use serde::Serialize;

use super::site::Site;
use crate::driver::{Outsider, Reason};

/// Tells it, as of the last second.
pub(super) async fn network(State(site): State<Arc<Site>>, uri: Uri) -> Result<Response, Problem> {
    Parameters::read(uri.query(), &[])?;
    let around = site.neighbours.borrow().clone();
    let json = NetworkJson {
        cluster: &site.cluster,
        node: &site.name,
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
    /// Whether the node takes part in mDNS.
    mdns: bool,
    /// Other hosts that mDNS has heard of a node.
    heard: Vec<String>,
    outsiders: Vec<OutsiderJson<'a>>,
}

/// A node that was announced or named and cannot be talked to. The names of the fields are a contract.
#[derive(Serialize)]
struct OutsiderJson<'a> {
    id: Option<String>,
    address: &'a str,
    reason: &'static str,
    /// The cluster that it says it belongs to.
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
