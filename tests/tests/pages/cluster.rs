//! Tests of the cluster page, which shows a crash without a reload; and of the portal without grading and log
//! nodes, which names the command that starts one.

use super::*;

/// Returns whether the page needs no horizontal scrolling.
const FITS: &str = "document.documentElement.scrollWidth <= innerWidth";

#[test]
fn the_cluster_page_shows_a_death_while_it_is_open() {
    scenario("cluster::the_cluster_page_shows_a_death_while_it_is_open", |lab| {
        if !Browser::is_there() {
            return;
        }
        let nodes = nodes(lab, &["portal", "grading", "grading", "log"]);
        let mut browser = browser(lab);
        browser.go("http://127.0.0.1:7500/ui");
        browser.until(5 * S, "it is live", "document.getElementById('live').textContent === 'Live'");
        assert_eq!(browser.js("document.querySelectorAll('#members tbody tr').length"), 4);
        let links = "document.querySelectorAll('#topology .link.own').length === 3";
        browser.until(5 * S, "this node is connected to all", links);
        // The focus is on a link of a node that stays.
        browser.js("document.querySelector('#services a[href*=\":7501\"]').focus(), window.stays = true");

        lab.crash(nodes[2]);
        let row = "[...document.querySelectorAll('#members tr')].find(row => row.textContent.includes('m3'))";
        browser.until(3 * S, "the death is shown", &format!("{row}.textContent.includes('failed')"));
        let news = "document.getElementById('news').textContent.includes('m3')";
        browser.until(3 * S, "it is announced to those who do not see it", news);
        assert_eq!(browser.js("window.stays"), true, "the page was not loaded again");
        assert_eq!(browser.js("document.activeElement.tagName"), "A", "and the focus stays where it was");
        for (width, dark) in [(1280, true), (360, false), (360, true)] {
            browser.view(width, dark);
            assert_eq!(browser.js(FITS), true, "{width}");
        }
        assert_eq!(browser.objections(), Vec::<String>::new());
        assert_eq!(browser.origins(), ["http://127.0.0.1:7500".to_owned()].into());

        lab.crash(nodes[0]);
        let gone = "document.getElementById('live').textContent.startsWith('This node does not answer')";
        browser.until(5 * S, "its own node's death is shown", gone);
    });
}

#[test]
fn the_portal_says_who_is_missing_and_what_to_start() {
    scenario("cluster::the_portal_says_who_is_missing_and_what_to_start", |lab| {
        if !Browser::is_there() {
            return;
        }
        nodes(lab, &["portal", "visits"]);
        let mut browser = browser(lab);
        for width in [1280, 360] {
            browser.view(width, false);
            browser.go("http://127.0.0.1:7500/portal");
            assert_eq!(browser.js("document.querySelector('.command').textContent"), "node --role grading");
            assert_eq!(browser.js(FITS), true, "{width}");
            browser.go("http://127.0.0.1:7500/portal/log");
            assert_eq!(browser.js("document.querySelector('.command').textContent"), "node --role log");
            assert_eq!(browser.js(FITS), true, "{width}");
        }
        assert_eq!(browser.objections(), Vec::<String>::new());
        assert_eq!(browser.origins(), ["http://127.0.0.1:7500".to_owned()].into());
    });
}
