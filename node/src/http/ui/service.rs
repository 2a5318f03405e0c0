//! `GET /ui/services/{name}`: the instances of a service, what their checks say, and what happened.
//!
//! Where this node holds a registration, its checks are shown as they are now, with forms that change it; of others it shows what is
//! gossiped at each change of status.

use std::{collections::BTreeMap, sync::Arc};

use askama::Template;
use axum::{
    Extension,
    extract::{Path, State, rejection::PathRejection},
    http::{HeaderMap, StatusCode, Uri},
    response::Response,
};
use hearsay_protocol::{
    NodeId, Time,
    providers::{Provider, ProviderTable},
    record::Health,
    wire::checks::CheckReport,
};
use hearsay_services::{
    Problem,
    html::{Frame, Visible, page as html_page, web_address},
};

use super::{
    super::{accept::Connection, caller, registry::REASON_CHARS_MAX, site::Site},
    Count, DEREGISTER_PATH, EVENTS_MAX, Event, LIVE_SCRIPT, Line, MAINTENANCE_PATH, moment_of,
    note::{Done, Note},
    portals, service_link,
    uptime::Uptime,
    ways, why,
};
use crate::{
    registry::record::{Owner, RegistrationView},
    timestamp::{rfc3339_ms, unix_ms},
};

/// Instances shown on a page; of more, those that do not pass come first. Guess: a card is a fifth of a screen.
const CARDS_MAX: usize = 100;
/// From so many characters of output on, or so many lines, it gets a frame of its own that scrolls.
const OUTPUT_SHORT: (usize, usize) = (400, 8);

/// Shows a service.
///
/// # Errors
/// 404: the name is not UTF-8. For a service that is not known, the page itself says so.
pub(in super::super) async fn page(
    State(site): State<Arc<Site>>,
    name: Result<Path<String>, PathRejection>,
    connection: Option<Extension<Connection>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Path(name) = name.map_err(|_| Problem::not_found("the name of the service is not UTF-8"))?;
    let is_here = caller::is_from_this_machine(connection.as_deref(), &headers);
    let note = Done::read(uri.query()).map(Note::done);
    Ok(answer(&site, &name, is_here, note))
}

/// Writes the page. `is_here`: its reader is on this machine, and may change registrations.
pub(super) fn answer(site: &Site, name: &str, is_here: bool, note: Option<Note>) -> Response {
    let taken = site.read(|table| Taken::read(table, name));
    let status = match &note {
        Some(note) if note.status != StatusCode::OK => note.status,
        _ if taken.is_known() => StatusCode::OK,
        _ => StatusCode::NOT_FOUND,
    };
    let frame = Frame {
        title: &format!("{name} · {}", site.cluster),
        cluster: &site.cluster,
        node: &site.name,
        ways: ways(site, &taken.portals, "/ui/services"),
        assets: "/ui",
        script: Some(LIVE_SCRIPT.at("/ui/live.js")),
        // A page that loads itself again would take away what a person is typing.
        refresh_secs: None,
    };
    html_page(status, &frame, &content(site, name, taken, is_here, note))
}

/// What the page shows, taken out of the table under its lock.
struct Taken {
    index: u64,
    portals: Vec<Arc<Provider>>,
    /// How many instances there are, by their health.
    health: BTreeMap<Health, usize>,
    /// The instances that are shown.
    providers: Vec<Arc<Provider>>,
    providers_len: usize,
    /// What happened to the service, oldest first.
    lines: Vec<(Time, Line)>,
    /// The changes of the checks of the instances that are shown, oldest first of each.
    checks: Vec<(Time, Line)>,
    /// Where other nodes answer HTTP.
    https: BTreeMap<NodeId, String>,
}

