//! Tests of the grade book's pages: a user adds and removes grades, invalid input is refused, saved grades
//! survive crashes of nodes, and the pages work by keyboard alone and without scripts.

use super::*;

/// Returns whether the table of grades has a line with this title and score.
fn listed(title: &str, score: &str) -> String {
    format!(
        "[...document.querySelectorAll('.grades tbody tr')].some(row => row.querySelector('.name').textContent === {} \
         && row.querySelector('b').textContent === {})",
        json!(title),
        json!(score)
    )
}

/// Returns whether the page contains this text.
fn says(text: &str) -> String {
    format!("document.body.innerText.includes({})", json!(text))
}

/// Reads the fields of the form for a grade.
const TYPED: &str = "[...document.querySelectorAll('form[action$=\"/grades\"] :is(input:not([type=hidden]), select)')].map(f => f.value)";
/// Reads the name of the node that answered a page.
const ANSWERED: &str = "document.querySelector('.foot b').textContent";

#[test]
fn a_grade_is_added_seen_refused_and_removed_by_hand() {
    scenario("tour::a_grade_is_added_seen_refused_and_removed_by_hand", |lab| {
        if !Browser::is_there() {
            return;
        }
        let nodes = nodes(lab, &["portal", "grading", "grading", "log", "visits"]);
        let mut browser = browser(lab);
        browser.go(&format!("{HERE}/"));
        assert_eq!(browser.js("location.pathname"), "/portal", "the portal is where people come in");
        browser.click("link", "Emma Stone");
        browser.until(5 * S, "her page", "document.querySelector('h1').textContent === 'Emma Stone'");
        let bars = browser.js("document.querySelectorAll('.chart .bar').length").as_u64().expect("a chart");
        browser.fill("Title", "Oral <exam>");
        browser.click("combobox", "Type");
        browser.write("Ex");
        browser.press("Enter");
        browser.fill("Score 0 to 100", "12,5");
        browser.click("button", "Add grade");
        browser.until(5 * S, "it is saved", &says("The grade is saved."));
        assert_eq!(browser.js(&listed("Oral <exam>", "12.5")), true);
        assert_eq!(browser.js("document.querySelectorAll('.chart .bar').length"), bars + 1);
        let bar = "[...document.querySelectorAll('.chart .bar.exam title')].pop().textContent";
        assert!(browser.js(bar).as_str().unwrap_or_default().ends_with("Oral <exam>: 12.5"));

        // Both grading nodes have it, and the page shows their values.
        let average = |lab: &Lab, node| {
            let student = lab.get(node, "/students/3")?;
            Some((student["grades"].as_array()?.len() as u64, student["average"].as_f64()?))
        };
        lab.until(5 * S, "it is on both", |lab| {
            average(lab, nodes[1]).is_some_and(|(n, _)| n == bars + 1)
                && average(lab, nodes[1]) == average(lab, nodes[2])
        });
        let shown = format!("{:.1}", average(lab, nodes[1]).expect("an average").1);
        assert_eq!(browser.js("document.querySelector('.figure b').textContent"), shown.as_str());
        browser.click("link", "Grade book");
        let row =
            "[...document.querySelectorAll('.list tr')].find(row => row.textContent.includes('Emma Stone'))";
        browser.until(5 * S, "the book has it", &format!("{row}.cells[2].textContent === '{}'", bars + 1));
        assert_eq!(browser.js(&format!("{row}.querySelector('.average b').textContent")), shown.as_str());

        // Refused input stays as it was typed.
        browser.click("link", "Emma Stone");
        browser.until(5 * S, "her page", "document.querySelector('h1').textContent === 'Emma Stone'");
        browser.fill("Title", "Too good");
        browser.fill("Score 0 to 100", "101");
        browser.click("button", "Add grade");
        let refused = "document.querySelector('[role=alert]')?.textContent.includes('score')";
        browser.until(5 * S, "101 is refused", refused);
        assert_eq!(browser.js(TYPED), json!(["Too good", "Quiz", "101"]));
        assert_eq!(browser.js("document.querySelector('[aria-invalid]').name"), "score");
        browser.fill("Title", "");
        browser.fill("Score 0 to 100", "77");
        browser.click("button", "Add grade");
        assert_eq!(
            browser.js("document.querySelector(':invalid:focus').name"),
            "title",
            "the browser refuses it"
        );
        browser.fill("Title", "   ");
        browser.click("button", "Add grade");
        let refused = "document.querySelector('[aria-invalid]')?.name === 'title'";
        browser.until(5 * S, "a title of spaces is refused by the node", refused);
        assert_eq!(browser.js(TYPED), json!(["", "Quiz", "77"]));
        browser.fill("Title", "As it should be");
        browser.click("button", "Add grade");
        browser.until(5 * S, "it is saved", &listed("As it should be", "77"));

        for title in ["Oral <exam>", "As it should be"] {
            browser.click("button", &format!("Remove {title}"));
            browser.until(5 * S, "it is removed", &format!("!{}", says(title)));
            assert_eq!(browser.js(&says("The grade is removed.")), true);
        }
        assert_eq!(browser.js("document.querySelectorAll('.chart .bar').length"), bars);
        nothing_strange(&mut browser);
    });
}

