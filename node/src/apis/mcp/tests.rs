//! Tests of the tools over a backend with fixed answers: the requests that each tool makes, its results and
//! errors, and the protocol over a pipe.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::StatusCode;
use rmcp::{ServiceExt as _, model::CallToolRequestParams};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    sync::{mpsc, oneshot},
};

use super::{
    backend::{Backend, ToolAnswer, ToolError, ToolRequest},
    endpoint,
    server::{McpServer, result},
    tool::ToolDefinition,
};

const NO_WRITES: &str = "writes are off";

/// A node with one answer for each target.
#[derive(Clone, Debug, Default)]
struct FixedNode {
    answers: Arc<Vec<(&'static str, u16, Value)>>,
    sent: Arc<Mutex<Vec<String>>>,
    refused: Arc<Mutex<usize>>,
    may_write: bool,
}

impl FixedNode {
    fn new(answers: impl IntoIterator<Item = (&'static str, u16, Value)>) -> Self {
        Self { answers: Arc::new(answers.into_iter().collect()), may_write: true, ..Self::default() }
    }

    /// Calls a tool, and returns whether it failed, and its structured result.
    async fn call(&self, name: &str, arguments: Value) -> (bool, Value) {
        let arguments = arguments.as_object().cloned().unwrap_or_default();
        let request = CallToolRequestParams::new(name.to_owned()).with_arguments(arguments);
        let tool = ToolDefinition::named(name).unwrap();
        let result = result(McpServer::new(self.clone()).call(tool, request).await);
        (result.is_error == Some(true), result.structured_content.unwrap())
    }

    /// Calls a tool that succeeds.
    #[track_caller]
    fn done(&self, name: &'static str, arguments: Value) -> impl Future<Output = Value> {
        let node = self.clone();
        async move {
            let (is_error, value) = node.call(name, arguments).await;
            assert!(!is_error, "{name}: {value}");
            value
        }
    }

    fn sent(&self) -> Vec<String> {
        std::mem::take(&mut self.sent.lock().unwrap())
    }
}

impl Backend for FixedNode {
    fn may_write(&self) -> Result<(), &'static str> {
        if self.may_write { Ok(()) } else { Err(NO_WRITES) }
    }

    fn count_refusal(&self) {
        *self.refused.lock().unwrap() += 1;
    }

    async fn send(&self, request: ToolRequest) -> Result<ToolAnswer, ToolError> {
        let body = request.body.map(|body| format!(" {body}")).unwrap_or_default();
        let line = format!("{} {}", request.method, request.target);
        self.sent.lock().unwrap().push(format!("{line}{body}"));
        let found = self.answers.iter().find(|(target, ..)| *target == line);
        let (_, status, json) = found.ok_or_else(|| ToolError::new(format!("unexpected: {line}")))?;
        Ok(ToolAnswer { status: StatusCode::from_u16(*status).unwrap(), body: Bytes::from(json.to_string()) })
    }

