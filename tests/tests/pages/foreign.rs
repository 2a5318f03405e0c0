//! Tests of cross-origin attacks in a real browser: a page of another origin, also after DNS rebinding, tries
//! every request that a page can send, but changes and reads nothing of a node.
//!
//! Over plain http, browsers send `Sec-Fetch-*` to `localhost` only. So each attack is made against
//! `localhost`, whose own requests a node trusts, and against an address of the network, where only `Origin`
//! and the missing proof stop it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use hearsay_tests::{ForeignSite, Host, NameServer, http::send_under, sh};

use super::*;

/// Port of the foreign page.
const FOREIGN: u16 = 9000;
/// Port of the careless server, which every page may read.
const CARELESS: u16 = 9001;
/// Marker in everything that a foreign page tries to write.
const MARK: &str = "foreignpage";
/// Limit of all attempts of a page.
const ATTACK_MAX: Duration = Duration::from_secs(240);
const SCRIPT: &str = include_str!("foreign.js");
/// Reasons for which a node refuses requests of a page: see `docs/security.md`.
const RULES: [&str; 6] = ["host", "site", "origin", "content_type", "token", "unproven"];
/// Roles that a gateway serves.
const ROLES: [&str; 5] = ["/students", "/log", "/records", "/portal", "/visits"];

/// Turns off Chromium's own rules for requests to private addresses and to loopback, since other browsers
/// have none. Windows open without a click, and a page continues behind them.
const SWITCHES: [&str; 5] = [
    "--disable-features=LocalNetworkAccessChecks,LocalNetworkAccessChecksWebSockets,LocalNetworkAccessForNavigations,\
     LocalNetworkAccessForSubframeNavigations,LocalNetworkAccessForWorkers,BlockInsecurePrivateNetworkRequests,HttpsUpgrades",
    "--disable-popup-blocking",
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
];

/// A node with all roles and a registration, and the origins under which a page reaches it.
struct Victim {
    node: NodeRef,
    /// Host of the node; `None`: the browser's host.
    host: Option<Host>,
    name: String,
}

impl Victim {
    fn start(lab: &mut Lab, host: Option<Host>) -> Self {
        let roles =
            ["--no-mdns", "--demo", "--name", "victim", "--role", "grading,log,portal,gateway,visits"];
        let node = lab.start(host.as_ref(), "victim", 7500, &roles);
        let name = host.as_ref().map_or_else(|| "localhost".to_owned(), |host| host.ip.clone());
        let victim = Self { node, host, name };
        lab.until(20 * S, "the gateway brings the students", |lab| {
            victim.ask(lab, 8080, "GET /students", &[], "").is_some_and(|reply| reply.status == 200)
        });
        let web = json!({ "name": "web", "id": "web-1", "port": 80, "check": { "ttl": "1h" } });
        assert_eq!(victim.ask_locally(lab, "POST /services", &web).status, 200);
        let passes = json!({ "status": "passing" });
        assert_eq!(victim.ask_locally(lab, "PUT /checks/service:web-1", &passes).status, 200);
        victim
    }

