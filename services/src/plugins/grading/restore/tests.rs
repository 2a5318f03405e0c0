//! Tests of the restore endpoint of the grade book.

use std::sync::Arc;

use axum::{Router, body::Body};
use http::Request as HttpRequest;
use serde_json::Value;

use super::*;
use crate::{
    Service as _,
    journal::{AppendError, Journal as _},
    plugins::grading::{Grading, ROLE},
    testing::{Answer, MemoryHost, MemoryJournal, send},
};

struct Book {
    router: Router,
    journal: Arc<MemoryJournal>,
}

impl Book {
    fn new() -> Self {
        let host = Arc::new(MemoryHost::new("n1").keeping(&Grading));
        let journal = Arc::clone(host.memory_journal(ROLE).unwrap());
        Self { router: Grading.router(host), journal }
    }

    async fn request(&self, method: &str, path: &str, body: Value) -> Answer {
        let request = HttpRequest::builder().method(method).uri(path);
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        send(self.router.clone(), request.body(body).unwrap()).await
    }

    async fn student(&self, id: u64) -> Value {
        self.request("GET", &format!("/students/{id}"), Value::Null).await.json()
    }

    /// Returns the items of the current book, as read from a backup.
    fn backup(&self) -> Vec<Value> {
        let db = self.journal.readers().open().unwrap();
        let (mut items, mut cursor) = (Vec::new(), None);
        loop {
            let page = Backup.items(&db, ItemSelection::After(cursor.as_deref())).unwrap();
            let Some(last) = page.last() else { return items };
            cursor = Some(last.cursor.clone());
            items.extend(page.into_iter().map(|item| item.body));
        }
    }

    async fn report(&self, path: &str, items: &[Value]) -> RestoreReport {
        let answer = self.request("POST", path, json!({ "items": items })).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        serde_json::from_value(answer.json()).unwrap()
    }

    /// Runs a dry run, a restore and another dry run. Returns the differences as lines, and the number of
    /// written entries.
    async fn restore(&self, items: &[Value]) -> (Vec<String>, u64) {
        let entries = self.journal.entries().len();
        let seen = self.report("/students/restore?dry-run", items).await;
        assert_eq!((self.journal.entries().len(), seen.written), (entries, 0), "a dry run writes nothing");
        let done = self.report("/students/restore", items).await;
        assert_eq!((&seen.differences, done.remaining), (&done.differences, 0));
        assert_eq!(self.journal.entries().len() as u64, entries as u64 + done.written);
        let again = self.report("/students/restore", items).await;
        assert_eq!(
            (again.differences.len(), again.written, again.ack),
            (0, 0, None),
            "a second run does nothing"
        );
        let line = |d: &Difference| {
            format!("{} | {} | {:?} | {}", d.item, d.change.name(), d.now.as_deref(), d.backup)
        };
        (done.differences.iter().map(line).collect(), done.written)
    }
}

fn essay(id: u64, score: f64) -> Value {
    json!({ "id": id, "title": "Essay", "type": "Homework", "score": score })
}

/// A book with Ann, who has three grades, and Bob.
async fn filled() -> Book {
    let book = Book::new();
    let grades = [essay(1, 90.0), essay(2, 80.0), essay(3, 70.0)];
    for student in [
        json!({ "id": 7, "firstName": "Ann", "lastName": "Lee", "grades": grades }),
        json!({ "id": 8, "firstName": "Bob", "lastName": "Ray" }),
    ] {
        assert_eq!(book.request("POST", "/students", student).await.status, 201);
    }
    book
}

#[tokio::test]
async fn a_student_that_was_deleted_comes_back_with_the_same_id_and_grades() {
    let book = filled().await;
    let (backup, before) = (book.backup(), book.student(7).await);
    assert_eq!(book.request("DELETE", "/students/7", Value::Null).await.status, 204);
    let (lines, written) = book.restore(&backup).await;
    assert_eq!(lines[0], "student:7 | add | None | Ann Lee");
    assert_eq!(lines[1], "student:7 grade:1 | add | None | Essay, Homework, 90");
    assert_eq!((lines.len(), written), (4, 1));
    assert_eq!(book.student(7).await, before);
}

#[tokio::test]
async fn what_was_changed_is_set_back_and_what_came_since_stays() {
    let book = filled().await;
    let (backup, before) = (book.backup(), book.student(7).await);
    book.request("PUT", "/students/7", json!({ "firstName": "Ann", "lastName": "King" })).await;
    book.request("POST", "/students/7/grades", essay(2, 1.0)).await;
    book.request("POST", "/students/7/grades", essay(4, 60.0)).await;
    book.request("POST", "/students", json!({ "id": 9, "firstName": "New", "lastName": "One" })).await;
    let (lines, _) = book.restore(&backup).await;
    assert_eq!(
        lines,
        [
            "student:7 | set back | Some(\"Ann King\") | Ann Lee",
            "student:7 grade:2 | set back | Some(\"Essay, Homework, 1\") | Essay, Homework, 80"
        ]
    );
    let now = book.student(7).await;
    let scores = |student: &Value| -> Vec<(u64, f64)> {
        let grades = student["grades"].as_array().unwrap().iter();
        let mut scores: Vec<_> =
            grades.map(|g| (g["id"].as_u64().unwrap(), g["score"].as_f64().unwrap())).collect();
        scores.sort_by_key(|(id, _)| *id);
        scores
    };
    assert_eq!(now["lastName"], "Lee");
    assert_eq!(scores(&now)[..3], scores(&before)[..]);
    assert_eq!(scores(&now)[3], (4, 60.0));
    assert_eq!(book.student(9).await["firstName"], "New");
}