#[test]
fn grades_are_kept_while_grading_nodes_die() {
    scenario("tour::grades_are_kept_while_grading_nodes_die", |lab| {
        if !Browser::is_there() {
            return;
        }
        let nodes = nodes(lab, &["portal", "grading", "grading"]);
        let mut browser = browser(lab);
        browser.go(&format!("{HERE}/portal/students/1"));
        let add = |browser: &mut Browser, title: &str, score: &str| {
            browser.fill("Title", title);
            browser.fill("Score 0 to 100", score);
            browser.click("button", "Add grade");
        };
        add(&mut browser, "Before", "61");
        browser.until(5 * S, "it is saved", &listed("Before", "61"));
        let first = browser.js(ANSWERED);
        let (used, other) = if first == "m2" { (nodes[1], nodes[2]) } else { (nodes[2], nodes[1]) };
        // The node dies while the form is open.
        lab.crash(used);
        add(&mut browser, "After", "62");
        browser.until(5 * S, "another node has saved it", &listed("After", "62"));
        assert_eq!(browser.js(&listed("Before", "61")), true, "and has what the dead one acknowledged");
        assert_ne!(browser.js(ANSWERED), first);

        lab.crash(other);
        add(&mut browser, "No node is there", "63.5");
        let told = "Not saved: No grading node";
        browser.until(8 * S, "it says that it is not saved", &says(told));
        assert_eq!(browser.js(TYPED), json!(["No node is there", "Quiz", "63.5"]));
        lab.until(5 * S, "the death is known", |lab| lab.providers(nodes[0]).is_empty());
        browser.go(&format!("{HERE}/portal"));
        assert_eq!(browser.js(&says("No grading node is alive")), true);
        assert_eq!(browser.js("document.querySelector('.command').textContent"), "node --role grading");
        browser.go(&format!("{HERE}/portal/students/1"));
        assert_eq!(browser.js(&says("No grading node is alive")), true);

        // One node comes back with its data; the same form, sent again, is one grade.
        let name = lab.name_of(other);
        let port = lab.address(other).port();
        let http = format!("127.0.0.1:{port}");
        browser.js("history.back()");
        browser.until(5 * S, "back at the overview", "location.pathname === '/portal'");
        let again = lab.start(
            None,
            &name,
            port,
            &["--no-mdns", "--demo", "--name", &name, "--role", "grading", "--http", &http],
        );
        lab.until(5 * S, "it is back", |lab| {
            lab.get(again, "/students/1").is_some() && lab.providers(nodes[0]) == [name.clone()]
        });
        browser.go(&format!("{HERE}/portal/students/1"));
        assert_eq!(browser.js(&format!("{} && {}", listed("Before", "61"), listed("After", "62"))), true);
        nothing_strange(&mut browser);
    });
}

