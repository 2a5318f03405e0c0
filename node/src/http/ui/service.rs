//! `GET /ui/services/{name}`: the instances of a service, their checks and their history.
//!
//! For a registration that this node holds, the page shows the current checks and forms that change it. For
//! others it shows the checks as gossiped at each change of status.

use std::{collections::BTreeMap, sync::Arc};

use askama::Template;
use axum::{
    extract::{Path, Request, State, rejection::PathRejection},
    http::StatusCode,
    response::Response,
};
use hearsay_protocol::{Health, NodeId, Provider, ProviderTable, Time, wire::CheckReport};
use hearsay_services::{
    Problem,
    http::{PageFrame, Visible, render_page, web_address},
};

use hearsay_services::{rfc3339_ms, unix_ms};

use crate::{
    http::{
        api::{
            registrations::REASON_CHARS_MAX,
            why::{self, Line},
        },
        guard::caller::Caller,
        server::connection::Connection,
        state::AppState,
        ui::{
            notice::{Done, Notice},
            parts::{
                Count, DEREGISTER_PATH, EVENTS_MAX, LIVE_SCRIPT, MAINTENANCE_PATH, TimelineEvent,
                day_and_time, page_links, portals, service_link,
            },
            uptime::Uptime,
        },
    },
    registry::record::{Owner, RegistrationView},
};

/// Maximum number of instances on a page; those that are not passing take precedence. Guess: a card is a
/// fifth of a screen.
const CARDS_MAX: usize = 100;
/// Characters and lines of an output above which it gets a frame that scrolls.
const OUTPUT_SHORT: (usize, usize) = (400, 8);

