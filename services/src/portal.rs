//! `portal`: web pages over whichever grading and log nodes are alive.
//!
//! So far one page, which says who they are. It needs neither role on its own node: it asks the provider table, and says plainly
//! when nobody is there.

use std::{fmt::Write, sync::Arc};

use axum::{Router, extract::State, routing::get};
use hearsay_protocol::providers::Provider;
use serde_json::{Value, json};

use crate::{
    Host, Service,
    html::{self, Link, Page, Text},
};

const STYLESHEET: &str = "/portal/style.css";
/// The most instances of one service on the page. Nobody reads further; `/services` has them all.
const ROWS_MAX: usize = 100;

/// The plug-in.
#[derive(Debug)]
pub struct Portal;

impl Service for Portal {
    fn name(&self) -> &str {
        "portal"
    }

    fn prefixes(&self) -> &[&str] {
        &["/portal"]
    }

    fn router(&self, host: Arc<dyn Host>) -> Router {
        Router::new().route("/portal", get(front)).route(STYLESHEET, get(html::stylesheet)).with_state(host)
    }

    fn front_page(&self) -> Option<&str> {
        Some("/portal")
    }

    /// Its pages will hold forms.
    fn takes_form_bodies(&self) -> bool {
        true
    }

    fn openapi(&self) -> Value {
        let answer = |media: &str| json!({ "200": { "description": "The page", "content": { media: {} } } });
        json!({
            "/portal": { "get": { "summary": "Which grading and log nodes are alive", "responses": answer("text/html") } },
            "/portal/style.css": { "get": { "summary": "How it looks", "responses": answer("text/css") } },
        })
    }
}

async fn front(State(host): State<Arc<dyn Host>>) -> Page<'static> {
    let (node, cluster) = (Text(host.node()), Text(host.cluster()));
    let mut body = format!("<p class=\"dim\">Shown by node {node} of cluster {cluster}.</p>\n");
    for (service, heading) in [("grading", "Grade book"), ("log", "Log")] {
        section(&mut body, heading, service, &host.providers(service));
    }
    body.push_str("<p><a href=\"/ui\">The cluster</a></p>\n");
    Page { title: "Portal", stylesheet: STYLESHEET, refresh_secs: Some(5), body }
}

fn section(body: &mut String, heading: &str, service: &str, providers: &[Arc<Provider>]) {
    // Writing to a String cannot fail.
    let _ = writeln!(body, "<h2>{}</h2>", Text(heading));
    if providers.is_empty() {
        let _ = writeln!(
            body,
            "<p>No {service} node is alive. Start one: <code>node --role {service}</code>; it appears here by itself.</p>",
        );
        return;
    }
    body.push_str("<div class=\"table\"><table>\n<tr><th>node</th><th>address</th><th>health</th></tr>\n");
    for provider in providers.iter().take(ROWS_MAX) {
        let (node, health) = (Text(&provider.node), provider.instance.health);
        let link = Link(&provider.instance.url);
        let _ = writeln!(body, "<tr><td>{node}</td><td>{link}</td><td class=\"{health}\">{health}</td></tr>");
    }
    body.push_str("</table></div>\n");
    if let Some(more @ 1..) = providers.len().checked_sub(ROWS_MAX) {
        let _ = writeln!(
            body,
            "<p class=\"dim\">and {more} more: <a href=\"/services/{service}\">all of them</a></p>"
        );
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::testing::{MemoryHost, ask};

    async fn page(host: MemoryHost) -> String {
        let answer = ask(Portal.router(Arc::new(host)), Method::GET, "/portal").await;
        assert_eq!(answer.headers["content-security-policy"], html::POLICY);
        answer.text()
    }

    #[tokio::test]
    async fn the_page_lists_who_is_alive_and_says_who_is_missing() {
        let page = page(MemoryHost::new("n1").with_provider("grading", "g1", "http://10.0.0.1:7500")).await;
        assert!(page.contains("g1") && page.contains("href=\"http://10.0.0.1:7500\""), "{page}");
        assert!(page.contains("No log node is alive") && !page.contains("No grading node"), "{page}");
    }

    #[tokio::test]
    async fn names_and_addresses_do_not_become_markup() {
        let host = MemoryHost::new("<i>").with_provider("log", "<script>", "javascript:alert(1)");
        let page = page(host).await;
        assert!(
            !page.contains("<script") && !page.contains("<i>") && !page.contains("href=\"javascript"),
            "{page}"
        );
    }

    #[tokio::test]
    async fn a_page_of_many_instances_stays_bounded() {
        let many = (0..ROWS_MAX + 5).fold(MemoryHost::new("n1"), |host, i| {
            host.with_provider("log", &format!("n{i}"), "http://10.0.0.1:1")
        });
        let page = page(many).await;
        assert!(page.matches("<tr>").count() == ROWS_MAX + 1 && page.contains("and 5 more"));
    }
}
