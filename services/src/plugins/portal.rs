//! Portal plug-in: web pages for the grade book and the log of the cluster.
//!
//! It has no state of its own and needs neither role on its node. Each page shows the answer of a grading or
//! log node from the provider table; if one fails, the next is tried. Without such a node, the page says what
//! to start.
//!
//! Everything works without scripts: the server renders pages, answers forms with 303, and sorting, search
//! and paging are links. The only script adds new records to the open log page.
//!
//! | file | contents |
//! | --- | --- |
//! | `backend` | requests to grading and log nodes, and messages for their failures |
//! | `form` | forms: checks, fields, idempotency keys |
//! | `flash` | cookies from a form to the next page: the outcome, and the token of the write |
//! | `book`, `student`, `chart` | pages of the grade book and of one student; chart of the scores |
//! | `log`, `tail` | log page, and its live records |

mod backend;
mod book;
mod chart;
mod flash;
mod form;
mod log;
mod student;
mod tail;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::{
    Router,
    routing::{get, post},
};
use serde_json::{Value, json};

use crate::{
    Host, Service,
    http::html::{Asset, ICON, PageFrame, PageLink, STYLESHEET},
};
use backend::Backend;

static LOG_SCRIPT: Asset = Asset::new("text/javascript; charset=utf-8", include_str!("portal/log.js"));

/// The portal plug-in.
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
        Router::new()
            .route("/portal", get(book::book_page).post(book::add_student))
            .route("/portal/students/{id}", get(student::student_page).post(student::rename_student))
            .route("/portal/students/{id}/delete", post(student::delete_student))
            .route("/portal/students/{id}/grades", post(student::add_grade))
            .route("/portal/students/{id}/grades/{gid}/delete", post(student::remove_grade))
            .route("/portal/log", get(log::log_page))
            .route("/portal/log/tail", get(tail::follow))
            .route("/portal/log.js", get(async || LOG_SCRIPT.answer()))
            .route("/portal/style.css", get(async || STYLESHEET.answer()))
            .route("/portal/icon.svg", get(async || ICON.answer()))
            .with_state(Backend::new(host))
    }

    fn front_page(&self) -> Option<&str> {
        Some("/portal")
    }

    /// The pages have forms. `form` checks again that a form comes from these pages.
    fn takes_form_bodies(&self) -> bool {
        true
    }

    fn openapi(&self) -> Value {
        let answer = |what: &str, media: &str| json!({ "description": what, "content": { media: { "schema": { "type": "string" } } } });
        let html = |what: &str| answer(what, "text/html");
        let refused = || json!({ "$ref": "#/components/responses/Problem" });
        // The response is a problem document if the id in the path is not text, because no student has such
        // an id.
        let missing_student = |what: &str| {
            let mut answer = html(what);
            answer["content"]["application/problem+json"] =
                json!({ "schema": { "$ref": "#/components/schemas/Problem" } });
            answer
        };
        let page = |summary: &str| {
            json!({ "summary": summary, "responses": {
                "200": html("The page"),
                "502": html("The page, with the error of a grading or log node"),
                "503": html("The page, which says that no grading or log node answers"),
            } })
        };
        let student_page = || {
            let mut page = page("A student as a page");
            page["responses"]["404"] = missing_student("The page, which says that there is no such student");
            page
        };
        let file = |summary: &str, media: &str| json!({ "get": { "summary": summary, "responses": { "200": answer("The file", media) } } });
        let form = |summary: &str| {
            json!({
                "summary": summary,
                "requestBody": { "required": true, "content": { "application/x-www-form-urlencoded": { "schema": {
                    "type": "object", "required": ["key"], "properties": { "key": {
                        "type": "string", "pattern": "^[A-Za-z0-9_-]{32,128}$", "description": "Distinguishes a second click from a second form",
                    } }, "additionalProperties": { "type": "string" } } } } },
                "responses": {
                    "303": { "description": "Done; redirects to the page that shows it" },
                    "400": refused(), "403": refused(), "413": refused(), "415": refused(),
                    "404": missing_student("Not done: there is no such student"),
                    "422": html("Not done: the page with the reason"),
                    "502": html("Not done: the page, with the error of a grading node"),
                    "503": html("Not done: the page, which says that no grading node answers"),
                },
            })
        };
        let id = |name: &str| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } });
        let (student, grade) = (json!([id("id")]), json!([id("id"), id("gid")]));
        json!({
            "/portal": { "get": page("The grade book as a page"), "post": form("Add a student") },
            "/portal/students/{id}": {
                "parameters": student, "get": student_page(), "post": form("Change a student's name"),
            },
            "/portal/students/{id}/delete": { "parameters": student, "post": form("Remove a student") },
            "/portal/students/{id}/grades": { "parameters": student, "post": form("Add a grade") },
            "/portal/students/{id}/grades/{gid}/delete": { "parameters": grade, "post": form("Remove a grade") },
            "/portal/log": { "get": page("The log as a page") },
            "/portal/log/tail": { "get": {
                "summary": "New records of the log (server-sent events)",
                "responses": { "200": answer("Server-sent events", "text/event-stream"), "429": refused(), "503": refused() },
            } },
            "/portal/log.js": file("Script of the log page", "text/javascript"),
            "/portal/style.css": file("Stylesheet of the pages", "text/css"),
            "/portal/icon.svg": file("Icon of the pages", "image/svg+xml"),
        })
    }
}

/// The page that the navigation marks as the current one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ActivePage {
    Book,
    Log,
}

fn frame<'a>(host: &'a dyn Host, title: &'a str, here: ActivePage) -> PageFrame<'a> {
    let link = |label, href: &str, is_here| PageLink { label, href: href.to_owned(), here: is_here };
    PageFrame {
        title,
        cluster: host.cluster(),
        node: host.node(),
        links: vec![
            link("Grade book", "/portal", here == ActivePage::Book),
            link("Log", "/portal/log", here == ActivePage::Log),
            link("Cluster", "/ui", false),
        ],
        assets: "/portal",
        script: (here == ActivePage::Log).then(|| LOG_SCRIPT.at("/portal/log.js")),
        refresh_secs: None,
    }
}
