//! Tests of the grade book pages: sorting and paging, forms that add, change and remove, errors shown beside
//! the typed text, a form sent twice as one write, and grading nodes that fail.

use super::*;

fn five() -> Vec<serde_json::Value> {
    vec![
        student(1, "Nick", "Carter", &[("Quiz 1", "Quiz", 85.0), ("Final", "Exam", 94.0)]),
        student(2, "Roberto", "Baggio", &[("Quiz 1", "Quiz", 100.0)]),
        student(3, "Emma", "Stone", &[]),
        student(4, "Rachel", "McAdams", &[("a", "Test", 67.0), ("b", "Test", 74.0), ("c", "Homework", 12.5)]),
        student(5, "Kelly", "Clarkson", &[("Essay", "Homework", 77.0)]),
    ]
}

/// Returns the names in the list in order.
fn names(page: &str) -> Vec<String> {
    let rows = page.split("<td class=\"name\">").skip(1);
    rows.map(|row| row.split("<bdi>").nth(1).unwrap().split('<').next().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn the_book_is_sorted_by_whatever_is_asked_for() {
    let (setup, _fake) = Setup::with(five()).await;
    let last_names = async |query: &str| -> Vec<String> {
        let page = setup.get(&format!("/portal?{query}")).await.text();
        names(&page).iter().map(|n| n.split(' ').next_back().unwrap().to_owned()).collect()
    };
    assert_eq!(last_names("").await, ["Carter", "Baggio", "Stone", "McAdams", "Clarkson"]);
    assert_eq!(last_names("sort=name").await, ["Baggio", "Carter", "Clarkson", "McAdams", "Stone"]);
    assert_eq!(
        last_names("sort=average&dir=desc").await,
        ["Baggio", "Carter", "Clarkson", "McAdams", "Stone"]
    );
    assert_eq!(last_names("sort=grades&dir=desc").await[..2], ["McAdams", "Carter"]);
    assert_eq!(last_names("q=AR").await, ["Carter", "Clarkson"]);
    assert_eq!(last_names("sort=nonsense&page=999&dir=x").await.len(), 5, "what is not understood is left");
    let page = setup.get("/portal?sort=name").await.text();
    assert!(
        page.contains("aria-sort=\"ascending\"")
            && page.contains("89.5")
            && page.contains("Answered by node <b>g1</b>")
    );
    assert!(setup.get("/portal?q=missing").await.text().contains("No student found"));
}

#[tokio::test]
async fn a_large_book_is_paged_and_read_in_parts_that_fit() {
    let long = "x".repeat(300);
    let students =
        (1..=1234).map(|n| student(n, "S", &format!("{n:04}"), &[(long.as_str(), "Quiz", 1.0); 40]));
    let (setup, fake) = Setup::with(students).await;
    let page = setup.get("/portal?page=25&sort=name").await.text();
    assert!(
        page.contains("Page 25 of 25") && page.contains("rel=\"prev\"") && !page.contains("rel=\"next\"")
    );
    assert_eq!(names(&page).len(), 34);
    assert!(page.contains(">1234</dd>"));
    // 500 of these students have 7 MB.
    assert!(fake.state.asked.lock().unwrap().iter().any(|(_, path, _)| path.contains("limit=125&after=125")));
}

#[tokio::test]
async fn a_long_number_takes_no_more_room_than_a_short_one_and_is_whole_on_the_students_page() {
    let (setup, _fake) =
        Setup::with([student(12345, "A", "B", &[]), student(208_790_857_757_406, "C", "D", &[])]).await;
    let page = setup.get("/portal").await.text();
    assert!(page.contains(">12345</td>") && page.contains("title=\"208790857757406\">…57406</td>"), "{page}");
    assert!(setup.get("/portal/students/208790857757406").await.text().contains("Student 208790857757406."));
}

#[tokio::test]
async fn a_student_is_added_and_shown() {
    let (setup, _fake) = Setup::with(five()).await;
    let page = setup.get("/portal").await.text();
    let key = key_of(&page, "/portal");
    let answer =
        setup.post("/portal", &[("key", &key), ("firstName", "Ada"), ("lastName", "Lovelace")]).await;
    assert_eq!(answer.status, 303, "{}", answer.text());
    let to = answer.headers["location"].to_str().unwrap();
    let answer = setup.get_with(to, &cookies(&answer)).await;
    let page = answer.text();
    assert!(
        page.contains("Ada Lovelace")
            && page.contains("The student is in the book.")
            && page.contains("No grades yet"),
        "{page}"
    );
    assert!(cookies(&answer).contains("hearsay-done="), "it is shown once");
    assert!(answer.headers["set-cookie"].to_str().unwrap().contains("Max-Age=0"));
}

#[tokio::test]
async fn a_form_that_is_sent_twice_is_one_write() {
    let (setup, fake) = Setup::with(five()).await;
    let key = key_of(&setup.get("/portal/students/3").await.text(), "/portal/students/3/grades");
    let fields = [("key", key.as_str()), ("title", "Quiz 9"), ("type", "Quiz"), ("score", "87,5")];
    for _ in 0..2 {
        let answer = setup.post("/portal/students/3/grades", &fields).await;
        assert_eq!(
            (answer.status.as_u16(), answer.headers["location"].to_str().unwrap()),
            (303, "/portal/students/3")
        );
    }
    assert_eq!(fake.state.shared.lock().unwrap().writes, 1);
    let page = setup.get("/portal/students/3").await.text();
    assert!(page.matches("Quiz 9").count() >= 2 && page.contains("87.5"), "in the list and in the drawing");
}

#[tokio::test]
async fn what_is_wrong_stands_beside_what_was_typed() {
    let (setup, fake) = Setup::with(five()).await;
    let path = "/portal/students/1/grades";
    let key = key_of(&setup.get("/portal/students/1").await.text(), path);
    for (score, words) in [
        ("101", "a number from 0 to 100 is"),
        ("many", "is not a number"),
        ("NaN", "is not a number"),
        ("1e999", "is not a number"),
    ] {
        let fields = [("key", key.as_str()), ("title", "Kept <title>"), ("type", "Exam"), ("score", score)];
        let answer = setup.post(path, &fields).await;
        let page = answer.text();
        assert_eq!(answer.status, 422, "{page}");
        assert!(page.contains(words) && page.contains("aria-invalid"), "{score}: {page}");
        assert!(
            page.contains("value=\"Kept &#60;title&#62;\"")
                && page.contains("<option selected>Exam")
                && page.contains(&format!("value=\"{score}\"")),
            "{page}"
        );
        assert_ne!(key_of(&page, path), key, "put right, it is another write");
    }
    let answer = setup.post("/portal", &[("key", &key), ("firstName", ""), ("lastName", "Only")]).await;
    let page = answer.text();
    assert!(
        answer.status == 422
            && page.contains("firstName: has 0 characters")
            && page.contains("value=\"Only\""),
        "{page}"
    );
    let answer =
        setup.post("/portal/students/1", &[("key", &key), ("firstName", "A"), ("lastName", "")]).await;
    assert!(answer.status == 422 && answer.text().contains("<details class=\"card\" open>"));
    assert_eq!(fake.state.shared.lock().unwrap().writes, 0);
}

#[tokio::test]
async fn grades_names_and_students_are_changed_and_removed() {
    let (setup, fake) = Setup::with(five()).await;
    let page = setup.get("/portal/students/4").await.text();
    let remove = "/portal/students/4/grades/101/delete";
    let key = key_of(&page, remove);
    assert_eq!(setup.post(remove, &[("key", &key)]).await.status, 303);
    let again = setup.post(remove, &[("key", &format!("{}-x", &key[..32]))]).await;
    assert_eq!(again.status, 303, "gone is gone");
    let page = setup.get_with("/portal/students/4", &cookies(&again)).await.text();
    assert!(page.contains("It had been removed before.") && !page.contains(remove));

    let answer = setup
        .post(
            "/portal/students/4",
            &[
                ("key", &key_of(&page, "/portal/students/4")),
                ("firstName", "Rachel Anne"),
                ("lastName", "McAdams"),
            ],
        )
        .await;
    assert_eq!(answer.status, 303);
    let page = setup.get("/portal/students/4").await.text();
    assert!(page.contains("Rachel Anne McAdams") && page.contains("12.5"), "the grades are still there");

    let answer = setup
        .post("/portal/students/4/delete", &[("key", &key_of(&page, "/portal/students/4/delete"))])
        .await;
    assert_eq!(
        (answer.status.as_u16(), &answer.headers["location"]),
        (303, &http::HeaderValue::from_static("/portal"))
    );
    assert!(!fake.state.shared.lock().unwrap().students.contains_key(&4));
    let gone = setup.get("/portal/students/4").await;
    assert!(gone.status == 404 && gone.text().contains("This student is not in the book"));
}

#[tokio::test]
async fn the_page_after_a_write_waits_for_it_or_says_that_it_is_older() {
    let (setup, first) = Setup::with(five()).await;
    let key = key_of(&setup.get("/portal/students/1").await.text(), "/portal/students/1/grades");
    let fields = [("key", key.as_str()), ("title", "T"), ("type", "Quiz"), ("score", "1")];
    let saved = setup.post("/portal/students/1/grades", &fields).await;
    let cookies = cookies(&saved);
    setup.get_with("/portal/students/1", &cookies).await;
    let token = {
        let asked = first.state.asked.lock().unwrap();
        asked.last().unwrap().2["hearsay-token"].to_str().unwrap().to_owned()
    };
    assert_eq!(token, "t1;\" x", "as it was given, whatever is in it");

    // The node that has the write fails; another one without it answers.
    let second = setup.start("g2").await;
    second.state.behind.lock().unwrap().insert(token);
    first.kill();
    setup.host.withdraw("grading", "g1");
    let page = setup.get_with("/portal/students/1", &cookies).await.text();
    assert!(page.contains("has not reached the node that answered") && page.contains("<b>g2</b>"), "{page}");
    second.state.behind.lock().unwrap().clear();
    let page = setup.get_with("/portal/students/1", &cookies).await.text();
    assert!(!page.contains("has not reached"));
}

#[tokio::test]
async fn a_write_outlives_the_node_that_was_asked_first() {
    let (setup, first) = Setup::with(five()).await;
    let _second = setup.start("g2").await;
    first.kill();
    let key = "0123456789abcdef0123456789abcdef";
    for n in 0..3 {
        let key = format!("{key}-{n}");
        let fields = [("key", key.as_str()), ("title", "T"), ("type", "Quiz"), ("score", "1")];
        assert_eq!(setup.post("/portal/students/3/grades", &fields).await.status, 303);
    }
    assert_eq!(setup.shared.lock().unwrap().writes, 3);
}

#[tokio::test]
async fn what_could_not_be_saved_keeps_its_key_so_that_trying_again_is_the_same_write() {
    let (setup, fake) = Setup::with(five()).await;
    let path = "/portal/students/1/grades";
    let key = key_of(&setup.get("/portal/students/1").await.text(), path);
    *fake.state.fails.lock().unwrap() = Some((507, "the disk is full".into()));
    let fields = [("key", key.as_str()), ("title", "T"), ("type", "Quiz"), ("score", "1")];
    let answer = setup.post(path, &fields).await;
    assert_eq!(answer.status, 503);
    assert!(answer.text().contains("the disk is full"));
    *fake.state.fails.lock().unwrap() = None;
    setup.host.withdraw("grading", "g1");
    setup.offer("g1", &fake);
    let answer = setup
        .post("/portal/students/1", &[("key", &format!("{key}-n")), ("firstName", "A"), ("lastName", "")])
        .await;
    assert_eq!(answer.status, 422);
    // Sending the same form again succeeds once the node works.
    *fake.state.fails.lock().unwrap() = None;
    assert_eq!(setup.post(path, &fields).await.status, 303);
}

#[tokio::test]
async fn without_any_node_what_was_typed_stays_and_can_be_sent_again() {
    let (setup, _fake) = Setup::with(five()).await;
    let page = setup.get("/portal/students/1").await.text();
    let grade = key_of(&page, "/portal/students/1/grades");
    let delete = key_of(&page, "/portal/students/1/delete");
    setup.host.withdraw("grading", "g1");
    let fields = [("key", grade.as_str()), ("title", "A <b> title"), ("type", "Exam"), ("score", "12.5")];
    let answer = setup.post("/portal/students/1/grades", &fields).await;
    let page = answer.text();
    assert_eq!(answer.status, 503);
    assert_eq!(page.matches("No grading node is alive").count(), 1, "{page}");
    assert!(page.contains("value=\"A &#60;b&#62; title\"") && page.contains("value=\"12.5\""));
    assert!(page.contains("<option selected>Exam</option>"));
    assert_eq!(key_of(&page, "/portal/students/1/grades"), grade, "and it is the same write");
    let page = setup.post("/portal/students/1/delete", &[("key", &delete)]).await.text();
    assert_eq!(key_of(&page, "/portal/students/1/delete"), delete);
}

#[tokio::test]
async fn only_our_own_pages_write() {
    let (setup, fake) = Setup::with(five()).await;
    let key = key_of(&setup.get("/portal").await.text(), "/portal");
    let fields = [("key", key.as_str()), ("firstName", "A"), ("lastName", "B")];
    for site in ["cross-site", "same-site"] {
        let answer = setup.post_with("/portal", &fields, &[("sec-fetch-site", site)]).await;
        assert!(answer.status == 403 && answer.is_problem());
    }
    assert_eq!(setup.post("/portal", &fields[1..]).await.status, 400, "without a key");
    let request =
        Request::post("/portal").header("content-type", "application/json").body(Body::from("{}")).unwrap();
    assert_eq!(send(setup.router.clone(), request).await.status, 415);
    assert_eq!(fake.state.shared.lock().unwrap().writes, 0);
}

#[tokio::test]
async fn an_id_is_never_a_path() {
    let (setup, fake) = Setup::with(five()).await;
    for id in ["..%2F..%2Flog", "1%2Fgrades", "a%3Fb", "%3Cb%3E", "1%20", &"9".repeat(65)] {
        assert_eq!(setup.get(&format!("/portal/students/{id}")).await.status, 404, "{id}");
    }
    assert!(fake.state.asked.lock().unwrap().is_empty(), "no node was called for it");
}