#[tokio::test]
async fn a_grade_that_was_taken_back_comes_back_under_a_new_id_as_often_as_it_takes() {
    let book = filled().await;
    let backup = book.backup();
    let mut id = 2;
    for _ in 0..3 {
        assert_eq!(
            book.request("DELETE", &format!("/students/7/grades/{id}"), Value::Null).await.status,
            204
        );
        let report = book.report("/students/restore", &backup).await;
        let note = report.differences[0].note.clone().unwrap();
        assert_eq!((report.differences.len(), report.remaining), (1, 0), "{report:?}");
        let grades = book.student(7).await["grades"].as_array().unwrap().clone();
        let back: Vec<_> = grades.iter().filter(|grade| grade["score"] == 80.0).collect();
        assert_eq!((grades.len(), back.len()), (3, 1), "{grades:?}");
        id = back[0]["id"].as_u64().unwrap();
        assert!(note.contains(&id.to_string()), "{note}");
        assert_eq!(book.restore(&backup).await, (vec![], 0));
    }
    // The grade is also set back under its new id.
    book.request("POST", "/students/7/grades", essay(id, 5.0)).await;
    let (lines, _) = book.restore(&backup).await;
    assert_eq!(lines, ["student:7 grade:2 | set back | Some(\"Essay, Homework, 5\") | Essay, Homework, 80"]);
}

#[tokio::test]
async fn a_student_of_many_grades_comes_in_parts_and_an_interrupted_restore_is_finished_by_the_next() {
    let book = filled().await;
    for id in 10..460 {
        book.request("POST", "/students/8/grades", essay(id, 50.0)).await;
    }
    let (backup, before) = (book.backup(), book.student(8).await);
    assert!(backup.len() > 4 && backup.iter().all(|item| item.to_string().len() < 64 * 1024));
    book.request("DELETE", "/students/8", Value::Null).await;
    let first = book.report("/students/restore", &backup[..3]).await;
    assert_eq!(first.differences.len(), 1 + 200, "the student is told once, and two parts of its grades");
    let (lines, _) = book.restore(&backup).await;
    assert_eq!(lines.len(), 450 - 200);
    assert_eq!(book.student(8).await, before);
    let db = book.journal.readers().open().unwrap();
    assert_eq!(Backup.count(&db).unwrap(), 2);
    assert_eq!(Backup.items(&db, ItemSelection::Only("7")).unwrap().len(), 1);
    assert!(
        ["9", "x", "-1", ""].iter().all(|id| Backup.items(&db, ItemSelection::Only(id)).unwrap().is_empty())
    );
}

#[tokio::test]
async fn what_the_book_would_not_take_is_listed_and_a_disk_that_is_full_is_told() {
    let book = filled().await;
    let mut backup = book.backup();
    backup[1]["lastName"] = json!("x".repeat(101));
    backup[0]["lastName"] = json!("Li");
    let report = book.report("/students/restore", &backup).await;
    assert_eq!(
        report.differences.iter().map(|d| d.change).collect::<Vec<_>>(),
        [Resolution::SetBack, Resolution::Refuse]
    );
    let note = report.differences[1].note.clone().unwrap();
    assert!(note.contains("lastName") && note.contains("101"), "{note}");
    assert_eq!((report.written, report.remaining, report.ack.as_deref()), (1, 0, Some("local")));

    let half = json!({ "id": 7, "firstName": "Ann" });
    let report = book.report("/students/restore", &[half]).await;
    assert_eq!(report.differences[0].note.as_deref(), Some("lastName: is missing"));

    backup[0]["lastName"] = json!("Lo");
    book.journal.refuse(Some(AppendError::DiskFull));
    let answer = book.request("POST", "/students/restore", json!({ "items": backup })).await;
    assert!(answer.status == 507 && answer.is_problem(), "{}", answer.text());
    for (path, body) in [
        ("/students/restore?dry-run=maybe", json!({ "items": [] })),
        ("/students/restore", json!([])),
        ("/students/restore", json!({ "items": vec![backup[0].clone(); ITEMS_MAX + 1] })),
    ] {
        let answer = book.request("POST", path, body).await;
        assert!(answer.status == 400 && answer.is_problem(), "{path}: {}", answer.text());
    }
}
