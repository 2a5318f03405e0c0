//! `GET /ui/services`: all services by health, the registered programs, and the dependency graph.

use std::{collections::BTreeMap, sync::Arc};

use askama::Template;
use axum::{extract::State, http::StatusCode, response::Response};
use hearsay_protocol::{Health, Origin, Provider, ProviderTable};
use hearsay_services::http::{PageFrame, Visible, render_page, web_address};

use hearsay_services::rfc3339_ms;

use crate::http::{
    api::dependencies::Graph,
    state::AppState,
    ui::{
        dependency_graph::DependencyGraph,
        parts::{Count, LIVE_SCRIPT, ROWS_MAX, day_and_time, page_links, portals, service_link},
    },
};

/// Answers with the page.
pub(crate) async fn page(State(state): State<Arc<AppState>>) -> Response {
    let (snapshot, portals) = state.read(|table| (Snapshot::read(table), portals(table)));
    let frame = PageFrame {
        title: &format!("{} · services", state.cluster),
        cluster: &state.cluster,
        node: &state.name,
        links: page_links(&state, &portals, "/ui/services"),
        assets: "/ui",
        script: Some(LIVE_SCRIPT.at("/ui/live.js")),
        refresh_secs: Some(5),
    };
    render_page(StatusCode::OK, &frame, &content(&state, snapshot))
}

/// Data of the page, read from the table under its lock.
struct Snapshot {
    index: u64,
    services: BTreeMap<String, Tally>,
    programs: Vec<Arc<Provider>>,
    programs_len: usize,
    graph: Graph,
}

/// Number of instances of a service by health.
#[derive(Clone, Copy, Default)]
struct Tally {
    passing: usize,
    warning: usize,
    critical: usize,
}

impl Tally {
    fn add(&mut self, health: Health) {
        match health {
            Health::Passing => self.passing += 1,
            Health::Warning => self.warning += 1,
            Health::Critical => self.critical += 1,
        }
    }
}

impl Snapshot {
    fn read(table: &ProviderTable) -> Self {
        let mut services = BTreeMap::<String, Tally>::new();
        let (mut passing, mut others, mut programs_len) = (Vec::new(), Vec::new(), 0);
        for name in table.services() {
            let tally = services.entry(name.to_owned()).or_default();
            for provider in table.providers_distinct(name) {
                tally.add(provider.instance.health);
                if !matches!(provider.instance.origin, Origin::Program | Origin::HostProgram) {
                    continue;
                }
                programs_len += 1;
                let list =
                    if provider.instance.health == Health::Passing { &mut passing } else { &mut others };
                if list.len() < ROWS_MAX {
                    list.push(Arc::clone(provider));
                }
            }
        }
        // Programs that need attention come first, the rest may be cut off.
        others.append(&mut passing);
        others.truncate(ROWS_MAX);
        Self { index: table.index().0, services, programs: others, programs_len, graph: Graph::read(table) }
    }
}

#[derive(Template)]
#[template(path = "services.html")]
struct Content {
    name: String,
    index: u64,
    counts: Vec<Count>,
    services: Vec<ServiceRow>,
    services_len: usize,
    programs: Vec<ProgramRow>,
    programs_len: usize,
    dependencies: DependencyGraph,
}

struct ServiceRow {
    name: String,
    link: Option<String>,
    tally: Tally,
    health: &'static str,
    requires: Vec<RequiredRow>,
}

struct RequiredRow {
    name: String,
    is_missing: bool,
}

struct ProgramRow {
    id: String,
    service: String,
    link: Option<String>,
    node: String,
    is_mine: bool,
    health: &'static str,
    url: String,
    url_link: Option<String>,
    time: String,
    since: String,
}

fn content(state: &AppState, snapshot: Snapshot) -> Content {
    let dependencies = DependencyGraph::of(&snapshot.graph);
    let sum = |count: fn(&Tally) -> usize| snapshot.services.values().map(count).sum::<usize>();
    let counts = vec![
        Count { label: "services", number: snapshot.services.len(), class: "" },
        Count { label: "passing", number: sum(|tally| tally.passing), class: "good" },
        Count { label: "warning", number: sum(|tally| tally.warning), class: "poor" },
        Count { label: "critical", number: sum(|tally| tally.critical), class: "bad" },
        Count { label: "required and missing", number: dependencies.missing, class: "bad" },
    ];
    let mut rows: Vec<(&String, &Tally)> = snapshot.services.iter().collect();
    if rows.len() > ROWS_MAX {
        rows.sort_by_key(|(name, tally)| (tally.critical == 0, tally.warning == 0, *name));
        rows.truncate(ROWS_MAX);
        rows.sort_by_key(|(name, _)| *name);
    }
    let mut programs: Vec<ProgramRow> = snapshot.programs.iter().map(|p| ProgramRow::of(state, p)).collect();
    programs.sort_by(|a, b| (&a.service, &a.node, &a.id).cmp(&(&b.service, &b.node, &b.id)));
    Content {
        name: state.name.clone(),
        index: snapshot.index,
        counts,
        services: rows
            .into_iter()
            .map(|(name, tally)| ServiceRow::of(name, *tally, &snapshot.graph))
            .collect(),
        services_len: snapshot.services.len(),
        programs,
        programs_len: snapshot.programs_len,
        dependencies,
    }
}

impl ServiceRow {
    fn of(name: &str, tally: Tally, graph: &Graph) -> Self {
        let requires = graph.services.get(name).into_iter().flat_map(|service| &service.requires);
        let required = |name: &String| RequiredRow { name: name.clone(), is_missing: graph.is_missing(name) };
        let health = match tally {
            Tally { critical: 1.., .. } => Health::Critical,
            Tally { warning: 1.., .. } => Health::Warning,
            Tally { .. } => Health::Passing,
        };
        Self {
            name: name.to_owned(),
            link: service_link(name),
            tally,
            health: health.as_str(),
            requires: requires.map(required).collect(),
        }
    }
}

impl ProgramRow {
    fn of(state: &AppState, provider: &Provider) -> Self {
        let instance = &provider.instance;
        let time = rfc3339_ms(instance.since_ms);
        Self {
            id: provider.id.clone(),
            service: instance.service.clone(),
            link: service_link(&instance.service),
            node: provider.node.clone(),
            is_mine: provider.node_id == state.id,
            health: provider.health_word(),
            url_link: web_address(&provider.url()).map(str::to_owned),
            url: provider.url().into_owned(),
            since: day_and_time(&time),
            time,
        }
    }
}
