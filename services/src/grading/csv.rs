//! The grade book as CSV: one line for each grade, under the header `ID,FirstName,LastName,Title,Type,Score`.
//!
//! What was exported can be imported again, as often as one likes: the same line always names the same grade. A line without an ID is about the student of
//! exactly that name, who is added if there is none. A line that makes no sense is listed with its number and what is wrong with it, and
//! the others are taken. Which files are read, says `sheet`.
//!
//! Spreadsheets run what begins like a formula (OWASP, "CSV Injection"). So a text that does is exported behind a `'`, which is
//! taken off again by the import.

use std::{borrow::Cow, collections::BTreeMap};

use axum::{
    Json,
    body::Bytes,
    extract::State,
    response::{IntoResponse, Response},
};
use csv::WriterBuilder;
use http::{HeaderMap, StatusCode, Uri, header};
use serde_json::json;

use super::{
    Book,
    book::{Grade, GradeType},
    change::{Change, Changes, ID_MAX, new_id},
    input::{NAME_CHARS_MAX, TITLE_CHARS_MAX, score, text},
    sheet::Sheet,
    tables::{self, Selection},
};
use crate::{
    Problem,
    journal::{self, Connection, Wanted, Write},
    parameters::Parameters,
    writing::{self, Wish},
};

/// The columns, in the order in which they are exported. They are found by name, in any order and either case.
const COLUMNS: [&str; 6] = ["ID", "FirstName", "LastName", "Title", "Type", "Score"];
/// A column that may be there besides: which of several grades of the same student, title and type the line is, from 1. Without it they are
/// counted within the request; whoever sends a file in several requests counts over all of it.
const OCCURRENCE: &str = "Occurrence";
/// The highest of them.
const OCCURRENCE_MAX: u64 = 1_000_000;
/// The most lines in one request. Whoever has more sends more requests, each with the header.
pub(super) const LINES_MAX: usize = 2000;
/// Lines that are listed as refused. The rest of them are counted. As many as `node grades import` sends at a time.
const REFUSED_LISTED_MAX: usize = 1000;

/// By which Excel knows UTF-8; without it, letters such as ü are shown as others.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// `GET /students/export`.
pub(super) async fn export(
    State(book): State<Book>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Problem> {
    let parameters = Parameters::read(uri.query(), &["excel"])?;
    let is_for_excel = match parameters.one("excel")? {
        None | Some("false") => false,
        Some("" | "true") => true,
        Some(other) => {
            return Err(Parameters::refuse("excel", other, "true or false, or left without a value"));
        }
    };
    let journal = book.journal()?;
    writing::catch_up(journal, &headers).await?;
    let bytes = journal::read(journal, move |db| {
        let all = Selection { after: 0, limit: usize::MAX, name_part: String::new() };
        let start = if is_for_excel { BYTE_ORDER_MARK.to_vec() } else { Vec::new() };
        let mut lines = WriterBuilder::new().from_writer(start);
        // Writing into memory does not fail.
        _ = lines.write_record(COLUMNS);
        for student in tables::select(db, &all)? {
            let (id, grades) = (student.id.to_string(), &student.grades);
            let (first, last) = (guarded(&student.first_name), guarded(&student.last_name));
            let named = [id.as_str(), &*first, &*last];
            if grades.is_empty() {
                _ = lines.write_record(named.iter().chain(&["", "", ""]));
            }
            for grade in grades {
                let (title, kind, score) =
                    (guarded(&grade.title), grade.kind.to_string(), grade.score.to_string());
                _ = lines.write_record(named.iter().copied().chain([&*title, kind.as_str(), score.as_str()]));
            }
        }
        Ok(lines.into_inner().unwrap_or_default())
    })
    .await?;
    let headers = [
        (header::CONTENT_TYPE, "text/csv; charset=utf-8; header=present"),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"students.csv\""),
    ];
    Ok((headers, bytes).into_response())
}

/// What a formula begins with (OWASP, "CSV Injection"): also in full width, as East Asian spreadsheets take it, and a tab or a carriage return,
/// behind which a spreadsheet looks for one.
const FORMULA_STARTS: [char; 10] = ['=', '+', '-', '@', '＝', '＋', '－', '＠', '\t', '\r'];

/// Whether a spreadsheet would compute it, but for marks that keep it from that.
fn is_formula(text: &str) -> bool {
    text.trim_start_matches('\'').starts_with(FORMULA_STARTS)
}

/// As it is exported.
fn guarded(text: &str) -> Cow<'_, str> {
    if is_formula(text) { Cow::Owned(format!("'{text}")) } else { Cow::Borrowed(text) }
}

