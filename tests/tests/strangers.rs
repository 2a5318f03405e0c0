//! Tests of hosts without cluster key and API token: which writes are refused, how far a browser's session
//! goes, that private nodes cannot be read, and that a flood of the log drops no records of others.

use std::{net::SocketAddr, time::Duration};

use hearsay_tests::{
    Cluster as _, Host, Lab, NodeRef, Program, find,
    http::{self, Reply},
    registry::{all_see_all, instances, plain},
    scenario,
};
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_program");
const S: Duration = Duration::from_secs(1);
const JSON: (&str, &str) = ("content-type", "application/json");
const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");
/// Key of a portal form, which tells a second click from a second form.
const FORM_KEY: &str = "0123456789abcdef0123456789abcdef";

/// Three hosts with a common key: a grade book and a log; a portal and a gateway; a plain node.
struct Keyed {
    hosts: Vec<Host>,
    book: NodeRef,
    front: NodeRef,
    plain: NodeRef,
}

impl Keyed {
    fn start(lab: &mut Lab) -> Self {
        let Self { hosts, book, front, plain } = Self::start_with(lab, &[]);
        all_see_all(lab, &[book, front, plain]);
        lab.until(10 * S, "portal and gateway find the grade book", |lab| {
            students(lab, book) > 0
                && lab.text(front, "/portal").is_some_and(|page| page.contains("/portal/students/1"))
                && is_served(lab, front, &[])
        });
        Self { hosts, book, front, plain }
    }

    fn start_with(lab: &mut Lab, options: &[&str]) -> Self {
        let key = lab.dir().join("cluster.key");
        let made = lab.command(None, "keys", &["keygen"]).output().expect("a key");
        std::fs::write(&key, made.stdout).expect("a directory that can be written");
        let hosts: Vec<Host> = (0..3).map(|_| lab.host()).collect();
        let key = key.to_str().expect("a path in UTF-8").to_owned();
        let mut start = |host: &Host, name: &str, more: &[&str]| {
            lab.start(
                Some(host),
                name,
                7500,
                &[&["--name", name, "--key-file", &key], more, options].concat(),
            )
        };
        let book = start(&hosts[0], "book", &["--role", "grading,log,visits", "--demo"]);
        let front = start(&hosts[1], "front", &["--role", "portal,gateway"]);
        let plain = start(&hosts[2], "plain", &[]);
        Self { hosts, book, front, plain }
    }
}

fn token(lab: &Lab, node: NodeRef) -> String {
    let token = find(&lab.dir().join(lab.name_of(node)), "api-token").expect("the node has a token");
    std::fs::read_to_string(token).expect("its token").trim().to_owned()
}

fn bearer(lab: &Lab, node: NodeRef) -> String {
    format!("Bearer {}", token(lab, node))
}

/// Signs a browser in at a port of a node, and returns its cookie.
fn sign_in(lab: &Lab, at: NodeRef, port: u16, token: &str) -> Option<String> {
    let origin = format!("http://{}:{port}", lab.address(at).ip());
    let form = format!("token={token}&next=%2Fportal");
    let reply = send(lab, at, port, "POST /login", &[FORM, ("origin", &origin)], &form);
    let cookie = reply.header("set-cookie")?.split(';').next()?.to_owned();
    assert!(reply.status == 303 && !reply.head.contains(token), "{reply:?}");
    Some(cookie)
}

#[allow(clippy::too_many_arguments, reason = "the parts of an HTTP request")]
fn send(lab: &Lab, to: NodeRef, port: u16, request: &str, headers: &[(&str, &str)], body: &str) -> Reply {
    let mut address = lab.address(to);
    address.set_port(port);
    http::send(address, request, headers, body, 10 * S).expect("an answer")
}

/// Returns whether the gateway of a node answers a request for the grade book with 200.
fn is_served(lab: &Lab, at: NodeRef, headers: &[(&str, &str)]) -> bool {
    let mut gateway = lab.address(at);
    gateway.set_port(8080);
    http::send(gateway, "GET /students", headers, "", 10 * S).is_ok_and(|reply| reply.status == 200)
}

