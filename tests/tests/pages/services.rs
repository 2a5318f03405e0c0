//! Browser tests of the service pages: following, draining and deregistering an instance, with and without
//! JavaScript; no changes from another machine; escaping of texts that programs supply.

use super::{
    hostile::{CORPUS, calm, shown},
    *,
};

/// Returns whether the page contains this text.
fn says(text: &str) -> String {
    format!("document.body.innerText.includes({})", json!(text))
}

/// Returns whether the first instance of the page is in this state.
fn is(state: &str) -> String {
    format!("document.querySelector('.instance .title .state')?.textContent === {}", json!(state))
}

const LIVE: &str = "document.getElementById('live').textContent === 'Live'";
/// Reads the field for the reason of a drain.
const REASON: &str = "document.querySelector('[name=reason]').value";

fn register(lab: &Lab, at: NodeRef, id: &str) {
    let body = json!({
        "name": "web", "id": id, "port": 8080, "tags": ["blue"], "meta": { "version": "3" }, "zone": "z1",
        "weight": 5, "requires": ["db"], "checks": [{ "ttl": "1h", "name": "beat" }],
    });
    let reply = post(lab, at, "/services", &body);
    assert_eq!(reply.status, 200, "{}", reply.body);
}

fn put(lab: &Lab, at: NodeRef, path: &str, body: &Value) {
    let headers = [("content-type", "application/json")];
    let reply = http::send(lab.address(at), &format!("PUT {path}"), &headers, &body.to_string(), 5 * S);
    let reply = reply.unwrap_or_else(|error| panic!("PUT {path}: {error:?}\n{}", lab.describe()));
    assert_eq!(reply.status, 200, "{path}: {}", reply.body);
}

/// A program reports its own health.
fn report(lab: &Lab, at: NodeRef, id: &str, status: &str, output: &str) {
    put(lab, at, &format!("/checks/service:{id}"), &json!({ "status": status, "output": output }));
}

/// Returns the health of each instance of a service, as a node lists them.
fn health(lab: &Lab, at: NodeRef) -> Vec<String> {
    let listed = lab.get(at, "/services/web").unwrap_or_default();
    let all = listed["services"]["web"].as_array().cloned().unwrap_or_default();
    all.iter().filter_map(|instance| Some(instance["health"].as_str()?.to_owned())).collect()
}

fn all_say(lab: &Lab, nodes: &[NodeRef], expected: &[&str]) {
    lab.until(5 * S, &format!("all list {expected:?}"), |lab| {
        nodes.iter().all(|node| health(lab, *node) == expected)
    });
}

