//! Restores the grade book: reads students from a backup, compares them with the tables (`POST
//! /students/restore`), and writes what is missing or differs.
//!
//! | in the backup | in the tables | written |
//! | --- | --- | --- |
//! | a student | missing | the student under the same id, with its grades |
//! | a student | with another name | the name |
//! | a grade | missing | the grade; under a new id if it was removed, because ids of removed grades are not reused |
//! | a grade | with another title, type or score | the grade |
//!
//! Students and grades that are not in the backup stay. The new id of a grade follows from its old id. So a
//! repeated restore on any node finds the grade under the new id and writes nothing.

use axum::{
    Json,
    body::Bytes,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode, Uri};
use serde::Deserialize;
use serde_json::json;

use super::{
    Book,
    book::{Grade, Student},
    change::{Change, Changes, ID_MAX, new_id},
    input::{NAME_CHARS_MAX, TITLE_CHARS_MAX, score, text},
    tables::{self, Selection},
};
use crate::{
    Problem,
    http::{
        append::{self, WriteOptions},
        parameters::Parameters,
    },
    journal::{
        self, Appended, Connection, Write,
        restore::{Difference, ItemSelection, Resolution, RestoreItem, RestoreReport, RestoreSource},
    },
};

/// Students per read from the backup.
const STUDENTS_PER_PAGE: usize = 100;
/// Grades per item. A student with more has several items.
const GRADES_PER_ITEM: usize = 100;
/// Items in one request.
const ITEMS_MAX: usize = 1000;
/// Changes per entry. With the longest titles they fit into the 64 KiB of a body.
const CHANGES_PER_ENTRY: usize = 50;
/// How often one grade can be removed and restored.
const RESTORED_IDS_MAX: u64 = 100;

/// Reader of students in a backup.
#[derive(Debug)]
pub(super) struct Backup;

impl RestoreSource for Backup {
    fn path(&self) -> &'static str {
        "/students/restore"
    }

    fn kind(&self) -> &'static str {
        "student"
    }

    fn count(&self, tables: &Connection) -> rusqlite::Result<u64> {
        tables::count(tables)
    }

    fn items(&self, tables: &Connection, which: ItemSelection<'_>) -> rusqlite::Result<Vec<RestoreItem>> {
        let students = match which {
            ItemSelection::Only(id) => match id.parse().ok().filter(|id| (1..=ID_MAX).contains(id)) {
                Some(id) => tables::student(tables, id)?.into_iter().collect(),
                None => Vec::new(),
            },
            ItemSelection::After(cursor) => {
                let after = cursor.and_then(|cursor| cursor.parse().ok()).unwrap_or(0);
                let next = Selection { after, limit: STUDENTS_PER_PAGE, name_part: String::new() };
                tables::select_students(tables, &next)?
            }
        };
        Ok(students.iter().flat_map(items_of).collect())
    }
}

/// Splits a student into items. The first one has the name, and each has a part of the grades.
fn items_of(student: &Student) -> Vec<RestoreItem> {
    let cursor = student.id.to_string();
    let named = |grades: &[Grade]| RestoreItem {
        cursor: cursor.clone(),
        body: json!({
            "id": student.id,
            "firstName": student.first_name,
            "lastName": student.last_name,
            "grades": grades,
        }),
    };
    let nameless = |grades: &[Grade]| RestoreItem {
        cursor: cursor.clone(),
        body: json!({ "id": student.id, "grades": grades }),
    };
    let (first, rest) = student.grades.split_at(student.grades.len().min(GRADES_PER_ITEM));
    std::iter::once(named(first)).chain(rest.chunks(GRADES_PER_ITEM).map(nameless)).collect()
}

/// An item of a request.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct BackupStudent {
    id: u64,
    /// `None`: the item only has grades.
    first_name: Option<String>,
    last_name: Option<String>,
    #[serde(default)]
    grades: Vec<Grade>,
}

impl BackupStudent {
    fn names(&self) -> Option<(&str, &str)> {
        Some((self.first_name.as_deref()?, self.last_name.as_deref()?))
    }
}

#[derive(Debug, Deserialize)]
struct Request {
    items: Vec<BackupStudent>,
}

/// Handles `POST /students/restore`.
pub(super) async fn restore(
    State(book): State<Book>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    let parameters = Parameters::read(uri.query(), &["ack", "dry-run"])?;
    let is_dry_run = match parameters.single("dry-run")? {
        None | Some("false") => false,
        Some("" | "true") => true,
        Some(other) => return Err(Parameters::refuse("dry-run", other, "true or false")),
    };
    let options = WriteOptions::read(&headers, &parameters)?;
    let items = read(&body)?;
    let journal = book.journal()?;
    append::await_tokens(journal, &headers).await?;
    let (planned, items) = journal::read(journal, move |db| Ok((plan(db, &items)?, items))).await?;
    let mut report = RestoreReport { differences: planned.differences, ..RestoreReport::default() };
    if is_dry_run || planned.writes.is_empty() {
        return Ok(Json(report).into_response());
    }
    let writes = planned.writes.iter().map(|changes| Write { key: None, body: changes.to_body() }).collect();
    let mut reached: Option<Appended> = None;
    for answer in journal.append(writes, options.append).await {
        // A retry of the same items skips those that are already written.
        let appended =
            answer.map_err(|error| append::append_problem(&error).with("written", report.written))?;
        report.written += 1;
        let level = reached.as_ref().map_or(appended.level, |before| before.level.min(appended.level));
        reached = Some(Appended { level, ..appended });
    }
    report.ack = reached.as_ref().map(|appended| appended.level.name().to_owned());
    // Acknowledged writes are in the tables here. A remaining difference comes from a concurrent write.
    let left = journal::read(journal, move |db| plan(db, &items)).await?;
    report.remaining =
        left.differences.iter().filter(|left| left.change != Resolution::Refuse).count() as u64;
    Ok(match reached {
        Some(appended) => append::with_receipt(&appended, Json(report)),
        None => Json(report).into_response(),
    })
}

