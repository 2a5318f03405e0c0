//! Describes the paths of the grade book for `/openapi.json`.

use serde_json::{Map, Value, json};

use super::{
    STUDENTS_PER_PAGE_MAX,
    change::ID_MAX,
    csv::LINES_MAX,
    input::{GRADES_MAX, NAME_CHARS_MAX, TITLE_CHARS_MAX},
};

/// Error statuses of every write.
const WRITE_REFUSALS: [&str; 7] = ["400", "409", "413", "415", "503", "504", "507"];

fn problem() -> Value {
    json!({ "$ref": "#/components/responses/Problem" })
}

fn parameter(name: &str) -> Value {
    json!({ "$ref": format!("#/components/parameters/{name}") })
}

fn schema(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// A JSON body.
fn in_json(schema: &Value) -> Value {
    json!({ "application/json": { "schema": schema } })
}

/// Responses by status, plus the error statuses.
fn responses(answers: Value, refused: &[&str]) -> Value {
    let mut all: Map<String, Value> =
        refused.iter().map(|status| ((*status).to_owned(), problem())).collect();
    if let Value::Object(answers) = answers {
        all.extend(answers);
    }
    Value::Object(all)
}

/// An operation that writes. The response has the level and a token.
fn write(summary: &str, status: &str, mut answer: Value, more_refusals: &[&str]) -> Value {
    answer["headers"] = json!({
        "Hearsay-Ack": { "$ref": "#/components/headers/ack" },
        "Hearsay-Token": { "$ref": "#/components/headers/token" },
    });
    json!({
        "summary": summary,
        "parameters": [parameter("ack"), parameter("idempotencyKey"), parameter("token")],
        "responses": responses(json!({ status: answer }), &[&WRITE_REFUSALS[..], more_refusals].concat()),
    })
}

/// Adds a request body to an operation.
fn write_body(mut write: Value, content: Value) -> Value {
    write["requestBody"] = json!({ "required": true, "content": content });
    write
}

/// Adds an operation id, which links refer to.
fn named(mut operation: Value, id: &str) -> Value {
    operation["operationId"] = id.into();
    operation
}

fn text(max: usize) -> Value {
    // Without control characters, and not only white space.
    json!({ "type": "string", "minLength": 1, "maxLength": max, "pattern": "^[^\\s\\x00-\\x1f\\x7f-\\x9f]([^\\x00-\\x1f\\x7f-\\x9f]*[^\\s\\x00-\\x1f\\x7f-\\x9f])?$" })
}

fn id() -> Value {
    json!({ "type": "integer", "minimum": 1, "maximum": ID_MAX })
}

fn new_grade() -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "required": ["title", "type", "score"],
        "properties": {
            "id": id(),
            "title": text(TITLE_CHARS_MAX),
            "type": { "type": "string", "enum": ["Quiz", "Test", "Exam", "Homework"] },
            "score": { "type": "number", "minimum": 0, "maximum": 100 },
        },
        "examples": [{ "title": "Essay", "type": "Homework", "score": 82.5 }],
    })
}

fn new_student() -> Value {
    json!({
        "type": "object",
        "additionalProperties": false,
        "description": "ID, FirstName, LastName, Grades, Title, Type and Score are taken, too. An average is passed over.",
        "required": ["firstName", "lastName"],
        "properties": {
            "id": id(),
            "firstName": text(NAME_CHARS_MAX),
            "lastName": text(NAME_CHARS_MAX),
            "grades": { "type": "array", "maxItems": GRADES_MAX, "items": new_grade() },
            "average": { "type": ["number", "null"] },
        },
        "examples": [{ "firstName": "Ada", "lastName": "Lovelace" }],
    })
}