    /// Sends a request from the browser's host.
    #[allow(clippy::too_many_arguments, reason = "the parts of an HTTP request")]
    fn ask(
        &self,
        lab: &Lab,
        port: u16,
        request: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Option<Reply> {
        let mut to = lab.address(self.node);
        to.set_port(port);
        send_under(&format!("{}:{port}", self.name), to, request, headers, body, 5 * S).ok()
    }

    /// Sends a request from the node's own machine.
    fn ask_locally(&self, lab: &Lab, request: &str, body: &Value) -> Reply {
        let Some(host) = &self.host else {
            let json = [("content-type", "application/json")];
            return self.ask(lab, 7500, request, &json, &body.to_string()).expect("an answer");
        };
        host.send(7500, request, &body.to_string())
    }

    fn origin(&self, port: u16) -> String {
        format!("http://{}:{port}", self.name)
    }

    /// Targets at the node and its gateway: all paths that write, and all reads without a parameter.
    fn targets(&self, lab: &Lab) -> Value {
        let document = lab.get(self.node, "/openapi.json").expect("the document");
        let of_role = |path: &str| {
            ROLES
                .iter()
                .any(|role| path.strip_prefix(role).is_some_and(|rest| !rest.starts_with(|c| c != '/')))
        };
        let target = |port: u16, has: &dyn Fn(&str) -> bool| {
            let (writes, unframed, reads) = paths(&document, has);
            json!({ "origin": self.origin(port), "writes": writes, "unframed": unframed, "reads": reads })
        };
        json!([target(7500, &|_| true), target(8080, &of_role)])
    }

    /// Everything that a page could change. The log also has the node's own events.
    fn state(&self, lab: &Lab) -> Value {
        let get = |path: &str| {
            let reply = self.ask(lab, 7500, &format!("GET {path}"), &[], "").expect("an answer");
            assert_eq!(reply.status, 200, "{path}: {reply:?}");
            reply.json()
        };
        let web = get("/services/web")["services"]["web"].as_array().cloned().unwrap_or_default();
        json!({
            "students": get("/students"),
            "grades": get("/students/1"),
            "visits": get("/visits"),
            "registrations": get("/registrations")["registrations"],
            "health": web.iter().map(|instance| instance["health"].clone()).collect::<Vec<_>>(),
            "said": get(&format!("/log?q={MARK}"))["records"],
            "state": lab.sees(self.node, "victim"),
        })
    }

    /// Returns the number of requests that the node and its gateway have refused, for each rule about
    /// writers.
    fn refused(&self, lab: &Lab) -> BTreeMap<String, f64> {
        let metrics = lab.text(self.node, "/metrics").unwrap_or_default();
        let mut refused = BTreeMap::new();
        for line in metrics.lines().filter(|line| line.contains("_refused_total{reason=\"")) {
            let (rest, count) = line.rsplit_once(' ').expect("a value");
            let rule = rest.split('"').nth(1).unwrap_or_default();
            if RULES.contains(&rule) {
                *refused.entry(rule.to_owned()).or_default() += count.parse::<f64>().expect("a number");
            }
        }
        refused
    }

    /// The node takes the same writes from itself, and from its own page in the same browser: a foreign page
    /// differs only in its origin.
    fn takes_its_own_writes(&self, lab: &Lab, browser: &mut Browser) {
        let before = self.state(lab);
        browser.go(&format!("{}/portal", self.origin(7500)));
        for (path, body) in [
            ("/students", json!({ "firstName": MARK, "lastName": "own" })),
            ("/log", json!({ "message": format!("{MARK} own") })),
            ("/visits", json!({})),
        ] {
            let is_taken = browser.js(&format!(
                "fetch('{path}', {{ method: 'POST', body: {}, headers: {{ 'content-type': 'application/json' }} }}).then(a => a.ok)",
                json!(body.to_string())
            ));
            assert_eq!(is_taken, true, "{path}");
        }
        let hit = self.ask_locally(lab, "GET /visits/hit", &Value::Null);
        assert_eq!(hit.status, 200, "{hit:?}");
        let after = self.state(lab);
        for what in ["students", "visits", "said"] {
            assert_ne!(before[what], after[what], "{what}");
        }
    }
}

/// Returns the writes of a node's document, its event streams and downloads, and its other reads. Path
/// parameters of writes have values, and their bodies are valid.
fn paths(document: &Value, has: &dyn Fn(&str) -> bool) -> (Vec<Value>, Vec<String>, Vec<String>) {
    let (mut writes, mut unframed, mut reads) = (Vec::new(), Vec::new(), Vec::new());
    let all = document["paths"].as_object().expect("paths");
    for (path, item) in all.iter().filter(|(path, _)| has(path)) {
        for method in item.as_object().expect("methods").keys().filter(|key| *key != "parameters") {
            if method != "get" || path == "/visits/hit" {
                let (body, form) = bodies(path);
                let filled = filled(path);
                let form = format!("key=0123456789abcdef0123456789abcdef&{form}");
                writes.push(
                    json!({ "method": method.to_uppercase(), "path": filled, "body": body, "form": form }),
                );
            } else if !path.contains('{') {
                let answers = item["get"]["responses"].to_string();
                let is_unframed = ["text/event-stream", "text/csv"].iter().any(|kind| answers.contains(kind));
                if is_unframed { &mut unframed } else { &mut reads }.push(path.clone());
            }
        }
    }
    (writes, unframed, reads)
}

fn filled(path: &str) -> String {
    let parts = path.split('/').map(|part| match part {
        "{name}" | "{id}" if path.starts_with("/services") => "web-1",
        "{id}" if path.starts_with("/checks") => "service:web-1",
        part if part.starts_with('{') => "1",
        part => part,
    });
    parts.collect::<Vec<_>>().join("/")
}

/// Returns a JSON body and a form that a path accepts.
fn bodies(path: &str) -> (String, String) {
    let (body, form) = match path {
        "/services" => (json!({ "name": MARK, "id": MARK, "port": 80 }), "service=web&id=web-1"),
        "/log" | "/log/events" | "/records" => {
            (json!({ "message": MARK, "level": "info" }), "message=foreignpage")
        }
        path if path.starts_with("/checks") => {
            (json!({ "status": "critical", "output": MARK }), "status=critical")
        }
        path if path.ends_with("/maintenance") => {
            (json!({ "enable": true, "reason": MARK }), "service=web&id=web-1&enable=true&reason=foreignpage")
        }
        path if path.starts_with("/ui/registrations") => (json!({}), "service=web&id=web-1"),
        path if path.ends_with("/grades") => {
            (json!({ "title": MARK, "type": "Quiz", "score": 50 }), "title=foreignpage&type=Quiz&score=50")
        }
        _ => (json!({ "firstName": MARK, "lastName": "page" }), "firstName=foreignpage&lastName=page"),
    };
    (body.to_string(), form.to_owned())
}

/// Builds a page with its plan.
fn page(plan: &Value) -> String {
    // No text of the plan ends a script.
    format!(
        "<!doctype html><title>foreign</title><p id=careless>A page</p><script>const PLAN = {plan};</script>\
         <script src=/attack.js></script>"
    )
}

/// Lets a page make its attempts. Returns their names, how many of them reach a server, and what was read.
fn attack(browser: &mut Browser, url: &str) -> (BTreeSet<String>, f64, serde_json::Map<String, Value>) {
    browser.go(url);
    browser.until(ATTACK_MAX, &format!("{url} has tried everything"), "outcome.done");
    let outcome = browser.js("outcome");
    let names = outcome["made"].as_array().expect("names").iter().filter_map(Value::as_str).map(Into::into);
    let read = outcome["read"].as_object().expect("what was read").clone();
    (names.collect(), outcome["decided"].as_f64().expect("a number"), read)
}

fn foreign_browser(lab: &Lab) -> Browser {
    let mut browser = Browser::start_with(&lab.dir().join("browser"), &SWITCHES);
    browser.view(1280, false);
    browser
}

/// Attacks a node from pages of these origins, each of which is another site or another port to the browser.
/// `rule` is the rule by which the node refuses most requests.
fn writes_and_reads_nothing(
    lab: &Lab,
    victim: &Victim,
    browser: &mut Browser,
    origins: &[String],
    rule: &str,
) {
    let before = victim.state(lab);
    for origin in origins {
        let refused = victim.refused(lab);
        let since =
            |rule: &str| victim.refused(lab).get(rule).unwrap_or(&0.0) - refused.get(rule).unwrap_or(&0.0);
        let (made, decided, read) = attack(browser, &format!("{origin}/"));
        println!("{origin}: {} attempts, {decided} of them for the node to decide", made.len());
        assert_eq!(Value::from(read), json!({}), "{origin}");
        assert_eq!(victim.state(lab), before, "{origin}");
        // A beacon may still be on its way.
        lab.until(20 * S, "the node has refused all that it was sent", |_| {
            RULES.iter().map(|rule| since(rule)).sum::<f64>() >= decided
        });
        println!("refused: {:?}", RULES.map(|rule| (rule, since(rule))));
        assert!(since(rule) > decided / 2.0, "{rule}");
        assert_eq!(victim.state(lab), before, "{origin}");
    }
}

#[test]
fn a_page_of_another_origin_writes_and_reads_nothing_on_localhost() {
    scenario("foreign::a_page_of_another_origin_writes_and_reads_nothing_on_localhost", |lab| {
        if !Browser::is_there() {
            return;
        }
        let elsewhere = lab.host();
        let victim = Victim::start(lab, None);
        let page = page(&json!({ "targets": victim.targets(lab) }));
        let _same_site = ForeignSite::start(None, FOREIGN, &page, SCRIPT);
        let _cross_site = ForeignSite::start(Some(&elsewhere), FOREIGN, &page, SCRIPT);
        let mut browser = foreign_browser(lab);
        let origins = ["localhost", &elsewhere.ip].map(|host| format!("http://{host}:{FOREIGN}"));
        writes_and_reads_nothing(lab, &victim, &mut browser, &origins, "site");
        victim.takes_its_own_writes(lab, &mut browser);
    });
}

#[test]
fn a_page_of_another_origin_writes_and_reads_nothing_at_an_address() {
    scenario("foreign::a_page_of_another_origin_writes_and_reads_nothing_at_an_address", |lab| {
        if !Browser::is_there() {
            return;
        }
        let (here, elsewhere) = (lab.host(), lab.host());
        let victim = Victim::start(lab, Some(here));
        let page = page(&json!({ "targets": victim.targets(lab) }));
        let _foreign = ForeignSite::start(Some(&elsewhere), FOREIGN, &page, SCRIPT);
        let _same_host = ForeignSite::start(victim.host.as_ref(), FOREIGN, &page, SCRIPT);
        let mut browser = foreign_browser(lab);
        let origins = [&elsewhere.ip, &victim.name].map(|host| format!("http://{host}:{FOREIGN}"));
        // Without `Sec-Fetch-*` the browser treats both origins alike, so the one nearer to the node is
        // enough in the short form.
        let first = usize::from(std::env::var_os("LAB_LONG").is_none());
        writes_and_reads_nothing(lab, &victim, &mut browser, &origins[first..], "origin");
        victim.takes_its_own_writes(lab, &mut browser);
    });
}

/// Control: each attempt reaches a server, and the page's report shows what a server lets it read.
#[test]
fn a_careless_server_is_reached_by_every_attempt_and_read() {
    scenario("foreign::a_careless_server_is_reached_by_every_attempt_and_read", |lab| {
        if !Browser::is_there() {
            return;
        }
        let (here, elsewhere) = (lab.host(), lab.host());
        let victim = Victim::start(lab, Some(here));
        let mut targets = victim.targets(lab);
        targets[0]["origin"] = json!(format!("http://{}:{CARELESS}", elsewhere.ip));
        let page = page(&json!({ "mark": true, "targets": [targets[0]] }));
        let careless = ForeignSite::start(Some(&elsewhere), CARELESS, "", "");
        let _foreign = ForeignSite::start(None, FOREIGN, &page, SCRIPT);
        let mut browser = foreign_browser(lab);
        let (made, _, read) = attack(&mut browser, &format!("http://10.77.0.1:{FOREIGN}/"));
        let arrived = || -> BTreeSet<String> {
            let asked = careless.asked();
            let decided = asked.iter().filter(|asked| asked.method != "OPTIONS");
            decided.filter_map(|asked| Some(decoded(asked.target.split_once("?by=")?.1))).collect()
        };
        lab.until(20 * S, "every attempt reaches the server", |_| {
            let missing: Vec<_> = made.difference(&arrived()).cloned().collect();
            println!(
                "{} of {} missing: {:?}",
                missing.len(),
                made.len(),
                missing.iter().take(5).collect::<Vec<_>>()
            );
            missing.is_empty()
        });
        let ways: BTreeSet<&str> = read.keys().filter_map(|name| name.split('-').next()).collect();
        for way in [
            "fetch",
            "credentials",
            "xhr",
            "script",
            "module",
            "worker",
            "style",
            "image",
            "events",
            "bare",
            "xhr_post",
            "json",
        ] {
            assert!(ways.contains(way), "{way} is missing in {ways:?}");
        }
    });
}

/// Decodes `encodeURIComponent`.
fn decoded(text: &str) -> String {
    let mut parts = text.split('%');
    let mut all = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = u8::from_str_radix(&part[..2], 16).expect("two digits");
        all.push(char::from(code));
        all.push_str(&part[2..]);
    }
    all
}

