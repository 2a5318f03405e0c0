//! Tests of `/mcp` through the router: tools read for every client that may read, change something only with
//! the API token, and no web page can use them.

use serde_json::json;

use super::*;

const HEADERS: [&str; 2] = ["content-type: application/json", "accept: application/json, text/event-stream"];
const TOKEN: &str = "authorization: Bearer s3cret";
const FORWARDED: &str = "x-forwarded-for: 8.8.8.8";

fn access() -> Access {
    Access { token: Some(Secret::new("s3cret".to_owned())), ..Access::default() }
}

/// Starts a node that holds the instance `web-1`.
async fn start(access: Access) -> Server {
    let server = Server::with(Setup { access, roles: &["log"], ..Setup::default() }).await;
    server.apply([joined(member(1)), offered(instance(1, "far", "web"))]);
    let body = json!({ "id": "web-1", "name": "web", "address": "10.0.0.9", "port": 80, "tags": ["mcp"] });
    let headers = [HEADERS[0], TOKEN];
    let reply = server.send("POST /services", &headers, body.to_string()).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    server
}

async fn post(server: &Server, headers: &[&str], message: &Value) -> Reply {
    server.send("POST /mcp", &[&HEADERS[..], headers].concat(), message.to_string()).await
}

fn request(method: &str, params: Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params })
}

/// Calls a tool, and returns whether it failed, and its structured result.
async fn call(server: &Server, headers: &[&str], tool: &str, arguments: Value) -> (bool, Value) {
    let message = request("tools/call", json!({ "name": tool, "arguments": arguments }));
    let reply = post(server, headers, &message).await;
    assert_eq!((reply.status, reply.header("content-type")), (200, "application/json"), "{reply:?}");
    let result = reply.json()["result"].clone();
    (result["isError"] == true, result["structuredContent"].clone())
}

