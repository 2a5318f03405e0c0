//! `GET /ui`: the cluster as one page, written by the server and readable without scripts.

use std::{fmt::Write, sync::Arc};

use axum::extract::State;
use hearsay_protocol::providers::{Member, Provider};
use hearsay_services::html::{Link, Page, Text};

use super::Site;
use crate::{
    metrics::hex,
    timestamp::{rfc3339, rfc3339_ms},
};

/// The most rows of a table. Nobody reads further; `/members` and `/services` have them all.
const ROWS_MAX: usize = 500;

/// Shows members and services.
pub(super) async fn page(State(site): State<Arc<Site>>) -> Page<'static> {
    let view = site.read(|table| Shown {
        index: table.index().0,
        root_hash: table.root_hash(),
        members_len: table.members().count(),
        members: table.members().take(ROWS_MAX).cloned().collect(),
        providers_len: table.providers_len(),
        providers: table.services().flat_map(|s| table.providers(s)).take(ROWS_MAX).cloned().collect(),
    });
    let mut body = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        body,
        "<p>Cluster <b>{}</b>, as node <b>{}</b> sees it.</p>\n\
         <p class=\"dim\">Index {}, root hash <code>{}</code>: equal on all nodes that see the same.</p>",
        Text(&site.cluster),
        Text(&site.name),
        view.index,
        hex(&view.root_hash)
    );
    members(&mut body, &site, &view);
    services(&mut body, &view);
    Page { title: "Hearsay", stylesheet: "/ui/style.css", refresh_secs: Some(5), body }
}

/// What the page shows, taken out of the table under its lock.
struct Shown {
    index: u64,
    root_hash: [u8; 16],
    members_len: usize,
    members: Vec<Member>,
    providers_len: usize,
    providers: Vec<Arc<Provider>>,
}

fn members(body: &mut String, site: &Site, shown: &Shown) {
    let _ = writeln!(body, "<h2>Members ({})</h2>", shown.members_len);
    body.push_str(
        "<div class=\"table\"><table>\n<tr><th>name</th><th>state</th><th>roles</th><th>http</th><th>since</th></tr>\n",
    );
    for member in &shown.members {
        let http = member.http.as_ref().map(|http| format!("http://{http}")).unwrap_or_default();
        let _ = writeln!(
            body,
            "<tr><td>{}</td><td class=\"{state}\">{state}</td><td>{}</td><td>{}</td><td class=\"dim\">{}</td></tr>",
            Text(&member.name),
            Text(member.roles.join(", ")),
            Link(&http),
            rfc3339(site.view.clock().wall(member.since)),
            state = member.state,
        );
    }
    finish(body, shown.members_len, "/members");
}

fn services(body: &mut String, shown: &Shown) {
    let _ = writeln!(body, "<h2>Services ({} instances)</h2>", shown.providers_len);
    if shown.providers.is_empty() {
        body.push_str("<p>Nothing is offered yet. <code>node --role grading --demo</code> would.</p>\n");
        return;
    }
    body.push_str(
        "<div class=\"table\"><table>\n\
         <tr><th>service</th><th>health</th><th>node</th><th>url</th><th>tags</th><th>since</th></tr>\n",
    );
    for provider in &shown.providers {
        let instance = &provider.instance;
        let _ = writeln!(
            body,
            "<tr><td>{}</td><td class=\"{health}\">{health}</td><td>{}</td><td>{}</td><td class=\"dim\">{}</td>\
             <td class=\"dim\">{}</td></tr>",
            Text(&instance.service),
            Text(&provider.node),
            Link(&instance.url),
            Text(instance.tags.join(", ")),
            rfc3339_ms(instance.since_ms),
            health = instance.health,
        );
    }
    finish(body, shown.providers_len, "/services");
}

fn finish(body: &mut String, len: usize, all: &str) {
    body.push_str("</table></div>\n");
    if let Some(more @ 1..) = len.checked_sub(ROWS_MAX) {
        let _ = writeln!(body, "<p class=\"dim\">and {more} more: <a href=\"{all}\">all of them</a></p>");
    }
}
