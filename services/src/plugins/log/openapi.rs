//! Describes the paths of the log for `/openapi.json`.

use serde_json::{Value, json};

use super::{input::RECORDS_PER_REQUEST_MAX, page::RECORDS_PER_PAGE_MAX, record::MESSAGE_BYTES_MAX};

fn problem() -> Value {
    json!({ "$ref": "#/components/responses/Problem" })
}

/// A `Problem` response with a header.
fn over_share() -> Value {
    json!({
        "description": "The log is nearly full and the source of the request, its host or member, holds more than its share; nothing was stored",
        "headers": { "Retry-After": { "schema": { "type": "integer" }, "description": "Seconds" } },
        "content": { "application/problem+json": { "schema": { "$ref": "#/components/schemas/Problem" } } } })
}

fn text() -> Value {
    json!({ "type": "string" })
}

fn query(name: &str, schema: Value, description: &str) -> Value {
    json!({ "name": name, "in": "query", "schema": schema, "description": description })
}

fn json_answer(description: &str, schema: Value) -> Value {
    json!({ "description": description, "content": { "application/json": { "schema": schema } } })
}

fn service() -> Value {
    query("service", text(), "Only records of this service")
}

fn level() -> Value {
    query(
        "level",
        json!({ "type": "string", "enum": ["trace", "debug", "info", "warn", "error"] }),
        "Only records of this level or a more urgent one",
    )
}

fn write_parameters() -> Value {
    json!([{ "$ref": "#/components/parameters/ack" }, { "$ref": "#/components/parameters/idempotencyKey" }])
}

fn event_stream() -> Value {
    json!({ "text/event-stream": { "schema": text() } })
}

/// A record in a response.
fn listed() -> Value {
    json!({ "type": "object", "required": ["id", "node", "offset", "time", "service", "level", "message"], "properties": {
        "id": text(), "node": text(), "offset": { "type": ["integer", "null"],
            "description": "Number of records posted to its node before it; null for an event of a node" },
        "time": { "type": "string", "format": "date-time" }, "service": { "type": ["string", "null"] },
        "level": text(), "message": text() } })
}

fn written() -> Value {
    json!({ "type": "object", "required": ["id", "offset", "ack"], "properties": {
        "id": text(), "offset": { "type": ["integer", "null"] }, "ack": text() } })
}

fn several() -> Value {
    json!({ "type": "object", "required": ["records"], "properties": { "records": { "type": "array", "items": written() } } })
}

/// Answer to a batch with refused records.
fn partly() -> Value {
    json!({ "type": "object", "required": ["records", "refused"], "properties": { "records": { "type": "array", "items": written() },
        "refused": { "type": "array", "items": { "type": "object", "required": ["record", "detail"], "properties": {
            "record": { "type": "integer", "description": "Position among the records of the request, from 0" },
            "line": { "type": "integer", "description": "Of NDJSON: the line, from 1" },
            "field": text(), "limit": { "type": "integer" }, "detail": text() } } } } })
}

/// A record in a request.
fn incoming() -> Value {
    json!({ "type": "object", "required": ["message"], "properties": {
        "message": { "type": "string", "description": format!("At most {MESSAGE_BYTES_MAX} bytes") },
        "level": { "type": ["string", "integer"], "description": "trace, debug, info, warn or error; a level of syslog or of \
            another logger (notice, FATAL, critical …) or a number of pino's (10 to 99) counts as the nearest of these" },
        "service": text(),
        "time": { "type": ["string", "number"], "description": "RFC 3339, or a number since 1970 in s, ms, µs or ns, which its \
            size tells apart; before 1990 is refused" } },
        "examples": [{ "message": "paid", "level": "info", "service": "shop" }] })
}

fn value() -> Value {
    json!({ "type": "object", "required": ["record"], "properties": { "record": { "type": "object",
        "required": ["value", "offset"], "properties": { "value": { "type": "string", "format": "byte" }, "offset": { "type": "integer" } } } } })
}

fn count() -> Value {
    json!({ "type": "object", "required": ["node", "count"], "properties": { "node": text(), "count": { "type": "integer" } } })
}

fn posted() -> Value {
    json!({ "type": "object", "required": ["record"], "properties": { "record": { "type": "object",
        "required": ["value"], "properties": { "value": { "type": "string", "format": "byte", "description": "In base64" } } } } })
}

