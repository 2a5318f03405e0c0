//! Tests of JSON-RPC through the router: batches and notifications, errors, the proof that each call needs,
//! roles of other nodes, and the lines of `--jsonrpc-tcp`.

use hearsay_protocol::SIGNATURE_HEADER;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, BufReader};

use super::*;
use crate::apis::jsonrpc::JsonRpcServer;

const JSON: &str = "content-type: application/json";
const ELSEWHERE: &str = "via: 1.1 elsewhere";

fn keyed() -> Access {
    Access { token: Some(Secret::new("s3cret".to_owned())), is_keyed: true, ..Access::default() }
}

/// Sends a message and returns the response.
async fn rpc(server: &Server, headers: &[&str], message: &Value) -> Value {
    let reply = server.send("POST /rpc", &[&[JSON], headers].concat(), message.to_string()).await;
    assert_eq!((reply.status, reply.header("content-type")), (200, "application/json"), "{reply:?}");
    reply.json()
}

/// Calls a method and returns its result, or the code and the problem details of its error.
async fn call(server: &Server, headers: &[&str], method: &str, params: Value) -> Result<Value, (i64, Value)> {
    let message = json!({ "jsonrpc": "2.0", "method": method, "params": params, "id": "a" });
    let response = rpc(server, headers, &message).await;
    assert_eq!((&response["jsonrpc"], &response["id"]), (&json!("2.0"), &json!("a")));
    match response.get("error") {
        None => Ok(response["result"].clone()),
        Some(error) => {
            assert_eq!(error["message"], error["data"]["detail"], "{error}");
            Err((error["code"].as_i64().unwrap(), error["data"].clone()))
        }
    }
}

#[tokio::test]
async fn a_result_is_the_body_of_the_path() {
    let server = Server::start().await;
    server.apply([joined(member(1)), offered(instance(1, "g", "grading"))]);
    for (method, params, path) in [
        ("services.list", json!({}), "/services"),
        ("Services.List", json!([{}]), "/services"),
        (
            "services.list",
            json!({ "tag": ["a", "n1"], "health": "passing" }),
            "/services?tag=a&tag=n1&health=passing",
        ),
        ("services.get", json!({ "name": "grading" }), "/services/grading"),
        ("services.get", json!(["grading", "g"]), "/services/grading/g"),
        ("members.list", json!({}), "/members"),
        ("why", json!(["grading"]), "/why/grading"),
        ("students.list", json!({ "limit": 2 }), "/students?limit=2"),
        ("students.get", json!([1]), "/students/1"),
    ] {
        let result = call(&server, &[], method, params).await;
        assert_eq!(result, Ok(server.get(path).await.json()), "{method}");
    }
    let text = server.get("/metrics").await.body;
    assert!(text.contains("hearsay_jsonrpc_calls_total{method=\"services.list\",code=\"0\"} 3"), "{text}");
}

#[tokio::test]
async fn a_grade_book_is_written() {
    let server = Server::start().await;
    let added = call(&server, &[], "students.add", json!(["Ada", "Lovelace"])).await.unwrap();
    let grade = json!({ "student": added["id"], "title": "Notes", "type": "Exam", "score": 97 });
    let grade = call(&server, &[], "students.addGrade", grade).await.unwrap();
    let seen = call(&server, &[], "students.get", json!([added["id"]])).await.unwrap();
    assert_eq!((&seen["lastName"], &seen["grades"][0]["id"]), (&json!("Lovelace"), &grade["id"]));
    let renamed = json!({ "id": added["id"], "firstName": "Ada", "lastName": "King" });
    assert_eq!(call(&server, &[], "students.replace", renamed).await.unwrap()["lastName"], "King");
    let ungraded = call(&server, &[], "students.removeGrade", json!([added["id"], grade["id"]])).await;
    assert_eq!(ungraded, Ok(json!({})), "a path without a body");
    assert_eq!(call(&server, &[], "students.remove", json!([added["id"]])).await, Ok(json!({})));
    let (code, problem) = call(&server, &[], "students.get", json!([added["id"]])).await.unwrap_err();
    assert_eq!((code, &problem["status"]), (-32004, &json!(404)));
}

