//! What a plug-in is to a node.

use std::{collections::BTreeMap, pin::Pin, sync::Arc};

use axum::Router;
use serde_json::Value;

use crate::{Host, journal::Projection, restore::Restoring};

/// A background task: runs beside the router and is dropped when the node stops.
pub type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A number that a plug-in shows in the node's metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Metric {
    /// Its name, without `hearsay_` and `_total`.
    pub name: &'static str,
    /// What it counts.
    pub help: &'static str,
    /// Whether it can fall.
    pub kind: MetricKind,
    /// A name and a value that tell it from others of the same name, which stand next to it.
    pub label: Option<(&'static str, &'static str)>,
    /// The number.
    pub value: u64,
}

/// Whether a number can fall.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MetricKind {
    /// It only grows.
    Counter,
    /// It is what is so now.
    Gauge,
}

/// A plug-in.
///
/// Only [`name`](Self::name), [`prefixes`](Self::prefixes) and [`router`](Self::router) must be written; everything else has a
/// meaning when left alone.
pub trait Service: Send + Sync + 'static {
    /// The role that starts it (`--role grading`) and the service name under which it is announced.
    fn name(&self) -> &str;

    /// The path prefixes it owns on the node's HTTP port, such as `/students`: it gets exactly the requests for these paths and
    /// for everything below them. Two plug-ins that claim one prefix stop the start.
    fn prefixes(&self) -> &[&str];

    /// Answers requests, with the full path as the client sent it, but for a slash at its end, which the node takes off. Called once.
    ///
    /// When a request gets here, the node has checked `Host` and `Origin`, and holds its whole body in memory, decoded and within its
    /// limits. It has *not* asked for the node's API token: plug-in paths are for the network. The node bounds how many event streams
    /// are open, and ends them when it leaves.
    fn router(&self, host: Arc<dyn Host>) -> Router;

    /// Runs beside the router for as long as the node runs. Called once.
    fn task(&self, host: Arc<dyn Host>) -> Option<Task> {
        let _ = host;
        None
    }

    /// What it makes of the entries of its journal, if it keeps one. The journal's topic is the plug-in's [`name`](Self::name), and the
    /// nodes that announce that service are its replicas.
    fn projection(&self) -> Option<Arc<dyn Projection>> {
        None
    }

    /// Whether and how it is restored from a backup (`node journal restore`). By default it is not, because
    /// an entry that is written again may count twice.
    fn restoring(&self) -> Restoring {
        Restoring::Refused("its plug-in does not take part in restoring")
    }

    /// The first port of the ladder for a listener of its own, if it wants one ([`Host::take_listener`]). The node opens it before
    /// anything else happens, so that a port that was asked for and is taken stops the start.
    fn listener(&self) -> Option<u16> {
        None
    }

    /// What is left to do when the node stops: it has said goodbye, and waits for this for some seconds. Called once.
    fn drain(&self) -> Option<Task> {
        None
    }

    /// What it counts, whenever somebody asks for the node's metrics.
    fn metrics(&self) -> Vec<Metric> {
        Vec::new()
    }

    /// Labels of the announced instance. By default one `urlprefix-` tag per prefix, by which proxies such as Fabio and the
    /// gateway here learn their routes.
    fn tags(&self) -> Vec<String> {
        self.prefixes().iter().map(|prefix| format!("urlprefix-{prefix}")).collect()
    }

    /// Metadata of the announced instance. By default the version of its software.
    fn meta(&self) -> BTreeMap<String, String> {
        BTreeMap::from([("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned())])
    }

    /// Where `/` leads on a node that runs this, if this is what people come for.
    fn front_page(&self) -> Option<&str> {
        None
    }

    /// Whether its writes may have a content type that an HTML form can send (text, form fields). The node refuses those
    /// elsewhere, as a second line against forged requests; the check of `Origin` holds here too.
    fn takes_form_bodies(&self) -> bool {
        false
    }

    /// Its part of `/openapi.json`: an OpenAPI 3.1 Paths Object.
    fn openapi(&self) -> Value {
        Value::Object(serde_json::Map::new())
    }
}
