//! Parts that the node's pages share: navigation, links, counts and the timeline.

use std::sync::Arc;

use hearsay_protocol::{Health, Provider, ProviderTable, Time};
use hearsay_services::http::{Asset, PageLink, web_address};

use hearsay_services::rfc3339;

use crate::{
    escape::percent_encoded,
    http::{api::why::Line, state::AppState},
};

/// Script of the pages.
pub(crate) static LIVE_SCRIPT: Asset = Asset::new("text/javascript; charset=utf-8", include_str!("live.js"));

/// Maximum number of rows of a table. `/members` and `/services` list all.
pub(crate) const ROWS_MAX: usize = 300;
/// Maximum number of events of the timeline.
pub(crate) const EVENTS_MAX: usize = 60;

/// Target of the form that deregisters an instance.
pub(crate) const DEREGISTER_PATH: &str = "/ui/registrations/deregister";
/// Target of the form that begins or ends the maintenance of an instance.
pub(crate) const MAINTENANCE_PATH: &str = "/ui/registrations/maintenance";

/// Returns the instances of the portal's role.
pub(crate) fn portals(table: &ProviderTable) -> Vec<Arc<Provider>> {
    table.providers("portal").filter(|portal| portal.is_role()).cloned().collect()
}

/// Returns the links of the navigation. Links to the portal, on this node or another one, come first.
/// `current` is the path of the shown page, or of its parent page.
pub(crate) fn page_links(state: &AppState, portals: &[Arc<Provider>], current: &str) -> Vec<PageLink> {
    let here = portals.iter().any(|portal| portal.node_id == state.id);
    let elsewhere = || portals.iter().find(|p| p.instance.health != Health::Critical);
    let elsewhere = elsewhere().map(|portal| portal.url());
    let origin = if here { Some("") } else { elsewhere.as_deref().and_then(web_address) };
    let mut links = Vec::new();
    if let Some(origin) = origin.map(|origin| origin.trim_end_matches('/')) {
        links.push(PageLink { label: "Grade book", href: format!("{origin}/portal"), here: false });
        links.push(PageLink { label: "Log", href: format!("{origin}/portal/log"), here: false });
    }
    for (label, href) in [("Cluster", "/ui"), ("Services", "/ui/services")] {
        links.push(PageLink { label, href: href.to_owned(), here: href == current });
    }
    links
}

/// Returns the path of a service's page. `None` for a name that no path can contain: browsers resolve `.` and
/// `..`, even percent-encoded.
pub(crate) fn service_link(name: &str) -> Option<String> {
    (!matches!(name, "" | "." | "..")).then(|| format!("/ui/services/{}", percent_encoded(name)))
}

/// A number with its label.
pub(crate) struct Count {
    pub(crate) label: &'static str,
    pub(crate) number: usize,
    pub(crate) class: &'static str,
}

/// A line of the timeline.
pub(crate) struct TimelineEvent {
    pub(crate) time: String,
    pub(crate) clock: String,
    pub(crate) class: &'static str,
    pub(crate) text: String,
}

impl TimelineEvent {
    pub(crate) fn of(state: &AppState, at: Time, line: &Line) -> Self {
        let time = rfc3339(state.view.clock().wall(at));
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

/// Returns the time of day of an RFC 3339 time, to the second.
pub(crate) fn clock_of(time: &str) -> String {
    time.get(11..19).unwrap_or(time).to_owned()
}

/// Returns day and time of an RFC 3339 time, to the second.
pub(crate) fn day_and_time(time: &str) -> String {
    match (time.get(..10), time.get(11..19)) {
        (Some(day), Some(clock)) => format!("{day} {clock}"),
        _ => time.to_owned(),
    }
}