#[tokio::test]
async fn each_error_has_its_code_and_problem_details() {
    let server = Server::start().await;
    let refused = async |method: &str, params: Value| {
        let (code, problem) = call(&server, &[], method, params).await.unwrap_err();
        (code, problem["status"].as_u64().unwrap(), problem["detail"].as_str().unwrap().to_owned())
    };
    let (code, status, detail) = refused("services.none", json!({})).await;
    assert_eq!((code, status), (-32601, 404));
    assert!(
        detail.contains("\"services.none\"") && detail.contains("services.list, services.get"),
        "{detail}"
    );
    assert_eq!(refused("why", json!({})).await, (-32602, 400, "subject: is missing".to_owned()));
    let (code, status, detail) = refused("services.list", json!({ "health": "fine" })).await;
    assert_eq!((code, status), (-32602, 400), "refused by the path: {detail}");
    let (code, status, _) = refused("services.get", json!(["watch"])).await;
    assert_eq!((code, status), (-32004, 404), "a service, not the event stream");
    assert_eq!(refused("log.append", json!(["m"])).await.0, -32053, "no node keeps the log");
    for (message, code) in [
        ("{", -32700),
        ("", -32700),
        ("\"a\"", -32600),
        ("[]", -32600),
        ("{\"jsonrpc\":\"2.0\",\"id\":1}", -32600),
        ("{\"jsonrpc\":\"2.0\",\"method\":\"why\",\"params\":1,\"id\":1}", -32600),
    ] {
        let reply = server.send("POST /rpc", &[JSON], message).await;
        let response = reply.json();
        assert_eq!((reply.status, &response["error"]["code"]), (200, &json!(code)), "{message}");
        assert_eq!(response["error"]["data"]["status"], 400);
    }
    let unread = server.send("POST /rpc", &[JSON], "[1e999]").await.json();
    assert_eq!((unread.as_array().unwrap().len(), &unread[0]["error"]["code"]), (1, &json!(-32600)));
    server.send("POST /rpc?node=n2", &[JSON], "{}").await.problem(400);
    assert_eq!(server.get("/rpc").await.status, 405);
    assert_eq!(server.send("POST /rpc/", &[JSON], "{").await.status, 200, "with a slash at the end");
}

#[tokio::test]
async fn a_batch_is_answered_in_order_without_its_notifications() {
    let server = Server::start().await;
    let request = |id: Value, method: &str| json!({ "jsonrpc": "2.0", "method": method, "id": id });
    let notification = json!({ "jsonrpc": "2.0", "method": "students.add", "params": ["A", "Notified"] });
    let batch = json!([request(json!(1), "members.list"), notification, 1, request(json!("x"), "no.such")]);
    let responses = rpc(&server, &[], &batch).await;
    let facts: Vec<_> =
        responses.as_array().unwrap().iter().map(|r| (&r["id"], &r["error"]["code"])).collect();
    let (one, x) = (json!(1), json!("x"));
    let codes = [json!(-32600), json!(-32601)];
    assert_eq!(facts, [(&one, &Value::Null), (&Value::Null, &codes[0]), (&x, &codes[1])]);
    let found = call(&server, &[], "students.list", json!({ "q": "Notified" })).await.unwrap();
    assert_eq!(found.as_array().unwrap().len(), 1, "the notification was carried out");
    for message in [notification.clone(), json!([notification, notification])] {
        let reply = server.send("POST /rpc", &[JSON], message.to_string()).await;
        assert_eq!((reply.status, reply.body.as_str()), (204, ""));
    }
    let most = vec![request(json!(1), "why"); 100];
    assert_eq!(rpc(&server, &[], &json!(most)).await.as_array().unwrap().len(), 100);
    let more = rpc(&server, &[], &json!(vec![request(json!(1), "why"); 101])).await;
    assert_eq!(more["error"]["code"], -32600);
    assert_eq!(server.metrics.jsonrpc.refused_count("batch_requests"), 1);
}

