//! Tests of the portal's log page: records appear live, pause, filters and search work, and the page follows
//! another log node when one crashes.

use super::*;

/// Returns the messages on the page, from the top.
const MESSAGES: &str = "[...document.querySelectorAll('.log .message')].map(m => m.textContent)";
const LIVE: &str = "document.getElementById('live').dataset.state === 'live'";

#[test]
fn the_log_is_followed_filtered_and_searched() {
    scenario("log::the_log_is_followed_filtered_and_searched", |lab| {
        if !Browser::is_there() {
            return;
        }
        let nodes = nodes(lab, &["portal", "grading", "log", "log"]);
        let mut browser = browser(lab);
        browser.go(&format!("{HERE}/portal"));
        browser.click("link", "Log");
        browser.until(5 * S, "it is live", LIVE);
        browser.js("window.stays = true");
        record(lab, nodes[2], "till", "info", "the first\nof two lines");
        let first = |message: &str| format!("{MESSAGES}[0] === {}", json!(message));
        browser.until(5 * S, "a record appears by itself", &first("the first\nof two lines"));
        assert_eq!(browser.js("document.querySelector('.log tbody tr').cells[2].textContent"), "till");
        for (level, message) in [("debug", "d"), ("warn", "w"), ("error", "e"), ("info", "i")] {
            record(lab, nodes[3], "till", level, &format!("{level} {message}"));
        }
        browser.until(5 * S, "from the other log node, too", &first("info i"));
        assert_eq!(browser.js("window.stays"), true, "without being loaded again");

        browser.click("button", "Pause");
        browser.until(5 * S, "it pauses", "document.getElementById('live').textContent === 'Paused'");
        record(lab, nodes[2], "till", "info", "while it was paused");
        browser.click("button", "Pause");
        browser.until(5 * S, "what came meanwhile is shown", &first("while it was paused"));

        // A level includes the levels above it, on the page and in live records.
        browser.click("combobox", "Service");
        browser.write("till");
        browser.click("combobox", "Level and above");
        browser.write("warn");
        browser.press("Enter");
        browser.click("button", "Show");
        browser.until(5 * S, "the filter", "new URL(location).searchParams.get('level') === 'warn'");
        browser.until(5 * S, "it is live", LIVE);
        assert_eq!(browser.js(MESSAGES), json!(["error e", "warn w"]));
        record(lab, nodes[2], "till", "info", "not wanted");
        record(lab, nodes[2], "other", "error", "not wanted either");
        record(lab, nodes[2], "till", "error", "an error while it is open");
        browser.until(5 * S, "what is above comes", &first("an error while it is open"));
        assert_eq!(browser.js(&format!("{MESSAGES}.length")), 3, "and nothing else");

        browser.click("link", "Clear");
        browser.until(5 * S, "no filter", "location.search === ''");
        browser.click("searchbox", "Search");
        browser.write("lines");
        browser.press("Enter");
        browser.until(5 * S, "it is found", &format!("{MESSAGES}.join() === 'the first\\nof two lines'"));
        browser.click("searchbox", "Search");
        browser.write_anew("nowhere");
        browser.press("Enter");
        browser.until(
            5 * S,
            "nothing is",
            "document.getElementById('none')?.textContent === 'No record matches.'",
        );

        // The log node that is followed dies; the other one takes over.
        browser.click("link", "Clear");
        browser.until(5 * S, "it is live", LIVE);
        let from = browser.js("document.getElementById('live').textContent");
        let (used, other) = if from == "Live from m3" { (nodes[2], nodes[3]) } else { (nodes[3], nodes[2]) };
        lab.crash(used);
        record(lab, other, "till", "info", "after a death");
        browser.until(10 * S, "the other one is followed", &first("after a death"));
        lab.crash(other);
        let told = "document.getElementById('live').textContent.startsWith('No log node is alive')";
        browser.until(10 * S, "it says that none is left", told);
        nothing_strange(&mut browser);
    });
}