/// A page whose name resolves to its own server first, and to the node once that server is gone (DNS
/// rebinding). `addresses` are those before and after.
fn writes_and_reads_nothing_rebound(
    lab: &Lab,
    victim: &Victim,
    attacker: &Host,
    addresses: [&[Ipv4Addr]; 2],
) {
    let names = NameServer::start(lab);
    let targets = victim.targets(lab);
    let mut browser = foreign_browser(lab);
    let state = victim.state(lab);
    for (i, port) in [7500_u16, 8080].into_iter().enumerate() {
        names.lead_to(addresses[0]);
        let page = page(&json!({ "rebinds": true, "targets": [targets[i]] }));
        let site = ForeignSite::start(Some(attacker), port, &page, SCRIPT);
        let refused = || victim.refused(lab).values().sum::<f64>();
        let before = refused();
        let origin = format!("http://evil{i}.example:{port}");
        browser.go(&format!("{origin}/"));
        names.lead_to(addresses[1]);
        site.close();
        // The browser forgets names when the addresses of its machine change.
        sh(&format!("ip addr add 10.78.0.{}/32 dev br0", i + 1));
        browser.until(ATTACK_MAX, &format!("{origin} has tried everything"), "outcome.done");
        let outcome = browser.js("outcome");
        assert_eq!(outcome["read"], json!({}), "{origin}");
        let decided = outcome["decided"].as_f64().expect("a number");
        println!("{origin}: {decided} attempts, {} refused", refused() - before);
        assert!(decided > 20.0 && refused() - before >= decided, "{:?}", victim.refused(lab));
        let form = "<form method=post action=/portal><input name=firstName value=foreignpage></form>";
        browser.js(&format!("document.body.innerHTML = {}; void document.forms[0].submit()", json!(form)));
        lab.until(20 * S, "its form is refused", |_| refused() - before > decided);
    }
    assert_eq!(victim.state(lab), state);
    assert_eq!(lab.logged("ERROR"), [""; 0]);
}

