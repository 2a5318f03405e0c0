//! `portal`: web pages over whichever grading and log nodes are alive.
//!
//! It needs neither role on its own node and keeps nothing: each page is what a grading or log node answered a moment ago over HTTP,
//! found in the provider table, with the next one asked where one fails. When nobody is there the page says so, and what to start.
//!
//! All of it works without scripts: pages are written here, forms are sent and answered with 303, sorting, searching and paging are
//! links. The one script adds new records to the log page while it is open.
//!
//! | file | what |
//! | --- | --- |
//! | `desk` | asking grading and log nodes; what to say when they do not answer |
//! | `form` | what comes out of a form, and whether it may come in |
//! | `after` | what survives the way from a form to the next page: that it is done, and the reader's token |
//! | `book`, `student`, `chart` | the grade book, one student, the drawing of the grades |
//! | `log`, `tail` | the log page, and what it adds while it is open |

mod after;
mod book;
mod chart;
mod desk;
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
    html::{Asset, Frame, ICON, STYLE, Way},
};
use desk::Desk;

static LOG_SCRIPT: Asset = Asset::new("text/javascript; charset=utf-8", include_str!("portal/log.js"));

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
        Router::new()
            .route("/portal", get(book::page).post(book::add))
            .route("/portal/students/{id}", get(student::page).post(student::rename))
            .route("/portal/students/{id}/delete", post(student::delete))
            .route("/portal/students/{id}/grades", post(student::grade))
            .route("/portal/students/{id}/grades/{gid}/delete", post(student::ungrade))
            .route("/portal/log", get(log::page))
            .route("/portal/log/tail", get(tail::tail))
            .route("/portal/log.js", get(async || LOG_SCRIPT.answer()))
            .route("/portal/style.css", get(async || STYLE.answer()))
            .route("/portal/icon.svg", get(async || ICON.answer()))
            .with_state(Desk::new(host))
    }

    fn front_page(&self) -> Option<&str> {
        Some("/portal")
    }

    /// Its pages hold forms. That they come from here is checked again (see `form`).
    fn takes_form_bodies(&self) -> bool {
        true
    }

    fn openapi(&self) -> Value {
        let answer = |what: &str, media: &str| json!({ "description": what, "content": { media: { "schema": { "type": "string" } } } });
        let html = |what: &str| answer(what, "text/html");
        let refused = || json!({ "$ref": "#/components/responses/Problem" });
        // A problem where the path itself is of no student: it is not text.
        let missing_student = |what: &str| {
            let mut answer = html(what);
            answer["content"]["application/problem+json"] =
                json!({ "schema": { "$ref": "#/components/schemas/Problem" } });
            answer
        };
        let page = |summary: &str| {
            json!({ "summary": summary, "responses": {
                "200": html("The page"),
                "502": html("The page, which says what a grading or log node answered"),
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
                        "type": "string", "pattern": "^[A-Za-z0-9_-]{32,128}$", "description": "Tells a second click from a second form",
                    } }, "additionalProperties": { "type": "string" } } } } },
                "responses": {
                    "303": { "description": "Done; leads to the page that shows it" },
                    "400": refused(), "403": refused(), "413": refused(), "415": refused(),
                    "404": missing_student("Not done: there is no such student"),
                    "422": html("Not done: the page with the reason"),
                    "502": html("Not done: the page with what a grading node answered"),
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
                "summary": "New records of the log, as they come",
                "responses": { "200": answer("Server-sent events", "text/event-stream"), "503": refused() },
            } },
            "/portal/log.js": file("What the log page runs", "text/javascript"),
            "/portal/style.css": file("How the pages look", "text/css"),
            "/portal/icon.svg": file("The sign of the pages", "image/svg+xml"),
        })
    }
}

/// Which of the portal's pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Here {
    Book,
    Log,
}

fn frame<'a>(host: &'a dyn Host, title: &'a str, here: Here) -> Frame<'a> {
    let way = |label, href: &str, is_here| Way { label, href: href.to_owned(), here: is_here };
    Frame {
        title,
        cluster: host.cluster(),
        node: host.node(),
        ways: vec![
            way("Grade book", "/portal", here == Here::Book),
            way("Log", "/portal/log", here == Here::Log),
            way("Cluster", "/ui", false),
        ],
        assets: "/portal",
        script: (here == Here::Log).then(|| LOG_SCRIPT.at("/portal/log.js")),
        refresh_secs: None,
    }
}
