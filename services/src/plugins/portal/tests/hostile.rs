//! Tests with hostile text in every field that a client can fill: the pages keep their markup, run and load
//! nothing, and show the text.

use super::*;
use crate::testing::{HOSTILE, markup_breaches, markup_skeleton};

/// Renders the pages with one text everywhere: names of nodes, cluster, students, titles, types, records,
/// details, and form fields.
async fn pages(text: &str) -> Vec<(String, String)> {
    let setup = Setup::on(MemoryHost::new(text));
    setup
        .shared
        .lock()
        .unwrap()
        .students
        .insert(1, student(1, text, text, &[(text, text, 50.0), (text, "Quiz", 10.0)]));
    let mut odd = record(1, text, text, text);
    (odd["node"], odd["time"], odd["id"]) = (text.into(), text.into(), text.into());
    setup.shared.lock().unwrap().records = vec![record(0, "web", "info", text), odd];
    let fake = Fake::start(&setup.shared).await;
    setup.offer(text, &fake);
    let typed: String = form_urlencoded::byte_serialize(text.as_bytes()).collect();
    let key = "0123456789abcdef0123456789abcdef";
    let fields = [
        ("key", key),
        ("title", text),
        ("type", text),
        ("score", text),
        ("firstName", ""),
        ("lastName", text),
    ];
    let mut pages = Vec::new();
    let mut add = |name: &str, answer: Answer| pages.push((name.to_owned(), answer.text()));
    for path in ["/portal", "/portal/students/1", "/portal/log"] {
        add(path, request(setup.router.clone(), Method::GET, path).await);
    }
    for path in [
        "/portal?q=",
        "/portal?sort=",
        "/portal/log?q=",
        "/portal/log?service=",
        "/portal/log?level=",
        "/portal/log?after=c0&at=",
    ] {
        add(path, request(setup.router.clone(), Method::GET, &format!("{path}{typed}")).await);
    }
    for path in ["/portal", "/portal/students/1", "/portal/students/1/grades"] {
        add(&format!("POST {path}"), setup.post(path, &fields).await);
    }
    *fake.state.fails.lock().unwrap() = Some((500, text.to_owned()));
    for path in ["/portal", "/portal/students/1", "/portal/log"] {
        add(&format!("failing {path}"), request(setup.router.clone(), Method::GET, path).await);
        add(&format!("failing POST {path}"), setup.post(path, &fields).await);
    }
    *fake.state.fails.lock().unwrap() = Some((409, text.to_owned()));
    add("refused", setup.post("/portal/students/1/delete", &fields).await);
    pages
}

#[tokio::test]
async fn hostile_text_stays_text_on_every_page() {
    let harmless = pages("harmless text").await;
    for text in HOSTILE {
        for ((name, page), (_, expected)) in pages(text).await.iter().zip(&harmless) {
            if !page.starts_with("<!doctype") {
                assert!(!expected.starts_with("<!doctype"), "{name}");
                continue;
            }
            assert_eq!(markup_breaches(page), Vec::<String>::new(), "{text:?} on {name}");
            assert_eq!(
                markup_skeleton(page).unwrap(),
                markup_skeleton(expected).unwrap(),
                "{text:?} on {name}"
            );
            // Form fields keep the typed text. Everywhere else, invisible characters are spelt out.
            let mut parts = page.split("value=\"");
            let read = parts.next().into_iter().chain(parts.filter_map(|p| Some(p.split_once('"')?.1)));
            for part in read {
                assert!(!part.contains('\u{1b}') && !part.contains('\u{202e}'), "{text:?} on {name}");
            }
        }
    }
}

#[tokio::test]
async fn the_harmless_pages_are_pages() {
    // The comparison above would prove nothing if it compared error pages.
    let pages = pages("harmless text").await;
    let shown =
        |name: &str| pages.iter().find(|(n, _)| n == name).unwrap().1.matches("harmless text").count();
    assert!(shown("/portal/students/1") >= 8 && shown("/portal/log") >= 6 && shown("failing /portal") >= 2);
    assert!(shown("POST /portal/students/1/grades") >= 8 && shown("refused") >= 5);
    assert_eq!(
        pages.iter().filter(|(_, page)| page.starts_with("<!doctype")).count(),
        pages.len() - 1,
        "all but POST /portal/log"
    );
}