#[test]
fn a_name_that_comes_to_lead_to_an_address_of_a_node_is_not_the_nodes_own() {
    scenario("foreign::a_name_that_comes_to_lead_to_an_address_of_a_node_is_not_the_nodes_own", |lab| {
        if !Browser::is_there() {
            return;
        }
        let (here, elsewhere) = (lab.host(), lab.host());
        let ip = |host: &Host| host.ip.parse::<Ipv4Addr>().expect("an address");
        // Two records from the start: the browser tries the second one when the first refuses.
        let both = [ip(&elsewhere), ip(&here)];
        let victim = Victim::start(lab, Some(here));
        writes_and_reads_nothing_rebound(lab, &victim, &elsewhere, [&both, &both]);
    });
}

#[test]
fn a_name_that_comes_to_lead_to_loopback_is_not_the_nodes_own() {
    scenario("foreign::a_name_that_comes_to_lead_to_loopback_is_not_the_nodes_own", |lab| {
        if !Browser::is_there() {
            return;
        }
        let elsewhere = lab.host();
        let victim = Victim::start(lab, None);
        // Of two records a browser would try loopback first, so the name resolves to one after the other.
        let attacker = elsewhere.ip.parse::<Ipv4Addr>().expect("an address");
        writes_and_reads_nothing_rebound(lab, &victim, &elsewhere, [&[attacker], &[Ipv4Addr::LOCALHOST]]);
    });
}
