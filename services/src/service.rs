//! [`Service`]: trait of a plug-in, by which a node runs it; and the [`Metric`]s that a plug-in reports.

use std::{collections::BTreeMap, pin::Pin, sync::Arc};

use axum::Router;
use serde_json::Value;

use crate::{
    Host,
    journal::{Projection, restore::RestoreSupport},
};

/// A background task. It runs concurrently with the router and is dropped when the node stops.
pub type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A metric of a plug-in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Metric {
    /// Name without `hearsay_` and `_total`.
    pub name: &'static str,
    /// Description.
    pub help: &'static str,
    /// Counter or gauge.
    pub kind: MetricKind,
    /// Label name and value. Metrics with the same name are listed next to each other.
    pub label: Option<(&'static str, &'static str)>,
    /// Current value.
    pub value: u64,
}

/// Kind of a metric.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MetricKind {
    /// A value that only grows.
    Counter,
    /// A value that may fall.
    Gauge,
}

/// A plug-in.
///
/// Only [`name`](Self::name), [`prefixes`](Self::prefixes) and [`router`](Self::router) have no default.
pub trait Service: Send + Sync + 'static {
    /// Returns the role (`--role grading`), which is also the name of the announced service.
    fn name(&self) -> &str;

    /// Returns the path prefixes that the plug-in owns on the node's HTTP port, such as `/students`. It gets
    /// all requests for these paths and the paths below them. Two plug-ins with one prefix stop the start of
    /// the node.
    fn prefixes(&self) -> &[&str];

    /// Returns the handlers. They see the path as the client sent it, without a slash at the end. Called
    /// once.
    ///
    /// The node has checked `Host` and `Origin`, and has read and decoded the whole body within its limits.
    /// It has *not* required the API token, because plug-in paths are open to the network. The node bounds
    /// the number of event streams, and ends them when it leaves.
    fn router(&self, host: Arc<dyn Host>) -> Router;

    /// Returns a task that runs as long as the node runs. Called once.
    fn task(&self, host: Arc<dyn Host>) -> Option<Task> {
        let _ = host;
        None
    }

    /// Returns the projection of the plug-in's journal, if it has one. The topic of the journal is the
    /// plug-in's [`name`](Self::name), and its replicas are the nodes that announce that service.
    fn projection(&self) -> Option<Arc<dyn Projection>> {
        None
    }

    /// Returns whether and how the plug-in is restored from a backup (`node journal restore`). The default is
    /// to refuse, because an entry that is written again may count twice.
    fn restoring(&self) -> RestoreSupport {
        RestoreSupport::Refused("its plug-in does not take part in restoring")
    }

    /// Returns the first port of the port ladder for the plug-in's own listener ([`Host::take_listener`]), if
    /// it needs one. The node opens the listener first, so that a requested port that is in use stops the
    /// start.
    fn listener(&self) -> Option<u16> {
        None
    }

    /// Returns a task that ends the plug-in's work when the node stops. The node has already announced that
    /// it leaves, and waits a few seconds for the task. Called once.
    fn drain(&self) -> Option<Task> {
        None
    }

    /// Returns the current metrics.
    fn metrics(&self) -> Vec<Metric> {
        Vec::new()
    }

    /// Returns the tags of the announced instance. The default is one `urlprefix-` tag per prefix, from which
    /// the gateway and proxies such as Fabio learn their routes.
    fn tags(&self) -> Vec<String> {
        self.prefixes().iter().map(|prefix| format!("urlprefix-{prefix}")).collect()
    }

    /// Returns the metadata of the announced instance. The default is the version of the software.
    fn meta(&self) -> BTreeMap<String, String> {
        BTreeMap::from([("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned())])
    }

    /// Returns the page to which `/` redirects, if the plug-in has a start page for people.
    fn front_page(&self) -> Option<&str> {
        None
    }

    /// Returns whether writes may have a content type that an HTML form can send (text, form fields).
    /// Otherwise the node refuses such writes, as a second defence against forged requests besides the check
    /// of `Origin`.
    fn takes_form_bodies(&self) -> bool {
        false
    }

    /// Returns the plug-in's part of `/openapi.json`: an OpenAPI 3.1 Paths Object.
    fn openapi(&self) -> Value {
        Value::Object(serde_json::Map::new())
    }
}
