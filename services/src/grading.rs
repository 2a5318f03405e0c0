//! `grading`: the grade book, one for all grading nodes.
//!
//! Whatever is saved on one of them is an entry of their common journal, and so is on the others at once, and still there when the one that took it is not.
//! `change.rs` is what is written, `tables.rs` what it comes to; `csv.rs` is the import and export, over `sheet.rs`, which reads tables as spreadsheets
//! save them (`utf8.rs` their encoding, `records.rs` their lines).

pub mod book;
pub mod change;
mod csv;
mod input;
mod openapi;
mod records;
mod restore;
mod sheet;
mod tables;
mod utf8;

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Path, State, rejection::PathRejection},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use http::{HeaderMap, StatusCode, Uri, header};
use serde_json::{Value, json};

use crate::{
    Host, Problem, Service,
    journal::{self, Connection, Journal, Projection},
    parameters::Parameters,
    restore::Restoring,
    service::Task,
    writing::{self, Wish},
};
use book::{Grade, Student};
use change::{Change, Changes, NewGrade, new_id};
pub use sheet::{Row, Sheet, SheetError};
use tables::{Selection, Tables};

const ROLE: &str = "grading";
/// The most students in one answer. A client that wants more follows with `?after=`.
pub const STUDENTS_PER_PAGE_MAX: usize = 1000;
/// The idempotency key of the sample students: however many nodes bring them, they come once.
const SAMPLE_KEY: &str = "sample-students";

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

    fn projection(&self) -> Option<Arc<dyn Projection>> {
        Some(Arc::new(Tables))
    }

    fn restoring(&self) -> Restoring {
        Restoring::Possible(Arc::new(restore::Backup))
    }

    fn router(&self, host: Arc<dyn Host>) -> Router {
        let book = Book { journal: host.journal(ROLE) };
        Router::new()
            .route("/students", get(list).post(add))
            .route("/students/export", get(csv::export))
            .route("/students/import", post(csv::import))
            .route("/students/restore", post(restore::restore))
            .route("/students/{id}", get(one).put(replace).delete(remove))
            .route("/students/{id}/grades", post(give))
            .route("/students/{id}/grades/{gid}", delete(take_back))
            .with_state(book)
    }

    fn task(&self, host: Arc<dyn Host>) -> Option<Task> {
        let journal = host.journal(ROLE).filter(|_| host.demo())?;
        Some(Box::pin(async move {
            let wish = Wish { key: Some(SAMPLE_KEY.to_owned()), ..Wish::default() };
            let body = Changes { changes: vec![Change::Sample] }.to_body();
            // A disk that is full tells everybody who writes. The sample comes with the next start.
            _ = wish.write(journal.as_ref(), body).await;
        }))
    }

    fn openapi(&self) -> Value {
        openapi::paths()
    }
}

/// What the handlers share.
#[derive(Clone)]
struct Book {
    journal: Option<Arc<dyn Journal>>,
}

impl Book {
    fn journal(&self) -> Result<&dyn Journal, Problem> {
        self.journal.as_deref().ok_or_else(|| {
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "this node keeps no journal for the grade book")
        })
    }

    async fn student(&self, id: u64) -> Result<Student, Problem> {
        let found = journal::read(self.journal()?, move |db| tables::student(db, id)).await?;
        found.ok_or_else(|| nobody(id))
    }

    /// Refuses grades that would be acknowledged and not shown.
    ///
    /// # Errors
    /// 400: two of them have the same id. 409: one has an id that was taken back.
    async fn check_grade_ids(&self, student: u64, grades: &[NewGrade]) -> Result<(), Problem> {
        let ids: Vec<u64> = grades.iter().filter_map(|grade| grade.id).collect();
        let refuse =
            |status, id, problem| Problem::new(status, format!("id: {problem}: {id}")).with("field", "id");
        let mut seen = BTreeSet::new();
        if let Some(twice) = ids.iter().find(|id| !seen.insert(**id)) {
            return Err(refuse(StatusCode::BAD_REQUEST, *twice, "two grades have the same id"));
        }
        if ids.is_empty() {
            return Ok(());
        }
        let find = move |db: &Connection| {
            let taken_back = |id: &u64| tables::is_taken_back(db, student, *id).map(|is| is.then_some(*id));
            ids.iter().map(taken_back).find_map(Result::transpose).transpose()
        };
        match journal::read(self.journal()?, find).await? {
            None => Ok(()),
            Some(id) => {
                let problem = "a grade with this id was taken back, and its id is never given again; leave the id out to get a new one";
                Err(refuse(StatusCode::CONFLICT, id, problem))
            }
        }
    }
}

fn nobody(id: impl std::fmt::Display) -> Problem {
    Problem::not_found(format!("no student has the id {id}"))
}

/// An id out of a path. One that is no number, or not even text, is the id of nobody.
fn id_of(text: &str) -> Result<u64, Problem> {
    text.parse().map_err(|_| nobody(text))
}

fn path<T>(path: Result<Path<T>, PathRejection>) -> Result<T, Problem> {
    path.map(|Path(path)| path).map_err(|_| Problem::not_found("the id in the path is not UTF-8"))
}

async fn list(State(book): State<Book>, headers: HeaderMap, uri: Uri) -> Result<Response, Problem> {
    let parameters = Parameters::read(uri.query(), &["after", "limit", "q"])?;
    let selection = Selection {
        after: parameters.parse("after", "the id of a student, a whole number")?.unwrap_or(0),
        limit: limit(&parameters)?,
        name_part: parameters.one("q")?.unwrap_or_default().to_owned(),
    };
    if i64::try_from(selection.after).is_err() {
        return Ok(Json(json!([])).into_response());
    }
    let journal = book.journal()?;
    writing::catch_up(journal, &headers).await?;
    let students = journal::read(journal, move |db| tables::select(db, &selection)).await?;
    Ok(Json(students).into_response())
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
    State(book): State<Book>,
    headers: HeaderMap,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    let id = id_of(&path(id)?)?;
    writing::catch_up(book.journal()?, &headers).await?;
    Ok(Json(book.student(id).await?).into_response())
}