/// As it is meant in what was exported.
fn unguarded(text: &str) -> &str {
    text.strip_prefix('\'').filter(|text| is_formula(text)).unwrap_or(text)
}

/// What a line says.
#[derive(Clone, PartialEq, Debug)]
struct Line {
    /// Where it is, from 1; the header is line 1.
    number: u64,
    id: Option<u64>,
    first_name: String,
    last_name: String,
    grade: Option<(String, GradeType, f64)>,
    occurrence: Option<u64>,
}

/// A line that is left out, and why.
type Refused = (u64, String);

/// `POST /students/import`.
pub(super) async fn import(
    State(book): State<Book>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let wish = Wish::read(&headers, &Parameters::read(uri.query(), &["ack"])?)?;
    let (lines, mut refused) = read(&body)?;
    let journal = book.journal()?;
    let plan = journal::read(journal, move |db| plan(db, lines)).await?;
    refused.extend(plan.refused);
    let writes: Vec<Write> =
        plan.writes.iter().map(|(_, changes)| Write { key: None, body: changes.to_body() }).collect();
    let wanted: Wanted = wish.wanted;
    let (mut students, mut grades, mut last) = (0, 0, None);
    for ((numbers, changes), answer) in plan.writes.iter().zip(journal.append(writes, wanted).await) {
        match answer {
            Ok(appended) => {
                students += 1;
                grades += changes.changes.iter().filter(|c| matches!(c, Change::Grade { .. })).count();
                last = Some(appended);
            }
            Err(error) => refused.extend(numbers.iter().map(|number| (*number, error.to_string()))),
        }
    }
    refused.sort();
    let listed: Vec<_> = refused
        .iter()
        .take(REFUSED_LISTED_MAX)
        .map(|(line, problem)| json!({ "line": line, "problem": problem }))
        .collect();
    let report = json!({
        "students": students,
        "grades": grades,
        "refused": refused.len(),
        "problems": listed,
    });
    Ok(match last {
        Some(appended) => writing::told(&appended, Json(report)),
        None => Json(report).into_response(),
    })
}

fn bad(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, detail)
}

/// Reads lines; those that make no sense are told apart.
fn read(body: &[u8]) -> Result<(Vec<Line>, Vec<Refused>), Problem> {
    let mut sheet = Sheet::open(body).map_err(|error| bad(format!("the body is no table: {error}")))?;
    let mut places = BTreeMap::new();
    for (place, name) in sheet.columns().iter().enumerate() {
        let column = COLUMNS.iter().chain([&OCCURRENCE]).find(|column| column.eq_ignore_ascii_case(name));
        let column = column.ok_or_else(|| {
            bad(format!("line 1: unknown column {name:?}; known are {}", COLUMNS.join(", ")))
        })?;
        places.insert(*column, place);
    }
    for column in ["FirstName", "LastName"] {
        if !places.contains_key(column) {
            return Err(bad(format!("line 1: the column {column} is missing")));
        }
    }
    let (mut lines, mut refused) = (Vec::new(), Vec::new());
    // Memory does not fail to be read.
    while let Some(row) = sheet.next_row().map_err(|error| bad(error.to_string()))? {
        if lines.len() + refused.len() >= LINES_MAX {
            return Err(Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("more than {LINES_MAX} lines in one request; nothing was taken, send them in parts"),
            ));
        }
        match &row.fields {
            Ok(fields) => match line(row.line, fields, &places) {
                Ok(line) => lines.push(line),
                Err(problem) => refused.push((row.line, row.explain(&problem))),
            },
            Err(problem) => refused.push((row.line, problem.clone())),
        }
    }
    Ok((lines, refused))
}

fn line(number: u64, fields: &[String], places: &BTreeMap<&str, usize>) -> Result<Line, String> {
    let value = |column: &str| {
        places.get(column).and_then(|place| fields.get(*place)).map(String::as_str).unwrap_or_default()
    };
    let told = |problem: Problem| problem.detail().to_owned();
    let id = match value("ID") {
        "" => None,
        id => match id.parse().ok().filter(|id| (1..=ID_MAX).contains(id)) {
            Some(id) => Some(id),
            None => return Err(format!("ID: {id:?} is not a whole number from 1 to {ID_MAX}")),
        },
    };
    let grade = match (value("Title"), value("Type"), value("Score")) {
        ("", "", "") => None,
        (title, kind, points) => {
            let title = text("Title", unguarded(title), TITLE_CHARS_MAX).map_err(told)?;
            let kind = kind.parse::<GradeType>().map_err(|problem| format!("Type: {problem}"))?;
            let points = points.parse().map_err(|_| format!("Score: {points:?} is not a number"))?;
            Some((title, kind, score(points).map_err(told)?))
        }
    };
    let occurrence = match value(OCCURRENCE) {
        "" => None,
        text => match text.parse().ok().filter(|number| (1..=OCCURRENCE_MAX).contains(number)) {
            Some(number) => Some(number),
            None => {
                return Err(format!("Occurrence: {text:?} is not a whole number from 1 to {OCCURRENCE_MAX}"));
            }
        },
    };
    Ok(Line {
        number,
        occurrence,
        id,
        first_name: text("FirstName", unguarded(value("FirstName")), NAME_CHARS_MAX).map_err(told)?,
        last_name: text("LastName", unguarded(value("LastName")), NAME_CHARS_MAX).map_err(told)?,
        grade,
    })
}