async fn tools(server: &Server, headers: &[&str]) -> Vec<String> {
    let listed = post(server, headers, &request("tools/list", json!({}))).await.json();
    let tools = listed["result"]["tools"].as_array().unwrap().iter();
    tools.map(|tool| tool["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn tools_read_what_the_client_may_read() {
    let server = start(access()).await;
    let initialize = json!({ "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": { "name": "t", "version": "1" } });
    let reply = post(&server, &[], &request("initialize", initialize)).await;
    assert_eq!((reply.status, reply.header("mcp-session-id")), (200, ""), "{reply:?}");
    assert_eq!(reply.json()["result"]["protocolVersion"], "2025-06-18");
    let initialized = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
    assert_eq!(post(&server, &[], &initialized).await.status, 202);
    for (tool, arguments, pointer, expected) in [
        ("list_services", json!({ "tag": "a" }), "/services/0/name", json!("web")),
        ("get_service", json!({ "name": "web", "instance": "far" }), "/instance/node", json!("n1")),
        ("list_members", json!({}), "/members/0/name", json!("n1")),
        ("why", json!({ "subject": "web" }), "/events/0/service", json!("web")),
        ("dependencies", json!({}), "/services/0/instances", json!(1)),
        ("search_log", json!({}), "/records", json!([])),
    ] {
        for headers in [&[][..], &[FORWARDED]] {
            let (is_error, result) = call(&server, headers, tool, arguments.clone()).await;
            assert!(!is_error && result.pointer(pointer) == Some(&expected), "{tool}: {result}");
        }
    }
    let (is_error, error) = call(&server, &[], "get_service", json!({ "name": "watch" })).await;
    assert!(is_error && error["status"] == 404, "{error}");
}

#[tokio::test]
async fn a_tool_changes_something_only_with_the_token_from_this_machine_too() {
    let server = start(access()).await;
    for headers in [&[][..], &[FORWARDED], &["authorization: Bearer wrong"]] {
        assert_eq!(tools(&server, headers).await.len(), 6);
        for tool in ["drain", "deregister"] {
            let (is_error, error) = call(&server, headers, tool, json!({ "id": "web-1" })).await;
            assert!(is_error && error["error"].as_str().unwrap().contains("API token"), "{error}");
        }
    }
    assert!(server.registry.get("web-1").unwrap().maintenance.is_none());
    assert_eq!(server.metrics.http.refused_count("mcp_write"), 6);
    for headers in [&[TOKEN][..], &[TOKEN, FORWARDED]] {
        assert_eq!(tools(&server, headers).await.len(), 8);
        let drained = json!({ "id": "web-1", "reason": "disk" });
        let (is_error, result) = call(&server, headers, "drain", drained).await;
        assert!(!is_error && result["maintenance"] == true, "{result}");
        assert_eq!(server.registry.get("web-1").unwrap().maintenance.unwrap().reason, "disk");
        let (is_error, result) =
            call(&server, headers, "drain", json!({ "id": "web-1", "undo": true })).await;
        assert!(!is_error && result["maintenance"] == false, "{result}");
    }
    let (is_error, result) = call(&server, &[TOKEN], "deregister", json!({ "id": "web-1" })).await;
    assert!(!is_error && result["removed"] == json!(["web-1"]), "{result}");
    let (is_error, error) = call(&server, &[TOKEN], "deregister", json!({ "id": "web-1" })).await;
    assert!(is_error && error["status"] == 404, "{error}");
}

#[tokio::test]
async fn a_private_node_tells_a_stranger_nothing() {
    let private = || Access { reads_need_proof: true, ..access() };
    let server = start(private()).await;
    let initialize = json!({ "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": { "name": "t", "version": "1" } });
    for message in [
        request("initialize", initialize.clone()),
        request("ping", json!({})),
        request("tools/list", json!({})),
        request("tools/call", json!({ "name": "list_services", "arguments": {} })),
        json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }),
    ] {
        for headers in [&[FORWARDED][..], &[FORWARDED, "authorization: Bearer wrong"]] {
            let reply = post(&server, headers, &message).await;
            assert!(reply.problem(401).contains("private"), "{reply:?}");
            assert_eq!(reply.header("www-authenticate"), "Bearer");
        }
    }
    assert_eq!(server.metrics.http.refused_count("token"), 10);
    for headers in [&[][..], &[TOKEN, FORWARDED]] {
        let reply = post(&server, headers, &request("initialize", initialize.clone())).await.json();
        assert_eq!(reply["result"]["serverInfo"]["name"], "hearsay", "{reply}");
    }
    let without_token = start(Access { token: None, ..private() }).await;
    post(&without_token, &[FORWARDED], &request("initialize", initialize)).await.problem(403);
    for tool in ["list_services", "list_members", "dependencies", "search_log"] {
        for headers in [&[][..], &[TOKEN, FORWARDED]] {
            let (is_error, result) = call(&server, headers, tool, json!({})).await;
            assert!(!is_error, "{tool}: {result}");
        }
    }
}

#[tokio::test]
async fn no_web_page_can_use_the_tools() {
    let server = start(access()).await;
    let list = request("tools/list", json!({})).to_string();
    let accept = HEADERS[1];
    for headers in [
        &["content-type: text/plain", accept][..],
        &["content-type: application/x-www-form-urlencoded", accept],
    ] {
        server.send("POST /mcp", headers, &list).await.problem(415);
    }
    for origin in ["origin: http://evil.example", "origin: null", "sec-fetch-site: cross-site"] {
        server.send("POST /mcp", &[&HEADERS[..], &[origin]].concat(), &list).await.problem(403);
    }
    server.send("POST /mcp", &[&HEADERS[..], &["host: evil.example"]].concat(), &list).await.problem(421);
    let own = [&HEADERS[..], &["host: n1:7500", "origin: http://n1:7500"]].concat();
    assert_eq!(server.send("POST /mcp", &own, &list).await.status, 200);
}

#[tokio::test]
async fn there_are_no_sessions_and_no_streams() {
    let server = start(access()).await;
    for method in ["GET", "DELETE", "PUT"] {
        let reply = server.send(&format!("{method} /mcp"), &[HEADERS[1]], "").await;
        reply.problem(405);
        assert_eq!(reply.header("allow"), "POST");
    }
    assert_eq!(server.metrics.http.waiting.get(), 0);
}

