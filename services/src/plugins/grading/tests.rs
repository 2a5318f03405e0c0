//! Tests of the grade book through its HTTP interface, over an in-memory journal: sample students, writes and
//! retries, paging and search, entries in any order, and CSV import and export.

use axum::body::Body;
use http::{Method, Request};

use super::*;
use crate::testing::{Answer, MemoryHost, MemoryJournal, request, send};

struct BookUnderTest {
    router: Router,
    journal: Arc<MemoryJournal>,
}

impl BookUnderTest {
    async fn new(demo: bool) -> Self {
        let host = Arc::new(MemoryHost::new("n1").with_demo(demo).keeping(&Grading));
        let journal = Arc::clone(host.memory_journal(ROLE).unwrap());
        if let Some(task) = Grading.task(host.clone()) {
            task.await;
        }
        Self { router: Grading.router(host), journal }
    }

    async fn get(&self, path: &str) -> Answer {
        request(self.router.clone(), Method::GET, path).await
    }

    async fn delete(&self, path: &str) -> Answer {
        request(self.router.clone(), Method::DELETE, path).await
    }

    async fn send(&self, method: &str, path: &str, key: Option<&str>, body: impl Into<Body>) -> Answer {
        let request = Request::builder().method(method).uri(path);
        let request = key.into_iter().fold(request, |request, key| request.header("idempotency-key", key));
        send(self.router.clone(), request.body(body.into()).unwrap()).await
    }

    /// Returns the scores of the student at this position.
    async fn scores(&self, student: usize) -> Vec<f64> {
        let students = self.get("/students").await.json();
        students[student]["grades"].as_array().unwrap().iter().map(|g| g["score"].as_f64().unwrap()).collect()
    }

    async fn post(&self, path: &str, body: Value) -> Answer {
        self.send("POST", path, None, body.to_string()).await
    }
}

fn ada() -> Value {
    json!({ "firstName": "Ada", "lastName": "Lovelace" })
}

fn essay(score: f64) -> Value {
    json!({ "title": "Essay", "type": "Homework", "score": score })
}

#[tokio::test]
async fn the_demo_book_holds_five_students_in_the_promised_order() {
    let book = BookUnderTest::new(true).await;
    let students = book.get("/students").await.json();
    let text = |v: &Value| v.as_str().unwrap().to_owned();
    let names: Vec<String> = students
        .as_array()
        .unwrap()
        .iter()
        .map(|s| format!("{} {} {}", s["id"], text(&s["firstName"]), text(&s["lastName"])))
        .collect();
    let expected =
        ["1 Nick Carter", "2 Roberto Baggio", "3 Emma Stone", "4 Rachel McAdams", "5 Kelly Clarkson"];
    assert_eq!(names, expected);
    assert_eq!(book.get("/students/3").await.json(), students[2]);
}

#[tokio::test]
async fn a_student_has_exactly_the_fields_of_the_contract() {
    let student = BookUnderTest::new(true).await.get("/students/1").await.json();
    let keys = |v: &Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&student), ["average", "firstName", "grades", "id", "lastName"]);
    assert_eq!(keys(&student["grades"][0]), ["id", "score", "title", "type"]);
    let scores: Vec<f64> =
        student["grades"].as_array().unwrap().iter().map(|g| g["score"].as_f64().unwrap()).collect();
    let mean = scores.iter().sum::<f64>() / scores.len() as f64;
    assert!((student["average"].as_f64().unwrap() - mean).abs() < 1e-9);
}

#[tokio::test]
async fn without_demo_the_book_is_empty() {
    let book = BookUnderTest::new(false).await;
    assert_eq!(book.get("/students").await.json(), json!([]));
    for path in ["/students/1", "/students/x", "/students/%FF", "/students/99999999999999999999"] {
        let answer = book.get(path).await;
        assert!(answer.status == 404 && answer.is_problem(), "{path}");
    }
}