#[tokio::test]
async fn each_call_needs_the_proof_of_its_path() {
    let server =
        Server::with(Setup { access: keyed(), roles: &["grading", "log"], ..Setup::default() }).await;
    let writes = [
        ("services.register", json!({ "name": "web", "port": 80 })),
        ("services.register", json!({ "name": "web", "port": 80, "node": "n2" })),
        ("services.deregister", json!(["web-1"])),
        ("students.add", json!(["A", "B"])),
        ("students.replace", json!([1, "A", "B"])),
        ("students.remove", json!([1])),
        ("students.addGrade", json!([1, "T", "Quiz", 1])),
        ("students.removeGrade", json!([1, 1])),
        ("log.append", json!(["m"])),
    ];
    let token = "authorization: Bearer s3cret";
    for (method, params) in writes {
        // A signature proves one request, and this one is of no member besides.
        for headers in [&[ELSEWHERE][..], &[ELSEWHERE, "authorization: Bearer wrong"]] {
            let (code, problem) = call(&server, headers, method, params.clone()).await.unwrap_err();
            assert_eq!((code, &problem["status"]), (-32001, &json!(401)), "{method}");
        }
        let outcome = call(&server, &[ELSEWHERE, token], method, params.clone()).await;
        assert!(outcome.is_ok() || outcome.as_ref().is_err_and(|(code, _)| *code != -32001), "{outcome:?}");
    }
    assert!(call(&server, &[ELSEWHERE], "members.list", json!({})).await.is_ok(), "reads are free");
    let forged = format!("{SIGNATURE_HEADER}: x");
    let reply = server.send("POST /rpc", &[JSON, &forged], "[]").await;
    assert_eq!(reply.status, 401, "{reply:?}");
}

#[tokio::test]
async fn the_signature_of_a_member_is_no_proof_for_inner_requests() {
    let server = Server::with(Setup { access: keyed(), ..Setup::default() }).await;
    server.apply([joined(member(1)), joined(member(2))]);
    let view = Arc::new(View::new(START, Clock::start()));
    view.apply(Time::ZERO, [joined(member(1)), joined(member(2))]);
    let other = Signing::new(Identity::from_seed(&[2; 32]), "test".to_owned(), view, None);
    let message =
        json!({ "jsonrpc": "2.0", "method": "students.add", "params": ["A", "B"], "id": 1 }).to_string();
    let mut headers = http::HeaderMap::new();
    headers.insert("content-type", http::HeaderValue::from_static("application/json"));
    let request = hearsay_services::http::UnsignedRequest {
        method: &http::Method::POST,
        authority: "127.0.0.1",
        target: "/rpc",
        headers: &headers,
    };
    let signature = other.sign(node_id(1), &request, message.as_bytes()).unwrap();
    let signature = format!("{SIGNATURE_HEADER}: {}", signature.to_str().unwrap());
    let reply = server.send("POST /rpc", &[JSON, ELSEWHERE, &signature], &message).await;
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (200, &json!(-32001)), "{reply:?}");
}

#[tokio::test]
async fn a_private_node_reveals_nothing_without_proof() {
    let access = Access { reads_need_proof: true, ..keyed() };
    let server = Server::with(Setup { access, ..Setup::default() }).await;
    for (method, params) in [
        ("services.list", json!({})),
        ("services.get", json!(["grading"])),
        ("members.list", json!({})),
        ("why", json!(["n1"])),
        ("students.list", json!({})),
        ("students.get", json!([1])),
    ] {
        let (code, _) = call(&server, &[ELSEWHERE], method, params.clone()).await.unwrap_err();
        assert_eq!(code, -32001, "{method}");
        let outcome = call(&server, &[ELSEWHERE, "authorization: Bearer s3cret"], method, params).await;
        assert!(outcome.is_ok() || outcome.is_err_and(|(code, _)| code == -32004), "{method}");
    }
}