fn read(body: &[u8]) -> Result<Vec<BackupStudent>, Problem> {
    let bad = |detail: String| Problem::new(StatusCode::BAD_REQUEST, detail);
    let request: Request = serde_json::from_slice(body)
        .map_err(|error| bad(format!("the body is not {{\"items\":[…]}} with students: {error}")))?;
    if request.items.len() > ITEMS_MAX {
        return Err(bad(format!("items: at most {ITEMS_MAX} in one request")).with("field", "items"));
    }
    Ok(request.items)
}

/// Differences, and the changes that resolve them.
#[derive(Debug, Default)]
struct Plan {
    differences: Vec<Difference>,
    writes: Vec<Changes>,
}

fn plan(db: &Connection, items: &[BackupStudent]) -> rusqlite::Result<Plan> {
    let mut plan = Plan::default();
    for student in items {
        if let Err(problem) = check(student) {
            plan.differences.push(Difference {
                item: format!("student:{}", student.id),
                change: Resolution::Refuse,
                now: None,
                backup: student.names().map(full_name).unwrap_or_default(),
                note: Some(problem.detail().to_owned()),
            });
            continue;
        }
        let changes = changes(db, student, &mut plan.differences)?;
        let parts = changes.chunks(CHANGES_PER_ENTRY);
        plan.writes.extend(parts.map(|part| Changes { changes: part.to_vec() }));
    }
    Ok(plan)
}

/// Checks the bounds of a student, as for every write.
fn check(student: &BackupStudent) -> Result<(), Problem> {
    let id = |name: &str, id: u64| match (1..=ID_MAX).contains(&id) {
        true => Ok(()),
        false => Err(Problem::new(
            StatusCode::BAD_REQUEST,
            format!("{name}: must be a whole number from 1 to {ID_MAX}"),
        )),
    };
    id("id", student.id)?;
    let missing = |name: &str| Problem::new(StatusCode::BAD_REQUEST, format!("{name}: is missing"));
    match (&student.first_name, &student.last_name) {
        (Some(_), None) => return Err(missing("lastName")),
        (None, Some(_)) => return Err(missing("firstName")),
        _ => (),
    }
    if let Some((first_name, last_name)) = student.names() {
        text("firstName", first_name, NAME_CHARS_MAX)?;
        text("lastName", last_name, NAME_CHARS_MAX)?;
    }
    for grade in &student.grades {
        id("grade", grade.id)?;
        text("title", &grade.title, TITLE_CHARS_MAX)?;
        score(grade.score)?;
    }
    Ok(())
}

fn changes(
    db: &Connection,
    backup: &BackupStudent,
    differences: &mut Vec<Difference>,
) -> rusqlite::Result<Vec<Change>> {
    let student = backup.id;
    let now = tables::student(db, student)?;
    let mut changes = Vec::new();
    if let Some(names) = backup.names()
        && now.as_ref().is_none_or(|now| (now.first_name.as_str(), now.last_name.as_str()) != names)
    {
        differences.push(Difference {
            item: format!("student:{student}"),
            change: if now.is_some() { Resolution::SetBack } else { Resolution::Add },
            now: now.as_ref().map(Student::full_name),
            backup: full_name(names),
            note: None,
        });
        let (first_name, last_name) = (names.0.to_owned(), names.1.to_owned());
        changes.push(Change::Put { student, first_name, last_name });
    }
    let given = now.map(|student| student.grades).unwrap_or_default();
    for grade in &backup.grades {
        let Some(id) = restored_id(db, student, grade.id)? else {
            let note = "it was removed too often to be restored";
            differences.push(difference(student, grade, Resolution::Refuse, None, Some(note.to_owned())));
            continue;
        };
        let now = given.iter().find(|given| given.id == id);
        let grade_then = Grade { id, ..grade.clone() };
        if now == Some(&grade_then) {
            continue;
        }
        let change = if now.is_some() { Resolution::SetBack } else { Resolution::Add };
        let note = (id != grade.id).then(|| format!("it was removed, so it is restored under the id {id}"));
        differences.push(difference(student, grade, change, now, note));
        changes.push(Change::Grade { student, grade: grade_then });
    }
    Ok(changes)
}

/// Returns the id of a backup's grade in the book. This is its own id or, if the grade with that id was
/// removed, the first derived id that was not removed. `None`: all of them were removed.
fn restored_id(db: &Connection, student: u64, id: u64) -> rusqlite::Result<Option<u64>> {
    let made = |number| match number {
        0 => id,
        _ => new_id(Some(&format!("restored\n{student}\n{id}\n{number}")), 0),
    };
    for id in (0..=RESTORED_IDS_MAX).map(made) {
        if !tables::is_taken_back(db, student, id)? {
            return Ok(Some(id));
        }
    }
    Ok(None)
}

fn difference(
    student: u64,
    grade: &Grade,
    change: Resolution,
    now: Option<&Grade>,
    note: Option<String>,
) -> Difference {
    let detail_of = |grade: &Grade| format!("{}, {}, {}", grade.title, grade.kind, grade.score);
    let item = format!("student:{student} grade:{}", grade.id);
    Difference { item, change, now: now.map(detail_of), backup: detail_of(grade), note }
}

fn full_name((first_name, last_name): (&str, &str)) -> String {
    format!("{first_name} {last_name}")
}

#[cfg(test)]
mod tests;