#[tokio::test]
async fn a_sample_student_that_was_changed_or_removed_stays_so_whoever_brings_the_sample_again() {
    let book = BookUnderTest::new(true).await;
    assert_eq!(book.delete("/students/1").await.status, 204);
    assert_eq!(book.send("PUT", "/students/2", None, ada().to_string()).await.status, 200);
    let sample = book.journal.entries()[0].clone();
    book.journal.take(sample);
    assert_eq!(book.get("/students/1").await.status, 404);
    assert_eq!(book.get("/students/2").await.json()["firstName"], "Ada");
    assert_eq!(book.get("/students/2").await.json()["grades"].as_array().unwrap().len(), 3);
}

#[tokio::test]
async fn a_student_is_added_graded_changed_and_removed() {
    let book = BookUnderTest::new(false).await;
    let added = book.post("/students", ada()).await;
    assert_eq!(added.status, 201);
    assert_eq!(
        (added.headers["hearsay-ack"].as_bytes(), added.json()["average"].is_null()),
        (&b"local"[..], true)
    );
    let path = added.headers["location"].to_str().unwrap().to_owned();
    assert_eq!(book.get(&path).await.json(), added.json());
    let grade = book.post(&format!("{path}/grades"), essay(90.0)).await;
    assert_eq!((grade.status.as_u16(), &grade.json()["title"]), (201, &json!("Essay")));
    book.post(&format!("{path}/grades"), essay(70.0)).await;
    assert_eq!(book.get(&path).await.json()["average"], 80.0);
    let grade_path = format!("{path}/grades/{}", grade.json()["id"]);
    assert_eq!(book.delete(&grade_path).await.status, 204);
    assert_eq!(book.delete(&grade_path).await.status, 404);
    assert_eq!(book.get(&path).await.json()["average"], 70.0);
    let other = json!({ "FirstName": "Ada", "LastName": "King", "Grades": [essay(1.0)] });
    let changed = book.send("PUT", &path, None, other.to_string()).await.json();
    assert_eq!((&changed["lastName"], changed["grades"].as_array().unwrap().len()), (&json!("King"), 1));
    assert_eq!(book.get(&path).await.json(), changed);
    assert_eq!(book.delete(&path).await.status, 204);
    for (method, path) in
        [("GET", path.clone()), ("DELETE", path.clone()), ("POST", format!("{path}/grades"))]
    {
        let answer = book.send(method, &path, None, essay(1.0).to_string()).await;
        assert!(answer.status == 404 && answer.is_problem(), "{method} {path}");
    }
    // A student that is added again does not get its old grades.
    let again = json!({ "id": added.json()["id"], "firstName": "Ada", "lastName": "Lovelace" });
    assert_eq!(book.post("/students", again).await.status, 201);
    assert_eq!(book.get(&path).await.json()["grades"], json!([]));
}

#[tokio::test]
async fn a_retry_under_the_same_key_is_the_same_write_and_another_body_is_409() {
    let book = BookUnderTest::new(false).await;
    let first = book.send("POST", "/students", Some("k1"), ada().to_string()).await;
    let second = book.send("POST", "/students", Some("k1"), ada().to_string()).await;
    assert_eq!((first.json(), first.status), (second.json(), second.status));
    let path = format!("/students/{}", first.json()["id"]);
    for _ in 0..2 {
        let grade = book.send("POST", &format!("{path}/grades"), Some("k2"), essay(5.0).to_string()).await;
        assert_eq!(grade.status, 201);
        let whole = json!({ "firstName": "A", "lastName": "K", "grades": [essay(9.0)] }).to_string();
        assert_eq!(book.send("PUT", &path, Some("k3"), whole).await.status, 200);
    }
    assert_eq!(book.get("/students").await.json().as_array().unwrap().len(), 1);
    let grades = book.get(&path).await.json()["grades"].clone();
    assert_eq!((grades.as_array().unwrap().len(), &grades[0]["score"]), (1, &json!(9.0)));
    let other =
        book.send("POST", "/students", Some("k1"), json!({"firstName":"B","lastName":"C"}).to_string()).await;
    assert!(other.status == 409 && other.is_problem());
    let bad = book.send("POST", "/students", Some(&"k".repeat(256)), ada().to_string()).await;
    assert!(bad.status == 400 && bad.json()["header"] == "Idempotency-Key");
}