#[test]
fn everything_can_be_done_with_keys_alone() {
    scenario("tour::everything_can_be_done_with_keys_alone", |lab| {
        if !Browser::is_there() {
            return;
        }
        let nodes = nodes(lab, &["portal", "grading", "log"]);
        record(lab, nodes[2], "web", "warn", "a needle in the log");
        let mut browser = browser(lab);
        browser.go(&format!("{HERE}/portal"));
        browser.press("Tab");
        assert_eq!(browser.js("document.activeElement.textContent"), "Skip to content");
        assert_eq!(browser.js("document.activeElement.getBoundingClientRect().top"), 0, "it can be seen");
        browser.press("Enter");
        assert_eq!(browser.js("document.activeElement.id"), "content");
        browser.tab_to("link", "Emma Stone");
        browser.press("Enter");
        browser.until(5 * S, "her page", "document.querySelector('h1').textContent === 'Emma Stone'");
        browser.tab_to("textbox", "Title");
        browser.write("By keys");
        browser.press("Tab");
        browser.write("Hom");
        browser.press("Tab");
        browser.write("88");
        browser.press("Enter");
        browser.until(5 * S, "it is saved", &listed("By keys", "88"));
        assert_eq!(
            browser.js("[...document.querySelectorAll('.grades .key')].pop().textContent"),
            "Homework"
        );
        browser.tab_to("button", "Remove By keys");
        browser.press("Space");
        browser.until(5 * S, "it is removed", &says("The grade is removed."));
        browser.tab_to("link", "Grade book");
        browser.press("Enter");
        browser.until(5 * S, "the book", "location.pathname === '/portal'");
        browser.tab_to("textbox", "First name");
        browser.write("Ada");
        browser.press("Tab");
        browser.write("Lovelace");
        browser.press("Enter");
        browser.until(5 * S, "she is in the book", &says("The student is in the book."));
        assert_eq!(browser.js("document.querySelector('h1').textContent"), "Ada Lovelace");
        browser.tab_to("link", "Log");
        browser.press("Enter");
        browser.until(5 * S, "the log", "location.pathname === '/portal/log'");
        browser.tab_to("searchbox", "Search");
        browser.write("needle");
        browser.press("Enter");
        let found = "[...document.querySelectorAll('.log tbody tr')].length === 1";
        browser.until(5 * S, "it is found", found);
        nothing_strange(&mut browser);
    });
}

#[test]
fn without_scripts_the_pages_do_all_the_same() {
    scenario("tour::without_scripts_the_pages_do_all_the_same", |lab| {
        if !Browser::is_there() {
            return;
        }
        let nodes = nodes(lab, &["portal", "grading", "grading", "log"]);
        let mut browser = browser(lab);
        browser.scripts(false);
        browser.go(&format!("{HERE}/portal/students/1"));
        browser.fill("Title", "No script");
        browser.fill("Score 0 to 100", "70");
        browser.click("button", "Add grade");
        browser.until(5 * S, "it is saved", &listed("No script", "70"));
        browser.click("button", "Remove No script");
        browser.until(5 * S, "it is removed", &says("The grade is removed."));
        record(lab, nodes[3], "web", "error", "seen without scripts");
        browser.go(&format!("{HERE}/portal/log"));
        assert_eq!(browser.js(&says("seen without scripts")), true);
        assert_eq!(browser.js(&says("Reload to see newer records")), true);
        assert_eq!(browser.js("document.getElementById('pause').checkVisibility()"), false);
        browser.go(&format!("{HERE}/ui"));
        assert_eq!(browser.js(&says("Reloads every 5 seconds")), true);
        lab.crash(nodes[2]);
        let row = "[...document.querySelectorAll('#members tr')].find(row => row.textContent.includes('m3'))";
        browser.until(10 * S, "the death is shown", &format!("{row}.textContent.includes('failed')"));
        nothing_strange(&mut browser);
    });
}