/// Returns the paths of the grade book.
pub(super) fn paths() -> Value {
    let student = |what: &str| json!({ "description": what, "content": in_json(&schema("Student")) });
    let done = || json!({ "description": "Done" });
    let id = parameter("studentId");
    let link =
        |operation: &str| json!({ "operationId": operation, "parameters": { "id": "$response.body#/id" } });
    let mut added = student("The student");
    added["links"] = json!({
        "read": link("getStudent"), "rename": link("putStudent"), "grade": link("postGrade"), "remove": link("deleteStudent"),
    });
    json!({
        "/students": {
            "get": {
                "summary": "The students of the grade book, in the order of their ids",
                "parameters": [
                    { "name": "after", "in": "query", "schema": { "type": "integer", "minimum": 0 },
                      "description": "Only students with a higher id" },
                    { "name": "limit", "in": "query",
                      "schema": { "type": "integer", "minimum": 1, "maximum": STUDENTS_PER_PAGE_MAX } },
                    { "name": "q", "in": "query", "schema": { "type": "string" },
                      "description": "Only students whose name contains this" },
                    parameter("token"),
                ],
                "responses": responses(json!({ "200": { "description": "The students",
                    "content": in_json(&json!({ "type": "array", "items": schema("Student") })) } }), &["400", "503"]),
            },
            "post": write_body(write("Add a student", "201", added, &[]), in_json(&new_student())),
        },
        "/students/export": { "get": {
            "summary": "The whole book as CSV, one line for each grade",
            "parameters": [
                { "name": "excel", "in": "query", "allowEmptyValue": true, "schema": { "type": "boolean" },
                  "description": "Begin with a byte order mark, by which Excel knows UTF-8" },
                parameter("token"),
            ],
            "responses": responses(json!({ "200": { "description": "The book",
                "content": { "text/csv": { "schema": { "type": "string" } } } } }), &["400", "503"]),
        } },
        "/students/import": { "post": import() },
        "/students/restore": { "post": restore() },
        "/students/{id}": {
            "parameters": [id],
            "get": named(json!({
                "summary": "One student",
                "parameters": [parameter("token")],
                "responses": responses(json!({ "200": student("The student") }), &["400", "404", "503"]),
            }), "getStudent"),
            "put": named(write_body(
                write("Change a student's name, and its grades if they are given", "200", student("The student"), &["404"]),
                in_json(&new_student()),
            ), "putStudent"),
            "delete": named(write("Remove a student", "204", done(), &["404"]), "deleteStudent"),
        },
        "/students/{id}/grades": {
            "parameters": [id],
            "post": named(write_body(
                write("Give a grade", "201", json!({ "description": "The grade", "content": in_json(&schema("Grade")) }), &["404"]),
                in_json(&new_grade()),
            ), "postGrade"),
        },
        "/students/{id}/grades/{gid}": {
            "parameters": [id, parameter("gradeId")],
            "delete": write("Take a grade back", "204", done(), &["404"]),
        },
    })
}

fn import() -> Value {
    let report = json!({
        "type": "object",
        "required": ["students", "grades", "refused", "problems"],
        "properties": {
            "students": { "type": "integer" },
            "grades": { "type": "integer" },
            "refused": { "type": "integer", "description": "Lines that were left out" },
            "problems": { "type": "array", "description": "The first of them", "items": {
                "type": "object",
                "required": ["line", "problem"],
                "properties": { "line": { "type": "integer" }, "problem": { "type": "string" } },
            } },
        },
    });
    let summary = "Add what CSV lines say (separated by commas, semicolons or tabs; UTF-8, or UTF-16 with its mark); lines that \
                   make no sense are listed and left out";
    let answer = json!({ "description": "What was taken, and what was not", "content": in_json(&report) });
    let csv = json!({ "text/csv": {
        "schema": { "type": "string" },
        "example": "ID,FirstName,LastName,Title,Type,Score\n,Ada,Lovelace,Essay,Homework,82.5\n",
    } });
    let mut import = write_body(write(summary, "200", answer, &[]), csv);
    import["description"] =
        format!("At most {LINES_MAX} lines; the first one has the names of the columns.").into();
    import
}

fn restore() -> Value {
    let text = json!({ "type": "string" });
    let grade = json!({
        "type": "object",
        "required": ["id", "title", "type", "score"],
        "properties": { "id": { "type": "integer", "minimum": 0 }, "title": text,
            "type": { "type": "string", "enum": ["Quiz", "Test", "Exam", "Homework"] }, "score": { "type": "number" } },
    });
    let items = json!({ "type": "object", "required": ["items"], "properties": { "items": { "type": "array", "items": {
        "type": "object",
        "required": ["id"],
        "properties": { "id": { "type": "integer", "minimum": 0 }, "firstName": text, "lastName": text,
            "grades": { "type": "array", "items": grade } },
    } } } });
    let report = json!({
        "type": "object",
        "required": ["differences", "written", "ack", "remaining"],
        "properties": {
            "differences": { "type": "array", "items": {
                "type": "object",
                "required": ["item", "change", "now", "backup", "note"],
                "properties": {
                    "item": text,
                    "change": { "type": "string", "enum": ["add", "setBack", "refuse"] },
                    "now": { "type": ["string", "null"] },
                    "backup": text,
                    "note": { "type": ["string", "null"] },
                },
            } },
            "written": { "type": "integer" },
            "ack": { "type": ["string", "null"] },
            "remaining": { "type": "integer" },
        },
    });
    let summary = "Write what a backup has and the book has not, or has otherwise (`node journal restore`); with dry-run, only tell \
                   the difference";
    let answer = json!({ "description": "The differences, how many entries were written, and the level that they reached", "content": in_json(&report) });
    let mut restore = write_body(write(summary, "200", answer, &[]), in_json(&items));
    let dry_run =
        json!({ "name": "dry-run", "in": "query", "allowEmptyValue": true, "schema": { "type": "boolean" } });
    if let Some(parameters) = restore["parameters"].as_array_mut() {
        parameters.push(dry_run);
    }
    restore
}