#[tokio::test]
async fn no_page_of_another_site_and_no_form_uses_it() {
    let server = Server::start().await;
    let message =
        json!({ "jsonrpc": "2.0", "method": "students.add", "params": ["A", "B"], "id": 1 }).to_string();
    for (headers, status) in [
        (&[JSON, "origin: http://evil.example"][..], 403),
        (&[JSON, "sec-fetch-site: cross-site"], 403),
        (&["content-type: text/plain"], 415),
        (&["content-type: application/x-www-form-urlencoded"], 415),
        (&[], 415),
        (&[JSON, "host: evil.example"], 421),
    ] {
        server.send("POST /rpc", headers, &message).await.problem(status);
    }
    let own = [JSON, "origin: http://127.0.0.1", "sec-fetch-site: same-origin"];
    assert!(server.send("POST /rpc", &own, &message).await.json()["result"]["id"].is_number());
}

#[tokio::test]
async fn a_role_of_another_node_is_reached_with_the_proof_of_a_role() {
    let server = Server::with(Setup { access: keyed(), roles: &[], ..Setup::default() }).await;
    let (code, problem) = call(&server, &[], "students.list", json!({})).await.unwrap_err();
    assert_eq!((code, &problem["status"]), (-32053, &json!(503)));
    assert!(problem["detail"].as_str().unwrap().contains("--role grading"), "{problem}");
    // The class is that of the role, and not admin as of an unknown path.
    let (code, problem) = call(&server, &[ELSEWHERE], "students.add", json!(["A", "B"])).await.unwrap_err();
    assert_eq!((code, &problem["class"]), (-32001, &json!("role")));
    // Only inner requests are forwarded.
    server.get("/students").await.problem(404);
}

#[tokio::test]
async fn an_id_returns_unchanged() {
    let server = Server::start().await;
    for id in ["12345678901234567890123456789", "1.50", "\"\\u0041\"", "null"] {
        for method in ["members.list", "no.such"] {
            let message = format!("{{\"jsonrpc\":\"2.0\",\"method\":\"{method}\",\"id\":{id}}}");
            let reply = server.send("POST /rpc", &[JSON], message).await;
            assert!(reply.body.ends_with(&format!(",\"id\":{id}}}")), "{reply:?}");
        }
    }
}

#[tokio::test]
async fn an_idempotency_key_is_a_parameter_of_a_call_and_not_of_a_message() {
    let server = Server::start().await;
    let message =
        json!({ "jsonrpc": "2.0", "method": "students.add", "params": ["A", "Unwritten"], "id": 1 });
    let reply = server.send("POST /rpc", &[JSON, "idempotency-key: k"], message.to_string()).await;
    reply.problem(400);
    assert!(reply.body.contains("the parameter idempotencyKey of the call"), "{reply:?}");
    assert_eq!(server.get("/students?q=Unwritten").await.json(), json!([]));
}

#[tokio::test]
async fn a_message_has_the_tokens_of_its_request_and_the_receipts_of_its_writes() {
    let server = Server::start().await;
    let add = json!({ "jsonrpc": "2.0", "method": "students.add", "params": ["A", "Receipt"], "id": 1 });
    let read = json!({ "jsonrpc": "2.0", "method": "students.list", "params": ["Receipt"], "id": 2 });
    let send = async |headers: &[&str], message: &Value| {
        server.send("POST /rpc", &[&[JSON], headers].concat(), message.to_string()).await
    };
    let student = json!({ "firstName": "A", "lastName": "Other" }).to_string();
    let of_path = server.send("POST /students", &[JSON], student).await.header("hearsay-ack").to_owned();
    let reply = send(&[], &json!([add, read, add])).await;
    let tokens = reply.header("hearsay-token").to_owned();
    assert_eq!((tokens.split(',').count(), reply.header("hearsay-ack")), (2, of_path.as_str()), "{reply:?}");
    let notified = json!({ "jsonrpc": "2.0", "method": "students.add", "params": ["A", "Receipt"] });
    let reply = send(&[], &notified).await;
    assert_eq!((reply.status, reply.header("hearsay-ack")), (204, of_path.as_str()));
    let reply = send(&[&format!("hearsay-token: {tokens}")], &read).await;
    assert_eq!(reply.json()["result"].as_array().unwrap().len(), 3, "{reply:?}");
    assert_eq!((reply.header("hearsay-token"), reply.header("hearsay-ack")), ("", ""), "nothing was written");
    // The token of an entry that never arrives: the read has waited for it.
    let (feed, _) = tokens.split(',').next().unwrap().rsplit_once('-').unwrap();
    for (token, code) in
        [(format!("{feed}-999"), -32053), ("x".to_owned(), -32602), (vec!["x"; 17].join(","), -32602)]
    {
        let reply = send(&[&format!("hearsay-token: {token}")], &read).await;
        assert_eq!((reply.status, &reply.json()["error"]["code"]), (200, &json!(code)), "{reply:?}");
    }
    let other = json!({ "jsonrpc": "2.0", "method": "members.list", "id": 2 });
    assert!(
        send(&["hearsay-token: x"], &other).await.json()["result"].is_object(),
        "its path takes no tokens"
    );
}