/// What is to be written: of each student, the lines that say it and the changes.
#[derive(Default)]
struct Plan {
    writes: Vec<(Vec<u64>, Changes)>,
    refused: Vec<Refused>,
}

fn plan(db: &Connection, lines: Vec<Line>) -> rusqlite::Result<Plan> {
    let mut plan = Plan::default();
    let mut students: BTreeMap<u64, (Vec<u64>, Vec<Change>)> = BTreeMap::new();
    let mut known = BTreeMap::new();
    let mut times: BTreeMap<(u64, String, String), u64> = BTreeMap::new();
    for line in lines {
        let name = (line.first_name.clone(), line.last_name.clone());
        let id = match line.id.or_else(|| known.get(&name).copied()) {
            Some(id) => id,
            None => match tables::named(db, &name.0, &name.1)?.as_slice() {
                // The name itself makes the id: the same file, imported on two nodes, adds one student.
                [] => new_id(Some(&format!("student\n{}\n{}", name.0, name.1)), 0),
                [id] => *id,
                [first, second, ..] => {
                    let problem = format!(
                        "ID: is missing, and several students have this name, {first} and {second} among them"
                    );
                    plan.refused.push((line.number, problem));
                    continue;
                }
            },
        };
        known.insert(name, id);
        let (numbers, changes) = students.entry(id).or_insert_with(|| {
            let put = Change::Put { student: id, first_name: line.first_name, last_name: line.last_name };
            (Vec::new(), vec![put])
        });
        numbers.push(line.number);
        if let Some((title, kind, points)) = line.grade {
            let time = times.entry((id, title.clone(), kind.to_string())).or_default();
            *time = line.occurrence.unwrap_or(*time + 1);
            let before = tables::student(db, id)?.map(|student| student.grades).unwrap_or_default();
            let grade = grade_id(id, &before, &title, kind, *time);
            changes
                .push(Change::Grade { student: id, grade: Grade { id: grade, title, kind, score: points } });
        }
    }
    plan.writes.extend(students.into_values().flat_map(|(numbers, changes)| split(numbers, changes)));
    Ok(plan)
}

/// The id of the how-manieth grade of this title and type: the same for the same line, in whatever requests and on whatever nodes it comes. A grade
/// that was given otherwise than by an import is taken for the line of its place, by ids, because those do not change when it is given again.
fn grade_id(student: u64, before: &[Grade], title: &str, kind: GradeType, occurrence: u64) -> u64 {
    // Imported before and taken back since, there may be higher ones than there are grades.
    const TAKEN_BACK_MAX: u64 = 64;
    let made = |number: u64| new_id(Some(&format!("grade\n{student}\n{title}\n{kind}\n{number}")), 0);
    let mut alike: Vec<u64> =
        before.iter().filter(|g| g.title == title && g.kind == kind).map(|g| g.id).collect();
    let own = made(occurrence);
    if alike.is_empty() || alike.contains(&own) {
        return own;
    }
    let imported: Vec<u64> = (1..=alike.len() as u64 + TAKEN_BACK_MAX).map(made).collect();
    alike.retain(|id| !imported.contains(id));
    alike.sort_unstable();
    usize::try_from(occurrence - 1).ok().and_then(|place| alike.get(place).copied()).unwrap_or(own)
}

/// Changes of one student in entries that are not too large. A line makes one change after the first.
fn split(numbers: Vec<u64>, changes: Vec<Change>) -> Vec<(Vec<u64>, Changes)> {
    const CHANGES_MAX: usize = 100;
    let parts = changes.chunks(CHANGES_MAX).map(|part| Changes { changes: part.to_vec() });
    parts.map(|changes| (numbers.clone(), changes)).collect()
}
