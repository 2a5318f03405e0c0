//! Every error code of docs/jsonrpc.md, provoked with curl, and over lines where it depends on the
//! connection. Only -32603 is missing: no request is known that makes a path fail with 500.

use hearsay_tests::{
    Cluster as _, Host, Lab, NodeRef,
    clients::find_program,
    registry::{all_see_all, passing},
    scenario,
};
use serde_json::{Value, json};

use super::{BATCH_MAX, S, curl, curl_to, lines, request};

/// Bytes of the log, so that one source soon has its share.
const LOG_MAX: &str = "4000000";
/// A client elsewhere, without proof.
const ELSEWHERE: &[&str] = &["-H", "x-forwarded-for: 192.0.2.1"];

/// Sends a call with curl, and returns the code, 0 for a result, and the response.
fn call(lab: &Lab, host: &Host, options: &[&str], method: &str, params: &Value) -> (i64, Value) {
    let (status, body) = curl(lab, host, options, request(method, params).to_string().as_bytes());
    assert_eq!(status, 200, "{body}");
    let response: Value = serde_json::from_str(&body).unwrap();
    (response["error"]["code"].as_i64().unwrap_or(0), response)
}

/// Fails unless a call has this code, and the problem of its path this status.
fn expect(
    lab: &Lab,
    host: &Host,
    options: &[&str],
    (method, params): (&str, Value),
    (code, status): (i64, u16),
) {
    let (found, response) = call(lab, host, options, method, &params);
    assert_eq!((found, &response["error"]["data"]["status"]), (code, &json!(status)), "{method}: {response}");
}

/// Starts three nodes: one without roles, and two with the grade book, of which the first has the log, too.
fn start(lab: &mut Lab) -> ([Host; 3], [NodeRef; 3]) {
    let hosts = [lab.host(), lab.host(), lab.host()];
    let plain = lab.start(Some(&hosts[0]), "m0", 7500, &["--name", "m0", "--jsonrpc-tcp", "0.0.0.0:7800"]);
    lab.until(10 * S, "it answers", |lab| lab.get(plain, "/members").is_some());
    expect(lab, &hosts[0], &[], ("students.list", json!([])), (-32053, 503));
    let log = ["--name", "m1", "--role", "grading,log", "--log-max-bytes", LOG_MAX];
    let first = lab.start(Some(&hosts[1]), "m1", 7500, &log);
    let second = lab.start(Some(&hosts[2]), "m2", 7500, &["--name", "m2", "--role", "grading"]);
    let nodes = [plain, first, second];
    all_see_all(lab, &nodes);
    lab.until(10 * S, "the roles are listed", |lab| {
        passing(lab, plain, "grading") == 2 && passing(lab, plain, "log") == 1
    });
    (hosts, nodes)
}

/// Proofs and conflicts.
fn refused(lab: &Lab, hosts: &[Host; 3]) {
    expect(lab, &hosts[0], ELSEWHERE, ("students.add", json!(["A", "B"])), (-32001, 401));
    expect(lab, &hosts[0], ELSEWHERE, ("services.register", json!(["web", 80])), (-32001, 401));
    let other = json!({ "name": "web", "port": 80, "address": "10.9.9.9" });
    let other = request("services.register", &other).to_string();
    let (_, answer) = curl_to(lab, &hosts[1], &hosts[0].ip, &[], other.as_bytes());
    assert!(answer.contains("-32003"), "{answer}");
    expect(lab, &hosts[0], &[], ("services.get", json!(["none"])), (-32004, 404));
    expect(lab, &hosts[0], &[], ("students.get", json!([987_654_321])), (-32004, 404));
    let student = json!({ "id": 7, "firstName": "A", "lastName": "B" });
    assert_eq!(call(lab, &hosts[1], &[], "students.add", &student).0, 0);
    expect(lab, &hosts[1], &[], ("students.add", student), (-32009, 409));
    let long = json!(["x".repeat(40_000)]);
    expect(lab, &hosts[0], &[], ("log.append", long.clone()), (-32013, 413));
    let line = json!({ "method": "log.append", "params": long, "id": 1 });
    let answers = lines(&hosts[0], format!("{line}\n").as_bytes());
    assert!(answers[0]["error"].as_str().unwrap().ends_with("(-32013)"), "{answers:?}");
}

/// One host holds its share of the log.
fn too_many(lab: &Lab, hosts: &[Host; 3]) {
    let from = |host: &Host, params: Value| {
        let message = request("log.append", &params).to_string();
        curl_to(lab, host, &hosts[1].ip, &[], message.as_bytes()).1
    };
    assert!(from(&hosts[2], json!(["a record of another host"])).contains("result"));
    let records = vec![json!({ "message": "x".repeat(30_000) }); 30];
    let refused = (0..12)
        .map(|_| from(&hosts[0], json!({ "records": records })))
        .find(|answer| answer.contains("-32029"));
    assert!(refused.expect("the share is used up").contains("\"retryAfter\":60"));
}

