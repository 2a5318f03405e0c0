//! What the log says of itself in `/openapi.json`.

use serde_json::{Value, json};

use super::{input::RECORDS_PER_REQUEST_MAX, page::RECORDS_PER_PAGE_MAX, record::MESSAGE_BYTES_MAX};

/// The paths of the log.
pub(super) fn paths() -> Value {
    let refused = || json!({ "$ref": "#/components/responses/Problem" });
    let query = |name: &str, schema: Value, what: &str| json!({ "name": name, "in": "query", "schema": schema, "description": what });
    let text = || json!({ "type": "string" });
    let service = query("service", text(), "Only records of this service");
    let level = query(
        "level",
        json!({ "type": "string", "enum": ["trace", "debug", "info", "warn", "error"] }),
        "Only records of this level or a more urgent one",
    );
    let ack = json!({ "$ref": "#/components/parameters/ack" });
    let key = json!({ "$ref": "#/components/parameters/idempotencyKey" });
    let stream = json!({ "text/event-stream": { "schema": text() } });
    let record = json!({ "type": "object", "required": ["id", "node", "offset", "time", "service", "level", "message"], "properties": {
        "id": text(), "node": text(), "offset": { "type": ["integer", "null"],
            "description": "The how-manieth it is of those posted to its node, from 0; null for what a node says of itself" },
        "time": { "type": "string", "format": "date-time" }, "service": { "type": ["string", "null"] },
        "level": text(), "message": text() } });
    let written = json!({ "type": "object", "required": ["id", "offset", "ack"], "properties": {
        "id": text(), "offset": { "type": ["integer", "null"] }, "ack": text() } });
    let several = json!({ "type": "object", "required": ["records"], "properties": { "records": { "type": "array", "items": written } } });
    let partly = json!({ "type": "object", "required": ["records", "refused"], "properties": { "records": { "type": "array", "items": written },
        "refused": { "type": "array", "items": { "type": "object", "required": ["record", "detail"], "properties": {
            "record": { "type": "integer", "description": "Its place among the records of the request, from 0" },
            "line": { "type": "integer", "description": "Of NDJSON: the line, from 1" },
            "field": text(), "limit": { "type": "integer" }, "detail": text() } } } } });
    let incoming = json!({ "type": "object", "required": ["message"], "properties": {
        "message": { "type": "string", "description": format!("At most {MESSAGE_BYTES_MAX} bytes") },
        "level": { "type": ["string", "integer"], "description": "trace, debug, info, warn or error; a level of syslog or of \
            another logger (notice, FATAL, critical …) or a number of pino's (10 to 99) counts as the nearest of these" },
        "service": text(),
        "time": { "type": ["string", "number"], "description": "RFC 3339, or a number since 1970 in s, ms, µs or ns, which its \
            size tells apart; before 1990 is refused" } },
        "examples": [{ "message": "paid", "level": "info", "service": "shop" }] });
    let json_answer = |what: &str, schema: &Value| json!({ "description": what, "content": { "application/json": { "schema": schema } } });
    let value = json!({ "type": "object", "required": ["record"], "properties": { "record": { "type": "object",
        "required": ["value", "offset"], "properties": { "value": { "type": "string", "format": "byte" }, "offset": { "type": "integer" } } } } });
    let count = json!({ "type": "object", "required": ["node", "count"], "properties": { "node": text(), "count": { "type": "integer" } } });
    let posted = json!({ "type": "object", "required": ["record"], "properties": { "record": { "type": "object",
        "required": ["value"], "properties": { "value": { "type": "string", "format": "byte", "description": "In base64" } } } } });
    json!({
        "/log": {
            "get": {
                "summary": "The records of all nodes in the order of time, page by page",
                "description": "Follow next until it is null: nothing is skipped, also not what arrives late. A page may be empty though there \
                    is a next. With q, pages are in the order of arrival. Cursors are of the node that gave them.",
                "parameters": [
                    query("after", text(), "The next or resume of an earlier page, or the id of a record: then what arrived after it"),
                    query("limit", json!({ "type": "integer", "minimum": 1, "maximum": RECORDS_PER_PAGE_MAX, "default": 100 }),
                        "The most records on the page"),
                    service, level,
                    query("q", text(), "Only records with all of these words; \"…\" is a phrase, err* (three letters at least) any word that begins so"),
                    query("before", text(), "Back instead of on: the last records before the prev of an earlier page; end: the last there are"),
                ],
                "responses": {
                    "200": json_answer("The page", &json!({ "type": "object", "required": ["records", "next", "prev", "resume"], "properties": {
                        "records": { "type": "array", "items": record },
                        "next": { "type": ["string", "null"], "description": "Where to go on; null: nothing more is here now" },
                        "prev": { "type": ["string", "null"], "description": "Where to go back; null: this is the beginning" },
                        "resume": { "type": "string", "description": "Where to go on later" } } })),
                    "400": refused(), "410": refused(), "503": refused(),
                },
            },
            "post": {
                "summary": "Add records",
                "description": format!("Plain text is one record; JSON one or an array; NDJSON one in each line; at most \
                    {RECORDS_PER_REQUEST_MAX}. Of several, those that make no sense are refused one by one (207), and the others are stored. \
                    Of a field that stands twice, the last one counts; msg stands for message. Content-Encoding may be gzip or zstd."),
                "parameters": [ack, key],
                "requestBody": { "required": true, "content": {
                    "text/plain": { "schema": text() },
                    "application/json": { "schema": { "oneOf": [incoming, { "type": "array", "items": incoming }] } },
                    "application/x-ndjson": { "schema": text() } } },
                "responses": {
                    "200": json_answer("Written: one for one, records for several", &json!({ "anyOf": [written, several] })),
                    "207": json_answer("Written but for those in refused; records has the others, in their order", &partly),
                    "400": refused(), "409": refused(), "413": refused(), "415": refused(),
                    "503": refused(), "504": refused(), "507": refused(),
                },
            },
        },
        "/log/tail": { "get": {
            "summary": "Records as they come (server-sent events); data is a record, the id a place to resume at",
            "parameters": [
                service, level,
                query("q", text(), "Only records whose message contains this, in either case"),
                query("after", text(), "Begin after this cursor or record instead of now"),
                query("last", json!({ "type": "integer", "minimum": 0, "maximum": 1000 }), "Begin with so many of the last records"),
                { "name": "Last-Event-ID", "in": "header", "schema": text(), "description": "Go on where a stream broke off" },
            ],
            "responses": { "200": { "description": "The stream", "content": stream },
                "400": refused(), "410": refused(), "503": refused() },
        } },
        "/log/events": { "post": {
            "summary": "What nodes ship of themselves: listed, and without an offset",
            "description": "NDJSON as for /log, with node beside the other fields; numbers in time are milliseconds. For nodes; clients use /log. As everywhere in the log, node and service are what the writer says of itself, and prove nothing; who wrote it down is part of the id.",
            "parameters": [ack, key],
            "requestBody": { "required": true, "content": { "application/x-ndjson": { "schema": text() } } },
            "responses": { "200": json_answer("Written", &several), "207": json_answer("Written but for those in refused", &partly),
                "400": refused(), "409": refused(), "413": refused(), "415": refused(), "503": refused(), "504": refused(), "507": refused() },
        } },
        "/records": {
            "get": {
                "summary": "The record at the offset in the body; without a body, how many were posted to this node",
                "requestBody": { "content": { "application/json": { "schema": { "type": "object",
                    "properties": { "offset": { "type": "integer", "minimum": 0 } } } } } },
                "responses": { "200": json_answer("The record, or the count", &json!({ "anyOf": [value, count] })),
                    "400": refused(), "404": refused(), "410": refused(), "413": refused(), "503": refused() },
            },
            "post": {
                "summary": "Add a record of any bytes",
                "parameters": [ack, key],
                "requestBody": { "required": true, "content": { "application/json": { "schema": posted } } },
                "responses": { "200": json_answer("Its offset on this node", &json!({ "type": "object",
                    "required": ["offset"], "properties": { "offset": { "type": "integer" } } })),
                    "400": refused(), "409": refused(), "413": refused(), "415": refused(), "503": refused(), "504": refused(), "507": refused() },
            },
        },
        "/records/{offset}": { "get": {
            "summary": "The record that was posted to this node under this offset",
            "parameters": [{ "name": "offset", "in": "path", "required": true, "schema": { "type": "integer", "minimum": 0 } }],
            "responses": { "200": json_answer("The record", &value), "404": refused(), "410": refused(), "503": refused() },
        } },
    })
}
