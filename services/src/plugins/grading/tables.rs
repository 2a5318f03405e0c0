//! Projection of the grade book ([`Tables`]): folds journal entries into SQL tables, with the same result in
//! any order of arrival, and queries students and grades in them.
//!
//! A student has the name of its latest `put`, and is in the book while that is later than its latest
//! `remove`. A grade is in the book if it is the latest with its id, was added after the latest `remove` and
//! not before the latest `clear`, and was never removed. "Later" is the order of
//! [stamps](crate::journal::Stamp).

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::{
    book::{Grade, Student, sample},
    change::{Change, Changes, EPOCHS},
};
use crate::journal::{EpochFormat, Projection, Recorded, STAMP_BYTES};

/// Stamp of the sample, older than every entry.
const OLDEST: [u8; STAMP_BYTES] = [0; STAMP_BYTES];

/// Projection of the grade book.
#[derive(Debug)]
pub(super) struct Tables;

impl Projection for Tables {
    fn version(&self) -> u32 {
        3
    }

    fn epochs(&self) -> Option<EpochFormat> {
        Some(EPOCHS)
    }

    fn create(&self, db: &Connection) -> rusqlite::Result<()> {
        db.execute_batch(
            "CREATE TABLE students (
                 id INTEGER PRIMARY KEY,
                 put BLOB NOT NULL DEFAULT x'',
                 removed BLOB NOT NULL DEFAULT x'',
                 cleared BLOB NOT NULL DEFAULT x'',
                 first_name TEXT NOT NULL DEFAULT '',
                 last_name TEXT NOT NULL DEFAULT ''
             );
             CREATE INDEX students_by_name ON students (last_name, first_name);
             CREATE TABLE grades (
                 student INTEGER NOT NULL,
                 id INTEGER NOT NULL,
                 given BLOB NOT NULL DEFAULT x'',
                 place INTEGER NOT NULL DEFAULT 0,
                 taken_back INTEGER NOT NULL DEFAULT 0,
                 title TEXT NOT NULL DEFAULT '',
                 type TEXT NOT NULL DEFAULT 'Quiz',
                 score REAL NOT NULL DEFAULT 0,
                 PRIMARY KEY (student, id)
             ) WITHOUT ROWID;",
        )
    }

    fn fold(&self, db: &Connection, entry: &Recorded<'_>) -> rusqlite::Result<()> {
        let stamp = entry.stamp().to_bytes();
        for (position, change) in Changes::from_body(entry.body).into_iter().enumerate() {
            match change {
                Change::Sample => {
                    for student in sample() {
                        put_student(db, student.id, &OLDEST, &student.first_name, &student.last_name)?;
                        let mut grades = student.grades.iter().enumerate();
                        grades.try_for_each(|(position, g)| {
                            put_grade(db, student.id, (&OLDEST, position), g)
                        })?;
                    }
                }
                Change::Put { student, first_name, last_name } => {
                    put_student(db, student, &stamp, &first_name, &last_name)?;
                }
                Change::Remove { student } => {
                    let mut remove = db.prepare_cached(
                        "INSERT INTO students (id, removed) VALUES (?1, ?2)
                         ON CONFLICT (id) DO UPDATE SET removed = max(removed, excluded.removed)",
                    )?;
                    remove.execute(params![student, stamp])?;
                }
                Change::Clear { student } => {
                    let mut clear = db.prepare_cached(
                        "INSERT INTO students (id, cleared) VALUES (?1, ?2)
                         ON CONFLICT (id) DO UPDATE SET cleared = max(cleared, excluded.cleared)",
                    )?;
                    clear.execute(params![student, stamp])?;
                }
                Change::Grade { student, grade } => put_grade(db, student, (&stamp, position), &grade)?,
                Change::Ungrade { student, grade } => {
                    let mut take_back = db.prepare_cached(
                        "INSERT INTO grades (student, id, taken_back) VALUES (?1, ?2, 1)
                         ON CONFLICT (student, id) DO UPDATE SET taken_back = 1",
                    )?;
                    take_back.execute(params![student, grade])?;
                }
            }
        }
        Ok(())
    }
}

fn put_student(
    db: &Connection,
    id: u64,
    stamp: &[u8],
    first_name: &str,
    last_name: &str,
) -> rusqlite::Result<()> {
    let mut put = db.prepare_cached(
        "INSERT INTO students (id, put, first_name, last_name) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT (id) DO UPDATE SET put = excluded.put, first_name = excluded.first_name, last_name = excluded.last_name
         WHERE excluded.put > put",
    )?;
    put.execute(params![id, stamp, first_name, last_name]).map(drop)
}