/// Answers with the page of a service. For an unknown service, the page says so.
///
/// # Errors
/// 404: the name is not UTF-8.
pub(crate) async fn page(
    State(state): State<Arc<AppState>>,
    name: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, Problem> {
    let Path(name) = name.map_err(|_| Problem::not_found("the name of the service is not UTF-8"))?;
    let connection = request.extensions().get::<Connection>();
    let may_write = Caller::of(&request, connection, None, &state.access).shows_forms();
    let note = Done::read(request.uri().query()).map(Notice::done);
    Ok(answer(&state, &name, may_write, note))
}

/// Writes the page. `may_write`: the visitor may change registrations.
pub(crate) fn answer(state: &AppState, name: &str, may_write: bool, note: Option<Notice>) -> Response {
    let snapshot = state.read(|table| Snapshot::read(table, name));
    let status = match &note {
        Some(note) if note.status != StatusCode::OK => note.status,
        _ if snapshot.is_known() => StatusCode::OK,
        _ => StatusCode::NOT_FOUND,
    };
    let frame = PageFrame {
        title: &format!("{name} · {}", state.cluster),
        cluster: &state.cluster,
        node: &state.name,
        links: page_links(state, &snapshot.portals, "/ui/services"),
        assets: "/ui",
        script: Some(LIVE_SCRIPT.at("/ui/live.js")),
        // A page that reloads would discard what the visitor is typing.
        refresh_secs: None,
    };
    render_page(status, &frame, &content(state, name, snapshot, may_write, note))
}

/// Data of the page, read from the table under its lock.
struct Snapshot {
    index: u64,
    portals: Vec<Arc<Provider>>,
    /// Number of instances by health.
    health: BTreeMap<Health, usize>,
    /// Instances on the page.
    providers: Vec<Arc<Provider>>,
    providers_len: usize,
    /// Events of the service, oldest first.
    lines: Vec<(Time, Line)>,
    /// Changes of the checks of the instances on the page, oldest first for each instance.
    checks: Vec<(Time, Line)>,
    /// HTTP addresses of the nodes.
    https: BTreeMap<NodeId, String>,
}

impl Snapshot {
    fn read(table: &ProviderTable, name: &str) -> Self {
        let mut providers: Vec<Arc<Provider>> = table.providers(name).cloned().collect();
        let (providers_len, mut health) = (providers.len(), BTreeMap::new());
        providers.iter().for_each(|provider| *health.entry(provider.instance.health).or_default() += 1);
        // The order does not depend on health, so that a button does not move under the pointer.
        if providers_len > CARDS_MAX {
            providers.sort_by_key(|provider| provider.instance.health == Health::Passing);
            providers.truncate(CARDS_MAX);
            providers.sort_by(|a, b| (a.node_id, &a.id).cmp(&(b.node_id, &b.id)));
        }
        let present = table.members_from_here().filter(|member| member.state.is_present());
        let of_checks = |provider: &Arc<Provider>| {
            let lines = table.why_instance(&provider.id).filter(|(_, node, _)| *node == provider.node_id);
            why::describe(table, lines.cloned().collect())
        };
        Self {
            index: table.index().0,
            portals: portals(table),
            health,
            lines: why::describe(table, table.why_service(name).cloned().collect()),
            checks: providers.iter().flat_map(of_checks).collect(),
            https: present.filter_map(|member| Some((member.id, member.http?))).collect(),
            providers,
            providers_len,
        }
    }

    fn is_known(&self) -> bool {
        self.providers_len > 0 || !self.lines.is_empty()
    }
}

#[derive(Template)]
#[template(path = "service.html")]
struct Content {
    node: String,
    name: String,
    /// Path of the page.
    page: Option<String>,
    index: u64,
    note: Option<Notice>,
    counts: Vec<Count>,
    cards: Vec<Card>,
    more: usize,
    events: Vec<TimelineEvent>,
    forms: Forms,
    is_known: bool,
}

/// Values that the forms of a page share.
struct Forms {
    deregister: &'static str,
    maintenance: &'static str,
    reason_chars_max: usize,
    /// Whether the visitor may send them.
    may_write: bool,
}

/// A time in RFC 3339 and in a form for people.
struct Moment {
    time: String,
    text: String,
}

impl Moment {
    /// Returns `None` for 0, a time that was not recorded.
    fn of(ms: u64) -> Option<Self> {
        let time = rfc3339_ms(ms);
        (ms > 0).then(|| Self { text: day_and_time(&time), time })
    }
}

/// An instance.
struct Card {
    /// Key of the instance, unique on the page.
    key: String,
    id: String,
    node: String,
    node_link: Option<String>,
    is_mine: bool,
    health: &'static str,
    url: String,
    link: Option<String>,
    addresses: Vec<String>,
    ports: Vec<String>,
    tags: Vec<String>,
    meta: Vec<(String, String)>,
    zone: Option<String>,
    weight: u16,
    requires: Vec<(String, Option<String>)>,
    since: Option<Moment>,
    uptime: Uptime,
    checks: Vec<CheckRow>,
    held: Option<HeldRow>,
}

/// A registration that this node holds.
struct HeldRow {
    owner: &'static str,
    /// The file that registers the instance. The instance can only be deregistered there.
    file: Option<String>,
    maintenance: Option<(String, Option<Moment>)>,
    node_maintenance: Option<String>,
}

/// A check.
struct CheckRow {
    name: String,
    kind: String,
    status: &'static str,
    output: String,
    is_long: bool,
    last_run: Option<Moment>,
    next_run: Option<Moment>,
    since: Option<Moment>,
    took: String,
}

fn content(
    state: &AppState,
    name: &str,
    snapshot: Snapshot,
    may_write: bool,
    note: Option<Notice>,
) -> Content {
    let count = |health: Health| snapshot.health.get(&health).copied().unwrap_or_default();
    let counts = vec![
        Count { label: "instances", number: snapshot.providers_len, class: "" },
        Count { label: "passing", number: count(Health::Passing), class: "good" },
        Count { label: "warning", number: count(Health::Warning), class: "poor" },
        Count { label: "critical", number: count(Health::Critical), class: "bad" },
    ];
    let clock = state.view.clock();
    // Check events are taken from each instance's history, which keeps them longer than the service's history
    // does.
    let others = snapshot.lines.iter().filter(|(_, line)| line.event != "check");
    let mut lines: Vec<&(Time, Line)> = others.chain(&snapshot.checks).collect();
    lines.sort_by_key(|(at, _)| *at);
    let timed: Vec<(u64, &Line)> =
        lines.into_iter().map(|(at, line)| (unix_ms(clock.wall(*at)), line)).collect();
    let now_ms = unix_ms(clock.wall(clock.now()));
    let card = |provider: &Arc<Provider>| {
        Card::of(state, provider, &snapshot.https, Uptime::of(provider, &timed, now_ms))
    };
    Content {
        node: state.name.clone(),
        name: name.to_owned(),
        page: service_link(name),
        index: snapshot.index,
        note,
        counts,
        cards: snapshot.providers.iter().map(card).collect(),
        more: snapshot.providers_len - snapshot.providers.len(),
        events: snapshot
            .lines
            .iter()
            .rev()
            .take(EVENTS_MAX)
            .map(|(at, line)| TimelineEvent::of(state, *at, line))
            .collect(),
        forms: Forms {
            deregister: DEREGISTER_PATH,
            maintenance: MAINTENANCE_PATH,
            reason_chars_max: REASON_CHARS_MAX,
            may_write,
        },
        is_known: snapshot.is_known(),
    }
}

impl Card {
    fn of(state: &AppState, provider: &Provider, https: &BTreeMap<NodeId, String>, uptime: Uptime) -> Self {
        let instance = &provider.instance;
        let is_mine = provider.node_id == state.id;
        let held = state.registry.get(&provider.id).filter(|_| is_mine);
        let checks = match &held {
            // Maintenance is no check of the registration; the page shows it separately.
            Some(held) => held.checks.iter().cloned().map(CheckRow::from).collect(),
            None => instance.checks.iter().map(CheckReport::from).map(CheckRow::from).collect(),
        };
        let page = https.get(&provider.node_id).filter(|_| !is_mine).zip(service_link(&instance.service));
        let page = page.map(|(http, path)| format!("http://{http}{path}"));
        let key = format!("{}{}", provider.node_id, provider.id);
        Self {
            key: blake3::hash(key.as_bytes()).to_hex()[..16].to_owned(),
            id: provider.id.clone(),
            node: provider.node.clone(),
            node_link: page.filter(|page| web_address(page).is_some()),
            is_mine,
            health: provider.health_word(),
            link: web_address(&provider.url()).map(str::to_owned),
            url: provider.url().into_owned(),
            addresses: provider.addresses.iter().skip(1).cloned().collect(),
            ports: instance.ports.iter().map(|port| format!("{} {}", port.name, port.port)).collect(),
            tags: instance.tags.clone(),
            meta: instance.meta.iter().map(|(key, value)| (key.clone(), value.clone())).collect(),
            zone: provider.zone().map(str::to_owned),
            weight: provider.weight(),
            requires: instance.requires.iter().map(|name| (name.clone(), service_link(name))).collect(),
            since: Moment::of(instance.since_ms),
            uptime,
            checks,
            held: held.map(|held| HeldRow::of(state, held)),
        }
    }
}

impl HeldRow {
    fn of(state: &AppState, held: RegistrationView) -> Self {
        let file = match &held.owner {
            Owner::File(file) => Some(file.display().to_string()),
            Owner::Api | Owner::Connection(_) => None,
        };
        Self {
            owner: match held.owner {
                Owner::Api => "until it is deregistered",
                Owner::Connection(_) => "as long as its connection is open",
                Owner::File(_) => "as long as its file is there",
            },
            file,
            maintenance: held.maintenance.map(|upkeep| (upkeep.reason, Moment::of(upkeep.since_ms))),
            node_maintenance: state.registry.node_maintenance().map(|upkeep| upkeep.reason),
        }
    }
}

/// Whether an output gets a frame that scrolls.
fn is_long(output: &str) -> bool {
    output.chars().count() > OUTPUT_SHORT.0 || output.lines().count() > OUTPUT_SHORT.1
}

impl From<CheckReport> for CheckRow {
    fn from(check: CheckReport) -> Self {
        Self {
            name: check.name,
            kind: check.kind,
            status: check.status.as_str(),
            is_long: is_long(&check.output),
            output: check.output,
            last_run: check.last_run_ms.and_then(Moment::of),
            next_run: check.next_run_ms.and_then(Moment::of),
            since: Moment::of(check.since_ms),
            took: check.last_run_ms.map(|_| format!("{} ms", check.took_ms)).unwrap_or_default(),
        }
    }
}
