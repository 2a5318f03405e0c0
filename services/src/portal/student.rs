//! One student: the grades, drawn and listed, and everything that can be changed about them.

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
    Here,
    after::{After, Done, lead_to},
    chart::{Bar, Chart},
    desk::{By, Desk, Outage, opaque},
    form::{Form, Refused, new_key},
    frame,
};
use crate::{
    Problem,
    client::{Call, IDEMPOTENCY_KEY, problem_detail},
    html::{Number, Visible, page as html_page},
};

/// The types of a grade, in the words of the contract.
const TYPES: [&str; 4] = ["Quiz", "Test", "Exam", "Homework"];
/// Grades listed on one page; a student with more has them all at `/students/{id}`.
const ROWS_MAX: usize = 500;
/// The longest id that is passed on.
const ID_CHARS_MAX: usize = 64;

/// An average, or none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Average(pub(super) Option<f64>);

impl Average {
    /// From 0 to 100.
    pub(super) fn width(self) -> Option<Number> {
        self.0.map(|average| Number(average.clamp(0.0, 100.0)))
    }

    /// How good it is, as a class of the stylesheet. Guess: where schools draw their lines, roughly.
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

/// Where a student's page is. `None` for an id that no path can hold: what comes of a contract has letters and digits.
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

/// A line of the list of grades.
struct Row {
    /// Its place in the list, which is also its number in the drawing.
    place: usize,
    id: String,
    /// Where its removal is sent. `None`: it cannot be.
    remove: Option<String>,
    title: String,
    kind: String,
    class: &'static str,
    score: Number,
}

/// A student as the page shows it.
struct Shown {
    name: String,
    average: Average,
    grades: usize,
    rows: Vec<Row>,
    chart: Option<Chart>,
    by: By,
    stale: bool,
}

/// What stands in the forms: what was typed, or what is so.
#[derive(Default)]
struct Typed {
    title: String,
    kind: String,
    score: String,
    first_name: String,
    last_name: String,
}

/// Which form was sent, and why it was not carried out.
#[derive(Default)]
struct Failed {
    form: &'static str,
    refused: Option<Refused>,
    unsaved: Option<Outage>,
    /// Where it was sent, and its key: with both it can be sent again as it was.
    sent_to: String,
    key: String,
}

impl Failed {
    /// Whether this field of this form is what is wrong.
    fn is_about(&self, form: &str, field: &str) -> bool {
        self.form == form && self.refused.as_ref().is_some_and(|refused| refused.is_about(field))
    }
}

#[derive(Template)]
#[template(path = "portal/student.html")]
struct StudentPage {
    path: String,
    id: String,
    student: Result<Shown, Outage>,
    told: Option<&'static str>,
    key: Option<String>,
    types: [&'static str; 4],
    typed: Typed,
    failed: Failed,
}

/// Shows a student.
pub(super) async fn page(
    State(desk): State<Desk>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let student = Address::of(&id)?;
    let after = After::read(&headers);
    let page = show(&desk, &student, &after, new_key(), Typed::default(), Failed::default()).await;
    Ok(after.told(page))
}

/// A student, by its id.
struct Address {
    id: String,
    /// Of its page.
    page: String,
    /// On a grading node.
    api: String,
}

impl Address {
    fn of(id: &str) -> Result<Self, Problem> {
        let page = path_of(id).ok_or_else(|| Problem::not_found("this is the id of no student"))?;
        Ok(Self { page, api: format!("/students/{id}"), id: id.to_owned() })
    }
}

async fn show(
    desk: &Desk,
    address: &Address,
    after: &After,
    key: Option<String>,
    mut typed: Typed,
    failed: Failed,
) -> Response {
    let student = find(desk, &address.api, after.token.as_deref()).await;
    let status = match (&student, &failed) {
        (Err(outage), _) => outage.status,
        (Ok(_), Failed { unsaved: Some(outage), .. }) => outage.status,
        (Ok(_), Failed { refused: Some(_), .. }) => StatusCode::UNPROCESSABLE_ENTITY,
        (Ok(_), _) => StatusCode::OK,
    };
    let (student, title) = match student {
        Ok((student, shown)) => {
            // The form for the name holds the present one, but for what was typed into it just now.
            if failed.form != "name" {
                (typed.first_name, typed.last_name) = (student.first_name, student.last_name);
            }
            let title = shown.name.clone();
            (Ok(shown), title)
        }
        Err(outage) => (Err(outage), "Student".to_owned()),
    };
    let told = after.done.map(Done::told);
    let (path, id) = (address.page.clone(), address.id.clone());
    let content = StudentPage { path, id, student, told, key, types: TYPES, typed, failed };
    html_page(status, &frame(desk.host.as_ref(), &title, Here::Book), &content)
}

/// Asks for a student and prepares it for the page.
async fn find(desk: &Desk, path: &str, token: Option<&str>) -> Result<(Student, Shown), Outage> {
    let read = desk.read(path, token).await?;
    let provider = &read.reply.provider;
    if read.reply.status == StatusCode::NOT_FOUND {
        return Err(Outage {
            status: StatusCode::NOT_FOUND,
            heading: "This student is not in the book".to_owned(),
            text: "Perhaps somebody has removed it since.",
            command: None,
            tries: Vec::new(),
        });
    }
    if !read.reply.status.is_success() {
        let detail = problem_detail(&read.reply.body).unwrap_or_else(|| read.reply.status.to_string());
        return Err(Outage::strange(provider, detail));
    }
    let student: Student = read.reply.json().map_err(|error| Outage::strange(provider, error))?;
    let rows: Vec<Row> =
        student.grades.iter().enumerate().map(|(i, grade)| Row::of(path, i + 1, grade)).collect();
    let bars: Vec<Bar> = rows
        .iter()
        .map(|row| Bar { place: row.place, title: row.title.clone(), class: row.class, score: row.score.0 })
        .collect();
    let shown = Shown {
        name: format!("{} {}", student.first_name, student.last_name),
        average: Average(student.average),
        grades: rows.len(),
        chart: Chart::of(bars, student.average),
        rows: rows.into_iter().take(ROWS_MAX).collect(),
        by: By::from(provider),
        stale: read.stale,
    };
    Ok((student, shown))
}

impl Row {
    fn of(student: &str, place: usize, grade: &Grade) -> Self {
        Self {
            place,
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

/// Adds a grade.
pub(super) async fn grade(
    State(desk): State<Desk>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let (student, form) = (Address::of(&id)?, Form::read(&headers, &body)?);
    let typed = Typed {
        title: form.get("title").to_owned(),
        kind: form.get("type").to_owned(),
        score: form.get("score").to_owned(),
        ..Typed::default()
    };
    // Where people write a comma, they mean it.
    let score = typed.score.replace(',', ".").parse::<f64>().ok().filter(|score| score.is_finite());
    let Some(score) = score else {
        let refused =
            Refused::field("score", format!("score: {:?} is no number; 0 to 100 are allowed", typed.score));
        let failed = Failed { form: "grade", refused: Some(refused), ..Failed::default() };
        return Ok(show(&desk, &student, &After::default(), new_key(), typed, failed).await);
    };
    let write = Write {
        form: "grade",
        sent_to: format!("{}/grades", student.page),
        method: Method::POST,
        path: format!("{}/grades", student.api),
        body: Some(json!({ "title": typed.title, "type": typed.kind, "score": score })),
        done: Done::GradeAdded,
        leads_to: student.page.clone(),
    };
    Ok(carry_out(&desk, &student, &form, write, typed).await)
}

/// Removes a grade.
pub(super) async fn ungrade(
    State(desk): State<Desk>,
    Path((id, gid)): Path<(String, String)>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let (student, form) = (Address::of(&id)?, Form::read(&headers, &body)?);
    if !is_id(&gid) {
        return Err(Problem::not_found("this is the id of no grade"));
    }
    let write = Write {
        form: "remove",
        sent_to: format!("{}/grades/{gid}/delete", student.page),
        method: Method::DELETE,
        path: format!("{}/grades/{gid}", student.api),
        body: None,
        done: Done::GradeRemoved,
        leads_to: student.page.clone(),
    };
    Ok(carry_out(&desk, &student, &form, write, Typed::default()).await)
}

/// Changes a student's name.
pub(super) async fn rename(
    State(desk): State<Desk>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let (student, form) = (Address::of(&id)?, Form::read(&headers, &body)?);
    let typed = Typed {
        first_name: form.get("firstName").to_owned(),
        last_name: form.get("lastName").to_owned(),
        ..Typed::default()
    };
    let write = Write {
        form: "name",
        sent_to: student.page.clone(),
        method: Method::PUT,
        path: student.api.clone(),
        body: Some(json!({ "firstName": typed.first_name, "lastName": typed.last_name })),
        done: Done::StudentRenamed,
        leads_to: student.page.clone(),
    };
    Ok(carry_out(&desk, &student, &form, write, typed).await)
}

/// Removes a student.
pub(super) async fn delete(
    State(desk): State<Desk>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let (student, form) = (Address::of(&id)?, Form::read(&headers, &body)?);
    let write = Write {
        form: "delete",
        sent_to: format!("{}/delete", student.page),
        method: Method::DELETE,
        path: student.api.clone(),
        body: None,
        done: Done::StudentDeleted,
        leads_to: "/portal".to_owned(),
    };
    Ok(carry_out(&desk, &student, &form, write, Typed::default()).await)
}

/// A form, as a request to a grading node.
struct Write {
    form: &'static str,
    /// Where the page sent it.
    sent_to: String,
    method: Method,
    path: String,
    body: Option<Value>,
    done: Done,
    /// The page after it.
    leads_to: String,
}

async fn carry_out(desk: &Desk, student: &Address, form: &Form, write: Write, typed: Typed) -> Response {
    let mut call = Call::new(write.method.clone(), write.path).header(IDEMPOTENCY_KEY, form.key());
    if let Some(body) = &write.body {
        call = call.json(body);
    }
    let failed = match desk.ask("grading", &call).await {
        Ok(reply) if reply.status.is_success() => return lead_to(&write.leads_to, write.done, &reply),
        // What was to be removed is not there: as wished.
        Ok(reply) if reply.status == StatusCode::NOT_FOUND && write.method == Method::DELETE => {
            return lead_to(&write.leads_to, Done::AlreadyGone, &reply);
        }
        Ok(reply) => {
            let refused = Some(Refused::from_problem(reply.status, &reply.body));
            Failed { form: write.form, refused, ..Failed::default() }
        }
        Err(error) => Failed {
            form: write.form,
            refused: None,
            unsaved: Some(error.into()),
            sent_to: write.sent_to,
            key: form.key().to_owned(),
        },
    };
    // It may have arrived: pressed again, it must be the same write. What was refused is another one once it is put right.
    let key = if failed.unsaved.is_some() { Some(form.page_key()) } else { new_key() };
    show(desk, student, &After::default(), key, typed, failed).await
}