/// Returns the number of students in the grade book.
fn students(lab: &Lab, book: NodeRef) -> usize {
    lab.get(book, "/students").unwrap_or_default().as_array().map_or(0, Vec::len)
}

#[test]
fn a_stranger_writes_to_no_role_of_a_cluster_with_a_key_and_the_token_opens_portal_and_gateway() {
    let test = "a_stranger_writes_to_no_role_of_a_cluster_with_a_key_and_the_token_opens_portal_and_gateway";
    scenario(test, |lab| {
        let Keyed { hosts, book, front, plain } = Keyed::start(lab);
        let before = students(lab, book);
        let student = json!({"firstName": "Mallory", "lastName": "Stranger"}).to_string();
        let form = format!("key={FORM_KEY}&firstName=Mallory&lastName=Stranger");
        let line = json!({"message": "forged", "level": "info"}).to_string();
        let refused = |to, port, request: &str, header, body: &str| {
            let reply = send(lab, to, port, request, &[header], body);
            assert_eq!(reply.status, 401, "{request} at {port}: {reply:?}");
            assert!(reply.body.contains("token"), "{request} says what is missing: {reply:?}");
        };
        for (to, port) in [(book, 7500), (front, 8080)] {
            refused(to, port, "POST /students", JSON, &student);
            refused(to, port, "PUT /students/1", JSON, &student);
            refused(to, port, "DELETE /students/1", JSON, "");
            refused(to, port, "POST /students/1/grades", JSON, r#"{"title":"x","type":"Exam","score":1}"#);
            refused(to, port, "POST /log", JSON, &line);
            refused(to, port, "POST /visits", JSON, "");
            refused(to, port, "GET /visits/hit", JSON, "");
        }
        refused(front, 7500, "POST /portal", FORM, &form);
        refused(front, 8080, "POST /portal", FORM, &form);
        refused(plain, 7500, "POST /services", JSON, r#"{"name":"web","port":80}"#);
        assert_eq!(students(lab, book), before);

        // The token of the addressed node, and of no other.
        let (ours, other) = (bearer(lab, front), bearer(lab, plain));
        let with = |port, request: &str, header, token: &str, body: &str| {
            send(lab, front, port, request, &[header, ("authorization", token)], body)
        };
        assert_eq!(with(8080, "POST /students", JSON, &other, &student).status, 401);
        let added = with(8080, "POST /students", JSON, &ours, &student);
        assert_eq!(added.status, 201, "through the gateway: {added:?}");
        let added = with(7500, "POST /portal", FORM, &ours, &form);
        assert_eq!(added.status, 303, "through the portal: {added:?}");
        let form = form.replace(FORM_KEY, &FORM_KEY.to_uppercase());
        let added = with(8080, "POST /portal", FORM, &ours, &form);
        assert_eq!(added.status, 303, "through gateway and portal: {added:?}");
        assert_eq!(students(lab, book), before + 3);
        let hit = with(8080, "GET /visits/hit", JSON, &ours, "");
        assert_eq!((hit.status, hit.json()["total"].clone()), (200, json!(1)), "{hit:?}");
        let too_large = with(8080, "POST /students", JSON, &ours, &"x".repeat(1024 * 1024 + 1));
        assert_eq!(too_large.status, 413, "{too_large:?}");

        // The command line on a node's machine lets that node forward writes to other nodes.
        let run = |arguments: &[&str]| lab.command(Some(&hosts[2]), "plain", arguments).output().unwrap();
        let sheet = lab.dir().join("students.csv");
        std::fs::write(&sheet, "firstName,lastName\nGrace,Hopper\n").unwrap();
        let imported = run(&["grades", "import", sheet.to_str().unwrap()]);
        assert!(imported.status.success(), "{imported:?}");
        assert_eq!(students(lab, book), before + 4);
        let logged = run(&["log", "append", "--service", "cron", "backup done"]);
        assert!(logged.status.success(), "{logged:?}");
        let found = lab.get(book, "/log?q=backup").unwrap_or_default();
        assert!(found.to_string().contains("backup done"), "{found}");
        let web = json!({"name": "web", "id": "web-1", "port": 80}).to_string();
        assert_eq!(hosts[0].send(7500, "POST /services", &web).status, 200);
        lab.until(10 * S, "all list it", |lab| instances(lab, plain, "web").len() == 1);
        assert!(run(&["drain", "web-1", "--reason", "update"]).status.success());
        let drained = lab.get(book, "/registrations").unwrap()["registrations"].clone();
        assert_eq!(drained[0]["maintenance"], "update");
        assert!(run(&["deregister", "web-1"]).status.success());
        lab.until(10 * S, "it is gone", |lab| instances(lab, plain, "web").is_empty());
        for (request, status) in [
            ("DELETE /services/web-1?node=unknown", 404),
            ("DELETE /services/web-1?node=book", 404),
            ("DELETE /services/web-1?node=plain", 404),
            ("PUT /v1/agent/leave?node=book", 401),
            ("POST /services?hold&node=book", 400),
        ] {
            let reply = hosts[2].send(7500, request, "");
            assert_eq!(reply.status, status, "{request}: {reply:?}");
        }
        assert_eq!(send(lab, plain, 7500, "DELETE /services/web-1?node=book", &[], "").status, 401);

        // Nodes ship their events to the log, and reading is unchanged.
        lab.until(20 * S, "what the plain node says is in the log", |lab| {
            let found = lab.get(book, "/log?q=started&limit=100").unwrap_or_default();
            found.to_string().contains("\"plain\"")
        });
        assert_eq!(send(lab, front, 8080, "GET /students", &[], "").status, 200);
    });
}

#[test]
fn gateway_and_portal_are_believed_again_after_a_restart_of_either_side() {
    let test = "gateway_and_portal_are_believed_again_after_a_restart_of_either_side";
    scenario(test, |lab| {
        let Keyed { hosts, front, book, .. } = Keyed::start(lab);
        let token = bearer(lab, front);
        // Without an answer it is not added: while a side starts, a request may get none.
        let is_added = |lab: &Lab, at: NodeRef| {
            let student = json!({"firstName": "Ada", "lastName": "Again"}).to_string();
            let headers = [JSON, ("authorization", token.as_str())];
            let mut gateway = lab.address(at);
            gateway.set_port(8080);
            let reply = http::send(gateway, "POST /students", &headers, &student, 10 * S);
            reply.is_ok_and(|reply| reply.status == 201)
        };
        assert!(is_added(lab, front));
        let key = lab.dir().join("cluster.key").to_str().unwrap().to_owned();
        lab.crash(front);
        let arguments = ["--name", "front", "--key-file", &key, "--role", "portal,gateway"];
        let front = lab.start(Some(&hosts[1]), "front", 7500, &arguments);
        lab.until(20 * S, "the gateway is there again", |lab| {
            lab.get(front, "/gateway").is_some_and(|gateway| gateway["listener"].is_string())
        });
        lab.until(20 * S, "it writes again", |lab| is_added(lab, front));
        lab.crash(book);
        let arguments = ["--name", "book", "--key-file", &key, "--role", "grading,log,visits", "--demo"];
        _ = lab.start(Some(&hosts[0]), "book", 7500, &arguments);
        lab.until(20 * S, "the role takes writes again", |lab| is_added(lab, front));
    });
}

#[test]
fn in_an_open_cluster_a_program_of_the_network_speaks_for_itself_alone() {
    scenario("in_an_open_cluster_a_program_of_the_network_speaks_for_itself_alone", |lab| {
        let (here, there, elsewhere) = (lab.host(), lab.host(), lab.host());
        let node = plain(lab, &here, 0, &["--role", "visits"]);
        lab.until(10 * S, "it answers", |lab| lab.get(node, "/livez").is_some());
        let at = lab.address(node);
        let send = |from: &Host, request: &str, headers: &[(&str, &str)], body: &Value| {
            let body = if body.is_null() { String::new() } else { body.to_string() };
            from.enter(|| http::send(at, request, &[&[JSON], headers].concat(), &body, 10 * S).unwrap())
        };
        let post = |from: &Host, body: Value| send(from, "POST /services", &[], &body);
        let own = post(&there, json!({"name": "web", "id": "web-1", "port": 80, "check": {"ttl": "60s"}}));
        assert_eq!(own.status, 200, "{own:?}");
        for (body, field) in [
            (json!({"name": "web", "address": elsewhere.ip, "port": 80}), "address"),
            (json!({"name": "web", "address": here.ip, "port": 80}), "address"),
            (
                json!({"name": "web", "port": 80, "check": {"http": format!("http://{}/", elsewhere.ip)}}),
                "http",
            ),
            (json!({"name": "web", "port": 80, "check": {"http": "/", "method": "POST"}}), "method"),
            (
                json!({"name": "web", "port": 80, "requires": ["db"], "updates": format!("http://{}/", elsewhere.ip)}),
                "updates",
            ),
        ] {
            let reply = post(&there, body.clone());
            assert!(reply.status == 403 && reply.json()["field"] == field, "{body}: {reply:?}");
        }
        // Registrations of one host belong to that host alone; so do those of the node's own machine.
        let mine = here.send(7500, "POST /services", r#"{"name":"db","id":"db-1","port":5432}"#);
        assert_eq!(mine.status, 200, "{mine:?}");
        let null = Value::Null;
        for from in [&elsewhere, &there] {
            for id in if from.ip == there.ip { &["db-1"][..] } else { &["db-1", "web-1"][..] } {
                let replaced = post(from, json!({"name": "web", "id": id, "port": 81}));
                assert_eq!(replaced.status, 403, "{replaced:?}");
                assert_eq!(send(from, &format!("DELETE /services/{id}"), &[], &null).status, 403);
                let drained =
                    send(from, &format!("PUT /services/{id}/maintenance"), &[], &json!({"enable": true}));
                assert_eq!(drained.status, 403, "{drained:?}");
            }
        }
        let reported = send(&elsewhere, "PUT /checks/service:web-1", &[], &json!({"status": "passing"}));
        assert_eq!(reported.status, 403, "{reported:?}");
        let held = lab.get(node, "/registrations").unwrap()["registrations"].clone();
        assert_eq!(held.as_array().unwrap().len(), 2, "{held}");
        // It reports for, replaces and removes its own registration; not through a proxy.
        assert_eq!(send(&there, "PUT /checks/service:web-1", &[], &json!({"status": "passing"})).status, 200);
        let again = json!({"name": "web", "id": "web-1", "port": 81});
        let passed_on = [("x-forwarded-for", there.ip.as_str())];
        assert_eq!(send(&there, "POST /services", &passed_on, &again).status, 401);
        assert_eq!(post(&there, again).status, 200);
        assert_eq!(send(&there, "DELETE /services/web-1", &[], &null).status, 200);
        // Admin writes are for the node's machine, and a GET that writes always needs proof.
        assert_eq!(send(&there, "PUT /v1/agent/leave", &[], &null).status, 401);
        assert_eq!(send(&there, "GET /visits/hit", &[], &null).status, 401);
        assert_eq!(send(&there, "POST /visits", &[], &null).status, 200);
    });
}

#[test]
fn no_path_of_an_open_gateway_leads_a_stranger_to_writes_of_keys() {
    scenario("no_path_of_an_open_gateway_leads_a_stranger_to_writes_of_keys", |lab| {
        let host = lab.host();
        let node = plain(lab, &host, 0, &["--role", "kv,visits,gateway", "--open"]);
        let mut gateway = lab.address(node);
        gateway.set_port(8080);
        let succeeds = |request: &str| {
            http::send(gateway, request, &[], "", 10 * S).is_ok_and(|reply| reply.status == 200)
        };
        let routed = |_: &Lab| succeeds("GET /kv?prefix=") && succeeds("POST /visits");
        lab.until(10 * S, "the gateway has both routes, and writes of roles are open", routed);
        let bearer = bearer(lab, node);
        for request in ["PUT /kv/a", "PUT /kv/kv/a", "PUT /%6Bv/kv/a", "PUT /k%76/kv/a", "DELETE /%6bv/kv/a"]
        {
            let reply = send(lab, node, 8080, request, &[JSON], "value");
            assert_eq!(reply.status, 401, "{request}: {reply:?}");
            let reply = send(lab, node, 8080, request, &[JSON, ("authorization", &bearer)], "value");
            assert_eq!(reply.status, 204, "{request}: {reply:?}");
        }
    });
}

#[test]
fn a_browser_signs_in_at_portal_or_gateway_and_its_session_goes_no_further() {
    let test = "a_browser_signs_in_at_portal_or_gateway_and_its_session_goes_no_further";
    scenario(test, |lab| {
        let Keyed { hosts, book, front, plain } = Keyed::start(lab);
        let before = students(lab, book);
        let (ours, other) = (token(lab, front), token(lab, plain));
        let form = format!("key={FORM_KEY}&firstName=Mary&lastName=Jackson");
        for port in [7500, 8080] {
            let page = send(lab, front, port, "GET /login?next=/portal", &[], "");
            assert!(page.status == 200 && page.body.contains("API token"), "{page:?}");
            assert_eq!(sign_in(lab, front, port, &other), None, "the token of another node");
            let cookie = sign_in(lab, front, port, &ours).expect("a session");
            let origin = format!("http://{}:{port}", lab.address(front).ip());
            let form = form.replace('0', &(port % 7).to_string());
            let headers = [FORM, ("cookie", cookie.as_str()), ("origin", origin.as_str())];
            let refused = send(lab, front, port, "POST /portal", &headers[..2], &form);
            assert_eq!(refused.status, 401, "without Origin: {refused:?}");
            let foreign = [FORM, headers[1], ("origin", "http://evil.example")];
            let refused = send(lab, front, port, "POST /portal", &foreign, &form);
            assert_eq!(refused.status, 403, "{refused:?}");
            let added = send(lab, front, port, "POST /portal", &headers, &form);
            assert_eq!(added.status, 303, "{added:?}");
            let refused = send(lab, book, 7500, "DELETE /students/1", &headers[1..2], "");
            assert_eq!(refused.status, 401, "the session is of one node alone: {refused:?}");
        }
        assert_eq!(students(lab, book), before + 2);
        // A browser is redirected to sign in, a program gets 401.
        let html = ("accept", "text/html,application/xhtml+xml");
        let origin = format!("http://{}:8080", lab.address(front).ip());
        let led = send(lab, front, 8080, "POST /portal", &[FORM, html, ("origin", &origin)], &form);
        assert_eq!((led.status, led.header("location")), (303, Some("/login?next=%2Fportal")), "{led:?}");
        // A program behind the gateway cannot take over the page, and does not receive the cookie.
        let echo = Program::start(PROGRAM, &hosts[2], 4000);
        let web = json!({"name": "web", "port": echo.port, "tags": ["urlprefix-/login", "urlprefix-/"]});
        assert_eq!(hosts[2].send(7500, "POST /services", &web.to_string()).status, 200);
        lab.until(10 * S, "the gateway passes on to it", |lab| {
            send(lab, front, 8080, "GET /else", &[], "").status == 200
        });
        let cookie = sign_in(lab, front, 8080, &ours).expect("a session");
        let cookies = format!("a=1; {cookie}");
        let headers = [("cookie", cookies.as_str()), ("authorization", &bearer(lab, front))];
        let passed = send(lab, front, 8080, "GET /web/headers", &headers, "");
        assert!(passed.body.contains("a=1"), "{passed:?}");
        assert!(!passed.body.contains("hearsay-session") && !passed.body.contains(&ours), "{passed:?}");
        let page = send(lab, front, 8080, "GET /login", &[], "");
        assert!(page.body.contains("API token"), "the node's own page: {page:?}");
    });
}

#[test]
fn private_nodes_are_read_with_proof_alone_and_read_each_other() {
    scenario("private_nodes_are_read_with_proof_alone_and_read_each_other", |lab| {
        let Keyed { hosts, book, front, plain } = Keyed::start_with(lab, &["--private"]);
        let read = |lab: &Lab, at, port, path: &str, headers: &[(&str, &str)]| {
            send(lab, at, port, &format!("GET {path}"), headers, "")
        };
        lab.until(20 * S, "they answer", |lab| {
            [book, front, plain].iter().all(|node| lab.get(*node, "/livez").is_some())
        });
        lab.until(20 * S, "they know each other", |lab| {
            [book, front, plain].iter().all(|node| {
                let token = bearer(lab, *node);
                let members = read(lab, *node, 7500, "/members", &[("authorization", &token)]).json();
                members["members"].as_array().is_some_and(|members| members.len() == 3)
            })
        });
        let (ours, books) = (bearer(lab, front), bearer(lab, book));
        lab.until(20 * S, "portal and gateway read the grade book", |lab| {
            let proof = [("authorization", ours.as_str())];
            read(lab, front, 7500, "/portal", &proof).body.contains("/portal/students/1")
                && is_served(lab, front, &proof)
        });
        for (at, port, path) in [
            (book, 7500, "/students"),
            (book, 7500, "/log"),
            (book, 7500, "/members"),
            (book, 7500, "/metrics"),
            (front, 7500, "/portal"),
            (front, 8080, "/students"),
            (front, 8080, "/portal"),
        ] {
            assert_eq!(read(lab, at, port, path, &[]).status, 401, "{path} at {port}");
            let other = bearer(lab, plain);
            assert_eq!(
                read(lab, at, port, path, &[("authorization", &other)]).status,
                401,
                "{path} at {port}"
            );
            let token = if at == book { &books } else { &ours };
            assert_eq!(
                read(lab, at, port, path, &[("authorization", token)]).status,
                200,
                "{path} at {port}"
            );
        }
        for path in ["/livez", "/readyz", "/login"] {
            assert_eq!(read(lab, book, 7500, path, &[]).status, 200, "{path}");
        }
        let cookie = sign_in(lab, front, 8080, &token(lab, front)).expect("a session");
        assert_eq!(read(lab, front, 8080, "/students", &[("cookie", &cookie)]).status, 200);
        let led = read(lab, front, 8080, "/portal", &[("accept", "text/html,application/xhtml+xml")]);
        assert_eq!((led.status, led.header("location")), (303, Some("/login?next=%2Fportal")), "{led:?}");
        // On its own machine a node is read as before.
        let listed = lab.command(Some(&hosts[2]), "plain", &["members"]).output().unwrap();
        assert!(listed.status.success(), "{listed:?}");
    });
}

/// Limit of the log, in bytes.
const LOG_MAX: u64 = 4_000_000;

/// Records in NDJSON of nearly 1 MiB, the largest request.
fn large_request() -> String {
    format!("{}\n", json!({"message": "x".repeat(30_000)})).repeat(30)
}

/// Returns whether the log of a node has this record.
fn finds(lab: &Lab, node: NodeRef, word: &str) -> bool {
    let found = lab.get(node, &format!("/log?q={word}")).unwrap_or_default();
    found["records"].as_array().is_some_and(|records| records.len() == 1)
}

/// Returns a value of `/metrics`.
fn metric(lab: &Lab, node: NodeRef, name: &str) -> u64 {
    let text = lab.text(node, "/metrics").unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
    value.map_or(0, |value| value as u64)
}

#[test]
fn a_stranger_that_floods_the_log_pushes_out_no_record_of_another_source_or_node() {
    scenario("a_stranger_that_floods_the_log_pushes_out_no_record_of_another_source_or_node", |lab| {
        let hosts: Vec<Host> = (0..4).map(|_| lab.host()).collect();
        let bound = LOG_MAX.to_string();
        let role = ["--role", "log", "--log-max-bytes", bound.as_str()];
        let (first, second) = (plain(lab, &hosts[0], 0, &role), plain(lab, &hosts[1], 1, &role));
        all_see_all(lab, &[first, second]);
        let (honest, stranger) = (&hosts[2], &hosts[3]);
        let post = |lab: &Lab, from: &Host, to: NodeRef, kind: &str, body: &str| {
            let at = lab.address(to);
            from.enter(|| http::send(at, "POST /log", &[("content-type", kind)], body, 10 * S).unwrap())
        };
        assert_eq!(post(lab, honest, first, "text/plain", "a kestrel of another host").status, 200);
        assert_eq!(hosts[1].send(7500, "POST /log", r#"{"message":"a heron of another node"}"#).status, 200);
        lab.until(20 * S, "both have both", |lab| {
            [first, second].iter().all(|node| finds(lab, *node, "kestrel") && finds(lab, *node, "heron"))
        });

        let large = large_request();
        let replies: Vec<Reply> = [first, second]
            .iter()
            .flat_map(|node| (0..12).map(|_| post(lab, stranger, *node, "application/x-ndjson", &large)))
            .collect();
        let stored = replies.iter().filter(|reply| reply.status == 200).count();
        let refused: Vec<&Reply> = replies.iter().filter(|reply| reply.status == 429).collect();
        assert!(stored > 0 && stored + refused.len() == replies.len(), "{stored} stored: {refused:?}");
        for reply in &refused {
            assert!(reply.header("retry-after").is_some() && reply.json()["source"] == stranger.ip.as_str());
            assert!(reply.body.contains("nothing was stored"), "{reply:?}");
        }
        let counted = metric(lab, first, "hearsay_log_writes_over_share_total")
            + metric(lab, second, "hearsay_log_writes_over_share_total");
        assert_eq!(counted, refused.len() as u64);
        // Hosts that do not flood are not affected.
        assert_eq!(post(lab, honest, first, "text/plain", "a magpie after the flood").status, 200);
        let bytes = |lab: &Lab, node| metric(lab, node, "hearsay_journal_database_bytes{topic=\"log\"}");
        lab.until(20 * S, "both have what was stored, and no more than there may be", |lab| {
            [first, second]
                .iter()
                .all(|node| finds(lab, *node, "magpie") && (500_000..=LOG_MAX).contains(&bytes(lab, *node)))
        });
        for node in [first, second] {
            assert!(finds(lab, node, "kestrel") && finds(lab, node, "heron"), "{node:?}");
        }

        // Shares survive a restart.
        lab.crash(first);
        let first = plain(lab, &hosts[0], 0, &role);
        lab.until(20 * S, "the first node is there again", |lab| finds(lab, first, "magpie"));
        let again = post(lab, stranger, first, "application/x-ndjson", &large);
        assert_eq!(again.status, 429, "{again:?}");
        all_see_all(lab, &[first, second]);

        // The operator of a node is never refused. Its writes take no place from another node.
        let at = SocketAddr::from(([127, 0, 0, 1], 7500));
        for _ in 0..12 {
            let reply = hosts[0].enter(|| {
                http::send(at, "POST /log", &[("content-type", "application/x-ndjson")], &large, 10 * S)
                    .unwrap()
            });
            assert_eq!(reply.status, 200, "{reply:?}");
        }
        lab.until(30 * S, "both drop what is too much", |lab| {
            [first, second].iter().all(|node| {
                metric(lab, *node, "hearsay_journal_dropped_total{topic=\"log\"}") > 0
                    && (500_000..=LOG_MAX).contains(&bytes(lab, *node))
            })
        });
        for node in [first, second] {
            assert!(finds(lab, node, "heron"), "{node:?}");
        }
    });
}
