//! Describes the paths of the key/value store for `/openapi.json`.

use serde_json::{Value, json};

use super::change::{KV_KEY_BYTES_MAX, KV_VALUE_BYTES_MAX};

fn problem() -> Value {
    json!({ "$ref": "#/components/responses/Problem" })
}

fn query(name: &str, schema: Value, description: &str) -> Value {
    json!({ "name": name, "in": "query", "schema": schema, "description": description })
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/parameters/{name}") })
}

fn text() -> Value {
    json!({ "type": "string" })
}

fn integer() -> Value {
    json!({ "type": "integer" })
}

fn headers() -> Value {
    json!({ "X-Hearsay-Index": { "schema": integer(), "description": "Index for `index` at this node" } })
}

fn pair() -> Value {
    json!({ "type": "object", "required": ["key", "flags", "value", "createIndex", "modifyIndex"],
        "properties": { "key": text(), "flags": integer(), "value": { "type": "string", "contentEncoding": "base64" },
            "createIndex": integer(), "modifyIndex": integer(), "writes": writes() } })
}

fn writes() -> Value {
    let write = json!({ "type": "object", "required": ["change", "node", "time", "epoch", "entry"],
        "properties": { "change": { "type": "string", "enum": ["put", "delete"] }, "node": text(),
            "time": { "type": "string", "format": "date-time" }, "epoch": integer(), "entry": text() } });
    json!({ "type": "object", "required": ["latest", "superseded"],
        "properties": { "latest": write, "superseded": { "oneOf": [write, { "type": "null" }] } } })
}

fn blocking() -> [Value; 2] {
    [
        query(
            "index",
            integer(),
            "Waits until there is a change after this index; an index of another node answers at once",
        ),
        query("wait", text(), "Longest wait, such as 500ms, 10s or 5m; then the answer is 304"),
    ]
}

fn written() -> Value {
    json!({ "204": { "description": "Written" }, "400": problem(), "409": problem(), "412": problem(),
        "413": problem(), "501": problem(), "503": problem(), "504": problem(), "507": problem() })
}

/// Returns the paths.
pub(super) fn paths() -> Value {
    let prefix = || query("prefix", text(), "Only keys that begin with this");
    let cas = || query("cas", integer(), "An index: 412 if the key has another one here, else 501");
    let [index, wait] = blocking();
    let unchanged = || json!({ "description": "No change", "headers": headers() });
    let key = json!({ "name": "key", "in": "path", "required": true,
        "schema": { "type": "string", "minLength": 1, "maxLength": KV_KEY_BYTES_MAX },
        "description": "A key, which may contain slashes; a slash at its end is written %2F" });
    json!({
        "/kv": {
            "get": { "summary": "Keys and values",
                "parameters": [prefix(), query("keys", json!({ "type": "boolean" }), "Only the keys, as texts"),
                    query("separator", text(), "With keys: cuts each key behind the first separator after the prefix"),
                    index, wait, reference("token")],
                "responses": { "200": { "description": "Keys in order", "headers": headers(),
                        "content": { "application/json": { "schema": { "type": "array", "items": { "oneOf": [pair(), text()] } } } } },
                    "304": unchanged(), "400": problem(), "413": problem(), "429": problem(), "503": problem() } },
            "post": { "summary": "Restore keys from a backup (`node journal restore`)",
                "parameters": [query("dry-run", json!({ "type": "boolean" }), "Shows the differences and writes nothing"),
                    reference("ack"), reference("token")],
                "requestBody": { "content": { "application/json": { "schema": { "type": "object", "required": ["items"],
                    "properties": { "items": { "type": "array", "items": { "type": "object", "required": ["key", "value"],
                        "properties": { "key": text(), "flags": integer(), "value": { "type": "string", "contentEncoding": "base64" } } } } } } } } },
                "responses": { "200": { "description": "The differences", "content": { "application/json": { "schema": { "type": "object" } } } },
                    "400": problem(), "503": problem(), "504": problem(), "507": problem() } },
            "delete": { "summary": "Delete the keys below a prefix",
                "parameters": [prefix(), reference("ack"), reference("token")], "responses": written() },
        },
        "/kv/{key}": {
            "parameters": [key],
            "get": { "summary": "A value",
                "parameters": [query("raw", json!({ "type": "boolean" }), "The bytes of the value"),
                    query("writes", json!({ "type": "boolean" }), "Names the write in effect and the one before it; not with raw"),
                    blocking()[0], blocking()[1], reference("token")],
                "responses": { "200": { "description": "The value", "headers": headers(),
                        "content": { "application/json": { "schema": pair() }, "application/octet-stream": {} } },
                    "304": unchanged(), "400": problem(), "404": problem(), "429": problem(), "503": problem() } },
            "put": { "summary": "Set a value",
                "parameters": [query("flags", integer(), "A number that is kept with the value"), cas(),
                    reference("ack"), reference("idempotencyKey")],
                "requestBody": { "description": format!("The value, at most {KV_VALUE_BYTES_MAX} bytes"),
                    "content": { "application/octet-stream": {} } },
                "responses": written() },
            "delete": { "summary": "Delete a key",
                "parameters": [cas(), reference("ack"), reference("token"), reference("idempotencyKey")], "responses": written() },
        },
    })
}