#[tokio::test]
async fn an_id_that_is_taken_is_409_and_an_unknown_level_400() {
    let book = BookUnderTest::new(true).await;
    let taken = json!({ "id": 1, "firstName": "A", "lastName": "B" });
    assert_eq!(book.post("/students", taken).await.status, 409);
    let answer = book.post("/students?ack=some", ada()).await;
    assert!(answer.status == 400 && answer.json()["detail"].as_str().unwrap().contains("majority"));
    assert_eq!(book.post("/students?ack=local", ada()).await.status, 201);
}

#[tokio::test]
async fn the_list_is_paged_and_searched() {
    let book = BookUnderTest::new(true).await;
    let ids = async |path: &str| -> Vec<u64> {
        let list = book.get(path).await.json();
        list.as_array().unwrap().iter().map(|s| s["id"].as_u64().unwrap()).collect()
    };
    assert_eq!(ids("/students?after=2&limit=2").await, [3, 4]);
    assert_eq!(ids("/students?q=cLaRk").await, [5]);
    assert_eq!(ids("/students?q=emma%20stone").await, [3]);
    assert_eq!(ids("/students?after=5").await, [0; 0]);
    assert_eq!(ids("/students?after=18446744073709551615").await, [0; 0]);
    for (query, words) in [
        ("limit=0", ["limit", "1 to 1000"]),
        ("after=x", ["after", "whole number"]),
        ("page=2", ["page", "limit"]),
    ] {
        let answer = book.get(&format!("/students?{query}")).await;
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(answer.status == 400 && words.iter().all(|w| detail.contains(w)), "{query}: {detail}");
    }
}

#[tokio::test]
async fn a_read_that_names_what_was_written_waits_for_it() {
    let book = BookUnderTest::new(false).await;
    let added = book.post("/students", ada()).await;
    let token = added.headers["hearsay-token"].to_str().unwrap().to_owned();
    let with = |token: String| {
        let request = Request::builder().uri("/students").header("hearsay-token", token);
        send(book.router.clone(), request.body(Body::empty()).unwrap())
    };
    assert_eq!(with(token.clone()).await.status, 200);
    let missing = token.rsplit_once('-').unwrap().0.to_owned() + "-99";
    let answer = with(missing).await;
    assert!(
        answer.status == 503 && answer.json()["detail"].as_str().unwrap().contains("not arrived here yet")
    );
    assert_eq!(with("x".into()).await.status, 400);
}

#[tokio::test]
async fn the_same_entries_in_any_order_make_the_same_book() {
    let book = BookUnderTest::new(true).await;
    let path = book.post("/students", ada()).await.headers["location"].to_str().unwrap().to_owned();
    for score in [10.0, 20.0, 30.0] {
        let grade = book.post(&format!("{path}/grades"), essay(score)).await.json()["id"].clone();
        if score == 20.0 {
            book.delete(&format!("{path}/grades/{grade}")).await;
        }
    }
    book.delete("/students/2").await;
    book.send(
        "PUT",
        "/students/3",
        None,
        json!({"firstName":"E","lastName":"S","grades":[essay(1.0)]}).to_string(),
    )
    .await;
    book.post("/students/3/grades", essay(2.0)).await;
    book.delete("/students/4").await;
    book.post("/students", json!({"id": 4, "firstName":"R","lastName":"M"})).await;
    let expected = book.get("/students").await.text();
    let mut entries = book.journal.entries();
    let mut state = 1u64;
    for _ in 0..200 {
        for i in (1..entries.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            entries.swap(i, (state >> 33) as usize % (i + 1));
        }
        let other = BookUnderTest::new(false).await;
        entries.iter().for_each(|entry| other.journal.take(entry.clone()));
        assert_eq!(other.get("/students").await.text(), expected);
    }
}