impl Taken {
    fn read(table: &ProviderTable, name: &str) -> Self {
        let mut providers: Vec<Arc<Provider>> = table.providers(name).cloned().collect();
        let (providers_len, mut health) = (providers.len(), BTreeMap::new());
        providers.iter().for_each(|provider| *health.entry(provider.instance.health).or_default() += 1);
        // They stay where they are whatever their health: a button must not move away under a hand.
        if providers_len > CARDS_MAX {
            providers.sort_by_key(|provider| provider.instance.health == Health::Passing);
            providers.truncate(CARDS_MAX);
            providers.sort_by(|a, b| (a.node_id, &a.id).cmp(&(b.node_id, &b.id)));
        }
        let present = table.members_from_here().filter(|member| member.state.is_present());
        let of_checks = |provider: &Arc<Provider>| {
            let lines = table.why_instance(&provider.id).filter(|(_, node, _)| *node == provider.node_id);
            why::tell(table, lines.cloned().collect())
        };
        Self {
            index: table.index().0,
            portals: portals(table),
            health,
            lines: why::tell(table, table.why_service(name).cloned().collect()),
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
    /// Its own address.
    page: Option<String>,
    index: u64,
    note: Option<Note>,
    counts: Vec<Count>,
    cards: Vec<Card>,
    more: usize,
    events: Vec<Event>,
    forms: Forms,
    is_known: bool,
}

/// What the forms of a page have in common.
struct Forms {
    deregister: &'static str,
    maintenance: &'static str,
    reason_chars_max: usize,
    /// Whether they can be sent.
    is_here: bool,
}

/// A moment, for programs and for people.
struct Moment {
    time: String,
    shown: String,
}

impl Moment {
    /// `None` for one that was never recorded.
    fn of(ms: u64) -> Option<Self> {
        let time = rfc3339_ms(ms);
        (ms > 0).then(|| Self { shown: moment_of(&time), time })
    }
}

/// An instance.
struct Card {
    /// Tells it apart from all others of the page.
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

/// What this node knows of a registration that it holds.
struct HeldRow {
    owner: &'static str,
    /// The file that registers it: it can be removed only there.
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

fn content(site: &Site, name: &str, taken: Taken, is_here: bool, note: Option<Note>) -> Content {
    let count = |health: Health| taken.health.get(&health).copied().unwrap_or_default();
    let counts = vec![
        Count { label: "instances", number: taken.providers_len, class: "" },
        Count { label: "passing", number: count(Health::Passing), class: "good" },
        Count { label: "warning", number: count(Health::Warning), class: "poor" },
        Count { label: "critical", number: count(Health::Critical), class: "bad" },
    ];
    let clock = site.view.clock();
    // The lines of checks are kept for longer with their instances than with the service.
    let others = taken.lines.iter().filter(|(_, line)| line.event != "check");
    let mut lines: Vec<&(Time, Line)> = others.chain(&taken.checks).collect();
    lines.sort_by_key(|(at, _)| *at);
    let timed: Vec<(u64, &Line)> =
        lines.into_iter().map(|(at, line)| (unix_ms(clock.wall(*at)), line)).collect();
    let now_ms = unix_ms(clock.wall(clock.now()));
    let card = |provider: &Arc<Provider>| {
        Card::of(site, provider, &taken.https, Uptime::of(provider, &timed, now_ms))
    };
    Content {
        node: site.name.clone(),
        name: name.to_owned(),
        page: service_link(name),
        index: taken.index,
        note,
        counts,
        cards: taken.providers.iter().map(card).collect(),
        more: taken.providers_len - taken.providers.len(),
        events: taken
            .lines
            .iter()
            .rev()
            .take(EVENTS_MAX)
            .map(|(at, line)| Event::of(site, *at, line))
            .collect(),
        forms: Forms {
            deregister: DEREGISTER_PATH,
            maintenance: MAINTENANCE_PATH,
            reason_chars_max: REASON_CHARS_MAX,
            is_here,
        },
        is_known: taken.is_known(),
    }
}

impl Card {
    fn of(site: &Site, provider: &Provider, https: &BTreeMap<NodeId, String>, uptime: Uptime) -> Self {
        let instance = &provider.instance;
        let is_mine = provider.node_id == site.id;
        let held = site.registry.get(&provider.id).filter(|_| is_mine);
        let checks = match &held {
            // Maintenance is no check of the registration; it is shown as what it is.
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
            held: held.map(|held| HeldRow::of(site, held)),
        }
    }
}

impl HeldRow {
    fn of(site: &Site, held: RegistrationView) -> Self {
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
            node_maintenance: site.registry.node_maintenance().map(|upkeep| upkeep.reason),
        }
    }
}

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
