//! Tests of the pages' accessibility (contrast, labels, visible focus) in light and dark theme, at desktop
//! and phone width. With `PICTURES=docs/pictures` it also takes the screenshots of the docs.

use std::{collections::BTreeSet, env, fs, path::PathBuf};

use super::*;

const WIDE: u32 = 1280;
const PHONE: u32 = 360;
/// Largest size of a picture, in bytes: a reader of the README loads several.
const PICTURE_BYTES_MAX: usize = 150_000;

/// Returns the folder for pictures, if they are wanted.
fn pictures() -> Option<PathBuf> {
    let folder = env::var_os("PICTURES")?;
    // Relative to the workspace, where `tests/run` is called.
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(folder);
    fs::create_dir_all(&folder).expect("a place for pictures");
    Some(folder)
}

/// Checks a page in both themes and widths. Returns the faults.
fn look(browser: &mut Browser, name: &str) -> Vec<String> {
    let mut faults = Vec::new();
    for (width, dark) in [(WIDE, false), (WIDE, true), (PHONE, true), (PHONE, false)] {
        browser.view(width, dark);
        let theme = if dark { "dark" } else { "light" };
        let mut found = browser.faults();
        if dark == (width == PHONE) {
            let (stops, unseen) = browser.walk();
            assert!(stops > 3, "{name}: the Tab key goes nowhere");
            found.extend(unseen);
        }
        faults.extend(found.into_iter().map(|fault| format!("{name} {theme} {width}: {fault}")));
    }
    faults
}

/// Takes pictures of a page, if they are wanted.
fn picture(browser: &mut Browser, name: &str, views: &[((u32, bool), u32)]) {
    let Some(folder) = pictures() else { return };
    for ((width, dark), height) in views {
        browser.view(*width, *dark);
        let theme = if *dark { "dark" } else { "light" };
        let phone = if *width == PHONE { "-phone" } else { "" };
        let file = folder.join(format!("{name}-{theme}{phone}.png"));
        let bytes = browser.picture(&file, *height);
        println!("{}: {bytes} bytes", file.display());
        assert!(bytes <= PICTURE_BYTES_MAX, "{} has {bytes} bytes", file.display());
    }
}

/// Fills the grade book of a school. Returns the id of a student without grades.
fn fill_book(lab: &Lab, to: NodeRef) -> String {
    let grade = |id: &str, title: &str, kind: &str, score: f64| {
        let grade = json!({ "title": title, "type": kind, "score": score });
        let reply = post(lab, to, &format!("/students/{id}/grades"), &grade);
        assert_eq!(reply.status, 201, "{}", reply.body);
    };
    for (title, kind, score) in [
        ("Fractions", "Homework", 92.0),
        ("Functions", "Exam", 81.5),
        ("Vectors", "Test", 58.0),
        ("Geometry", "Homework", 88.0),
        ("Oral", "Exam", 95.0),
    ] {
        grade("3", title, kind, score);
    }
    let mut last_id = String::new();
    for (first, last, scores) in [
        ("Ada", "Lovelace", &[99.0, 97.5, 100.0][..]),
        ("Noor", "El-Amin", &[64.0, 71.0]),
        ("Søren", "Aaberg", &[41.5, 38.0]),
        ("Zoë", "Żak", &[86.0]),
        ("Maximiliane-Josephine", "von Hohenstein-Wittgenbach", &[]),
    ] {
        let reply = post(lab, to, "/students", &json!({ "firstName": first, "lastName": last }));
        assert_eq!(reply.status, 201, "{}", reply.body);
        let id = reply.json()["id"].to_string();
        for (i, score) in scores.iter().enumerate() {
            grade(&id, &format!("Test {}", i + 1), "Test", *score);
        }
        last_id = id;
    }
    last_id
}

fn fill_log(lab: &Lab, to: NodeRef) {
    for (service, level, message) in [
        ("bells", "info", "3rd period begins"),
        ("library", "info", "returned: \"A Mathematician's Apology\", 4 days late"),
        ("heating", "warn", "boiler 2: 71 °C, expected 65 °C"),
        ("canteen", "debug", "menu read from /srv/menu.csv: 5 days, 3 dishes each"),
        ("heating", "error", "boiler 2: pressure sensor does not answer (timeout after 5 s)"),
        ("library", "info", "lent: \"The Art of Computer Programming\"\n  volume 1, until 12 March"),
        ("heating", "info", "boiler 2: pressure sensor answers again: 1.8 bar"),
    ] {
        record(lab, to, service, level, message);
    }
}

/// Registers programs that depend on each other: one fails with a long output, one is drained, and one is
/// missing.
fn register_programs(lab: &Lab, to: NodeRef) {
    for (id, service, requires) in [
        ("bell-1", "bell", json!(["timetable", "clock"])),
        ("tt-1", "timetable", json!(["db"])),
        ("tt-2", "timetable", json!([])),
    ] {
        let body = json!({
            "name": service, "id": id, "port": 8080, "requires": requires, "tags": ["blue", "second floor"],
            "meta": { "version": "3.1", "owner": "the janitor" }, "zone": "north",
            "checks": [{ "ttl": "1h", "name": "beat" }, { "tcp": "127.0.0.1:1", "name": "port" }],
        });
        let reply = post(lab, to, "/services", &body);
        assert_eq!(reply.status, 200, "{}", reply.body);
        let put = |path: String, body: Value| {
            let headers = [("content-type", "application/json")];
            let reply =
                http::send(lab.address(to), &format!("PUT {path}"), &headers, &body.to_string(), 5 * S);
            assert_eq!(reply.expect("an answer").status, 200, "{path}");
        };
        let output = "a line of what it says\n".repeat(40);
        put(format!("/checks/service:{id}:1"), json!({ "status": "warning", "output": output }));
        if id == "tt-2" {
            put(format!("/services/{id}/maintenance"), json!({ "enable": true, "reason": "a new disk" }));
        }
    }
}

