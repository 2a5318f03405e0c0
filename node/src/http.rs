//! stub
use std::{sync::Arc, time::Duration};
use axum::{Router, Json, extract::State, routing::get};
use hearsay_protocol::{NodeId, providers::Provider};
use hearsay_services::{Host, Service, PrefixClash};
use tokio::sync::{mpsc, watch};
use crate::{control::Control, metrics::Metrics, view::View};
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Readiness { Starting, Ready, Leaving }
#[derive(Debug)]
pub struct Token(String);
impl Token { pub fn new(s: String) -> Self { Self(s) } }
#[derive(Debug)]
pub struct Site { pub view: Arc<View>, pub id: NodeId, pub name: String, pub cluster: String, pub metrics: Arc<Metrics>, pub control: mpsc::Sender<Control>, pub token: Option<Token>, pub readiness: watch::Receiver<Readiness>, pub names: HostNames, pub waiters: Waiters }
#[derive(Debug, Default)]
pub struct Waiters;
#[derive(Debug)]
pub struct HostNames;
impl HostNames { pub fn new(_: impl IntoIterator<Item=String>) -> Self { Self } }
#[derive(Default)]
pub struct Limits;
pub struct NodeHost { pub view: Arc<View>, pub id: NodeId, pub name: String, pub cluster: String, pub demo: bool }
impl Host for NodeHost {
    fn cluster(&self) -> &str { &self.cluster } fn node(&self) -> &str { &self.name } fn node_id(&self) -> NodeId { self.id } fn demo(&self) -> bool { self.demo }
    fn providers(&self, s: &str) -> Vec<Arc<Provider>> { self.view.read(|t| t.providers(s).cloned().collect()) }
}
pub fn router(site: Arc<Site>, _p: &[Arc<dyn Service>], _h: Arc<dyn Host>) -> Result<Router, PrefixClash> {
    Ok(Router::new().route("/members", get(async |State(s): State<Arc<Site>>| Json(s.view.read(|t| serde_json::json!({"rootHash": format!("{:?}", t.root_hash()), "members": t.members().map(|m| serde_json::json!({"id": m.id.to_string(), "name": m.name, "state": m.state.as_str(), "addresses": m.addresses, "rttMs": m.rtt.map(|r| r.as_secs_f64()*1000.0)})).collect::<Vec<_>>()})))))
      .route("/metrics", get(async |State(s): State<Arc<Site>>| s.metrics.render().unwrap_or_default()))
      .route("/services", get(async |State(s): State<Arc<Site>>| Json(s.view.read(|t| serde_json::json!(t.providers("grading").map(|p| serde_json::json!({"node": p.node, "url": p.instance.url})).collect::<Vec<_>>()))))).with_state(site))
}
pub async fn serve(l: tokio::net::TcpListener, r: Router, _: Limits, _m: Arc<Metrics>, mut stop: watch::Receiver<bool>) {
    let _ = axum::serve(l, r).with_graceful_shutdown(async move { let _ = stop.wait_for(|s| *s).await; }).await;
    let _ = Duration::ZERO;
}
