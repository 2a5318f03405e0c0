//! CSV import and export of the grade book: one line per grade, with the header
//! `ID,FirstName,LastName,Title,Type,Score`.
//!
//! An export can be imported any number of times, because the same line always names the same grade. A line
//! without an ID belongs to the student of exactly that name, who is added if missing. A malformed line is
//! listed with its number and its fault, and the other lines are imported. `sheet` reads the file.
//!
//! Spreadsheets evaluate text that starts like a formula (OWASP, "CSV Injection"). The export puts a `'` in
//! front of such text, and the import removes it again.

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
    http::{
        append::{self, WriteOptions},
        parameters::Parameters,
    },
    journal::{self, AppendOptions, Connection, Write},
};

/// Columns in the order of the export. The import finds them by name, in any order and case.
const COLUMNS: [&str; 6] = ["ID", "FirstName", "LastName", "Title", "Type", "Score"];
/// Optional column: the number of this grade, from 1, among those of the same student, title and type.
/// Without it, grades are counted within the request. A client that splits a file into several requests
/// counts over the whole file.
const OCCURRENCE: &str = "Occurrence";
/// Greatest occurrence.
const OCCURRENCE_MAX: u64 = 1_000_000;
/// Maximum number of lines in one request. A longer file takes several requests, each with the header.
pub(super) const LINES_MAX: usize = 2000;
/// Maximum number of refused lines that are listed; further ones are counted. As many as `node grades import`
/// sends at once.
const REFUSED_LISTED_MAX: usize = 1000;