/// Gives each grade an id, if it has none.
fn with_ids(grades: Vec<NewGrade>, key: Option<&str>) -> Vec<Grade> {
    let with_id = |(i, grade): (usize, NewGrade)| grade.with_id(|| new_id(key, i + 1));
    grades.into_iter().enumerate().map(with_id).collect()
}

fn wish(uri: &Uri, headers: &HeaderMap) -> Result<Wish, Problem> {
    Wish::read(headers, &Parameters::read(uri.query(), &["ack"])?)
}

async fn add(
    State(book): State<Book>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let wish = wish(&uri, &headers)?;
    let new = input::student(&body)?;
    let id = new.id.unwrap_or_else(|| new_id(wish.key.as_deref(), 0));
    let journal = book.journal()?;
    if new.id.is_some() && wish.key.is_none() && book.student(id).await.is_ok() {
        let detail = format!("id: a student with the id {id} is in the book already; PUT replaces it");
        return Err(Problem::new(StatusCode::CONFLICT, detail).with("field", "id"));
    }
    let grades = new.grades.unwrap_or_default();
    book.check_grade_ids(id, &grades).await?;
    let grades = with_ids(grades, wish.key.as_deref());
    let student = Student { id, first_name: new.first_name, last_name: new.last_name, grades };
    let mut changes = vec![Change::Put {
        student: id,
        first_name: student.first_name.clone(),
        last_name: student.last_name.clone(),
    }];
    changes.extend(student.grades.iter().map(|grade| Change::Grade { student: id, grade: grade.clone() }));
    let appended = wish.write(journal, Changes { changes }.to_body()).await?;
    let location = [(header::LOCATION, format!("/students/{id}"))];
    Ok(writing::told(&appended, (StatusCode::CREATED, location, Json(student))))
}

async fn replace(
    State(book): State<Book>,
    id: Result<Path<String>, PathRejection>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let id = id_of(&path(id)?)?;
    let wish = wish(&uri, &headers)?;
    let new = input::student(&body)?;
    writing::catch_up(book.journal()?, &headers).await?;
    if let Some(other) = new.id.filter(|other| *other != id) {
        let detail = format!("id: the body says {other} and the path {id}; an id does not change");
        return Err(Problem::new(StatusCode::BAD_REQUEST, detail).with("field", "id"));
    }
    let before = book.student(id).await?;
    let mut changes = vec![Change::Put {
        student: id,
        first_name: new.first_name.clone(),
        last_name: new.last_name.clone(),
    }];
    let grades = match new.grades {
        None => before.grades,
        Some(grades) => {
            book.check_grade_ids(id, &grades).await?;
            let grades = with_ids(grades, wish.key.as_deref());
            changes.push(Change::Clear { student: id });
            changes.extend(grades.iter().map(|grade| Change::Grade { student: id, grade: grade.clone() }));
            grades
        }
    };
    let appended = wish.write(book.journal()?, Changes { changes }.to_body()).await?;
    let student = Student { id, first_name: new.first_name, last_name: new.last_name, grades };
    Ok(writing::told(&appended, Json(student)))
}

async fn remove(
    State(book): State<Book>,
    id: Result<Path<String>, PathRejection>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let id = id_of(&path(id)?)?;
    let wish = wish(&uri, &headers)?;
    writing::catch_up(book.journal()?, &headers).await?;
    if wish.key.is_none() {
        book.student(id).await?;
    }
    let body = Changes { changes: vec![Change::Remove { student: id }] }.to_body();
    let appended = wish.write(book.journal()?, body).await?;
    Ok(writing::told(&appended, StatusCode::NO_CONTENT))
}

async fn give(
    State(book): State<Book>,
    id: Result<Path<String>, PathRejection>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let id = id_of(&path(id)?)?;
    let wish = wish(&uri, &headers)?;
    let new = input::grade(&body)?;
    writing::catch_up(book.journal()?, &headers).await?;
    book.student(id).await?;
    book.check_grade_ids(id, std::slice::from_ref(&new)).await?;
    let grade = new.with_id(|| new_id(wish.key.as_deref(), 0));
    let changes = vec![Change::Grade { student: id, grade: grade.clone() }];
    let appended = wish.write(book.journal()?, Changes { changes }.to_body()).await?;
    Ok(writing::told(&appended, (StatusCode::CREATED, Json(grade))))
}

async fn take_back(
    State(book): State<Book>,
    ids: Result<Path<(String, String)>, PathRejection>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (id, grade) = path(ids)?;
    let id = id_of(&id)?;
    let wish = wish(&uri, &headers)?;
    let gone = || Problem::not_found(format!("the student {id} has no grade with the id {grade}"));
    let grade: u64 = grade.parse().map_err(|_| gone())?;
    writing::catch_up(book.journal()?, &headers).await?;
    if wish.key.is_none() && !book.student(id).await?.grades.iter().any(|g| g.id == grade) {
        return Err(gone());
    }
    let body = Changes { changes: vec![Change::Ungrade { student: id, grade }] }.to_body();
    let appended = wish.write(book.journal()?, body).await?;
    Ok(writing::told(&appended, StatusCode::NO_CONTENT))
}

#[cfg(test)]
mod tests;
