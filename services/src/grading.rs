//! `grading`: the grade book.
//!
//! It reads so far: the sample students of `--demo`, which are the same on every node. Writes, and with them a book that all
//! grading nodes share, come with the journal; until then they are refused with 501 rather than kept in one node's memory.

pub mod book;

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path, State, rejection::PathRejection},
    response::{IntoResponse, Response},
    routing::{MethodRouter, get},
};
use http::{Method, Uri};
use serde_json::{Value, json};

use crate::{Host, Problem, Service, parameters::Parameters, plan};
use book::{Book, Selection};

const ROLE: &str = "grading";
/// The most students in one answer. A client that wants more follows with `?after=`.
pub const STUDENTS_PER_PAGE_MAX: usize = 1000;

/// The plug-in.
#[derive(Debug)]
pub struct Grading;

impl Service for Grading {
    fn name(&self) -> &str {
        ROLE
    }

    fn prefixes(&self) -> &[&str] {
        &["/students"]
    }

    fn router(&self, host: Arc<dyn Host>) -> Router {
        let book = if host.demo() { Book::sample() } else { Book::default() };
        let refuse = |path, methods| plan::refuse(path, methods, ROLE);
        Router::new()
            .route("/students", refuse(get(list), &[Method::POST]))
            .route("/students/{id}", refuse(get(one), &[Method::PUT, Method::DELETE]))
            .route("/students/{id}/grades", refuse(MethodRouter::new(), &[Method::POST]))
            .route("/students/{id}/grades/{gid}", refuse(MethodRouter::new(), &[Method::DELETE]))
            .with_state(Arc::new(book))
    }

    fn openapi(&self) -> Value {
        let refused = |summary: &str| json!({ "summary": summary, "responses": { "501": { "$ref": "#/components/responses/Problem" } } });
        let id = json!([{ "$ref": "#/components/parameters/studentId" }]);
        json!({
            "/students": {
                "get": {
                    "summary": "The students of the grade book, in the order of their ids",
                    "parameters": [
                        { "name": "after", "in": "query", "schema": { "type": "integer", "minimum": 0 },
                          "description": "Only students with a higher id" },
                        { "name": "limit", "in": "query",
                          "schema": { "type": "integer", "minimum": 1, "maximum": STUDENTS_PER_PAGE_MAX } },
                        { "name": "q", "in": "query", "schema": { "type": "string" },
                          "description": "Only students whose name contains this" },
                    ],
                    "responses": {
                        "200": { "description": "The students", "content": { "application/json": {
                            "schema": { "type": "array", "items": { "$ref": "#/components/schemas/Student" } } } } },
                        "400": { "$ref": "#/components/responses/Problem" },
                    },
                },
                "post": refused("Add a student: not yet, needs the journal"),
            },
            "/students/{id}": {
                "parameters": id,
                "get": {
                    "summary": "One student",
                    "responses": {
                        "200": { "description": "The student", "content": { "application/json": {
                            "schema": { "$ref": "#/components/schemas/Student" } } } },
                        "404": { "$ref": "#/components/responses/Problem" },
                    },
                },
                "put": refused("Replace a student: not yet, needs the journal"),
                "delete": refused("Remove a student: not yet, needs the journal"),
            },
            "/students/{id}/grades": {
                "parameters": id,
                "post": refused("Add a grade: not yet, needs the journal"),
            },
            "/students/{id}/grades/{gid}": {
                "parameters": [
                    { "$ref": "#/components/parameters/studentId" },
                    { "name": "gid", "in": "path", "required": true, "schema": { "type": "integer" } },
                ],
                "delete": refused("Remove a grade: not yet, needs the journal"),
            },
        })
    }
}

async fn list(State(book): State<Arc<Book>>, uri: Uri) -> Result<Response, Problem> {
    let parameters = Parameters::read(uri.query(), &["after", "limit", "q"])?;
    let selection = Selection {
        after: parameters.parse("after", "the id of a student, a whole number")?.unwrap_or(0),
        limit: limit(&parameters)?,
        name_part: parameters.one("q")?.unwrap_or_default(),
    };
    Ok(Json(book.select(&selection)).into_response())
}

fn limit(parameters: &Parameters<'_>) -> Result<usize, Problem> {
    let allowed = format!("a whole number from 1 to {STUDENTS_PER_PAGE_MAX}");
    match parameters.parse("limit", &allowed)? {
        None => Ok(STUDENTS_PER_PAGE_MAX),
        Some(limit) if (1..=STUDENTS_PER_PAGE_MAX).contains(&limit) => Ok(limit),
        Some(limit) => Err(Parameters::refuse("limit", &limit.to_string(), allowed)),
    }
}