/// Byte order mark. Without it, Excel does not recognise UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Handles `GET /students/export`.
pub(super) async fn export(
    State(book): State<Book>,
    headers: HeaderMap,
    uri: Uri,
) -> Result<Response, Problem> {
    let parameters = Parameters::read(uri.query(), &["excel"])?;
    let is_for_excel = match parameters.single("excel")? {
        None | Some("false") => false,
        Some("" | "true") => true,
        Some(other) => {
            return Err(Parameters::refuse("excel", other, "true or false, or left without a value"));
        }
    };
    let journal = book.journal()?;
    append::await_tokens(journal, &headers).await?;
    let bytes = journal::read(journal, move |db| {
        let all = Selection { after: 0, limit: usize::MAX, name_part: String::new() };
        let start = if is_for_excel { BYTE_ORDER_MARK.to_vec() } else { Vec::new() };
        let mut lines = WriterBuilder::new().from_writer(start);
        // Writing to memory does not fail.
        _ = lines.write_record(COLUMNS);
        for student in tables::select_students(db, &all)? {
            let (id, grades) = (student.id.to_string(), &student.grades);
            let (first, last) = (escape_formula(&student.first_name), escape_formula(&student.last_name));
            let named = [id.as_str(), &*first, &*last];
            if grades.is_empty() {
                _ = lines.write_record(named.iter().chain(&["", "", ""]));
            }
            for grade in grades {
                let (title, kind, score) =
                    (escape_formula(&grade.title), grade.kind.to_string(), grade.score.to_string());
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

/// First characters of a formula (OWASP, "CSV Injection"), also in full width, which East Asian spreadsheets
/// accept. Spreadsheets skip a tab or carriage return before a formula.
const FORMULA_STARTS: [char; 10] = ['=', '+', '-', '@', '＝', '＋', '－', '＠', '\t', '\r'];

/// Returns whether a spreadsheet would evaluate the text without the `'` marks in front of it.
fn is_formula(text: &str) -> bool {
    text.trim_start_matches('\'').starts_with(FORMULA_STARTS)
}

/// Puts a `'` in front of text that starts like a formula.
fn escape_formula(text: &str) -> Cow<'_, str> {
    if is_formula(text) { Cow::Owned(format!("'{text}")) } else { Cow::Borrowed(text) }
}

/// Removes the `'` that the export added.
fn unescape_formula(text: &str) -> &str {
    text.strip_prefix('\'').filter(|text| is_formula(text)).unwrap_or(text)
}

/// A parsed line.
#[derive(Clone, PartialEq, Debug)]
struct ImportLine {
    /// Line number from 1; the header is line 1.
    number: u64,
    id: Option<u64>,
    first_name: String,
    last_name: String,
    grade: Option<(String, GradeType, f64)>,
    occurrence: Option<u64>,
}

/// Number and fault of a refused line.
type Refused = (u64, String);

/// Handles `POST /students/import`.
pub(super) async fn import(
    State(book): State<Book>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let options = WriteOptions::read(&headers, &Parameters::read(uri.query(), &["ack"])?)?;
    let (lines, mut refused) = read(&body)?;
    let journal = book.journal()?;
    let plan = journal::read(journal, move |db| plan(db, lines)).await?;
    refused.extend(plan.refused);
    let writes: Vec<Write> =
        plan.writes.iter().map(|(_, changes)| Write { key: None, body: changes.to_body() }).collect();
    let append: AppendOptions = options.append;
    let (mut students, mut grades, mut last) = (0, 0, None);
    for ((numbers, changes), answer) in plan.writes.iter().zip(journal.append(writes, append).await) {
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
        Some(appended) => append::with_receipt(&appended, Json(report)),
        None => Json(report).into_response(),
    })
}

fn bad(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, detail)
}

/// Parses the lines, and separates malformed ones.
fn read(body: &[u8]) -> Result<(Vec<ImportLine>, Vec<Refused>), Problem> {
    let mut sheet = Sheet::open(body).map_err(|error| bad(format!("the body is not a table: {error}")))?;
    let mut positions = BTreeMap::new();
    for (position, name) in sheet.columns().iter().enumerate() {
        let column = COLUMNS.iter().chain([&OCCURRENCE]).find(|column| column.eq_ignore_ascii_case(name));
        let column = column.ok_or_else(|| {
            bad(format!("line 1: unknown column {name:?}; known are {}", COLUMNS.join(", ")))
        })?;
        positions.insert(*column, position);
    }
    for column in ["FirstName", "LastName"] {
        if !positions.contains_key(column) {
            return Err(bad(format!("line 1: the column {column} is missing")));
        }
    }
    let (mut lines, mut refused) = (Vec::new(), Vec::new());
    // Reading from memory does not fail.
    while let Some(row) = sheet.next_row().map_err(|error| bad(error.to_string()))? {
        if lines.len() + refused.len() >= LINES_MAX {
            return Err(Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!(
                    "more than {LINES_MAX} lines in one request; nothing was imported. Send them in parts"
                ),
            ));
        }
        match &row.fields {
            Ok(fields) => match line(row.line, fields, &positions) {
                Ok(line) => lines.push(line),
                Err(problem) => refused.push((row.line, row.explain(&problem))),
            },
            Err(problem) => refused.push((row.line, problem.clone())),
        }
    }
    Ok((lines, refused))
}

fn line(number: u64, fields: &[String], positions: &BTreeMap<&str, usize>) -> Result<ImportLine, String> {
    let value = |column: &str| {
        positions
            .get(column)
            .and_then(|position| fields.get(*position))
            .map(String::as_str)
            .unwrap_or_default()
    };
    let detail_of = |problem: Problem| problem.detail().to_owned();
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
            let title = text("Title", unescape_formula(title), TITLE_CHARS_MAX).map_err(detail_of)?;
            let kind = kind.parse::<GradeType>().map_err(|problem| format!("Type: {problem}"))?;
            let points = points.parse().map_err(|_| format!("Score: {points:?} is not a number"))?;
            Some((title, kind, score(points).map_err(detail_of)?))
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
    Ok(ImportLine {
        number,
        occurrence,
        id,
        first_name: text("FirstName", unescape_formula(value("FirstName")), NAME_CHARS_MAX)
            .map_err(detail_of)?,
        last_name: text("LastName", unescape_formula(value("LastName")), NAME_CHARS_MAX)
            .map_err(detail_of)?,
        grade,
    })
}

/// Planned writes: for each student, the line numbers and the changes.
#[derive(Default)]
struct Plan {
    writes: Vec<(Vec<u64>, Changes)>,
    refused: Vec<Refused>,
}

fn plan(db: &Connection, lines: Vec<ImportLine>) -> rusqlite::Result<Plan> {
    let mut plan = Plan::default();
    let mut students: BTreeMap<u64, (Vec<u64>, Vec<Change>)> = BTreeMap::new();
    let mut known = BTreeMap::new();
    let mut times: BTreeMap<(u64, String, String), u64> = BTreeMap::new();
    for line in lines {
        let name = (line.first_name.clone(), line.last_name.clone());
        let id = match line.id.or_else(|| known.get(&name).copied()) {
            Some(id) => id,
            None => match tables::find_by_name(db, &name.0, &name.1)?.as_slice() {
                // The id follows from the name, so that importing the same file on two nodes adds one
                // student.
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
    plan.writes.extend(students.into_values().flat_map(|(numbers, changes)| split_changes(numbers, changes)));
    Ok(plan)
}

/// Returns the id of the grade with this occurrence of title and type. The same line gives the same id in any
/// request on any node. Grades that were not imported are matched with the lines in the order of their ids,
/// which do not change.
fn grade_id(student: u64, before: &[Grade], title: &str, kind: GradeType, occurrence: u64) -> u64 {
    // If imported grades were removed, the occurrences of the others exceed the number of grades.
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
    usize::try_from(occurrence - 1).ok().and_then(|position| alike.get(position).copied()).unwrap_or(own)
}

/// Splits the changes of a student into entries of bounded size, each with the numbers of all its lines.
fn split_changes(numbers: Vec<u64>, changes: Vec<Change>) -> Vec<(Vec<u64>, Changes)> {
    const CHANGES_MAX: usize = 100;
    let parts = changes.chunks(CHANGES_MAX).map(|part| Changes { changes: part.to_vec() });
    parts.map(|changes| (numbers.clone(), changes)).collect()
}
