//! The grade book: all students, searched, sorted and paged.

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
    Here,
    after::{After, Done, lead_to},
    desk::{By, Desk, Outage, encoded, opaque, parameter},
    form::{Form, Refused, new_key},
    frame,
    student::{Average, path_of},
};
use crate::{
    Problem,
    client::{AskError, Call, IDEMPOTENCY_KEY, problem_detail},
    html::{Visible, page as html_page},
};

/// Students on one page.
const ROWS: usize = 50;
/// Students read from a grading node at a time, at first; fewer where their grades make that too large.
const STUDENTS_PER_READ: usize = 500;
/// Students that the page sorts and counts. A school has fewer; beyond, searching narrows.
const STUDENTS_MAX: usize = 20_000;

/// A student, as the list needs it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Entry {
    #[serde(deserialize_with = "opaque")]
    id: String,
    first_name: String,
    last_name: String,
    #[serde(default)]
    grades: Vec<IgnoredAny>,
    #[serde(default)]
    average: Option<f64>,
}

/// By what the list is sorted.
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

    fn compare(self, a: &Entry, b: &Entry) -> Ordering {
        match self {
            Self::Id => Ordering::Equal,
            Self::Name => a.sort_name().cmp(&b.sort_name()),
            Self::Grades => a.grades.len().cmp(&b.grades.len()),
            // Who has no average comes before whoever has one.
            Self::Average => a.average.unwrap_or(-1.0).total_cmp(&b.average.unwrap_or(-1.0)),
        }
    }
}

impl Entry {
    fn sort_name(&self) -> (String, String) {
        (self.last_name.to_lowercase(), self.first_name.to_lowercase())
    }
}

/// What of the book is shown.
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

/// A heading by which the list can be sorted.
struct Heading {
    label: &'static str,
    class: &'static str,
    href: String,
    /// `ascending` or `descending` where the list is sorted by it.
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
        // Numbers are first wanted from the top, names from the beginning.
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

/// A line of the list.
struct Row {
    id: String,
    /// The id, or the end of a long one: by it nobody is known, and it would take the place of the name.
    number: String,
    href: String,
    name: String,
    grades: usize,
    average: Average,
}

/// The list and what surrounds it.
struct List {
    headings: Vec<Heading>,
    rows: Vec<Row>,
    /// All that were found.
    students: usize,
    graded: usize,
    mean: Average,
    /// Not all were read.
    cut: bool,
    page: usize,
    pages: usize,
    previous: Option<String>,
    next: Option<String>,
    by: By,
    stale: bool,
}

/// What was typed into the form for a new student.
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
    told: Option<&'static str>,
    key: Option<String>,
    new: NewStudent,
    refused: Option<Refused>,
    /// The form could not be carried out, for want of a node that could.
    unsaved: Option<Outage>,
}

/// Shows the book.
pub(super) async fn page(
    State(desk): State<Desk>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let after = After::read(&headers);
    let selection = Selection::read(query.as_deref());
    let list = list(&desk, &selection, after.token.as_deref()).await;
    let status = list.as_ref().err().map_or(StatusCode::OK, Outage::front_status);
    let content = BookPage {
        selection,
        list,
        told: after.done.map(Done::told),
        key: new_key(),
        new: NewStudent::default(),
        refused: None,
        unsaved: None,
    };
    after.told(html_page(status, &frame(desk.host.as_ref(), "Grade book", Here::Book), &content))
}

/// Adds a student.
pub(super) async fn add(
    State(desk): State<Desk>,
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
    match desk.ask("grading", &call).await {
        Ok(reply) if reply.status.is_success() => {
            let to = reply.json::<Entry>().ok().and_then(|student| path_of(&student.id));
            return Ok(lead_to(to.as_deref().unwrap_or("/portal"), Done::StudentAdded, &reply));
        }
        Ok(reply) => refused = Some(Refused::from_problem(reply.status, &reply.body)),
        Err(error) => {
            unsaved = Some(Outage::from(error));
            // It may have arrived: pressed again, it must be the same write.
            key = Some(form.page_key());
        }
    }
    let selection = Selection::read(None);
    let list = list(&desk, &selection, None).await;
    let status = unsaved.as_ref().map_or(StatusCode::UNPROCESSABLE_ENTITY, |outage| outage.status);
    let content = BookPage { selection, list, told: None, key, new, refused, unsaved };
    Ok(html_page(status, &frame(desk.host.as_ref(), "Grade book", Here::Book), &content).into_response())
}

/// Reads the book and shows the part that was asked for.
async fn list(desk: &Desk, selection: &Selection, token: Option<&str>) -> Result<List, Outage> {
    let Found { mut students, cut, by, stale } = find(desk, &selection.q, token).await?;
    // Stable: equals stay in the order of the book.
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

/// Digits of an id that are shown.
const NUMBER_CHARS: usize = 5;

fn end_of(id: &str) -> String {
    let over = id.chars().count().saturating_sub(NUMBER_CHARS);
    if over == 0 { id.to_owned() } else { format!("…{}", id.chars().skip(over).collect::<String>()) }
}

/// What a grading node has of the book.
struct Found {
    students: Vec<Entry>,
    cut: bool,
    by: By,
    stale: bool,
}

async fn find(desk: &Desk, q: &str, token: Option<&str>) -> Result<Found, Outage> {
    let (mut students, mut limit, mut stale) = (Vec::<Entry>::new(), STUDENTS_PER_READ, false);
    let mut after: Option<String> = None;
    loop {
        let mut path = format!("/students?limit={limit}");
        if !q.is_empty() {
            path.push_str(&format!("&q={}", encoded(q)));
        }
        if let Some(after) = &after {
            path.push_str(&format!("&after={}", encoded(after)));
        }
        let read = match desk.read(&path, token).await {
            Ok(read) => read,
            Err(AskError::TooLarge { .. }) if limit > 1 => {
                limit = (limit / 4).max(1);
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        let provider = &read.reply.provider;
        if !read.reply.status.is_success() {
            let detail = problem_detail(&read.reply.body).unwrap_or_else(|| read.reply.status.to_string());
            return Err(Outage::strange(provider, detail));
        }
        let part: Vec<Entry> = read.reply.json().map_err(|error| Outage::strange(provider, error))?;
        stale |= read.stale;
        let (len, last) = (part.len(), part.last().map(|student| student.id.clone()));
        students.extend(part);
        let by = By::from(provider);
        // A node that gives the same page again would be asked for ever.
        if len < limit || last.is_none() || last == after {
            return Ok(Found { students, cut: false, by, stale });
        }
        if students.len() >= STUDENTS_MAX {
            return Ok(Found { students, cut: true, by, stale });
        }
        after = last;
    }
}