/// Stores a grade. `at` is the stamp of the entry, and the position of the change in the entry.
fn put_grade(db: &Connection, student: u64, at: (&[u8], usize), grade: &Grade) -> rusqlite::Result<()> {
    let mut give = db.prepare_cached(
        "INSERT INTO grades (student, id, given, place, title, type, score) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT (student, id) DO UPDATE SET given = excluded.given, place = excluded.place,
             title = excluded.title, type = excluded.type, score = excluded.score
         WHERE excluded.given > given",
    )?;
    let (stamp, position) = at;
    let kind = grade.kind.to_string();
    give.execute(params![student, grade.id, stamp, position, grade.title, kind, grade.score]).map(drop)
}

/// Query for students.
#[derive(Clone, Debug)]
pub(super) struct Selection {
    /// Only students with a higher id.
    pub(super) after: u64,
    /// Maximum number of students to return.
    pub(super) limit: usize,
    /// Only students whose full name contains this, in either case.
    pub(super) name_part: String,
}

/// Returns the selected students in the order of their ids.
pub(super) fn select_students(db: &Connection, selection: &Selection) -> rusqlite::Result<Vec<Student>> {
    let name_part = selection.name_part.to_lowercase();
    let mut list = db.prepare_cached(
        "SELECT id, first_name, last_name FROM students WHERE put > removed AND id > ?1 ORDER BY id",
    )?;
    let mut rows = list.query([selection.after])?;
    let mut students = Vec::new();
    while students.len() < selection.limit
        && let Some(row) = rows.next()?
    {
        let student = student_of(row)?;
        // SQLite's own comparison only folds the case of ASCII.
        if student.full_name().to_lowercase().contains(&name_part) {
            students.push(student);
        }
    }
    for student in &mut students {
        student.grades = grades(db, student.id)?;
    }
    Ok(students)
}

/// Returns the student with this id.
pub(super) fn student(db: &Connection, id: u64) -> rusqlite::Result<Option<Student>> {
    let mut find =
        db.prepare_cached("SELECT id, first_name, last_name FROM students WHERE put > removed AND id = ?1")?;
    let Some(mut student) = find.query_row([id], student_of).optional()? else { return Ok(None) };
    student.grades = grades(db, id)?;
    Ok(Some(student))
}

/// Returns the number of students in the book.
pub(super) fn count(db: &Connection) -> rusqlite::Result<u64> {
    db.query_row("SELECT count(*) FROM students WHERE put > removed", [], |row| row.get(0))
}

/// Returns the ids of students with exactly this name.
pub(super) fn find_by_name(db: &Connection, first_name: &str, last_name: &str) -> rusqlite::Result<Vec<u64>> {
    let mut find = db.prepare_cached(
        "SELECT id FROM students WHERE put > removed AND first_name = ?1 AND last_name = ?2 ORDER BY id",
    )?;
    find.query_map([first_name, last_name], |row| row.get(0))?.collect()
}

/// Returns whether the grade with this id was removed.
pub(super) fn is_taken_back(db: &Connection, student: u64, grade: u64) -> rusqlite::Result<bool> {
    let mut find = db.prepare_cached("SELECT taken_back FROM grades WHERE student = ?1 AND id = ?2")?;
    let found: Option<bool> = find.query_row(params![student, grade], |row| row.get(0)).optional()?;
    Ok(found == Some(true))
}

fn student_of(row: &Row<'_>) -> rusqlite::Result<Student> {
    Ok(Student { id: row.get(0)?, first_name: row.get(1)?, last_name: row.get(2)?, grades: Vec::new() })
}

fn grades(db: &Connection, student: u64) -> rusqlite::Result<Vec<Grade>> {
    let mut list = db.prepare_cached(
        "SELECT g.id, g.title, g.type, g.score FROM grades g JOIN students s ON s.id = g.student
         WHERE g.student = ?1 AND g.taken_back = 0 AND g.given > s.removed AND g.given >= s.cleared ORDER BY g.given, g.place, g.id",
    )?;
    let rows = list.query_map([student], |row| {
        let kind: String = row.get(2)?;
        let kind = kind.parse().map_err(|_| rusqlite::Error::InvalidQuery)?;
        Ok(Grade { id: row.get(0)?, title: row.get(1)?, kind, score: row.get(3)? })
    })?;
    rows.collect()
}