/// Starts a server whose table of services has between 170 and 256 KiB, and returns that size.
async fn with_large_table() -> (Server, usize) {
    let server = Server::start().await;
    server.apply([joined(member(1))]);
    let more = |ids: std::ops::Range<usize>| {
        server.apply(ids.map(|i| offered(instance(1, &format!("{i:0200}"), "web"))));
    };
    more(0..100);
    let some = server.get("/services").await.body.len();
    more(100..100 * 220_000 / some);
    let bytes = server.get("/services").await.body.len();
    assert!((170 * 1024..256 * 1024).contains(&bytes), "{bytes}");
    (server, bytes)
}

#[tokio::test]
async fn a_write_for_whose_answer_no_room_is_left_is_not_carried_out() {
    let (server, _) = with_large_table().await;
    let read = json!({ "jsonrpc": "2.0", "method": "services.list", "id": 1 });
    let write = json!({ "jsonrpc": "2.0", "method": "students.add", "params": ["A", "Unwritten"], "id": 2 });
    let mut batch = vec![read; 99];
    batch.push(write.clone());
    let responses = rpc(&server, &[], &json!(batch)).await;
    assert!(responses[0]["result"].is_object() && responses[98]["error"]["code"] == -32057);
    let error = &responses[99]["error"];
    assert_eq!((&responses[99]["id"], &error["code"]), (&json!(2), &json!(-32057)));
    assert!(error["message"].as_str().unwrap().contains("was not carried out"), "{error}");
    assert_eq!(server.get("/students?q=Unwritten").await.json(), json!([]));
    assert!(rpc(&server, &[], &write).await["result"]["id"].is_number(), "in a message of its own");
}

#[tokio::test]
async fn a_batch_that_was_carried_out_is_never_refused_for_memory() {
    let (server, bytes) = with_large_table().await;
    let batch = json!([
        { "jsonrpc": "2.0", "method": "services.list", "id": 1 },
        { "jsonrpc": "2.0", "method": "students.add", "params": ["A", "B"], "id": 2 },
    ]);
    // The memory suffices for the table, but not for the whole response.
    let left = bytes + 60;
    let held = server.state.response_budget.acquire((1 << 28) - left).unwrap();
    let responses = rpc(&server, &[], &batch).await;
    assert!(responses[0]["result"].is_object() && responses[1]["result"]["id"].is_number());
    let rest = {
        let acquire = || server.state.response_budget.acquire(left);
        until("the memory of the response is free again", || acquire().is_some()).await;
        acquire().unwrap()
    };
    let responses = rpc(&server, &[], &batch).await;
    assert_eq!(responses[0]["error"]["code"], -32053, "no memory is left for a large result");
    assert!(responses[1]["result"]["id"].is_number(), "a small one needs none");
    drop((held, rest));
}

/// Serves `--jsonrpc-tcp` for a server, and returns the address.
async fn serve_lines(server: &Server) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let lines = JsonRpcServer::new(Arc::clone(&server.state), server.router.clone(), Limits::default());
    tokio::spawn(lines.serve(listener, server.stop.subscribe()));
    address
}

