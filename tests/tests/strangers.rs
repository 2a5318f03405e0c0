//! Writes of strangers: hosts of the network that have neither the cluster's key nor a node's token.

use std::time::Duration;

use hearsay_tests::{
    Cluster as _, Host, Lab, NodeRef, find,
    http::{self, Reply},
    registry::{all_see_all, instances, plain},
    scenario,
};
use serde_json::{Value, json};

const S: Duration = Duration::from_secs(1);
const JSON: (&str, &str) = ("content-type", "application/json");
const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");
/// The key of a form of the portal, which tells a second click from a second form.
const FORM_KEY: &str = "0123456789abcdef0123456789abcdef";

/// Three hosts with a key in common: a grade book and a log; a portal and a gateway; a plain node.
struct Keyed {
    hosts: Vec<Host>,
    book: NodeRef,
    front: NodeRef,
    plain: NodeRef,
}

impl Keyed {
    fn start(lab: &mut Lab) -> Self {
        let key = lab.dir().join("cluster.key");
        let made = lab.command(None, "keys", &["keygen"]).output().expect("a key");
        std::fs::write(&key, made.stdout).expect("a directory that can be written");
        let hosts: Vec<Host> = (0..3).map(|_| lab.host()).collect();
        let key = key.to_str().expect("a path in UTF-8").to_owned();
        let mut start = |host: &Host, name: &str, more: &[&str]| {
            lab.start(Some(host), name, 7500, &[&["--name", name, "--key-file", &key], more].concat())
        };
        let book = start(&hosts[0], "book", &["--role", "grading,log,visits", "--demo"]);
        let front = start(&hosts[1], "front", &["--role", "portal,gateway"]);
        let plain = start(&hosts[2], "plain", &[]);
        all_see_all(lab, &[book, front, plain]);
        lab.until(10 * S, "the portal finds the grade book", |lab| {
            students(lab, book) > 0
                && lab.text(front, "/portal").is_some_and(|page| page.contains("/portal/students/1"))
        });
        Self { hosts, book, front, plain }
    }
}

fn bearer(lab: &Lab, node: NodeRef) -> String {
    let token = find(&lab.dir().join(lab.name_of(node)), "api-token").expect("the node has a token");
    format!("Bearer {}", std::fs::read_to_string(token).expect("its token").trim())
}

fn send(lab: &Lab, to: NodeRef, port: u16, request: &str, headers: &[(&str, &str)], body: &str) -> Reply {
    let mut address = lab.address(to);
    address.set_port(port);
    http::send(address, request, headers, body, 10 * S).expect("an answer")
}

/// How many students the grade book has.
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

        // The token of the node that is asked, and of no other.
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

        // The command line on the machine of a node has that node pass on what others keep.
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
            ("DELETE /services/web-1?node=nobody", 404),
            ("DELETE /services/web-1?node=book", 404),
            ("DELETE /services/web-1?node=plain", 404),
            ("PUT /v1/agent/leave?node=book", 401),
            ("POST /services?hold&node=book", 400),
        ] {
            let reply = hosts[2].send(7500, request, "");
            assert_eq!(reply.status, status, "{request}: {reply:?}");
        }
        assert_eq!(send(lab, plain, 7500, "DELETE /services/web-1?node=book", &[], "").status, 401);

        // Nodes ship their events to the log, and reading is as it was.
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
        let add = |lab: &Lab, at: NodeRef| {
            let student = json!({"firstName": "Ada", "lastName": "Again"}).to_string();
            send(lab, at, 8080, "POST /students", &[JSON, ("authorization", &token)], &student)
        };
        assert_eq!(add(lab, front).status, 201);
        let key = lab.dir().join("cluster.key").to_str().unwrap().to_owned();
        lab.crash(front);
        let arguments = ["--name", "front", "--key-file", &key, "--role", "portal,gateway"];
        let front = lab.start(Some(&hosts[1]), "front", 7500, &arguments);
        lab.until(20 * S, "the gateway is there again", |lab| {
            lab.get(front, "/gateway").is_some_and(|gateway| gateway["listener"].is_string())
        });
        lab.until(20 * S, "it writes again", |lab| add(lab, front).status == 201);
        lab.crash(book);
        let arguments = ["--name", "book", "--key-file", &key, "--role", "grading,log,visits", "--demo"];
        _ = lab.start(Some(&hosts[0]), "book", 7500, &arguments);
        lab.until(20 * S, "the role takes writes again", |lab| add(lab, front).status == 201);
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
        // What one host has registered is no other's, and neither is what the machine itself has.
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
        // Its own it reports for, replaces and removes; as what a proxy passes on it does none of that.
        assert_eq!(send(&there, "PUT /checks/service:web-1", &[], &json!({"status": "passing"})).status, 200);
        let again = json!({"name": "web", "id": "web-1", "port": 81});
        let passed_on = [("x-forwarded-for", there.ip.as_str())];
        assert_eq!(send(&there, "POST /services", &passed_on, &again).status, 401);
        assert_eq!(post(&there, again).status, 200);
        assert_eq!(send(&there, "DELETE /services/web-1", &[], &null).status, 200);
        // The node itself is its machine's, and a GET that writes is nobody's without proof.
        assert_eq!(send(&there, "PUT /v1/agent/leave", &[], &null).status, 401);
        assert_eq!(send(&there, "GET /visits/hit", &[], &null).status, 401);
        assert_eq!(send(&there, "POST /visits", &[], &null).status, 200);
    });
}
