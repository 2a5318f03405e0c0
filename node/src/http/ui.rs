//! `GET /ui`: the cluster as one page, written by the server and whole without scripts.
//!
//! Its script listens to [`live`] and, when told that there is something new, reads the page again and puts in the parts that differ.
//! So there is one way in which the page is made, and everything on it stays up to date.
//!
//! | file | what |
//! | --- | --- |
//! | `services` | `/ui/services`: all services, programs, dependencies |
//! | `service` | `/ui/services/{name}`: the instances of a service and their checks |
//! | `actions`, `note` | what the forms of that page do, and what the page says of it then |
//! | `uptime`, `graph`, `topology` | drawings |
//! | `live` | the events that keep the pages up to date |

pub(super) mod actions;
mod graph;
pub(super) mod live;
mod note;
pub(super) mod service;
pub(super) mod services;
mod topology;
mod uptime;

use std::{collections::BTreeMap, sync::Arc};

use askama::Template;
use axum::{extract::State, http::StatusCode, response::Response};
use hearsay_protocol::{
    Time,
    providers::{Member, MemberState, Provider, ProviderTable},
    record::Health,
};
use hearsay_services::html::{Asset, Frame, Visible, Way, page as html_page, web_address};

use super::{
    site::Site,
    why::{self, Line},
};
use crate::{
    metrics::hex,
    timestamp::{rfc3339, rfc3339_ms},
};
use topology::{Drawing, Part};

/// What the page runs.
pub(super) static LIVE_SCRIPT: Asset =
    Asset::new("text/javascript; charset=utf-8", include_str!("ui/live.js"));

/// The most rows of a table. Nobody reads further; `/members` and `/services` have them all.
const ROWS_MAX: usize = 300;
/// Events of the timeline that are shown.
const EVENTS_MAX: usize = 60;

/// Where the form leads that deregisters an instance.
pub(super) const DEREGISTER_PATH: &str = "/ui/registrations/deregister";
/// Where the form leads that takes an instance out of service, or back in.
pub(super) const MAINTENANCE_PATH: &str = "/ui/registrations/maintenance";

/// Shows the cluster.
pub(super) async fn page(State(site): State<Arc<Site>>) -> Response {
    let taken = take(&site);
    let content = content(&site, &taken);
    let frame = Frame {
        title: &format!("{} · cluster", site.cluster),
        cluster: &site.cluster,
        node: &site.name,
        ways: ways(&site, &taken.portals, "/ui"),
        assets: "/ui",
        script: Some(LIVE_SCRIPT.at("/ui/live.js")),
        refresh_secs: Some(5),
    };
    html_page(StatusCode::OK, &frame, &content)
}

/// What the page shows, taken out of the table under its lock.
struct Taken {
    index: u64,
    root_hash: [u8; 16],
    members: Vec<Member>,
    providers: Vec<Arc<Provider>>,
    providers_len: usize,
    health: BTreeMap<&'static str, usize>,
    services_len: usize,
    portals: Vec<Arc<Provider>>,
    events: Vec<(Time, Line)>,
}

fn take(site: &Site) -> Taken {
    site.read(|table| {
        let mut health = BTreeMap::new();
        let all = table.services().flat_map(|service| table.providers(service));
        all.for_each(|provider| *health.entry(provider.instance.health.as_str()).or_default() += 1);
        Taken {
            index: table.index().0,
            root_hash: table.root_hash(),
            members: table.members_from_here().collect(),
            providers: table.services().flat_map(|s| table.providers(s)).take(ROWS_MAX).cloned().collect(),
            providers_len: table.providers_len(),
            health,
            services_len: table.services().count(),
            portals: portals(table),
            // All of them are told, and the last are shown: who only confirms can be told only from what came before.
            events: why::tell(table, table.timeline().cloned().collect()),
        }
    })
}

/// The instances of the portal's role.
fn portals(table: &ProviderTable) -> Vec<Arc<Provider>> {
    table.providers("portal").filter(|portal| portal.is_role()).cloned().collect()
}

/// The portal is what most people want; it may run here, or elsewhere. `current` is the page on which the ways stand, or its parent.
fn ways(site: &Site, portals: &[Arc<Provider>], current: &str) -> Vec<Way> {
    let here = portals.iter().any(|portal| portal.node_id == site.id);
    let elsewhere = || portals.iter().find(|p| p.instance.health != Health::Critical);
    let elsewhere = elsewhere().map(|portal| portal.url());
    let origin = if here { Some("") } else { elsewhere.as_deref().and_then(web_address) };
    let mut ways = Vec::new();
    if let Some(origin) = origin.map(|origin| origin.trim_end_matches('/')) {
        ways.push(Way { label: "Grade book", href: format!("{origin}/portal"), here: false });
        ways.push(Way { label: "Log", href: format!("{origin}/portal/log"), here: false });
    }
    for (label, href) in [("Cluster", "/ui"), ("Services", "/ui/services")] {
        ways.push(Way { label, href: href.to_owned(), here: href == current });
    }
    ways
}

/// The page of a service. `None` for a name that no path can hold: browsers take `.` and `..` for directions, also percent-encoded.
fn service_link(name: &str) -> Option<String> {
    (!matches!(name, "" | "." | "..")).then(|| format!("/ui/services/{}", segment(name)))
}