/// Sends bytes over a new connection and reads to its end.
async fn exchange(address: SocketAddr, bytes: &[u8]) -> Vec<Value> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The server may have closed the connection before it has read everything.
    _ = stream.write_all(bytes).await;
    _ = stream.shutdown().await;
    let mut text = String::new();
    _ = within(stream.read_to_string(&mut text)).await;
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn a_connection_answers_each_line_in_the_version_of_its_request() {
    let server = Server::start().await;
    let address = serve_lines(&server).await;
    let lines = concat!(
        "{\"method\":\"Members.List\",\"params\":[{}],\"id\":0}\n",
        "{\"method\":\"Services.Get\",\"params\":[{\"Name\":\"none\"}],\"id\":1}\n",
        "{\"method\":\"students.add\",\"params\":[\"A\",\"B\"],\"id\":null}\n",
        "{\"jsonrpc\":\"2.0\",\"method\":\"students.get\",\"params\":[1],\"id\":2}\n",
        "{}\n",
        "{\"method\":\"Members.List\",\"params\":[],\"id\":3}",
    );
    let answers = exchange(address, lines.as_bytes()).await;
    assert_eq!(answers.len(), 5, "{answers:?}");
    assert_eq!((&answers[0]["id"], &answers[0]["error"]), (&json!(0), &Value::Null));
    assert_eq!(answers[0]["result"]["node"], "n1");
    let error = answers[1]["error"].as_str().unwrap();
    assert!(error.contains("\"none\"") && error.ends_with("(-32004)"), "{error}");
    assert_eq!((&answers[1]["id"], &answers[1]["result"]), (&json!(1), &Value::Null));
    assert_eq!((&answers[2]["jsonrpc"], &answers[2]["result"]["id"]), (&json!("2.0"), &json!(1)));
    assert!(answers[3]["error"].as_str().unwrap().contains("method: is missing"));
    assert_eq!(answers[4]["id"], 3, "the last line may lack its end");
}

#[tokio::test]
async fn a_line_that_is_no_object_ends_the_connection() {
    let server = Server::start().await;
    let address = serve_lines(&server).await;
    let write = "{\"method\":\"students.add\",\"params\":[\"A\",\"Smuggled\"],\"id\":1}\n";
    for first in
        ["POST / HTTP/1.1\r\nhost: a\r\n\r\n", "\n", "[]\n", "1\n", "\u{16}\u{3}\u{1}\n", "{\"a\":1} {}\n"]
    {
        let answers = exchange(address, format!("{first}{write}").as_bytes()).await;
        assert!(answers.len() <= 1, "{first:?}: {answers:?}");
        assert!(answers.iter().all(|answer| answer["error"].as_str().unwrap().contains("JSON object")));
    }
    let found = server.get("/students?q=Smuggled").await.json();
    assert_eq!(found, json!([]), "no later line was carried out");
    until("all are counted", || server.metrics.jsonrpc.refused_count("not_object") == 6).await;
    // The rest of the line is still on its way when the line is refused.
    let long = format!("{{\"method\":\"{}\"}}\n", "a".repeat(900 * 1024));
    let answers = exchange(address, long.as_bytes()).await;
    assert!(answers[0]["error"].as_str().unwrap().contains("longer than 262144 bytes"), "{answers:?}");
    until("it is counted", || server.metrics.jsonrpc.refused_count("line_bytes") == 1).await;
}

#[tokio::test]
async fn an_idle_connection_ends_when_the_node_stops() {
    let server = Server::start().await;
    let address = serve_lines(&server).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"{\"method\":\"members.list\",\"params\":[],\"id\":1}\n").await.unwrap();
    let mut lines = BufReader::new(stream).lines();
    assert!(within(lines.next_line()).await.unwrap().is_some());
    server.stop.send(true).unwrap();
    assert_eq!(within(lines.next_line()).await.unwrap(), None);
}

#[tokio::test]
async fn loopback_proves_nothing_over_lines_where_it_proves_nothing_over_http() {
    let access = Access { loopback_needs_token: true, ..keyed() };
    let server = Server::with(Setup { access, ..Setup::default() }).await;
    let address = serve_lines(&server).await;
    let lines = b"{\"method\":\"students.add\",\"params\":[\"A\",\"B\"],\"id\":1}\n{\"method\":\"members.list\",\"params\":[],\"id\":2}\n";
    let answers = exchange(address, lines).await;
    assert!(answers[0]["error"].as_str().unwrap().ends_with("(-32001)"), "{answers:?}");
    assert_eq!(answers[1]["result"]["node"], "n1");
}
