//! Grade book plug-in: handles the HTTP requests below `/students`, which list, add, change and remove
//! students and grades. The book is replicated on all grading nodes.
//!
//! Every change is an entry of the journal, so all nodes have it, and it survives the node that took it.
//! `change.rs` has the changes, `tables.rs` the projection. `csv.rs` is import and export; it reads tables as
//! spreadsheets save them (`sheet.rs`, with `utf8.rs` for the encoding and `records.rs` for the records).

mod book;
mod change;
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
    http::{
        append::{self, WriteOptions},
        parameters::Parameters,
    },
    journal::{self, Connection, Journal, Projection, restore::RestoreSupport},
    service::Task,
};
use book::{Grade, Student};
use change::{Change, Changes, NewGrade, new_id};
pub use sheet::{Row, Sheet, SheetError};
use tables::{Selection, Tables};

const ROLE: &str = "grading";
/// Maximum number of students in one answer. The next page starts at `?after=`.
pub(crate) const STUDENTS_PER_PAGE_MAX: usize = 1000;
/// Idempotency key of the sample students: they are added once, even if several nodes add them.
const SAMPLE_KEY: &str = "sample-students";

/// The grade book plug-in.
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

    fn restoring(&self) -> RestoreSupport {
        RestoreSupport::Possible(Arc::new(restore::Backup))
    }

    fn router(&self, host: Arc<dyn Host>) -> Router {
        let book = Book { journal: host.journal(ROLE) };
        Router::new()
            .route("/students", get(list_students).post(add_student))
            .route("/students/export", get(csv::export))
            .route("/students/import", post(csv::import))
            .route("/students/restore", post(restore::restore))
            .route("/students/{id}", get(get_student).put(replace_student).delete(remove_student))
            .route("/students/{id}/grades", post(add_grade))
            .route("/students/{id}/grades/{gid}", delete(remove_grade))
            .with_state(book)
    }

    fn task(&self, host: Arc<dyn Host>) -> Option<Task> {
        let journal = host.journal(ROLE).filter(|_| host.demo())?;
        Some(Box::pin(async move {
            let options = WriteOptions { key: Some(SAMPLE_KEY.to_owned()), ..WriteOptions::default() };
            let body = Changes { changes: vec![Change::Sample] }.to_body();
            // An error is ignored: if the cause lasts (a full disk, for example), clients get it as the
            // answer to their own writes. The next start tries again to add the sample.
            _ = options.write(journal.as_ref(), body).await;
        }))
    }

    fn openapi(&self) -> Value {
        openapi::paths()
    }
}

/// Shared state of the handlers.
#[derive(Clone)]
struct Book {
    journal: Option<Arc<dyn Journal>>,
}

impl Book {
    fn journal(&self) -> Result<&dyn Journal, Problem> {
        self.journal.as_deref().ok_or_else(|| {
            Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "this node does not keep the grade book. Send the request to another grading node",
            )
        })
    }

    async fn student(&self, id: u64) -> Result<Student, Problem> {
        let found = journal::read(self.journal()?, move |db| tables::student(db, id)).await?;
        found.ok_or_else(|| no_student(id))
    }

    /// Refuses grades that would be acknowledged but not shown.
    ///
    /// # Errors
    /// 400: two grades have the same id. 409: a grade with this id was removed before.
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
                let problem = "a grade with this id was removed, and its id is never used again. Leave the id out to get a new one";
                Err(refuse(StatusCode::CONFLICT, id, problem))
            }
        }
    }
}

fn no_student(id: impl std::fmt::Display) -> Problem {
    Problem::not_found(format!("no student has the id {id}"))
}

/// Parses the id in a path. A text that is not a number is the id of no student.
fn parse_id(text: &str) -> Result<u64, Problem> {
    text.parse().map_err(|_| no_student(text))
}

fn path_parameter<T>(path: Result<Path<T>, PathRejection>) -> Result<T, Problem> {
    path.map(|Path(path)| path).map_err(|_| Problem::not_found("the id in the path is not UTF-8"))
}