/// A text as a segment of a path: all but RFC 3986's unreserved characters percent-encoded.
fn segment(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

#[derive(Template)]
#[template(path = "ui.html")]
struct Content {
    name: String,
    index: u64,
    root_hash: String,
    counts: Vec<Count>,
    drawing: Drawing,
    events: Vec<Event>,
    members: Vec<MemberRow>,
    members_len: usize,
    groups: Vec<Group>,
    providers_len: usize,
    /// Rows that are left out, of members and of instances.
    more: (usize, usize),
}

/// A number with its name.
struct Count {
    label: &'static str,
    number: usize,
    class: &'static str,
}

/// One line of the timeline.
struct Event {
    time: String,
    clock: String,
    class: &'static str,
    text: String,
}

struct MemberRow {
    /// Of its row, for links within the page.
    anchor: String,
    name: String,
    state: &'static str,
    is_me: bool,
    roles: String,
    http: String,
    link: Option<String>,
    rtt: String,
    time: String,
    since: String,
    software: String,
}

/// A service and its instances.
struct Group {
    name: String,
    /// To its page.
    link: Option<String>,
    health: Vec<(&'static str, usize)>,
    rows: Vec<InstanceRow>,
}

struct InstanceRow {
    node: String,
    health: &'static str,
    url: String,
    link: Option<String>,
    tags: Vec<String>,
    time: String,
    since: String,
}

fn content(site: &Site, taken: &Taken) -> Content {
    let neighbours = site.neighbours.borrow().neighbours.clone();
    let mut members: Vec<&Member> = taken.members.iter().collect();
    // What needs attention comes first, then by name.
    members.sort_by(|a, b| (rank(a.state), &a.name, a.id).cmp(&(rank(b.state), &b.name, b.id)));
    let count = |state: MemberState| members.iter().filter(|member| member.state == state).count();
    let drawn = members.iter().map(|member| Part::of(member)).collect();
    Content {
        name: site.name.clone(),
        index: taken.index,
        root_hash: hex(&taken.root_hash),
        counts: vec![
            Count { label: "alive", number: count(MemberState::Alive), class: "good" },
            Count { label: "suspect", number: count(MemberState::Suspect), class: "poor" },
            Count { label: "failed", number: count(MemberState::Failed), class: "bad" },
            Count { label: "left", number: count(MemberState::Left), class: "" },
            Count { label: "services", number: taken.services_len, class: "" },
            match taken.health.iter().filter(|(health, _)| **health != "passing").map(|(_, n)| n).sum() {
                0 => Count { label: "instances, all passing", number: taken.providers_len, class: "good" },
                ailing => Count { label: "instances not passing", number: ailing, class: "bad" },
            },
        ],
        drawing: Drawing::of(site.id, drawn, &neighbours),
        events: taken
            .events
            .iter()
            .rev()
            .take(EVENTS_MAX)
            .map(|(at, line)| Event::of(site, *at, line))
            .collect(),
        members: members.iter().take(ROWS_MAX).map(|member| MemberRow::of(site, member)).collect(),
        members_len: members.len(),
        groups: groups(&taken.providers),
        providers_len: taken.providers_len,
        more: (
            members.len().saturating_sub(ROWS_MAX),
            taken.providers_len.saturating_sub(taken.providers.len()),
        ),
    }
}

fn rank(state: MemberState) -> u8 {
    match state {
        MemberState::Suspect => 0,
        MemberState::Failed => 1,
        MemberState::Alive => 2,
        MemberState::Left => 3,
    }
}

impl Event {
    fn of(site: &Site, at: Time, line: &Line) -> Self {
        let time = rfc3339(site.view.clock().wall(at));
        let class = match (line.event, line.state) {
            ("became", Some(state)) => state,
            ("joined" | "refuted" | "added", _) => "alive",
            ("accused" | "confirmed", _) => "suspect",
            ("removed", _) => "left",
            ("check", Some(status)) => status,
            _ => "plain",
        };
        Self { clock: clock_of(&time), time, class, text: line.text.clone() }
    }
}

/// The time of day, to the second.
fn clock_of(time: &str) -> String {
    time.get(11..19).unwrap_or(time).to_owned()
}

/// Day and time, to the second.
fn moment_of(time: &str) -> String {
    match (time.get(..10), time.get(11..19)) {
        (Some(day), Some(clock)) => format!("{day} {clock}"),
        _ => time.to_owned(),
    }
}

impl MemberRow {
    fn of(site: &Site, member: &Member) -> Self {
        let time = rfc3339(site.view.clock().wall(member.since));
        let http = member.http.clone().unwrap_or_default();
        let is_me = member.id == site.id;
        let origin = format!("http://{http}/ui");
        Self {
            anchor: member.id.to_string(),
            name: member.name.clone(),
            state: member.state.as_str(),
            is_me,
            roles: member.roles.join(", "),
            link: (!http.is_empty() && member.state.is_present())
                .then(|| web_address(&origin).map(str::to_owned))
                .flatten(),
            http,
            // A microsecond is as exact as it is measured.
            rtt: member
                .rtt
                .filter(|_| !is_me)
                .map(|rtt| format!("{:.2} ms", rtt.as_secs_f64() * 1000.0))
                .unwrap_or_default(),
            since: moment_of(&time),
            time,
            software: member.software.clone(),
        }
    }
}

fn groups(providers: &[Arc<Provider>]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for provider in providers {
        let instance = &provider.instance;
        if groups.last().is_none_or(|group| group.name != instance.service) {
            let (name, link) = (instance.service.clone(), service_link(&instance.service));
            groups.push(Group { name, link, health: Vec::new(), rows: Vec::new() });
        }
        let Some(group) = groups.last_mut() else { continue };
        let health = instance.health.as_str();
        match group.health.iter_mut().find(|(h, _)| *h == health) {
            Some((_, n)) => *n += 1,
            None => group.health.push((health, 1)),
        }
        let time = rfc3339_ms(instance.since_ms);
        group.rows.push(InstanceRow {
            node: provider.node.clone(),
            health,
            link: web_address(&provider.url()).map(str::to_owned),
            url: provider.url().into_owned(),
            tags: instance.tags.clone(),
            since: moment_of(&time),
            time,
        });
    }
    groups
}
