//! Page of one student, with chart and list of grades, and the handlers of its forms.

use std::fmt;

use askama::Template;
use axum::{
    body::Bytes,
    extract::{Path, State},
    response::Response,
};
use http::{HeaderMap, Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    ActivePage,
    backend::{AnsweredBy, Backend, Outage, opaque},
    chart::{Bar, Chart},
    flash::{Flash, FormOutcome, redirect_after},
    form::{Form, RefusedForm, new_key},
    frame,
};
use crate::{
    Problem,
    http::{
        append::IDEMPOTENCY_KEY,
        client::{Call, problem_detail},
        html::{Number, Visible, render_page},
    },
};

/// Grade types, as the API names them.
const TYPES: [&str; 4] = ["Quiz", "Test", "Exam", "Homework"];
/// Maximum number of grades in the list. `/students/{id}` has all grades of a student.
const ROWS_MAX: usize = 500;
/// Maximum number of characters of an id.
const ID_CHARS_MAX: usize = 64;

/// An average, if there are grades.
#[derive(Clone, Copy, Debug)]
pub(super) struct Average(pub(super) Option<f64>);

impl Average {
    /// Returns the width of the average's bar, from 0 to 100.
    pub(super) fn width(self) -> Option<Number> {
        self.0.map(|average| Number(average.clamp(0.0, 100.0)))
    }

    /// Returns the average's class in the stylesheet. Guess: the usual limits of schools.
    pub(super) fn class(self) -> &'static str {
        match self.0 {
            Some(average) if average >= 75.0 => "good",
            Some(average) if average >= 50.0 => "poor",
            Some(_) => "bad",
            None => "",
        }
    }
}

impl fmt::Display for Average {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(average) => write!(f, "{average:.1}"),
            None => f.write_str("–"),
        }
    }
}

/// Returns the path of a student's page. `None` for an id that is not letters and digits.
pub(super) fn path_of(id: &str) -> Option<String> {
    is_id(id).then(|| format!("/portal/students/{id}"))
}

