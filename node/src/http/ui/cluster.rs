//! `GET /ui`: the cluster page: connections, timeline, members and services.
//!
//! The server writes the page, and it is complete without scripts. The script listens to
//! [`live`](crate::http::ui::live); on an event it fetches the page again and replaces the parts that differ.
//! So there is one way to build the page, and all of it stays up to date.

use std::{collections::BTreeMap, sync::Arc};

use askama::Template;
use axum::{extract::State, http::StatusCode, response::Response};
use hearsay_protocol::{Member, MemberState, Provider, Time};
use hearsay_services::http::{PageFrame, Visible, render_page, web_address};

use hearsay_services::{rfc3339, rfc3339_ms};

use crate::{
    http::{
        api::why::{self, Line},
        state::AppState,
        ui::{
            parts::{
                Count, EVENTS_MAX, LIVE_SCRIPT, ROWS_MAX, TimelineEvent, day_and_time, page_links, portals,
                service_link,
            },
            topology::{Drawing, DrawnMember},
        },
    },
    metrics::hex,
};

/// Answers with the cluster page.
pub(crate) async fn page(State(state): State<Arc<AppState>>) -> Response {
    let snapshot = read_snapshot(&state);
    let content = content(&state, &snapshot);
    let frame = PageFrame {
        title: &format!("{} · cluster", state.cluster),
        cluster: &state.cluster,
        node: &state.name,
        links: page_links(&state, &snapshot.portals, "/ui"),
        assets: "/ui",
        script: Some(LIVE_SCRIPT.at("/ui/live.js")),
        refresh_secs: Some(5),
    };
    render_page(StatusCode::OK, &frame, &content)
}

/// Data of the page, read from the table under its lock.
struct Snapshot {
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

fn read_snapshot(state: &AppState) -> Snapshot {
    state.read(|table| {
        let mut health = BTreeMap::new();
        let all = table.services().flat_map(|service| table.providers(service));
        all.for_each(|provider| *health.entry(provider.instance.health.as_str()).or_default() += 1);
        Snapshot {
            index: table.index().0,
            root_hash: table.root_hash(),
            members: table.members_from_here().collect(),
            providers: table.services().flat_map(|s| table.providers(s)).take(ROWS_MAX).cloned().collect(),
            providers_len: table.providers_len(),
            health,
            services_len: table.services().count(),
            portals: portals(table),
            // All events are described, although the page shows only the last ones: whether a report is a
            // confirmation depends on earlier events.
            events: why::describe(table, table.timeline().cloned().collect()),
        }
    })
}

#[derive(Template)]
#[template(path = "ui.html")]
struct Content {
    name: String,
    index: u64,
    root_hash: String,
    counts: Vec<Count>,
    drawing: Drawing,
    events: Vec<TimelineEvent>,
    members: Vec<MemberRow>,
    members_len: usize,
    groups: Vec<Group>,
    providers_len: usize,
    /// Numbers of members and of instances that are not listed.
    more: (usize, usize),
}

struct MemberRow {
    /// Id of the row, for links within the page.
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
    /// Link to the page of the service.
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

fn content(state: &AppState, snapshot: &Snapshot) -> Content {
    let neighbours = state.neighbours.borrow().neighbours.clone();
    let mut members: Vec<&Member> = snapshot.members.iter().collect();
    // Members that need attention come first, then by name.
    members.sort_by(|a, b| (rank(a.state), &a.name, a.id).cmp(&(rank(b.state), &b.name, b.id)));
    let count = |state: MemberState| members.iter().filter(|member| member.state == state).count();
    let drawn = members.iter().map(|member| DrawnMember::of(member)).collect();
    Content {
        name: state.name.clone(),
        index: snapshot.index,
        root_hash: hex(&snapshot.root_hash),
        counts: vec![
            Count { label: "alive", number: count(MemberState::Alive), class: "good" },
            Count { label: "suspect", number: count(MemberState::Suspect), class: "poor" },
            Count { label: "failed", number: count(MemberState::Failed), class: "bad" },
            Count { label: "left", number: count(MemberState::Left), class: "" },
            Count { label: "services", number: snapshot.services_len, class: "" },
            match snapshot.health.iter().filter(|(health, _)| **health != "passing").map(|(_, n)| n).sum() {
                0 => Count { label: "instances, all passing", number: snapshot.providers_len, class: "good" },
                not_passing => Count { label: "instances not passing", number: not_passing, class: "bad" },
            },
        ],
        drawing: Drawing::of(state.id, drawn, &neighbours),
        events: snapshot
            .events
            .iter()
            .rev()
            .take(EVENTS_MAX)
            .map(|(at, line)| TimelineEvent::of(state, *at, line))
            .collect(),
        members: members.iter().take(ROWS_MAX).map(|member| MemberRow::of(state, member)).collect(),
        members_len: members.len(),
        groups: groups(&snapshot.providers),
        providers_len: snapshot.providers_len,
        more: (
            members.len().saturating_sub(ROWS_MAX),
            snapshot.providers_len.saturating_sub(snapshot.providers.len()),
        ),
    }
}

/// Returns the place of a state in the list of members.
fn rank(state: MemberState) -> u8 {
    match state {
        MemberState::Suspect => 0,
        MemberState::Failed => 1,
        MemberState::Alive => 2,
        MemberState::Left => 3,
    }
}

impl MemberRow {
    fn of(state: &AppState, member: &Member) -> Self {
        let time = rfc3339(state.view.clock().wall(member.since));
        let http = member.http.clone().unwrap_or_default();
        let is_me = member.id == state.id;
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
            rtt: member
                .rtt
                .filter(|_| !is_me)
                .map(|rtt| format!("{:.2} ms", rtt.as_secs_f64() * 1000.0))
                .unwrap_or_default(),
            since: day_and_time(&time),
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
            since: day_and_time(&time),
            time,
        });
    }
    groups
}