#[tokio::test]
async fn garbage_is_refused_in_the_form_of_the_protocol() {
    let server = start(access()).await;
    let nested = "[".repeat(60_000);
    for (body, code) in [
        ("", -32700),
        ("{", -32700),
        (nested.as_str(), -32700),
        ("[]", -32600),
        ("7", -32600),
        ("{}", -32600),
        (r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#, -32600),
        (r#"{"jsonrpc":"1.0","id":1,"method":"ping"}"#, -32600),
    ] {
        let reply = server.send("POST /mcp", &HEADERS, body).await;
        assert_eq!((reply.status, reply.json()["error"]["code"].as_i64()), (400, Some(code)), "{reply:?}");
    }
    server.send("POST /mcp", &[HEADERS[0]], "{}").await.problem(406);
    assert!(server.send("POST /mcp?session=1", &HEADERS, "{}").await.problem(400).contains("session"));
    assert_eq!(server.send("POST /mcp/", &HEADERS, "{}").await.json()["error"]["code"], -32600);
    let large = "x".repeat(64 * 1024);
    assert_eq!(server.send("POST /mcp", &HEADERS, &large).await.json()["error"]["code"], -32700);
    assert!(server.send("POST /mcp", &HEADERS, large + "x").await.problem(413).contains("65536 bytes"));
    assert_eq!(server.metrics.http.refused_count("body_size"), 1);
    for id in ["null", "1.5", "true", "[1]", "12345678901234567890123"] {
        let body = format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"ping"}}"#);
        let reply = server.send("POST /mcp", &HEADERS, body).await;
        let error = reply.json();
        assert_eq!((reply.status, error["error"]["code"].as_i64()), (400, Some(-32600)), "{reply:?}");
        assert!(error.get("id").is_none(), "{reply:?}");
    }
    for body in
        [r#"{"jsonrpc":"2.0","id":"a"}"#, r#"{"jsonrpc":"2.0","id":"a","method":"tools/call","params":[]}"#]
    {
        let unread = server.send("POST /mcp", &HEADERS, body).await;
        let error = unread.json();
        assert_eq!((unread.status, error["error"]["code"].as_i64()), (400, Some(-32600)), "{unread:?}");
        assert_eq!(error["id"], "a", "{unread:?}");
    }
}

#[tokio::test]
async fn a_request_with_other_parameters_is_told_from_an_unknown_one() {
    let server = start(access()).await;
    let error = async |method: &str, params: Value| {
        let reply = post(&server, &[], &request(method, params)).await;
        let error = reply.json();
        assert_eq!((reply.status, &error["id"]), (200, &json!(1)), "{reply:?}");
        error["error"]["code"].as_i64().unwrap_or(0)
    };
    assert_eq!(error("no/such", json!({})).await, -32601);
    assert_eq!(error("resources/list", json!({})).await, -32601, "a capability that is not declared");
    assert_eq!(error("subscriptions/listen", json!({ "notifications": {} })).await, -32601);
    for params in [json!({}), json!({ "name": 7 }), json!({ "name": "why", "arguments": [] })] {
        assert_eq!(error("tools/call", params.clone()).await, -32602, "{params}");
    }
    assert_eq!(error("tools/call", json!({ "name": "no_such_tool" })).await, -32602);
    assert_eq!(error("initialize", json!({})).await, -32602);
    assert_eq!(error("tools/list", json!({ "cursor": "2" })).await, -32602, "there is one page");
    assert_eq!(error("tools/list", json!({ "cursor": null })).await, 0);
    assert_eq!(error("ping", json!({})).await, 0);
    // An argument out of bounds is an error of the tool, which an agent reads.
    let (is_error, _) = call(&server, &[], "why", json!({})).await;
    assert!(is_error);
}

#[tokio::test]
async fn each_version_with_a_handshake_is_agreed_on_and_any_other_becomes_the_newest_of_them() {
    let server = start(access()).await;
    for (asked, agreed) in [
        ("2024-11-05", "2024-11-05"),
        ("2025-03-26", "2025-03-26"),
        ("2025-06-18", "2025-06-18"),
        ("2025-11-25", "2025-11-25"),
        ("2026-07-28", "2025-11-25"),
        ("1999-01-01", "2025-11-25"),
        ("x", "2025-11-25"),
    ] {
        let params = json!({ "protocolVersion": asked, "capabilities": {}, "clientInfo": { "name": "t", "version": "1" } });
        let reply = post(&server, &[], &request("initialize", params)).await;
        assert_eq!(reply.json()["result"]["protocolVersion"], agreed, "{asked}: {reply:?}");
        assert_eq!(reply.json()["result"]["capabilities"], json!({ "tools": {} }));
        if asked == agreed {
            let header = format!("mcp-protocol-version: {agreed}");
            assert_eq!(post(&server, &[&header], &request("ping", json!({}))).await.status, 200);
        }
    }
    for version in ["1999-01-01", "x"] {
        let header = format!("mcp-protocol-version: {version}");
        for message in
            [request("ping", json!({})), json!({ "jsonrpc": "2.0", "method": "notifications/initialized" })]
        {
            assert!(post(&server, &[&header], &message).await.problem(400).contains(version));
        }
    }
    // Sessions of other servers and cancellations are ignored, and no server asks for a response.
    let session = "mcp-session-id: 1868a90c";
    let reply = post(&server, &[session], &request("ping", json!({}))).await;
    assert_eq!((reply.status, reply.header("mcp-session-id")), (200, ""));
    let cancelled =
        json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": 1 } });
    assert_eq!(post(&server, &[session], &cancelled).await.status, 202);
    let response = json!({ "jsonrpc": "2.0", "id": 1, "result": {} });
    assert_eq!(post(&server, &[], &response).await.status, 400);
}

/// Sends a request of the version without a handshake, and returns the status and the response.
async fn stateless(
    server: &Server,
    version: &str,
    headers: &[&str],
    method: &str,
    params: Value,
) -> (u16, Value) {
    let mut params = params;
    params["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": version,
        "io.modelcontextprotocol/clientInfo": { "name": "t", "version": "1" },
        "io.modelcontextprotocol/clientCapabilities": {},
    });
    let reply = post(server, headers, &request(method, params)).await;
    assert_eq!(reply.header("content-type"), "application/json", "{reply:?}");
    (reply.status, reply.json())
}