#[tokio::test]
async fn what_cannot_be_written_is_told_and_not_there() {
    use crate::journal::AppendError;
    let book = BookUnderTest::new(false).await;
    for (error, status) in [
        (AppendError::DiskFull, 507),
        (AppendError::DiskFailed, 503),
        (AppendError::Busy, 503),
        (AppendError::Late, 503),
    ] {
        book.journal.refuse(Some(error));
        let answer = book.post("/students", ada()).await;
        assert!(answer.status == status && answer.is_problem(), "{answer:?}");
    }
    book.journal.refuse(None);
    assert_eq!(book.get("/students").await.json(), json!([]));
    assert_eq!(book.post("/students", ada()).await.status, 201);
}

#[tokio::test]
async fn what_was_exported_is_imported_again_without_a_change() {
    let book = BookUnderTest::new(true).await;
    let before = book.get("/students").await.text();
    let csv = book.get("/students/export").await;
    assert!(csv.content_type().starts_with("text/csv"));
    assert!(csv.text().starts_with("ID,FirstName,LastName,Title,Type,Score\n1,Nick,Carter,Quiz 1,Quiz,85\n"));
    let report = book.send("POST", "/students/import", None, csv.text()).await.json();
    assert_eq!(
        (&report["students"], &report["grades"], &report["refused"]),
        (&json!(5), &json!(15), &json!(0))
    );
    assert_eq!(book.get("/students").await.text(), before);
    let elsewhere = BookUnderTest::new(false).await;
    elsewhere.send("POST", "/students/import", None, csv.text()).await;
    assert_eq!(elsewhere.get("/students/export").await.text(), csv.text());
}

#[tokio::test]
async fn no_exported_line_is_a_formula_and_every_name_comes_back_as_it_was() {
    let book = BookUnderTest::new(false).await;
    for name in [
        "=1+1", "@SUM(A1)", "-2", "+3", "＝1+1", "＋1", "－1", "＠A1", "'=quoted", "''-twice", "'t Hooft",
        "a=b",
    ] {
        let student = book.post("/students", json!({ "firstName": name, "lastName": name })).await.json();
        let path = format!("/students/{}/grades", student["id"]);
        book.post(&path, json!({ "title": name, "type": "Quiz", "score": 1 })).await;
    }
    let csv = book.get("/students/export").await.text();
    for cell in csv.lines().flat_map(|line| line.split(',')) {
        assert!(!cell.starts_with(['=', '+', '-', '@', '＝', '＋', '－', '＠']), "{cell}");
    }
    assert!(csv.contains(",'=1+1,'=1+1,'=1+1,") && csv.contains(",'t Hooft,"), "{csv}");
    let elsewhere = BookUnderTest::new(false).await;
    elsewhere.send("POST", "/students/import", None, csv).await;
    let names = |students: serde_json::Value| -> Vec<String> {
        let students = students.as_array().unwrap().clone();
        let mut names: Vec<String> =
            students.iter().map(|s| format!("{} {}", s["firstName"], s["grades"][0]["title"])).collect();
        names.sort();
        names
    };
    assert_eq!(names(elsewhere.get("/students").await.json()), names(book.get("/students").await.json()));
}