    async fn read_log(&self, target: String) -> Result<ToolAnswer, ToolError> {
        self.send(ToolRequest::read(target)).await
    }
}

fn services() -> Value {
    json!({ "cluster": "test", "node": "n1", "index": 7, "services": {
        "Web": [{ "id": "w1", "health": "passing", "tags": ["mcp", "a"] }, { "id": "w2", "health": "critical", "tags": ["b"] }],
        "watch": [{ "id": "x", "health": "warning", "tags": [] }],
    } })
}

#[tokio::test]
async fn services_are_summarised_filtered_and_paged() {
    let node = FixedNode::new([
        ("GET /services", 200, services()),
        ("GET /services?tag=a%26b&health=passing&zone=z", 200, services()),
    ]);
    let web = json!({ "name": "Web", "instances": 2, "passing": 1, "warning": 0, "critical": 1, "unverified": 0, "tags": ["a", "b", "mcp"] });
    let listed = node.done("list_services", json!({ "limit": 1 })).await;
    assert_eq!(
        listed,
        json!({ "cluster": "test", "node": "n1", "services": [web], "total": 2, "next_offset": 1 })
    );
    let listed = node.done("list_services", json!({ "offset": 1 })).await;
    assert_eq!((&listed["services"][0]["name"], listed.get("next_offset")), (&json!("watch"), None));
    let filter = json!({ "tag": "a&b", "health": "passing", "zone": "z", "name": "wE" });
    assert_eq!(node.done("list_services", filter).await["total"], 1);
    assert_eq!(node.sent().len(), 3);
}

#[tokio::test]
async fn instances_that_the_table_guard_keeps_are_counted_and_found() {
    let instances = json!([{ "id": "w1", "health": "passing" }, { "id": "w2", "health": "unverified" }]);
    let answer = json!({ "services": { "db": [{ "id": "d1", "health": "critical" }], "web": instances } });
    let node = FixedNode::new([
        ("GET /services", 200, answer.clone()),
        ("GET /services?zone=z", 200, answer.clone()),
        ("GET /services/%77eb", 200, answer),
    ]);
    let listed = node.done("list_services", json!({ "name": "web" })).await;
    let web = &listed["services"][0];
    assert_eq!((&web["passing"], &web["unverified"], &web["instances"]), (&json!(1), &json!(1), &json!(2)));
    let listed = node.done("list_services", json!({ "health": "unverified", "zone": "z" })).await;
    let web = &listed["services"][0];
    assert_eq!((&listed["total"], &web["name"], &web["instances"]), (&json!(1), &json!("web"), &json!(1)));
    let found = node.done("get_service", json!({ "name": "web", "health": "unverified" })).await;
    assert_eq!(found["instances"], json!([{ "id": "w2", "health": "unverified" }]));
}

#[tokio::test]
async fn many_tags_of_a_service_are_cut_and_counted() {
    let tags: Vec<String> = (10..50).map(|number| number.to_string()).collect();
    let many = json!({ "services": { "web": [{ "health": "passing", "tags": tags }] } });
    let node = FixedNode::new([("GET /services", 200, many)]);
    let listed = node.done("list_services", json!({})).await;
    let web = &listed["services"][0];
    assert_eq!((web["tags"].as_array().unwrap().len(), &web["tags_omitted"]), (32, &json!(8)));
}

#[tokio::test]
async fn a_service_is_read_by_its_name_whatever_it_is() {
    let instance = json!({ "id": "a/b", "checks": [] });
    let web = json!({ "cluster": "test", "node": "n1", "index": 7, "services": { "Web": [{ "id": "w1" }] } });
    let node = FixedNode::new([
        ("GET /services/%57eb?tag=mcp&near=_self", 200, web),
        ("GET /services/%77atch", 200, services()),
        ("GET /services/%61%20b/%61%2Fb", 200, instance.clone()),
        ("GET /services/%6Eone", 404, json!({ "title": "Not Found", "detail": "no service none" })),
    ]);
    let found = node.done("get_service", json!({ "name": "Web", "tag": "mcp", "nearest_first": true })).await;
    assert_eq!(
        found,
        json!({ "cluster": "test", "node": "n1", "service": "Web", "instances": [{ "id": "w1" }], "total": 1 })
    );
    // Its path would be that of the event stream.
    let found = node.done("get_service", json!({ "name": "watch" })).await;
    assert_eq!(found["instances"][0]["id"], "x");
    let found = node.done("get_service", json!({ "name": "a b", "instance": "a/b" })).await;
    assert_eq!(found, json!({ "instance": instance }));
    let (is_error, error) = node.call("get_service", json!({ "name": "none" })).await;
    assert_eq!((is_error, error), (true, json!({ "error": "no service none", "status": 404 })));
    let (is_error, error) =
        node.call("get_service", json!({ "name": "a", "instance": "b", "tag": "c" })).await;
    assert!(is_error && error["error"].as_str().unwrap().starts_with("tag: "), "{error}");
}

#[tokio::test]
async fn members_are_counted_by_state_and_filtered() {
    let member = |name: &str, state: &str, role: &str| json!({ "name": name, "id": name, "state": state, "roles": [role] });
    let members = [member("b", "alive", "log"), member("a", "alive", "kv"), member("c", "failed", "log")];
    let answer = json!({ "cluster": "test", "node": "b", "rootHash": "0", "members": members });
    let node = FixedNode::new([("GET /members", 200, answer)]);
    let names = |listed: &Value| -> Vec<String> {
        let members = listed["members"].as_array().unwrap().iter();
        members.map(|member| member["name"].as_str().unwrap().to_owned()).collect()
    };
    let listed = node.done("list_members", json!({})).await;
    assert_eq!(
        (names(&listed), &listed["states"]),
        (vec!["a".into(), "b".into(), "c".into()], &json!({ "alive": 2, "failed": 1 }))
    );
    let listed = node.done("list_members", json!({ "state": "alive", "role": "log" })).await;
    assert_eq!((names(&listed), &listed["total"]), (vec!["b".to_owned()], &json!(1)));
}

#[tokio::test]
async fn the_latest_events_are_kept() {
    let answer = json!({ "cluster": "test", "node": "n1", "subject": "web", "events": [{ "text": "1" }, { "text": "2" }] });
    let node = FixedNode::new([("GET /why/%77eb", 200, answer)]);
    let why = node.done("why", json!({ "subject": "web", "limit": 1 })).await;
    assert_eq!((&why["events"], &why["omitted"]), (&json!([{ "text": "2" }]), &json!(1)));
}

#[tokio::test]
async fn records_of_the_log_are_cut_and_bounded() {
    let large = "x".repeat(700);
    let records = |count| vec![json!({ "id": "r", "message": large }); count];
    let node = FixedNode::new([
        (
            "GET /log?before=end&limit=50",
            200,
            json!({ "records": records(1), "prev": "c1", "next": null, "resume": "r" }),
        ),
        (
            "GET /log?before=c1&limit=200&service=web&level=warn&q=%22disk%20full%22",
            200,
            json!({ "records": records(200), "prev": null }),
        ),
    ]);
    let found = node.done("search_log", json!({})).await;
    assert_eq!(found["prev"], "c1");
    assert_eq!(found["records"][0]["message"].as_str().unwrap().chars().count(), 501);
    let older =
        json!({ "before": "c1", "limit": 200, "service": "web", "level": "warn", "words": "\"disk full\"" });
    let (is_error, error) = node.call("search_log", older).await;
    assert!(is_error && error["error"].as_str().unwrap().contains("lower limit or message_chars"), "{error}");
}

#[tokio::test]
async fn dependencies_are_those_around_a_service() {
    let service = |name: &str, requires: &[&str], missing: &[&str]| json!({ "name": name, "requires": requires, "missing": missing });
    let services = [
        service("db", &[], &[]),
        service("front", &["web"], &["web"]),
        service("other", &["db"], &[]),
        service("web", &["db"], &[]),
    ];
    let node = FixedNode::new([(
        "GET /dependencies",
        200,
        json!({ "cluster": "test", "node": "n1", "services": services }),
    )]);
    let names = async |arguments| {
        let found = node.done("dependencies", arguments).await;
        let services = found["services"].as_array().unwrap().iter();
        services.map(|service| service["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(names(json!({})).await, ["db", "front", "other", "web"]);
    assert_eq!(names(json!({ "service": "web" })).await, ["db", "front", "web"]);
    assert_eq!(names(json!({ "missing_only": true })).await, ["front"]);
    let (is_error, error) = node.call("dependencies", json!({ "service": "none" })).await;
    assert!(is_error && error["error"].as_str().unwrap().contains("\"none\""), "{error}");
}

#[tokio::test]
async fn a_write_goes_to_the_holder_of_the_registration() {
    let node = FixedNode::new([
        ("PUT /services/%61%2F1/maintenance", 404, json!({ "detail": "not here", "holder": "n 2" })),
        ("PUT /services/%61%2F1/maintenance?node=n%202", 200, json!({ "id": "a/1", "maintenance": true })),
        ("DELETE /services/%62", 404, json!({ "detail": "unknown" })),
        ("DELETE /services/%62?node=n3", 200, json!({ "node": "n3", "removed": ["b"] })),
    ]);
    let done = node.done("drain", json!({ "id": "a/1", "reason": "disk" })).await;
    assert_eq!(done, json!({ "id": "a/1", "maintenance": true }));
    assert_eq!(
        node.sent()[1],
        "PUT /services/%61%2F1/maintenance?node=n%202 {\"enable\":true,\"reason\":\"disk\"}"
    );
    node.done("drain", json!({ "id": "a/1", "undo": true })).await;
    assert!(node.sent()[1].ends_with(" {\"enable\":false,\"reason\":\"\"}"));
    let (is_error, error) = node.call("deregister", json!({ "id": "b" })).await;
    assert_eq!((is_error, &error["error"]), (true, &json!("unknown")));
    assert_eq!(node.done("deregister", json!({ "id": "b", "node": "n3" })).await["removed"], json!(["b"]));
}

#[tokio::test]
async fn a_client_that_may_not_write_is_refused_before_anything_is_sent() {
    let node = FixedNode { may_write: false, ..FixedNode::new([]) };
    for name in ["drain", "deregister"] {
        assert_eq!(
            node.call(name, json!({ "id": "a" })).await,
            (true, json!({ "error": NO_WRITES, "status": null }))
        );
    }
    assert_eq!((node.sent().len(), *node.refused.lock().unwrap()), (0, 2));
}

#[tokio::test]
async fn an_answer_that_is_not_of_a_node_is_an_error() {
    let node = FixedNode::new([
        ("GET /services", 200, json!([])),
        ("GET /members", 200, json!({})),
        ("GET /dependencies", 500, Value::Null),
    ]);
    for (name, words) in
        [("list_services", "no JSON object"), ("list_members", "no members"), ("dependencies", "null")]
    {
        let (is_error, error) = node.call(name, json!({})).await;
        assert!(is_error && error["error"].as_str().unwrap().contains(words), "{name}: {error}");
    }
}

/// Sends lines over a pipe, and reads one answer for each that has an id.
async fn exchange(node: FixedNode, lines: &[Value]) -> Vec<Value> {
    let (client, server) = tokio::io::duplex(1 << 20);
    let serving = tokio::spawn(async move {
        let running = McpServer::new(node).serve(server).await.unwrap();
        running.waiting().await.unwrap();
    });
    let (read, mut write) = tokio::io::split(client);
    let (mut answers, mut read) = (Vec::new(), BufReader::new(read).lines());
    for line in lines {
        write.write_all(format!("{line}\n").as_bytes()).await.unwrap();
        if line.get("id").is_some() {
            let answer = read.next_line().await.unwrap().unwrap();
            answers.push(serde_json::from_str(&answer).unwrap());
        }
    }
    write.shutdown().await.unwrap();
    drop((read, write));
    serving.await.unwrap();
    answers
}

#[tokio::test]
async fn the_protocol_lists_the_tools_that_a_client_may_use_and_calls_them() {
    let initialize = json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": { "name": "test", "version": "1" } } });
    let initialized = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
    let list = json!({ "jsonrpc": "2.0", "id": 2, "method": "tools/list" });
    let call = |id: u8, name: &str, arguments: Value| json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call", "params": { "name": name, "arguments": arguments } });
    let lines = [
        initialize,
        initialized,
        list,
        call(3, "list_services", json!({ "limit": 1 })),
        call(4, "list_services", json!({ "limit": 0 })),
        call(5, "delete_everything", json!({})),
        call(6, "drain", json!({ "id": "a" })),
    ];
    let node = FixedNode::new([("GET /services", 200, services())]);
    let answers = exchange(FixedNode { may_write: false, ..node.clone() }, &lines).await;
    assert_eq!(answers[0]["result"]["protocolVersion"], "2025-06-18");
    assert_eq!(answers[0]["result"]["serverInfo"]["name"], "hearsay");
    let names = |answer: &Value| -> Vec<String> {
        let tools = answer["result"]["tools"].as_array().unwrap().iter();
        tools.map(|tool| tool["name"].as_str().unwrap().to_owned()).collect()
    };
    let reads = ["list_services", "get_service", "list_members", "why", "search_log", "dependencies"];
    assert_eq!(names(&answers[1]), reads);
    let structured = &answers[2]["result"]["structuredContent"];
    let text = answers[2]["result"]["content"][0]["text"].as_str().unwrap();
    assert_eq!(
        (structured, &structured["total"]),
        (&serde_json::from_str::<Value>(text).unwrap(), &json!(2))
    );
    assert_eq!(answers[3]["result"]["isError"], true);
    assert_eq!(answers[3]["result"]["content"][0]["text"], "limit: must be a whole number from 1 to 1000");
    assert_eq!(answers[4]["error"]["code"], -32602, "{}", answers[4]);
    assert_eq!(answers[5]["result"]["content"][0]["text"], NO_WRITES);
    let answers = exchange(node, &lines).await;
    assert_eq!(names(&answers[1]), [&reads[..], &["drain", "deregister"]].concat());
}

/// A node that never answers. It hands out a receiver for each request, which ends with the request.
#[derive(Clone, Debug)]
struct SilentNode(mpsc::UnboundedSender<oneshot::Receiver<()>>);

impl Backend for SilentNode {
    fn may_write(&self) -> Result<(), &'static str> {
        Ok(())
    }

    fn count_refusal(&self) {}

    async fn send(&self, _: ToolRequest) -> Result<ToolAnswer, ToolError> {
        let (_while_it_runs, end) = oneshot::channel();
        self.0.send(end).unwrap();
        std::future::pending().await
    }

    async fn read_log(&self, target: String) -> Result<ToolAnswer, ToolError> {
        self.send(ToolRequest::read(target)).await
    }
}

#[tokio::test]
async fn the_call_of_a_client_that_goes_away_ends() {
    let patience = std::time::Duration::from_secs(20);
    for tool in ["list_services", "search_log"] {
        let (requests, mut received) = mpsc::unbounded_channel();
        let transport = endpoint::transport(McpServer::new(SilentNode(requests)));
        let message = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": { "name": tool, "arguments": {} } });
        let request = http::Request::post("/mcp")
            .header("host", "n1")
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .body(http_body_util::Full::new(Bytes::from(message.to_string())))
            .unwrap();
        let client = tokio::spawn(async move { transport.handle(request).await });
        let mut end = tokio::time::timeout(patience, received.recv()).await.unwrap().unwrap();
        assert_eq!(end.try_recv(), Err(oneshot::error::TryRecvError::Empty), "{tool} runs");
        client.abort();
        assert!(tokio::time::timeout(patience, end).await.expect("the call ends").is_err(), "{tool}");
    }
}