fn is_id(id: &str) -> bool {
    (1..=ID_CHARS_MAX).contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Student {
    first_name: String,
    last_name: String,
    #[serde(default)]
    grades: Vec<Grade>,
    #[serde(default)]
    average: Option<f64>,
}

#[derive(Debug, Deserialize)]
struct Grade {
    #[serde(deserialize_with = "opaque")]
    id: String,
    title: String,
    #[serde(rename = "type")]
    kind: String,
    score: f64,
}

/// A row of the list of grades.
struct Row {
    /// Position in the list, which is the number in the chart.
    number: usize,
    id: String,
    /// Path of the form that removes the grade. `None`: the grade cannot be removed here.
    remove: Option<String>,
    title: String,
    kind: String,
    class: &'static str,
    score: Number,
}

/// Content of the page.
struct StudentView {
    name: String,
    average: Average,
    grades: usize,
    rows: Vec<Row>,
    chart: Option<Chart>,
    by: AnsweredBy,
    stale: bool,
}

/// Values of the form fields: what the user typed, or the current values.
#[derive(Default)]
struct FormValues {
    title: String,
    kind: String,
    score: String,
    first_name: String,
    last_name: String,
}

/// A form that was not saved, with the reason.
#[derive(Default)]
struct FailedForm {
    form: &'static str,
    refused: Option<RefusedForm>,
    unsaved: Option<Outage>,
    /// Path and key of the form, to send it again unchanged.
    sent_to: String,
    key: String,
}

/// State of the page's forms.
#[derive(Default)]
struct FormState {
    /// Key of the page; `None`: the page has no forms.
    key: Option<String>,
    values: FormValues,
    failed: FailedForm,
}

impl FailedForm {
    /// Returns whether the refusal is about this field of this form.
    fn is_about(&self, form: &str, field: &str) -> bool {
        self.form == form && self.refused.as_ref().is_some_and(|refused| refused.is_about(field))
    }
}

#[derive(Template)]
#[template(path = "portal/student.html")]
struct StudentPage {
    path: String,
    id: String,
    student: Result<StudentView, Outage>,
    message: Option<&'static str>,
    key: Option<String>,
    types: [&'static str; 4],
    values: FormValues,
    failed: FailedForm,
}

/// Handles `GET /portal/students/{id}`.
pub(super) async fn student_page(
    State(backend): State<Backend>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let student = StudentAddress::of(&id)?;
    let flash = Flash::read(&headers);
    let page =
        render_student(&backend, &student, &flash, FormState { key: new_key(), ..FormState::default() })
            .await;
    Ok(flash.clear_from(page))
}

/// Paths of a student.
struct StudentAddress {
    id: String,
    /// Path of the page.
    page: String,
    /// Path on a grading node.
    api: String,
}

impl StudentAddress {
    fn of(id: &str) -> Result<Self, Problem> {
        let page = path_of(id).ok_or_else(|| Problem::not_found("this is not the id of a student"))?;
        Ok(Self { page, api: format!("/students/{id}"), id: id.to_owned() })
    }
}

async fn render_student(
    backend: &Backend,
    address: &StudentAddress,
    flash: &Flash,
    forms: FormState,
) -> Response {
    let FormState { key, mut values, failed } = forms;
    let student = find(backend, &address.api, flash.token.as_deref()).await;
    let status = match (&student, &failed) {
        (Err(outage), _) => outage.status,
        (Ok(_), FailedForm { unsaved: Some(outage), .. }) => outage.status,
        (Ok(_), FailedForm { refused: Some(_), .. }) => StatusCode::UNPROCESSABLE_ENTITY,
        (Ok(_), _) => StatusCode::OK,
    };
    let (student, title) = match student {
        Ok((student, view)) => {
            // The form has the current name, unless the user has just typed another one.
            if failed.form != "name" {
                (values.first_name, values.last_name) = (student.first_name, student.last_name);
            }
            let title = view.name.clone();
            (Ok(view), title)
        }
        Err(outage) => (Err(outage), "Student".to_owned()),
    };
    let message = flash.done.map(FormOutcome::message);
    let (path, id) = (address.page.clone(), address.id.clone());
    let content = StudentPage { path, id, student, message, key, types: TYPES, values, failed };
    render_page(status, &frame(backend.host.as_ref(), &title, ActivePage::Book), &content)
}

/// Reads a student from a grading node, and prepares the page.
async fn find(backend: &Backend, path: &str, token: Option<&str>) -> Result<(Student, StudentView), Outage> {
    let read = backend.read(path, token).await?;
    let provider = &read.reply.provider;
    if read.reply.status == StatusCode::NOT_FOUND {
        return Err(Outage {
            status: StatusCode::NOT_FOUND,
            heading: "This student is not in the book".to_owned(),
            text: "It may have been removed.",
            command: None,
            tries: Vec::new(),
        });
    }
    if !read.reply.status.is_success() {
        let detail = problem_detail(&read.reply.body).unwrap_or_else(|| read.reply.status.to_string());
        return Err(Outage::unexpected(provider, detail));
    }
    let student: Student = read.reply.json().map_err(|error| Outage::unexpected(provider, error))?;
    let rows: Vec<Row> =
        student.grades.iter().enumerate().map(|(i, grade)| Row::of(path, i + 1, grade)).collect();
    let bars: Vec<Bar> = rows
        .iter()
        .map(|row| Bar { number: row.number, title: row.title.clone(), class: row.class, score: row.score.0 })
        .collect();
    let view = StudentView {
        name: format!("{} {}", student.first_name, student.last_name),
        average: Average(student.average),
        grades: rows.len(),
        chart: Chart::of(bars, student.average),
        rows: rows.into_iter().take(ROWS_MAX).collect(),
        by: AnsweredBy::from(provider),
        stale: read.stale,
    };
    Ok((student, view))
}

impl Row {
    fn of(student: &str, number: usize, grade: &Grade) -> Self {
        Self {
            number,
            id: grade.id.clone(),
            remove: is_id(&grade.id).then(|| format!("/portal{student}/grades/{}/delete", grade.id)),
            title: grade.title.clone(),
            class: class_of(&grade.kind),
            kind: grade.kind.clone(),
            score: Number(grade.score),
        }
    }
}

fn class_of(kind: &str) -> &'static str {
    match kind {
        "Quiz" => "quiz",
        "Test" => "test",
        "Exam" => "exam",
        "Homework" => "homework",
        _ => "other",
    }
}

/// Handles `POST /portal/students/{id}/grades`: adds a grade.
pub(super) async fn add_grade(
    State(backend): State<Backend>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let (student, form) = (StudentAddress::of(&id)?, Form::read(&headers, &body)?);
    let values = FormValues {
        title: form.get("title").to_owned(),
        kind: form.get("type").to_owned(),
        score: form.get("score").to_owned(),
        ..FormValues::default()
    };
    // Accepts a decimal comma.
    let score = values.score.replace(',', ".").parse::<f64>().ok().filter(|score| score.is_finite());
    let Some(score) = score else {
        let refused =
            RefusedForm::field("score", format!("score: {:?} is not a number from 0 to 100", values.score));
        let failed = FailedForm { form: "grade", refused: Some(refused), ..FailedForm::default() };
        let forms = FormState { key: new_key(), values, failed };
        return Ok(render_student(&backend, &student, &Flash::default(), forms).await);
    };
    let write = FormRequest {
        form: "grade",
        sent_to: format!("{}/grades", student.page),
        method: Method::POST,
        path: format!("{}/grades", student.api),
        body: Some(json!({ "title": values.title, "type": values.kind, "score": score })),
        done: FormOutcome::GradeAdded,
        leads_to: student.page.clone(),
    };
    Ok(submit(&backend, &student, &form, write, values).await)
}

/// Handles `POST /portal/students/{id}/grades/{gid}/delete`: removes a grade.
pub(super) async fn remove_grade(
    State(backend): State<Backend>,
    Path((id, gid)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let (student, form) = (StudentAddress::of(&id)?, Form::read(&headers, &body)?);
    if !is_id(&gid) {
        return Err(Problem::not_found("this is not the id of a grade"));
    }
    let write = FormRequest {
        form: "remove",
        sent_to: format!("{}/grades/{gid}/delete", student.page),
        method: Method::DELETE,
        path: format!("{}/grades/{gid}", student.api),
        body: None,
        done: FormOutcome::GradeRemoved,
        leads_to: student.page.clone(),
    };
    Ok(submit(&backend, &student, &form, write, FormValues::default()).await)
}

/// Handles `POST /portal/students/{id}`: changes the name.
pub(super) async fn rename_student(
    State(backend): State<Backend>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let (student, form) = (StudentAddress::of(&id)?, Form::read(&headers, &body)?);
    let values = FormValues {
        first_name: form.get("firstName").to_owned(),
        last_name: form.get("lastName").to_owned(),
        ..FormValues::default()
    };
    let write = FormRequest {
        form: "name",
        sent_to: student.page.clone(),
        method: Method::PUT,
        path: student.api.clone(),
        body: Some(json!({ "firstName": values.first_name, "lastName": values.last_name })),
        done: FormOutcome::StudentRenamed,
        leads_to: student.page.clone(),
    };
    Ok(submit(&backend, &student, &form, write, values).await)
}

/// Handles `POST /portal/students/{id}/delete`: removes a student.
pub(super) async fn delete_student(
    State(backend): State<Backend>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let (student, form) = (StudentAddress::of(&id)?, Form::read(&headers, &body)?);
    let write = FormRequest {
        form: "delete",
        sent_to: format!("{}/delete", student.page),
        method: Method::DELETE,
        path: student.api.clone(),
        body: None,
        done: FormOutcome::StudentDeleted,
        leads_to: "/portal".to_owned(),
    };
    Ok(submit(&backend, &student, &form, write, FormValues::default()).await)
}

/// A form as a request to a grading node.
struct FormRequest {
    form: &'static str,
    /// Path of the form.
    sent_to: String,
    method: Method,
    path: String,
    body: Option<Value>,
    done: FormOutcome,
    /// Path of the page after the form.
    leads_to: String,
}

async fn submit(
    backend: &Backend,
    student: &StudentAddress,
    form: &Form,
    write: FormRequest,
    values: FormValues,
) -> Response {
    let mut call = Call::new(write.method.clone(), write.path).header(IDEMPOTENCY_KEY, form.key());
    if let Some(body) = &write.body {
        call = call.json(body);
    }
    let failed = match backend.call("grading", &call).await {
        Ok(reply) if reply.status.is_success() => return redirect_after(&write.leads_to, write.done, &reply),
        // A grade or student that is already gone counts as removed.
        Ok(reply) if reply.status == StatusCode::NOT_FOUND && write.method == Method::DELETE => {
            return redirect_after(&write.leads_to, FormOutcome::AlreadyGone, &reply);
        }
        Ok(reply) => {
            let refused = Some(RefusedForm::from_problem(reply.status, &reply.body));
            FailedForm { form: write.form, refused, ..FailedForm::default() }
        }
        Err(error) => FailedForm {
            form: write.form,
            refused: None,
            unsaved: Some(error.into()),
            sent_to: write.sent_to,
            key: form.key().to_owned(),
        },
    };
    // An unanswered write may have arrived, so a second click must repeat the same write. A refused form
    // becomes another write once it is corrected.
    let key = if failed.unsaved.is_some() { Some(form.page_key()) } else { new_key() };
    render_student(backend, student, &Flash::default(), FormState { key, values, failed }).await
}