#[test]
fn a_person_follows_a_registration_and_ends_it_by_mouse_and_by_keys() {
    scenario("services::a_person_follows_a_registration_and_ends_it_by_mouse_and_by_keys", |lab| {
        if !Browser::is_there() {
            return;
        }
        let nodes = nodes(lab, &["visits", "visits"]);
        let mut browser = browser(lab);
        browser.go(&format!("{HERE}/ui"));
        browser.click("link", "Services");
        browser.until(5 * S, "the page of services", "location.pathname === '/ui/services'");
        browser.until(5 * S, "it is live", LIVE);
        assert_eq!(browser.js(&says("No program is registered.")), true);
        register(lab, nodes[0], "web-1");
        let row = "[...document.querySelectorAll('#programs tbody tr')].find(row => row.textContent.includes('web-1'))";
        browser.until(5 * S, "it appears", &format!("{row}.textContent.includes('critical')"));
        assert_eq!(browser.js("document.querySelectorAll('.graph .missing .box').length"), 2, "web and db");
        report(lab, nodes[0], "web-1", "passing", "all is well");
        browser.until(5 * S, "it passes", &format!("{row}.textContent.includes('passing')"));
        assert_eq!(
            browser.js("document.querySelectorAll('.graph .missing .box').length"),
            1,
            "db is missing"
        );

        browser.click("link", "web");
        browser.until(5 * S, "its page", "document.querySelector('h1').textContent === 'web'");
        browser.until(5 * S, "it is live", LIVE);
        for words in ["all is well", "beat", "blue", "version 3", "z1", "m1"] {
            assert_eq!(browser.js(&says(words)), true, "{words}");
        }
        report(lab, nodes[0], "web-1", "critical", "out of memory");
        browser.until(5 * S, "it fails", &is("critical"));
        assert_eq!(browser.js(&says("out of memory")), true);
        let news = "document.getElementById('news').textContent.includes('critical')";
        browser.until(3 * S, "it is announced to those who do not see it", news);
        report(lab, nodes[0], "web-1", "passing", "memory again");
        browser.until(5 * S, "it recovers", &is("passing"));
        assert_eq!(browser.js("document.querySelectorAll('.uptime .critical').length > 0"), true);

        // Typed text survives updates of the page.
        browser.fill("Reason to drain web-1", "a new disk");
        report(lab, nodes[0], "web-1", "warning", "slow");
        browser.until(5 * S, "it warns", &is("warning"));
        assert_eq!(browser.js(REASON), "a new disk");
        assert_eq!(browser.js("document.activeElement.name"), "reason");
        report(lab, nodes[0], "web-1", "passing", "fast");
        browser.until(5 * S, "it passes", &is("passing"));
        browser.click("button", "Drain web-1");
        browser.until(5 * S, "it is drained", &says("a new disk"));
        assert_eq!(browser.js(&says("The instance is drained")), true);
        all_say(lab, &nodes, &["critical"]);
        browser.until(5 * S, "and shown so", &is("critical"));
        browser.click("button", "Undo the drain of web-1");
        browser.until(5 * S, "it is back", &says("The instance is back in service."));
        all_say(lab, &nodes, &["passing"]);
        browser.click("button", "Deregister web-1");
        browser.until(5 * S, "it is gone", &says("The instance is deregistered."));
        assert_eq!(browser.js("document.querySelectorAll('.instance').length"), 0);
        all_say(lab, &nodes, &[]);

        // The same with keys alone.
        register(lab, nodes[0], "web-2");
        browser.until(5 * S, "another appears", &says("web-2"));
        browser.tab_to("textbox", "Reason to drain web-2");
        browser.write("by keys");
        browser.press("Enter");
        browser.until(5 * S, "it is drained", &says("Drained since"));
        assert_eq!(browser.js(&says("by keys")), true);
        browser.tab_to("button", "Undo the drain of web-2");
        browser.press("Space");
        browser.until(5 * S, "it is back", &says("The instance is back in service."));
        browser.tab_to("button", "Deregister web-2");
        browser.press("Enter");
        browser.until(5 * S, "it is gone", &says("The instance is deregistered."));
        all_say(lab, &nodes, &[]);
        nothing_strange(&mut browser);
    });
}

#[test]
fn without_scripts_a_registration_is_drained_and_ended_all_the_same() {
    scenario("services::without_scripts_a_registration_is_drained_and_ended_all_the_same", |lab| {
        if !Browser::is_there() {
            return;
        }
        let nodes = nodes(lab, &["visits"]);
        register(lab, nodes[0], "web-1");
        report(lab, nodes[0], "web-1", "passing", "all is well");
        let mut browser = browser(lab);
        browser.scripts(false);
        browser.go(&format!("{HERE}/ui/services/web"));
        assert_eq!(browser.js(&says("Reload to see what is new")), true);
        browser.fill("Reason to drain web-1", "no scripts");
        browser.click("button", "Drain web-1");
        browser.until(5 * S, "it is drained", &says("no scripts"));
        browser.click("button", "Deregister web-1");
        browser.until(5 * S, "it is gone", &says("The instance is deregistered."));
        all_say(lab, &nodes, &[]);
        nothing_strange(&mut browser);
    });
}