/// Results that are too large together.
fn too_large(lab: &Lab, host: &Host) {
    for part in 0..3 {
        let instance = |number: usize| {
            let id = format!("{:0200}", part * BATCH_MAX + number);
            request(
                "services.register",
                &json!({ "name": "web", "port": 80, "id": id, "meta": { "text": "x".repeat(400) } }),
            )
        };
        let batch: Vec<Value> = (0..BATCH_MAX).map(instance).collect();
        let (_, answers) = curl(lab, host, &[], json!(batch).to_string().as_bytes());
        assert!(!answers.contains("\"error\""), "{answers}");
    }
    let batch = vec![request("services.list", &json!({})); BATCH_MAX];
    let (status, answers) = curl(lab, host, &[], json!(batch).to_string().as_bytes());
    let answers: Value = serde_json::from_str(&answers).unwrap();
    let last = &answers[BATCH_MAX - 1]["error"];
    assert!(status == 200 && answers[0]["result"].is_object(), "{}", answers[0]);
    assert_eq!((&last["code"], &last["data"]["status"]), (&json!(-32057), &json!(507)), "{last}");
}

#[test]
fn curl_sees_every_code() {
    const TEST: &str = "codes::curl_sees_every_code";
    if find_program(TEST, "curl", None).is_none() {
        return;
    }
    scenario(TEST, |lab| {
        let (hosts, nodes) = start(lab);
        for (message, code) in [
            ("{", -32700),
            ("[]", -32600),
            (r#"{"jsonrpc":"2.0","method":"none","id":1}"#, -32601),
            (r#"{"jsonrpc":"2.0","method":"why","id":1}"#, -32602),
        ] {
            let (_, body) = curl(lab, &hosts[0], &[], message.as_bytes());
            let response: Value = serde_json::from_str(&body).unwrap();
            assert_eq!(response["error"]["code"], code, "{body}");
        }
        refused(lab, &hosts);
        too_many(lab, &hosts);
        too_large(lab, &hosts[0]);
        // A node that has stopped, before the others have declared it failed, and a write that needs it.
        lab.signal(nodes[2], "STOP");
        let at_m2 = json!({ "name": "api", "port": 80, "node": "m2" });
        expect(lab, &hosts[0], &[], ("services.register", at_m2), (-32052, 502));
        let majority = json!({ "firstName": "A", "lastName": "B", "ack": "majority" });
        let (code, response) = call(lab, &hosts[1], &[], "students.add", &majority);
        assert_eq!(
            (code, &response["error"]["data"]["outcome"]),
            (-32054, &json!("indeterminate")),
            "{response}"
        );
        lab.signal(nodes[2], "CONT");
    });
}

#[test]
fn lines_have_the_rights_of_their_host() {
    scenario("codes::lines_have_the_rights_of_their_host", |lab| {
        let host = lab.host();
        let options =
            ["--name", "m0", "--jsonrpc-tcp", "0.0.0.0:7800", "--loopback-needs-token", "--role", "grading"];
        let node = lab.start(Some(&host), "m0", 7500, &options);
        lab.until(10 * S, "it answers", |lab| lab.get(node, "/students").is_some());
        let line = b"{\"method\":\"services.register\",\"params\":[\"web\",80],\"id\":1}\n{\"method\":\"students.list\",\"params\":[],\"id\":2}\n{\"method\":\"log.append\",\"params\":[\"m\"],\"id\":3}\n";
        let answers = lines(&host, line);
        let error = |number: usize| answers[number]["error"].as_str().unwrap_or_default();
        assert!(error(0).ends_with("(-32001)"), "{answers:?}");
        assert!(answers[1]["result"].is_array(), "{answers:?}");
        assert!(error(2).ends_with("(-32001)"), "{answers:?}");
    });
}

#[test]
fn a_role_at_a_private_node_is_refused_to_this_node_and_not_to_its_client() {
    const TEST: &str = "codes::a_role_at_a_private_node_is_refused_to_this_node_and_not_to_its_client";
    if find_program(TEST, "curl", None).is_none() {
        return;
    }
    scenario(TEST, |lab| {
        let hosts = [lab.host(), lab.host()];
        let plain = lab.start(Some(&hosts[0]), "m0", 7500, &["--name", "m0"]);
        lab.start(Some(&hosts[1]), "m1", 7500, &["--name", "m1", "--role", "grading", "--private"]);
        lab.until(20 * S, "the role is listed", |lab| passing(lab, plain, "grading") == 1);
        let (code, response) = call(lab, &hosts[0], &[], "students.list", &json!([]));
        assert_eq!((code, &response["error"]["data"]["status"]), (-32052, &json!(502)), "{response}");
        let text = response["error"]["message"].as_str().unwrap();
        assert!(["\"m1\"", "--private, too"].iter().all(|words| text.contains(words)), "{text}");
        assert!(!text.contains("token"), "{text}");
        // Writes are signed.
        assert_eq!(call(lab, &hosts[0], &[], "students.add", &json!(["Ada", "Lovelace"])).0, 0);
        assert_eq!(call(lab, &hosts[1], &[], "students.list", &json!([])).0, 0);
    });
}