async fn one(
    State(book): State<Arc<Book>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    // An id that is no number, or not even text, is the id of nobody.
    let Path(id) = id.map_err(|_| Problem::not_found("the id of the student is not UTF-8"))?;
    match id.parse().ok().and_then(|id| book.student(id)) {
        Some(student) => Ok(Json(student).into_response()),
        None => Err(Problem::not_found(format!("no student has the id {id}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Answer, MemoryHost, ask};

    async fn get(demo: bool, path: &str) -> Answer {
        let host = Arc::new(MemoryHost::new("n1").with_demo(demo));
        ask(Grading.router(host), Method::GET, path).await
    }

    #[tokio::test]
    async fn the_demo_book_holds_five_students_in_the_promised_order() {
        let students = get(true, "/students").await.json();
        let names: Vec<String> = students
            .as_array()
            .unwrap()
            .iter()
            .map(|s| {
                format!(
                    "{} {} {}",
                    s["id"],
                    s["firstName"].as_str().unwrap(),
                    s["lastName"].as_str().unwrap()
                )
            })
            .collect();
        let expected =
            ["1 Nick Carter", "2 Roberto Baggio", "3 Emma Stone", "4 Rachel McAdams", "5 Kelly Clarkson"];
        assert_eq!(names, expected);
        assert_eq!(get(true, "/students/3").await.json(), students[2]);
    }

    #[tokio::test]
    async fn a_student_has_exactly_the_fields_of_the_contract() {
        let student = get(true, "/students/1").await.json();
        let keys = |v: &Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&student), ["average", "firstName", "grades", "id", "lastName"]);
        assert_eq!(keys(&student["grades"][0]), ["id", "score", "title", "type"]);
        let scores: Vec<f64> =
            student["grades"].as_array().unwrap().iter().map(|g| g["score"].as_f64().unwrap()).collect();
        let mean = scores.iter().sum::<f64>() / scores.len() as f64;
        assert!((student["average"].as_f64().unwrap() - mean).abs() < 1e-9);
    }

    #[tokio::test]
    async fn without_demo_the_book_is_empty() {
        assert_eq!(get(false, "/students").await.json(), json!([]));
        for path in ["/students/1", "/students/x", "/students/%FF"] {
            let answer = get(false, path).await;
            assert_eq!(
                (answer.status.as_u16(), answer.content_type()),
                (404, "application/problem+json"),
                "{path}"
            );
        }
    }

    #[tokio::test]
    async fn the_list_is_paged_and_searched() {
        let ids = async |path: &str| -> Vec<u64> {
            let list = get(true, path).await.json();
            list.as_array().unwrap().iter().map(|s| s["id"].as_u64().unwrap()).collect()
        };
        assert_eq!(ids("/students?after=2&limit=2").await, [3, 4]);
        assert_eq!(ids("/students?q=cLaRk").await, [5]);
        assert_eq!(ids("/students?q=emma%20stone").await, [3]);
        assert_eq!(ids("/students?after=5").await, [0; 0]);
    }

    #[tokio::test]
    async fn a_bad_parameter_is_named_with_what_is_allowed() {
        for (query, words) in [
            ("limit=0", ["limit", "1 to 1000"]),
            ("after=x", ["after", "whole number"]),
            ("page=2", ["page", "limit"]),
        ] {
            let answer = get(true, &format!("/students?{query}")).await;
            let detail = answer.json()["detail"].as_str().unwrap().to_owned();
            assert!(answer.status == 400 && words.iter().all(|w| detail.contains(w)), "{query}: {detail}");
        }
    }

    #[tokio::test]
    async fn writes_are_refused_with_the_reason() {
        let host = Arc::new(MemoryHost::new("n1"));
        let router = Grading.router(host);
        for (method, path) in [
            (Method::POST, "/students"),
            (Method::PUT, "/students/1"),
            (Method::DELETE, "/students/1"),
            (Method::POST, "/students/1/grades"),
            (Method::DELETE, "/students/1/grades/2"),
        ] {
            let answer = ask(router.clone(), method, path).await;
            assert_eq!((answer.status.as_u16(), answer.content_type()), (501, "application/problem+json"));
            assert!(answer.json()["detail"].as_str().unwrap().contains("journal"));
        }
    }
}