async fn list_students(State(book): State<Book>, headers: HeaderMap, uri: Uri) -> Result<Response, Problem> {
    let parameters = Parameters::read(uri.query(), &["after", "limit", "q"])?;
    let selection = Selection {
        after: parameters.parse("after", "the id of a student, a whole number")?.unwrap_or(0),
        limit: limit(&parameters)?,
        name_part: parameters.single("q")?.unwrap_or_default().to_owned(),
    };
    if i64::try_from(selection.after).is_err() {
        return Ok(Json(json!([])).into_response());
    }
    let journal = book.journal()?;
    append::await_tokens(journal, &headers).await?;
    let students = journal::read(journal, move |db| tables::select_students(db, &selection)).await?;
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

async fn get_student(
    State(book): State<Book>,
    headers: HeaderMap,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, Problem> {
    let id = parse_id(&path_parameter(id)?)?;
    append::await_tokens(book.journal()?, &headers).await?;
    Ok(Json(book.student(id).await?).into_response())
}

/// Gives each grade without an id a new one.
fn with_ids(grades: Vec<NewGrade>, key: Option<&str>) -> Vec<Grade> {
    let with_id = |(i, grade): (usize, NewGrade)| grade.with_id(|| new_id(key, i + 1));
    grades.into_iter().enumerate().map(with_id).collect()
}

fn write_options(uri: &Uri, headers: &HeaderMap) -> Result<WriteOptions, Problem> {
    WriteOptions::read(headers, &Parameters::read(uri.query(), &["ack"])?)
}

async fn add_student(
    State(book): State<Book>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let options = write_options(&uri, &headers)?;
    let new = input::student(&body)?;
    let id = new.id.unwrap_or_else(|| new_id(options.key.as_deref(), 0));
    let journal = book.journal()?;
    if new.id.is_some() && options.key.is_none() && book.student(id).await.is_ok() {
        let detail = format!("id: a student with the id {id} is already in the book. Use PUT to replace it");
        return Err(Problem::new(StatusCode::CONFLICT, detail).with("field", "id"));
    }
    let grades = new.grades.unwrap_or_default();
    book.check_grade_ids(id, &grades).await?;
    let grades = with_ids(grades, options.key.as_deref());
    let student = Student { id, first_name: new.first_name, last_name: new.last_name, grades };
    let mut changes = vec![Change::Put {
        student: id,
        first_name: student.first_name.clone(),
        last_name: student.last_name.clone(),
    }];
    changes.extend(student.grades.iter().map(|grade| Change::Grade { student: id, grade: grade.clone() }));
    let appended = options.write(journal, Changes { changes }.to_body()).await?;
    let location = [(header::LOCATION, format!("/students/{id}"))];
    Ok(append::with_receipt(&appended, (StatusCode::CREATED, location, Json(student))))
}

async fn replace_student(
    State(book): State<Book>,
    id: Result<Path<String>, PathRejection>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let id = parse_id(&path_parameter(id)?)?;
    let options = write_options(&uri, &headers)?;
    let new = input::student(&body)?;
    append::await_tokens(book.journal()?, &headers).await?;
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
            let grades = with_ids(grades, options.key.as_deref());
            changes.push(Change::Clear { student: id });
            changes.extend(grades.iter().map(|grade| Change::Grade { student: id, grade: grade.clone() }));
            grades
        }
    };
    let appended = options.write(book.journal()?, Changes { changes }.to_body()).await?;
    let student = Student { id, first_name: new.first_name, last_name: new.last_name, grades };
    Ok(append::with_receipt(&appended, Json(student)))
}

async fn remove_student(
    State(book): State<Book>,
    id: Result<Path<String>, PathRejection>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let id = parse_id(&path_parameter(id)?)?;
    let options = write_options(&uri, &headers)?;
    append::await_tokens(book.journal()?, &headers).await?;
    if options.key.is_none() {
        book.student(id).await?;
    }
    let body = Changes { changes: vec![Change::Remove { student: id }] }.to_body();
    let appended = options.write(book.journal()?, body).await?;
    Ok(append::with_receipt(&appended, StatusCode::NO_CONTENT))
}

async fn add_grade(
    State(book): State<Book>,
    id: Result<Path<String>, PathRejection>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let id = parse_id(&path_parameter(id)?)?;
    let options = write_options(&uri, &headers)?;
    let new = input::grade(&body)?;
    append::await_tokens(book.journal()?, &headers).await?;
    book.student(id).await?;
    book.check_grade_ids(id, std::slice::from_ref(&new)).await?;
    let grade = new.with_id(|| new_id(options.key.as_deref(), 0));
    let changes = vec![Change::Grade { student: id, grade: grade.clone() }];
    let appended = options.write(book.journal()?, Changes { changes }.to_body()).await?;
    Ok(append::with_receipt(&appended, (StatusCode::CREATED, Json(grade))))
}

async fn remove_grade(
    State(book): State<Book>,
    ids: Result<Path<(String, String)>, PathRejection>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let (id, grade) = path_parameter(ids)?;
    let id = parse_id(&id)?;
    let options = write_options(&uri, &headers)?;
    let gone = || Problem::not_found(format!("the student {id} has no grade with the id {grade}"));
    let grade: u64 = grade.parse().map_err(|_| gone())?;
    append::await_tokens(book.journal()?, &headers).await?;
    if options.key.is_none() && !book.student(id).await?.grades.iter().any(|g| g.id == grade) {
        return Err(gone());
    }
    let body = Changes { changes: vec![Change::Ungrade { student: id, grade }] }.to_body();
    let appended = options.write(book.journal()?, body).await?;
    Ok(append::with_receipt(&appended, StatusCode::NO_CONTENT))
}

#[cfg(test)]
mod tests;
