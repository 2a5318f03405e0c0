//! Page of the grade book with all students, search, sorting and paging, and the handler that adds a student.

use std::cmp::Ordering;

use askama::Template;
use axum::{
    body::Bytes,
    extract::{RawQuery, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, Method, StatusCode};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::json;

use super::{
    ActivePage,
    backend::{AnsweredBy, Backend, Outage, encoded, opaque, parameter},
    flash::{Flash, FormOutcome, redirect_after},
    form::{Form, RefusedForm, new_key},
    frame,
    student::{Average, path_of},
};
use crate::{
    Problem,
    http::{
        append::IDEMPOTENCY_KEY,
        client::{Call, CallError, problem_detail},
        html::{Visible, render_page},
    },
};

/// Maximum number of students on one page.
const ROWS: usize = 50;
/// Students per request to a grading node. Fewer if their grades exceed the limit of a body.
const STUDENTS_PER_READ: usize = 500;
/// Maximum number of students that the page sorts and counts. More than a school has; search finds further
/// ones.
const STUDENTS_MAX: usize = 20_000;

/// A student of the list.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListedStudent {
    #[serde(deserialize_with = "opaque")]
    id: String,
    first_name: String,
    last_name: String,
    #[serde(default)]
    grades: Vec<IgnoredAny>,
    #[serde(default)]
    average: Option<f64>,
}

/// Sort order of the list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sort {
    Id,
    Name,
    Grades,
    Average,
}

impl Sort {
    fn read(word: &str) -> Self {
        [Self::Name, Self::Grades, Self::Average].into_iter().find(|s| s.word() == word).unwrap_or(Self::Id)
    }

    fn word(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::Name => "name",
            Self::Grades => "grades",
            Self::Average => "average",
        }
    }

    fn compare(self, a: &ListedStudent, b: &ListedStudent) -> Ordering {
        match self {
            Self::Id => Ordering::Equal,
            Self::Name => a.sort_name().cmp(&b.sort_name()),
            Self::Grades => a.grades.len().cmp(&b.grades.len()),
            // Students without an average come before all others.
            Self::Average => a.average.unwrap_or(-1.0).total_cmp(&b.average.unwrap_or(-1.0)),
        }
    }
}

impl ListedStudent {
    fn sort_name(&self) -> (String, String) {
        (self.last_name.to_lowercase(), self.first_name.to_lowercase())
    }
}

/// Search, sort order and page.
#[derive(Clone, Debug)]
struct Selection {
    q: String,
    sort: Sort,
    descending: bool,
    /// From 1.
    page: usize,
}

impl Selection {
    fn read(query: Option<&str>) -> Self {
        Self {
            q: parameter(query, "q"),
            sort: Sort::read(&parameter(query, "sort")),
            descending: parameter(query, "dir") == "desc",
            page: parameter(query, "page").parse().unwrap_or(1).max(1),
        }
    }

    fn link(&self) -> String {
        let dir = if self.descending { "desc" } else { "asc" };
        let (q, sort) = (encoded(&self.q), self.sort.word());
        format!("/portal?q={q}&sort={sort}&dir={dir}&page={}", self.page)
    }

    fn at(&self, page: usize) -> String {
        Self { page, ..self.clone() }.link()
    }
}

/// Heading of a column, with a link that sorts by this column.
struct Heading {
    label: &'static str,
    class: &'static str,
    href: String,
    /// `ascending` or `descending` if the list is sorted by this column.
    sorted: Option<&'static str>,
}

fn headings(selection: &Selection) -> Vec<Heading> {
    let columns = [
        (Sort::Id, "No.", "num no"),
        (Sort::Name, "Student", ""),
        (Sort::Grades, "Grades", "num"),
        (Sort::Average, "Average", "num"),
    ];
    let heading = |(sort, label, class)| {
        let is_sorted = selection.sort == sort;
        // The first click sorts numbers in descending order, names in ascending order.
        let first = matches!(sort, Sort::Grades | Sort::Average);
        let descending = if is_sorted { !selection.descending } else { first };
        let direction = if selection.descending { "descending" } else { "ascending" };
        Heading {
            label,
            class,
            href: Selection { sort, descending, page: 1, q: selection.q.clone() }.link(),
            sorted: is_sorted.then_some(direction),
        }
    };
    columns.into_iter().map(heading).collect()
}

/// A row of the list.
struct Row {
    id: String,
    /// The id, or the last digits of a long one, which would displace the name.
    number: String,
    href: String,
    name: String,
    grades: usize,
    average: Average,
}

/// The list with its figures and links.
struct List {
    headings: Vec<Heading>,
    rows: Vec<Row>,
    /// Number of students found.
    students: usize,
    graded: usize,
    mean: Average,
    /// Whether the list is incomplete.
    cut: bool,
    page: usize,
    pages: usize,
    previous: Option<String>,
    next: Option<String>,
    by: AnsweredBy,
    stale: bool,
}

/// Fields of the form for a new student.
#[derive(Default)]
struct NewStudent {
    first_name: String,
    last_name: String,
}

#[derive(Template)]
#[template(path = "portal/book.html")]
struct BookPage {
    selection: Selection,
    list: Result<List, Outage>,
    message: Option<&'static str>,
    key: Option<String>,
    new: NewStudent,
    refused: Option<RefusedForm>,
    /// Set if no node could save the form.
    unsaved: Option<Outage>,
}