/// Listing and writing of records.
fn log_path() -> Value {
    json!({
        "/log": {
            "get": {
                "summary": "The records of all nodes in the order of time, page by page",
                "description": "Follow next until it is null: no record is skipped, even if it arrives late. A page may be empty although there \
                    is a next. With q, pages are in the order of arrival. A cursor is valid at the node that returned it.",
                "parameters": [
                    query("after", text(), "next or resume of an earlier page, or the id of a record, to read the records that arrived after it"),
                    query("limit", json!({ "type": "integer", "minimum": 1, "maximum": RECORDS_PER_PAGE_MAX, "default": 100 }),
                        "The most records on the page"),
                    service(), level(),
                    query("q", text(), "Only records with all of these words; \"…\" is a phrase, err* (three letters at least) any word that begins so"),
                    query("before", text(), "Reads backward: the last records before the prev of an earlier page, or before the end"),
                ],
                "responses": {
                    "200": json_answer("The page", json!({ "type": "object", "required": ["records", "next", "prev", "resume"], "properties": {
                        "records": { "type": "array", "items": listed() },
                        "next": { "type": ["string", "null"], "description": "Cursor of the next page; null if there are no more records now" },
                        "prev": { "type": ["string", "null"], "description": "Cursor of the previous page; null at the beginning" },
                        "resume": { "type": "string", "description": "Cursor for a later request" } } })),
                    "400": problem(), "410": problem(), "503": problem(),
                },
            },
            "post": {
                "summary": "Add records",
                "description": format!("Plain text is one record; JSON one or an array; NDJSON one in each line; at most \
                    {RECORDS_PER_REQUEST_MAX}. In a batch, malformed records are refused one by one (207), and the others are stored. \
                    Of a duplicate field, the last one counts; msg is accepted for message. Content-Encoding may be gzip or zstd."),
                "parameters": write_parameters(),
                "requestBody": { "required": true, "content": {
                    "text/plain": { "schema": text() },
                    "application/json": { "schema": { "oneOf": [incoming(), { "type": "array", "items": incoming() }] } },
                    "application/x-ndjson": { "schema": text() } } },
                "responses": {
                    "200": json_answer("Written: an object for one record, records for several", json!({ "anyOf": [written(), several()] })),
                    "207": json_answer("Written except for those in refused; records has the others in order", partly()),
                    "400": problem(), "409": problem(), "413": problem(), "415": problem(), "429": over_share(),
                    "503": problem(), "504": problem(), "507": problem(),
                },
            },
        }
    })
}

/// Tail, and events of nodes.
fn stream_paths() -> Value {
    json!({
        "/log/tail": { "get": {
            "summary": "New records (server-sent events); data is a record, id a position to resume from",
            "parameters": [
                service(), level(),
                query("q", text(), "Only records whose message contains this, in either case"),
                query("after", text(), "Begin after this cursor or record instead of now"),
                query("last", json!({ "type": "integer", "minimum": 0, "maximum": 1000 }), "Number of older records at the start"),
                { "name": "Last-Event-ID", "in": "header", "schema": text(), "description": "Resumes an interrupted stream" },
            ],
            "responses": { "200": { "description": "The stream", "content": event_stream() },
                "400": problem(), "410": problem(), "429": problem(), "503": problem() },
        } },
        "/log/events": { "post": {
            "summary": "Events that nodes ship: listed, and without an offset",
            "description": "NDJSON as for /log, with node beside the other fields; numbers in time are milliseconds. For nodes; clients use /log. As everywhere in the log, node and service are statements of the writer and prove nothing; the node that stored the record is part of the id.",
            "parameters": write_parameters(),
            "requestBody": { "required": true, "content": { "application/x-ndjson": { "schema": text() } } },
            "responses": { "200": json_answer("Written", several()), "207": json_answer("Written except for those in refused", partly()),
                "400": problem(), "409": problem(), "413": problem(), "415": problem(), "429": over_share(), "503": problem(), "504": problem(), "507": problem() },
        } }
    })
}

/// Records by offset.
fn record_paths() -> Value {
    json!({
        "/records": {
            "get": {
                "summary": "The record at the offset in the body; without a body, how many were posted to this node",
                "requestBody": { "content": { "application/json": { "schema": { "type": "object",
                    "properties": { "offset": { "type": "integer", "minimum": 0 } } } } } },
                "responses": { "200": json_answer("The record, or the count", json!({ "anyOf": [value(), count()] })),
                    "400": problem(), "404": problem(), "410": problem(), "413": problem(), "503": problem() },
            },
            "post": {
                "summary": "Add a record of any bytes",
                "parameters": write_parameters(),
                "requestBody": { "required": true, "content": { "application/json": { "schema": posted() } } },
                "responses": { "200": json_answer("Its offset on this node", json!({ "type": "object",
                    "required": ["offset"], "properties": { "offset": { "type": "integer" } } })),
                    "400": problem(), "409": problem(), "413": problem(), "415": problem(), "429": over_share(), "503": problem(), "504": problem(), "507": problem() },
            },
        },
        "/records/{offset}": { "get": {
            "summary": "The record that was posted to this node under this offset",
            "parameters": [{ "name": "offset", "in": "path", "required": true, "schema": { "type": "integer", "minimum": 0 } }],
            "responses": { "200": json_answer("The record", value()), "404": problem(), "410": problem(), "503": problem() },
        } }
    })
}

/// Returns the paths of the log.
pub(super) fn paths() -> Value {
    let parts = [log_path(), stream_paths(), record_paths()];
    let paths = parts.into_iter().filter_map(|part| match part {
        Value::Object(paths) => Some(paths),
        _ => None,
    });
    Value::Object(paths.flatten().collect())
}