#[test]
fn from_another_machine_registrations_are_only_looked_at() {
    scenario("services::from_another_machine_registrations_are_only_looked_at", |lab| {
        if !Browser::is_there() {
            return;
        }
        let host = lab.host();
        let node = lab.start(Some(&host), "far", 7500, &["--no-mdns", "--name", "far"]);
        lab.until(5 * S, "it answers", |lab| lab.get(node, "/members").is_some());
        let body = json!({ "name": "web", "id": "web-1", "port": 8080 });
        assert_eq!(host.send(7500, "POST /services", &body.to_string()).status, 200);
        let here = format!("http://{}:7500", host.ip);
        let mut browser = browser(lab);
        browser.go(&format!("{here}/ui/services/web"));
        assert_eq!(browser.js(&says("From this node's own machine, or after signing in.")), true);
        assert_eq!(
            browser.js(
                "[...document.querySelectorAll('.actions :is(button, [name=reason])')].map(c => c.disabled)"
            ),
            json!([true, true, true])
        );
        // The form is refused even with the right Origin.
        let headers = [("content-type", "application/x-www-form-urlencoded"), ("origin", here.as_str())];
        for path in ["/ui/registrations/deregister", "/ui/registrations/maintenance"] {
            let form = "service=web&id=web-1&enable=true";
            let reply = http::send(lab.address(node), &format!("POST {path}"), &headers, form, 5 * S);
            assert_eq!(reply.expect("an answer").status, 403, "{path}");
        }
        assert_eq!(health(lab, node), ["passing"]);
    });
}

#[test]
fn what_programs_say_stays_text() {
    scenario("services::what_programs_say_stays_text", |lab| {
        if !Browser::is_there() {
            return;
        }
        let nodes = nodes(lab, &["visits", "visits"]);
        let mut browser = browser(lab);
        browser.go(&format!("{HERE}/ui/services/evil"));
        browser.until(5 * S, "it is live", LIVE);
        let (mut tags, mut outputs) = (Vec::new(), Vec::new());
        for (i, pair) in CORPUS.iter().enumerate() {
            let (id, text) = (format!("evil-{i}"), pair.0);
            // The other node holds every second one.
            let at = nodes[i % 2];
            let said = |tags: &[&str]| {
                json!({
                    "name": "evil", "id": id, "port": 8080, "tags": tags, "meta": { "said": tags.join("") },
                    "checks": [{ "ttl": "1h", "name": "says" }],
                })
            };
            let reply = post(lab, at, "/services", &said(&[text]));
            if reply.status == 200 {
                tags.push(shown(pair));
            } else {
                assert_eq!(reply.status, 400, "{text:?}: {}", reply.body);
                assert_eq!(post(lab, at, "/services", &said(&[])).status, 200, "{text:?}");
            }
            report(lab, at, &id, "warning", text);
            // The node replaces control characters in outputs, so that they reach no terminal.
            if !text.chars().any(char::is_control) {
                outputs.push(shown(pair));
            }
            if i % 3 == 0 {
                put(
                    lab,
                    at,
                    &format!("/services/{id}/maintenance"),
                    &json!({ "enable": true, "reason": text }),
                );
            }
        }
        println!("{} of {} are tags", tags.len(), CORPUS.len());
        assert!(tags.len() >= 40);
        let all = |of: &str, texts: &[&str]| {
            format!(
                "(seen => {}.every(text => seen.includes(text)))([...document.querySelectorAll('{of}')].map(e => e.textContent))",
                json!(texts)
            )
        };
        browser.until(10 * S, "what came live is shown as it is", &all(".output", &outputs));
        browser.until(10 * S, "and so are tags", &all(".tags li", &tags));
        calm(&mut browser, "the live page of a service");
        for path in ["/ui/services/evil", "/ui/services", "/ui"] {
            browser.go(&format!("{HERE}{path}"));
            calm(&mut browser, path);
        }
        browser.go(&format!("{HERE}/ui/services/evil"));
        assert_eq!(browser.js(&all(".output", &outputs)), true);
        // Every text as the name of a missing service.
        for (text, _) in CORPUS {
            let v: String = text.bytes().map(|b| format!("%{b:02x}")).collect();
            for path in [format!("/ui/services/{v}"), format!("/ui/services/evil?done={v}#{v}")] {
                browser.try_to_go(&format!("{HERE}{path}"));
                calm(&mut browser, &format!("{text:?} in {path}"));
            }
        }
        nothing_strange(&mut browser);
    });
}