#[tokio::test]
async fn the_version_without_a_handshake_needs_headers_that_agree_with_the_message() {
    let server = start(access()).await;
    let version = "2026-07-28";
    let header = "mcp-protocol-version: 2026-07-28";
    let list = [header, "mcp-method: tools/list"];
    let (status, answer) = stateless(&server, version, &list, "tools/list", json!({})).await;
    let result = &answer["result"];
    assert_eq!((status, &result["resultType"]), (200, &json!("complete")), "{answer}");
    // The tools depend on the token, so no one else may have the answer.
    assert_eq!((&result["cacheScope"], &result["ttlMs"]), (&json!("private"), &json!(0)));
    let named = [header, "mcp-method: tools/call", "mcp-name: list_members"];
    let (status, answer) =
        stateless(&server, version, &named, "tools/call", json!({ "name": "list_members" })).await;
    assert_eq!((status, &answer["result"]["structuredContent"]["total"]), (200, &json!(1)), "{answer}");
    let discover = [header, "mcp-method: server/discover"];
    let (status, answer) = stateless(&server, version, &discover, "server/discover", json!({})).await;
    assert_eq!((status, &answer["result"]["supportedVersions"][4]), (200, &json!(version)), "{answer}");
    for (version, headers, method, status, code) in [
        ("2099-01-01", &["mcp-protocol-version: 2099-01-01", list[1]][..], "tools/list", 400, -32022),
        (version, &["mcp-protocol-version: 2025-11-25", list[1]], "tools/list", 400, -32020),
        (version, &[list[1]], "tools/list", 400, -32020),
        (version, &[header], "tools/list", 400, -32020),
        (version, &[header, "mcp-method: ping"], "tools/list", 400, -32020),
        (version, &[header, "mcp-method: ping"], "ping", 404, -32601),
        (version, &[header, "mcp-method: no/such"], "no/such", 404, -32601),
        (version, &[header, "mcp-method: tools/call", "mcp-name: why"], "tools/call", 400, -32020),
    ] {
        let params = if method == "tools/call" { json!({ "name": "drain" }) } else { json!({}) };
        let (found, answer) = stateless(&server, version, headers, method, params).await;
        assert_eq!((found, answer["error"]["code"].as_i64()), (status, Some(code)), "{headers:?}: {answer}");
    }
    // No event stream is opened.
    let listen = [header, "mcp-method: subscriptions/listen"];
    let wanted = json!({ "notifications": { "toolsListChanged": true } });
    let (status, answer) = stateless(&server, version, &listen, "subscriptions/listen", wanted).await;
    assert_eq!((status, &answer["error"]["code"]), (404, &json!(-32601)), "{answer}");
}