#[test]
#[allow(clippy::too_many_lines, reason = "one scenario, step by step")]
fn every_page_is_legible_in_both_themes_and_on_a_phone() {
    scenario("looks::every_page_is_legible_in_both_themes_and_on_a_phone", |lab| {
        if !Browser::is_there() {
            return;
        }
        let nodes = start(
            lab,
            &[
                ("oslo", "portal", &["--zone", "north"]),
                ("lima", "grading", &["--zone", "south", "--tag", "maths"]),
                ("kyoto", "grading,visits", &["--zone", "east", "--tag", "maths", "--tag", "music"]),
                ("accra", "log", &["--zone", "south"]),
                ("turin", "log,visits", &["--zone", "north"]),
                ("quito", "", &[]),
            ],
        );
        let without_grades = format!("/portal/students/{}", fill_book(lab, nodes[1]));
        lab.until(10 * S, "all nodes have told the log of their start", |lab| {
            let page = lab.get(nodes[3], "/log?limit=1000&service=node&q=started").unwrap_or_default();
            let records = page["records"].as_array().cloned().unwrap_or_default();
            records.iter().filter_map(|r| r["node"].as_str()).collect::<BTreeSet<_>>().len() == nodes.len()
        });
        fill_log(lab, nodes[3]);
        lab.until(5 * S, "all is on both", |lab| {
            let here = |node, path: &str| lab.get(node, path).map(|v| v.to_string());
            here(nodes[1], "/students") == here(nodes[2], "/students")
        });
        let mut browser = browser(lab);
        let mut faults = Vec::new();
        let open = |browser: &mut Browser, path: &str| {
            browser.view(WIDE, false);
            browser.go(&format!("{HERE}{path}"));
            let live = "['live', undefined].includes(document.getElementById('live')?.dataset.state)";
            browser.until(5 * S, "it is live, if it can be", live);
        };
        // Pictures for the docs: width, theme and height.
        let (light, dark) = ((WIDE, false), (WIDE, true));
        for (name, path, views) in [
            ("grade-book", "/portal", &[(light, 840), (dark, 840), ((PHONE, true), 800)][..]),
            ("student", "/portal/students/3", &[(light, 1000), (dark, 1000)]),
            ("log", "/portal/log", &[(light, 600), (dark, 600)]),
        ] {
            open(&mut browser, path);
            picture(&mut browser, name, views);
            faults.extend(look(&mut browser, name));
        }
        open(&mut browser, "/ui");
        faults.extend(look(&mut browser, "cluster"));
        register_programs(lab, nodes[0]);
        for (name, path) in [
            ("services", "/ui/services"),
            ("service", "/ui/services/timetable"),
            ("service of a role", "/ui/services/grading"),
            ("no such service", "/ui/services/nowhere"),
        ] {
            browser.view(WIDE, false);
            browser.go(&format!("{HERE}{path}"));
            faults.extend(look(&mut browser, name));
        }
        for (name, path) in [
            ("sorted book", "/portal?sort=average&dir=desc"),
            ("no-student", "/portal?q=unknown"),
            ("no grades", without_grades.as_str()),
            ("no student", "/portal/students/999"),
            ("log by level", "/portal/log?level=warn"),
            ("search", "/portal/log?q=boiler"),
            ("nothing found", "/portal/log?q=nowhere"),
            ("an old place", "/portal/log?before=x"),
        ] {
            browser.go(&format!("{HERE}{path}"));
            faults.extend(look(&mut browser, name));
        }
        browser.view(WIDE, false);
        browser.go(&format!("{HERE}/portal/students/3"));
        browser.fill("Title", "Too good");
        browser.fill("Score 0 to 100", "101");
        browser.click("button", "Add grade");
        browser.until(5 * S, "it is refused", "document.querySelector('[aria-invalid]')?.name === 'score'");
        faults.extend(look(&mut browser, "refused"));
        browser.view(WIDE, false);
        browser.fill("Score 0 to 100", "100");
        browser.click("button", "Add grade");
        browser.until(5 * S, "it is saved", "document.querySelector('.note.good') !== null");
        faults.extend(look(&mut browser, "saved"));

        lab.crash(nodes[2]);
        lab.until(5 * S, "the death is known", |lab| {
            lab.sees(nodes[0], "kyoto").as_deref() == Some("failed")
        });
        open(&mut browser, "/ui");
        picture(&mut browser, "cluster", &[(light, 900), (dark, 900), ((PHONE, false), 760)]);
        faults.extend(look(&mut browser, "cluster with a death"));
        lab.crash(nodes[1]);
        lab.until(5 * S, "the last death is known", |lab| lab.providers(nodes[0]).is_empty());
        for (name, path) in [("outage", "/portal"), ("outage of a student", "/portal/students/3")] {
            browser.go(&format!("{HERE}{path}"));
            faults.extend(look(&mut browser, name));
        }
        assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
        nothing_strange(&mut browser);
    });
}