/// Handles `GET /portal`.
pub(super) async fn book_page(
    State(backend): State<Backend>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let flash = Flash::read(&headers);
    let selection = Selection::read(query.as_deref());
    let list = select_page(&backend, &selection, flash.token.as_deref()).await;
    let status = list.as_ref().err().map_or(StatusCode::OK, Outage::front_status);
    let content = BookPage {
        selection,
        list,
        message: flash.done.map(FormOutcome::message),
        key: new_key(),
        new: NewStudent::default(),
        refused: None,
        unsaved: None,
    };
    flash.clear_from(render_page(
        status,
        &frame(backend.host.as_ref(), "Grade book", ActivePage::Book),
        &content,
    ))
}

/// Handles `POST /portal`: adds a student.
pub(super) async fn add_student(
    State(backend): State<Backend>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let form = Form::read(&headers, &body)?;
    let new = NewStudent {
        first_name: form.get("firstName").to_owned(),
        last_name: form.get("lastName").to_owned(),
    };
    let call = Call::new(Method::POST, "/students")
        .header(IDEMPOTENCY_KEY, form.key())
        .json(&json!({ "firstName": new.first_name, "lastName": new.last_name }));
    let (mut key, mut refused, mut unsaved) = (new_key(), None, None);
    match backend.call("grading", &call).await {
        Ok(reply) if reply.status.is_success() => {
            let to = reply.json::<ListedStudent>().ok().and_then(|student| path_of(&student.id));
            return Ok(redirect_after(to.as_deref().unwrap_or("/portal"), FormOutcome::StudentAdded, &reply));
        }
        Ok(reply) => refused = Some(RefusedForm::from_problem(reply.status, &reply.body)),
        Err(error) => {
            unsaved = Some(Outage::from(error));
            // The write may have arrived. A second click must repeat the same write.
            key = Some(form.page_key());
        }
    }
    let selection = Selection::read(None);
    let list = select_page(&backend, &selection, None).await;
    let status = unsaved.as_ref().map_or(StatusCode::UNPROCESSABLE_ENTITY, |outage| outage.status);
    let content = BookPage { selection, list, message: None, key, new, refused, unsaved };
    Ok(render_page(status, &frame(backend.host.as_ref(), "Grade book", ActivePage::Book), &content)
        .into_response())
}

/// Reads the book and selects one page of it.
async fn select_page(backend: &Backend, selection: &Selection, token: Option<&str>) -> Result<List, Outage> {
    let StudentList { mut students, cut, by, stale } = read_students(backend, &selection.q, token).await?;
    // A stable sort keeps equal students in the order of the book.
    students.sort_by(|a, b| selection.sort.compare(a, b));
    if selection.descending {
        students.reverse();
    }
    let pages = students.len().div_ceil(ROWS).max(1);
    let page = selection.page.min(pages);
    let averages: Vec<f64> = students.iter().filter_map(|student| student.average).collect();
    let mean = (!averages.is_empty()).then(|| averages.iter().sum::<f64>() / averages.len() as f64);
    let rows = students.iter().skip((page - 1) * ROWS).take(ROWS).map(|student| Row {
        href: path_of(&student.id).unwrap_or_default(),
        number: end_of(&student.id),
        id: student.id.clone(),
        name: format!("{} {}", student.first_name, student.last_name),
        grades: student.grades.len(),
        average: Average(student.average),
    });
    Ok(List {
        headings: headings(selection),
        rows: rows.collect(),
        students: students.len(),
        graded: averages.len(),
        mean: Average(mean),
        cut,
        page,
        pages,
        previous: (page > 1).then(|| selection.at(page - 1)),
        next: (page < pages).then(|| selection.at(page + 1)),
        by,
        stale,
    })
}

/// Maximum number of digits of an id that the list shows.
const NUMBER_CHARS: usize = 5;

fn end_of(id: &str) -> String {
    let over = id.chars().count().saturating_sub(NUMBER_CHARS);
    if over == 0 { id.to_owned() } else { format!("…{}", id.chars().skip(over).collect::<String>()) }
}

/// Students read from a grading node.
struct StudentList {
    students: Vec<ListedStudent>,
    cut: bool,
    by: AnsweredBy,
    stale: bool,
}

async fn read_students(backend: &Backend, q: &str, token: Option<&str>) -> Result<StudentList, Outage> {
    let (mut students, mut limit, mut stale) = (Vec::<ListedStudent>::new(), STUDENTS_PER_READ, false);
    let mut after: Option<String> = None;
    loop {
        let mut path = format!("/students?limit={limit}");
        if !q.is_empty() {
            path.push_str(&format!("&q={}", encoded(q)));
        }
        if let Some(after) = &after {
            path.push_str(&format!("&after={}", encoded(after)));
        }
        let read = match backend.read(&path, token).await {
            Ok(read) => read,
            Err(CallError::TooLarge { .. }) if limit > 1 => {
                limit = (limit / 4).max(1);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let provider = &read.reply.provider;
        if !read.reply.status.is_success() {
            let detail = problem_detail(&read.reply.body).unwrap_or_else(|| read.reply.status.to_string());
            return Err(Outage::unexpected(provider, detail));
        }
        let part: Vec<ListedStudent> =
            read.reply.json().map_err(|error| Outage::unexpected(provider, error))?;
        stale |= read.stale;
        let (len, last) = (part.len(), part.last().map(|student| student.id.clone()));
        students.extend(part);
        let by = AnsweredBy::from(provider);
        // Without this check, a node that repeats a page would cause an endless loop.
        if len < limit || last.is_none() || last == after {
            return Ok(StudentList { students, cut: false, by, stale });
        }
        if students.len() >= STUDENTS_MAX {
            return Ok(StudentList { students, cut: true, by, stale });
        }
        after = last;
    }
}
