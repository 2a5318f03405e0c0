//! The examples of the JSON-RPC 2.0 specification (section 7) with methods of a node, further forms of ids,
//! parameters and messages, and the HTTP around them.

use hearsay_tests::{clients::find_program, scenario};
use serde_json::Value;

use super::{BATCH_MAX, curl, lines, start};

/// Messages, and the shape of their responses ([`shape`]); `None`: 204 without a body.
const MESSAGES: &[(&str, Option<&str>)] = &[
    // By position, by name.
    (r#"{"jsonrpc": "2.0", "method": "services.list", "params": ["none"], "id": 1}"#, Some("1:ok")),
    (
        r#"{"jsonrpc": "2.0", "method": "services.list", "params": ["none", "passing"], "id": 2}"#,
        Some("2:ok"),
    ),
    (
        r#"{"jsonrpc": "2.0", "method": "services.list", "params": {"health": "passing", "tag": "none"}, "id": 3}"#,
        Some("3:ok"),
    ),
    (r#"{"jsonrpc": "2.0", "method": "members.list", "params": {}, "id": 4}"#, Some("4:ok")),
    // Notifications.
    (r#"{"jsonrpc": "2.0", "method": "services.list", "params": ["none"]}"#, None),
    (r#"{"jsonrpc": "2.0", "method": "foobar"}"#, None),
    (r#"{"jsonrpc": "2.0", "method": "why", "params": {}}"#, None),
    // A method that does not exist, JSON that is none, and a request that is none.
    (r#"{"jsonrpc": "2.0", "method": "foobar", "id": "1"}"#, Some("\"1\":-32601")),
    (r#"{"jsonrpc": "2.0", "method": "foobar, "params": "bar", "baz]"#, Some("null:-32700")),
    (r#"{"jsonrpc": "2.0", "method": 1, "params": "bar"}"#, Some("null:-32600")),
    // Batches.
    (
        r#"[{"jsonrpc": "2.0", "method": "members.list", "id": "1"}, {"jsonrpc": "2.0", "method""#,
        Some("null:-32700"),
    ),
    ("[]", Some("null:-32600")),
    ("[1]", Some("[null:-32600]")),
    ("[1,2,3]", Some("[null:-32600,null:-32600,null:-32600]")),
    (
        r#"[{"jsonrpc": "2.0", "method": "services.list", "params": ["a"], "id": "1"}, {"jsonrpc": "2.0", "method": "why", "params": ["m0"]},
            {"jsonrpc": "2.0", "method": "services.list", "params": ["b"], "id": "2"}, {"foo": "boo"},
            {"jsonrpc": "2.0", "method": "foo.get", "params": {"name": "myself"}, "id": "5"}, {"jsonrpc": "2.0", "method": "members.list", "id": "9"}]"#,
        Some("[\"1\":ok,\"2\":ok,null:-32600,\"5\":-32601,\"9\":ok]"),
    ),
    (
        r#"[{"jsonrpc": "2.0", "method": "why", "params": ["m0"]}, {"jsonrpc": "2.0", "method": "foobar", "params": [7]}]"#,
        None,
    ),
    ("[[]]", Some("[null:-32600]")),
    // Ids.
    (r#"{"jsonrpc": "2.0", "method": "members.list", "id": null}"#, Some("null:ok")),
    (r#"{"jsonrpc": "2.0", "method": "members.list", "id": 1.50}"#, Some("1.50:ok")),
    (
        r#"{"jsonrpc": "2.0", "method": "members.list", "id": -12345678901234567890123}"#,
        Some("-12345678901234567890123:ok"),
    ),
    (r#"{"jsonrpc": "2.0", "method": "members.list", "id": ""}"#, Some("\"\":ok")),
    (
        r#"{"jsonrpc": "2.0", "method": "members.list", "id": "\u0041\ud83d\ude00"}"#,
        Some("\"\\u0041\\ud83d\\ude00\":ok"),
    ),
    (r#"{"jsonrpc": "2.0", "method": "members.list", "id": "\ud83d"}"#, Some("null:-32600")),
    (r#"{"jsonrpc": "2.0", "method": "members.list", "id": true}"#, Some("null:-32600")),
    (r#"{"jsonrpc": "2.0", "method": "members.list", "id": {}}"#, Some("null:-32600")),
    (r#"{"jsonrpc": "2.0", "method": "members.list", "id": [1]}"#, Some("null:-32600")),
    // Versions and methods.
    (r#"{"method": "members.list", "id": 1}"#, Some("1:-32600")),
    (r#"{"jsonrpc": "1.0", "method": "members.list", "id": 1}"#, Some("1:-32600")),
    (r#"{"jsonrpc": 2.0, "method": "members.list", "id": 1}"#, Some("1:-32600")),
    (r#"{"jsonrpc": "2.0", "id": 1}"#, Some("1:-32600")),
    (r#"{"jsonrpc": "2.0", "method": null, "id": 1}"#, Some("1:-32600")),
    (r#"{"jsonrpc": "2.0", "method": "", "id": 1}"#, Some("1:-32601")),
    (r#"{"jsonrpc": "2.0", "method": "rpc.discover", "id": 1}"#, Some("1:-32601")),
    (r#"{"jsonrpc": "2.0", "method": "\ud83d", "id": 1}"#, Some("1:-32600")),
    // Parameters.
    (r#"{"jsonrpc": "2.0", "method": "members.list", "params": null, "id": 1}"#, Some("1:-32600")),
    (r#"{"jsonrpc": "2.0", "method": "members.list", "params": 7, "id": 1}"#, Some("1:-32600")),
    (r#"{"jsonrpc": "2.0", "method": "members.list", "params": [1], "id": 1}"#, Some("1:-32602")),
    (r#"{"jsonrpc": "2.0", "method": "members.list", "params": {"a": 1}, "id": 1}"#, Some("1:-32602")),
    (r#"{"jsonrpc": "2.0", "method": "why", "id": 1}"#, Some("1:-32602")),
    (r#"{"jsonrpc": "2.0", "method": "why", "params": [null], "id": 1}"#, Some("1:-32602")),
    (r#"{"jsonrpc": "2.0", "method": "why", "params": ["\udc00"], "id": 1}"#, Some("1:-32600")),
    (r#"{"jsonrpc": "2.0", "method": "students.get", "params": [1e999], "id": 1}"#, Some("1:-32600")),
    // Of members that are there twice, a client and a node could mean different ones.
    (r#"{"jsonrpc": "2.0", "method": "members.list", "id": 1, "id": 2}"#, Some("null:-32600")),
    (r#"{"jsonrpc": "2.0", "method": "foobar", "method": "members.list", "id": 1}"#, Some("null:-32600")),
    // Members that the specification does not have are ignored.
    (r#"{"jsonrpc": "2.0", "method": "members.list", "id": 1, "auth": null}"#, Some("1:ok")),
    // No JSON.
    ("", Some("null:-32700")),
    ("  ", Some("null:-32700")),
    ("{}{}", Some("null:-32700")),
    ("\u{feff}{}", Some("null:-32700")),
    ("null", Some("null:-32600")),
    ("\"a\"", Some("null:-32600")),
];

/// Describes a response: its id as it is written, and `ok` or the code of its error.
fn shape(response: &str) -> String {
    let parsed: Value = serde_json::from_str(response).unwrap_or_else(|error| panic!("{error}: {response}"));
    if let Value::Array(responses) = parsed {
        let shapes: Vec<String> =
            responses.iter().map(|response| shape_of(response, &response["id"].to_string())).collect();
        return format!("[{}]", shapes.join(","));
    }
    let (_, id) = response.trim_end_matches('}').rsplit_once("\"id\":").expect("an id at the end");
    shape_of(&parsed, id)
}

/// Fails unless the response has exactly the members of the specification.
fn shape_of(response: &Value, id: &str) -> String {
    let mut members: Vec<&str> = response.as_object().unwrap().keys().map(String::as_str).collect();
    members.sort_unstable();
    assert_eq!(response["jsonrpc"], "2.0", "{response}");
    if members == ["id", "jsonrpc", "result"] {
        return format!("{id}:ok");
    }
    assert_eq!(members, ["error", "id", "jsonrpc"], "{response}");
    let error = &response["error"];
    assert!(error["message"].is_string() && error["data"]["detail"] == error["message"], "{response}");
    format!("{id}:{}", error["code"])
}

#[test]
fn curl_sees_the_examples_of_the_specification() {
    const TEST: &str = "specification::curl_sees_the_examples_of_the_specification";
    if find_program(TEST, "curl", None).is_none() {
        return;
    }
    scenario(TEST, |lab| {
        let (hosts, _) = start(lab);
        for (message, expected) in MESSAGES {
            let (status, body) = curl(lab, &hosts[0], &[], message.as_bytes());
            match expected {
                Some(expected) => assert_eq!((status, shape(&body).as_str()), (200, *expected), "{message}"),
                None => assert_eq!((status, body.as_str()), (204, ""), "{message}"),
            }
        }
        let not_text = b"{\"jsonrpc\":\"2.0\",\"method\":\"why\",\"params\":[\"\xff\"],\"id\":1}";
        assert_eq!(shape(&curl(lab, &hosts[0], &[], not_text).1), "null:-32700");
        let nested = |depth: usize| {
            let params = format!("{}{}", "[".repeat(depth), "]".repeat(depth));
            format!(r#"{{"jsonrpc":"2.0","method":"why","params":{params},"id":1}}"#)
        };
        assert_eq!(shape(&curl(lab, &hosts[0], &[], nested(100).as_bytes()).1), "1:-32602");
        assert_eq!(shape(&curl(lab, &hosts[0], &[], nested(100_000).as_bytes()).1), "1:-32600");
        let call = r#"{"jsonrpc":"2.0","method":"why","id":1}"#;
        let batch = |count: usize| format!("[{}]", vec![call; count].join(","));
        let most = shape(&curl(lab, &hosts[0], &[], batch(BATCH_MAX).as_bytes()).1);
        assert_eq!(most.matches("1:-32602").count(), BATCH_MAX);
        assert_eq!(shape(&curl(lab, &hosts[0], &[], batch(BATCH_MAX + 1).as_bytes()).1), "null:-32600");

        let call = br#"{"jsonrpc":"2.0","method":"members.list","id":1}"#;
        let large = [&call[..], &vec![b' '; 1 << 20]].concat();
        for (options, message, status) in [
            (&[][..], large.as_slice(), 413),
            (&["-H", "content-type: text/plain"], call, 415),
            (&["-H", "content-type: application/x-www-form-urlencoded"], call, 415),
            (&["-H", "content-type:"], call, 415),
            (&["-H", "content-type: application/json; charset=utf-8"], call, 200),
            (&["-H", "content-type: application/json-rpc"], call, 200),
            (&["-H", "origin: http://evil.example"], call, 403),
            (&["-H", "host: evil.example"], call, 421),
            (&["-H", "idempotency-key: k"], call, 400),
            (&["-X", "GET"], call, 405),
            (&["-X", "PUT"], call, 405),
            (&["-X", "DELETE"], call, 405),
        ] {
            assert_eq!(curl(lab, &hosts[0], options, message).0, status, "{options:?}");
        }
        assert_eq!(hosts[0].send(7500, "GET /rpc", "").header("allow"), Some("POST"));
    });
}

#[test]
fn lines_have_the_errors_of_messages() {
    scenario("specification::lines_have_the_errors_of_messages", |lab| {
        let (hosts, _) = start(lab);
        // Each message is a line. Without a version it is one of version 1.0, and a batch is no line.
        for (message, expected) in MESSAGES {
            let is_line = expected.is_some() && message.starts_with('{') && message.contains("\"jsonrpc\": ");
            let Some(expected) = expected.filter(|shape| is_line && !shape.contains("-32700")) else {
                continue;
            };
            let answers = lines(&hosts[0], format!("{message}\n").as_bytes());
            assert_eq!(answers.len(), 1, "{message}");
            let code = expected.rsplit(':').next().unwrap();
            match answers[0].get("jsonrpc") {
                Some(version) => {
                    assert_eq!(version, "2.0");
                    let found =
                        answers[0]["error"]["code"].as_i64().map_or("ok".to_owned(), |code| code.to_string());
                    assert_eq!(found, code, "{message}");
                }
                // What cannot be read has the version of lines.
                None => assert!(
                    answers[0]["error"].as_str().unwrap().ends_with(&format!("({code})")),
                    "{message}"
                ),
            }
        }
        let quiet = br#"{"jsonrpc":"2.0","method":"foobar"}"#;
        assert!(lines(&hosts[0], &[&quiet[..], b"\n", &quiet[..], b"\n"].concat()).is_empty());
        for (line, code) in [
            (r#"{"method":"Services.List","params":{},"id":1}"#, "(-32600)"),
            (r#"{"method":"Services.None","params":[],"id":1}"#, "(-32601)"),
            (r#"{"method":"Why","params":[],"id":1}"#, "(-32602)"),
            (r#"{"method":"Why","id":1}"#, "(-32602)"),
            ("[1]", "(-32700)"),
            ("{", "(-32700)"),
        ] {
            let answers = lines(&hosts[0], format!("{line}\n").as_bytes());
            let error = answers[0]["error"].as_str().unwrap();
            assert!(error.ends_with(code) && answers[0]["result"].is_null(), "{line}: {error}");
        }
    });
}