#[tokio::test]
async fn grades_of_one_title_stay_apart_over_several_requests_where_the_lines_are_counted() {
    let book = BookUnderTest::new(false).await;
    let part = |score: u32, occurrence: u32| {
        format!(
            "FirstName,LastName,Title,Type,Score,occurrence\nAda,Lovelace,Essay,Homework,{score},{occurrence}\n"
        )
    };
    // The same import again, then one with other scores.
    for scores in [[90, 80, 70], [90, 80, 70], [91, 81, 71]] {
        for (score, occurrence) in scores.into_iter().zip(1..) {
            let report = book.send("POST", "/students/import", None, part(score, occurrence)).await.json();
            assert_eq!((&report["grades"], &report["refused"]), (&json!(1), &json!(0)), "{report}");
        }
        assert_eq!(book.scores(0).await, scores.map(f64::from));
    }
    // Two grades that were not imported are matched with the first two lines.
    let grace =
        book.post("/students", json!({ "firstName": "Grace", "lastName": "Hopper" })).await.json()["id"]
            .clone();
    for score in [1.0, 2.0] {
        book.post(&format!("/students/{grace}/grades"), essay(score)).await;
    }
    for scores in [[90, 80, 70], [91, 81, 71]] {
        for (score, occurrence) in scores.into_iter().zip(1..) {
            let part = part(score, occurrence).replace("Ada,Lovelace", "Grace,Hopper");
            book.send("POST", "/students/import", None, part).await;
        }
        let position =
            book.get("/students").await.json().as_array().unwrap().iter().position(|s| s["id"] == grace);
        assert_eq!(book.scores(position.unwrap()).await, scores.map(f64::from));
    }
    for wrong in ["0", "x", "1000001"] {
        let line = format!("FirstName,LastName,Title,Type,Score,Occurrence\nA,B,Essay,Homework,1,{wrong}\n");
        let report = book.send("POST", "/students/import", None, line).await.json();
        assert!(report["problems"][0]["problem"].as_str().unwrap().starts_with("Occurrence: "), "{report}");
    }
}

#[tokio::test]
async fn a_file_is_taken_as_a_spreadsheet_of_any_country_saves_it() {
    let text = "FirstName;LastName;Title;Type;Score;\r\nEva;Müller;T;Exam;92,5;\r\n;;;;;\r\nTom;Neu;T;Exam;oops;\r\n";
    let utf16 = |unit: fn(u16) -> [u8; 2]| -> Vec<u8> {
        format!("\u{feff}{text}").encode_utf16().flat_map(unit).collect()
    };
    let tabs = text.replace(';', "\t");
    for file in [
        text.as_bytes().to_vec(),
        format!("\u{feff}{text}").into_bytes(),
        tabs.into_bytes(),
        utf16(u16::to_le_bytes),
        utf16(u16::to_be_bytes),
    ] {
        let book = BookUnderTest::new(false).await;
        let report = book.send("POST", "/students/import", None, file).await.json();
        assert_eq!((&report["grades"], &report["refused"]), (&json!(1), &json!(1)), "{report}");
        assert_eq!(report["problems"][0]["line"], 4, "{report}");
        let students = book.get("/students").await.json();
        assert_eq!((&students[0]["lastName"], book.scores(0).await), (&json!("Müller"), vec![92.5]));
    }
}

#[tokio::test]
async fn a_quotation_mark_that_is_not_closed_is_told_and_swallows_no_line() {
    let book = BookUnderTest::new(false).await;
    let csv =
        "FirstName,LastName,Title,Type,Score\nEva,Gut,\"T,Exam,80\nTom,Neu,T,Exam,70\nLea,Neu,T,Exam,70\n";
    let report = book.send("POST", "/students/import", None, csv).await.json();
    assert_eq!(
        (&report["grades"], &report["refused"], &report["problems"][0]["line"]),
        (&json!(2), &json!(1), &json!(2))
    );
    assert!(report["problems"][0]["problem"].as_str().unwrap().contains("quotation mark"), "{report}");
    // Closed by a later mark: the fault says how many lines the row takes.
    let csv = "FirstName,LastName,Title,Type,Score\nEva,Gut,\"T,Exam,80\nTom,Neu,T,Exam,70\nLea,Neu,\"T\",Exam,70\n";
    let report = book.send("POST", "/students/import", None, csv).await.json();
    assert!(report["problems"][0]["problem"].as_str().unwrap().contains("takes 3 lines"), "{report}");
}

#[tokio::test]
async fn an_export_for_excel_begins_with_a_byte_order_mark_and_is_imported_again() {
    let book = BookUnderTest::new(true).await;
    let plain = book.get("/students/export").await.text();
    for query in ["excel", "excel=true"] {
        assert_eq!(book.get(&format!("/students/export?{query}")).await.text(), format!("\u{feff}{plain}"));
    }
    assert_eq!(book.get("/students/export?excel=false").await.text(), plain);
    assert_eq!(book.get("/students/export?excel=1").await.status, 400);
    let report = book.send("POST", "/students/import", None, format!("\u{feff}{plain}")).await.json();
    assert_eq!((&report["grades"], &report["refused"]), (&json!(15), &json!(0)));
}

#[tokio::test]
async fn lines_that_make_no_sense_are_listed_and_the_others_taken() {
    let book = BookUnderTest::new(false).await;
    let csv = "firstname,LastName,title,type,score\n\
               Ada,Lovelace,Essay,homework,90\n\
               Ada,Lovelace,Essay,Homework,101\n\
               Ada,Lovelace,Essay\n\
               ,Noone,,,\n\
               Ada,Lovelace,Oral,Oral,1\n\
               Ada,Lovelace,Essay,Homework,80\n\
               \"Grace, R.\",Hopper,,,\n";
    for _ in 0..2 {
        let report = book.send("POST", "/students/import", None, csv).await.json();
        assert_eq!(
            (&report["students"], &report["grades"], &report["refused"]),
            (&json!(2), &json!(2), &json!(4))
        );
        let lines: Vec<u64> =
            report["problems"].as_array().unwrap().iter().map(|p| p["line"].as_u64().unwrap()).collect();
        assert_eq!(lines, [3, 4, 5, 6], "{report}");
    }
    let students = book.get("/students").await.json();
    assert_eq!(students.as_array().unwrap().len(), 2);
    let ada = book.get("/students?q=ada").await.json()[0].clone();
    assert_eq!((ada["average"].as_f64(), ada["grades"].as_array().unwrap().len()), (Some(85.0), 2));
    for body in ["", "a,b\n", "FirstName\nAda\n"] {
        let answer = book.send("POST", "/students/import", None, body).await;
        assert!(answer.status == 400 && answer.is_problem(), "{body:?}");
    }
    let many = format!("FirstName,LastName\n{}", "A,B\n".repeat(csv::LINES_MAX + 1));
    assert_eq!(book.send("POST", "/students/import", None, many).await.status, 413);
}

#[tokio::test]
async fn a_grade_that_would_not_be_shown_is_refused_and_not_acknowledged() {
    let book = BookUnderTest::new(true).await;
    let with_id = |id: u64| json!({ "id": id, "title": "Essay", "type": "Homework", "score": 50 });
    assert_eq!(book.post("/students/1/grades", with_id(77)).await.status, 201);
    assert_eq!(book.delete("/students/1/grades/77").await.status, 204);
    let scores = book.scores(0).await;
    let of_student = |grades: Value| json!({ "firstName": "Nick", "lastName": "Carter", "grades": grades });
    let taken_back = [
        book.post("/students/1/grades", with_id(77)).await,
        book.send("POST", "/students/1/grades", Some("a key"), with_id(77).to_string()).await,
        book.send("PUT", "/students/1", None, of_student(json!([with_id(78), with_id(77)])).to_string())
            .await,
    ];
    for answer in taken_back {
        assert_eq!(answer.status, 409);
        let problem = answer.json();
        assert_eq!(problem["field"], "id");
        assert!(problem["detail"].as_str().unwrap().contains("77"), "{problem}");
    }
    let twice = of_student(json!([with_id(79), with_id(79)])).to_string();
    let answer = book.send("PUT", "/students/1", None, twice.clone()).await;
    assert!(answer.status == 400 && answer.json()["detail"].as_str().unwrap().contains("79"));
    assert_eq!(book.send("POST", "/students", None, twice).await.status, 400);
    assert_eq!(book.scores(0).await, scores, "nothing of it was written");
    // Grades of another student have ids of their own.
    assert_eq!(book.post("/students/2/grades", with_id(77)).await.status, 201);
}
