//! Methods of JSON-RPC: translates each call into a request to the path of the HTTP API that it stands for.
//!
//! Some parameters become a part of the path or of the query, the others the body. Their values are checked
//! by the path; here only their names, and that they have a form that fits into a path or query. Names of
//! methods and of the parameters in the table match in any case: Go's clients write `Services.List` and
//! `Name`.

use axum::http::{HeaderValue, Method as Verb, StatusCode};
use hearsay_services::{Problem, http::IDEMPOTENCY_KEY};
use serde_json::{Map, Value};

use super::message::Params;
use crate::{
    escape::percent_encoded,
    http::reentry::{InnerRequest, path_segment},
};

/// Parameter of writes to a plug-in: the key under which a repeated write takes effect once.
const KEY: &str = "idempotencyKey";

/// The body of the requests of a method.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Body {
    /// There is none.
    None,
    /// An object of the remaining parameters.
    Rest,
    /// The array of this parameter, or else an object of the remaining parameters.
    ArrayOrRest(&'static str),
}

/// A method, and the path to which it belongs.
#[derive(Debug)]
pub(super) struct Method {
    pub(super) name: &'static str,
    verb: Verb,
    /// Paths, of which the last one is used whose parameters are all given.
    pub(super) paths: &'static [&'static str],
    /// Names of parameters that are given by position.
    positions: &'static [&'static str],
    pub(super) query: &'static [&'static str],
    body: Body,
    /// Whether [`KEY`] is a parameter.
    has_key: bool,
}

/// A method without a body and without parameters by position.
const PLAIN: Method = Method {
    name: "",
    verb: Verb::GET,
    paths: &[],
    positions: &[],
    query: &[],
    body: Body::None,
    has_key: false,
};

const FILTERS: &[&str] = &["tag", "health", "zone", "near"];

/// All methods.
const METHODS: &[Method] = &[
    Method { name: "services.list", paths: &["/services"], positions: FILTERS, query: FILTERS, ..PLAIN },
    Method {
        name: "services.get",
        paths: &["/services/{name}", "/services/{name}/{id}"],
        positions: &["name", "id"],
        query: FILTERS,
        ..PLAIN
    },
    Method {
        name: "services.register",
        verb: Verb::POST,
        paths: &["/services"],
        positions: &["name", "port"],
        query: &["node"],
        body: Body::Rest,
        ..PLAIN
    },
    Method {
        name: "services.deregister",
        verb: Verb::DELETE,
        paths: &["/services/{id}", "/services/{name}/{id}"],
        positions: &["id", "name"],
        query: &["node"],
        ..PLAIN
    },
    Method { name: "members.list", paths: &["/members"], ..PLAIN },
    Method { name: "why", paths: &["/why/{subject}"], positions: &["subject"], ..PLAIN },
    Method {
        name: "students.list",
        paths: &["/students"],
        positions: &["q", "after", "limit"],
        query: &["q", "after", "limit"],
        ..PLAIN
    },
    Method { name: "students.get", paths: &["/students/{id}"], positions: &["id"], ..PLAIN },
    Method {
        name: "students.add",
        verb: Verb::POST,
        paths: &["/students"],
        positions: &["firstName", "lastName"],
        query: &["ack"],
        body: Body::Rest,
        has_key: true,
    },
    Method {
        name: "students.replace",
        verb: Verb::PUT,
        paths: &["/students/{id}"],
        positions: &["id", "firstName", "lastName"],
        query: &["ack"],
        body: Body::Rest,
        has_key: true,
    },
    Method {
        name: "students.remove",
        verb: Verb::DELETE,
        paths: &["/students/{id}"],
        positions: &["id"],
        query: &["ack"],
        has_key: true,
        ..PLAIN
    },
    Method {
        name: "students.addGrade",
        verb: Verb::POST,
        paths: &["/students/{student}/grades"],
        positions: &["student", "title", "type", "score"],
        query: &["ack"],
        body: Body::Rest,
        has_key: true,
    },
    Method {
        name: "students.removeGrade",
        verb: Verb::DELETE,
        paths: &["/students/{student}/grades/{id}"],
        positions: &["student", "id"],
        query: &["ack"],
        has_key: true,
        ..PLAIN
    },
    Method {
        name: "log.append",
        verb: Verb::POST,
        paths: &["/log"],
        positions: &["message", "level", "service"],
        query: &["ack"],
        body: Body::ArrayOrRest("records"),
        has_key: true,
    },
];

impl Method {
    /// Finds a method by its name, in any case.
    pub(super) fn find(name: &str) -> Option<&'static Self> {
        METHODS.iter().find(|method| method.name.eq_ignore_ascii_case(name))
    }

    /// The names of all methods.
    pub(super) fn names() -> String {
        METHODS.iter().map(|method| method.name).collect::<Vec<_>>().join(", ")
    }

    /// Translates a call.
    ///
    /// # Errors
    /// 400 with the name of the parameter that is missing, unknown or malformed.
    pub(super) fn request(&self, params: Params) -> Result<InnerRequest, Problem> {
        let mut given = match params {
            Params::ByName(named) => named,
            Params::ByPosition(values) => self.named(values)?,
        };
        given.retain(|_, value| !value.is_null());
        let mut target = self.path(&mut given)?;
        let query = self.query(&mut given)?;
        if !query.is_empty() {
            target = format!("{target}?{query}");
        }
        let mut request = InnerRequest::new(self.verb.clone(), target);
        if self.has_key
            && let Some((name, key)) = take(&mut given, KEY)
        {
            let key = text(&name, &key)?;
            let key = HeaderValue::from_str(&key).map_err(|_| {
                Problem::parameter(&name, "must consist of visible ASCII characters and spaces")
            })?;
            request.headers.push((IDEMPOTENCY_KEY, key));
        }
        let body = match self.body {
            Body::None => match given.keys().next() {
                Some(unknown) => return Err(self.unknown(unknown)),
                None => return Ok(request),
            },
            Body::Rest => Value::Object(given),
            Body::ArrayOrRest(array) => match take(&mut given, array) {
                None => Value::Object(given),
                Some((_, value @ Value::Array(_))) => match given.keys().next() {
                    Some(other) => {
                        let problem = format!("cannot be combined with {array}; give it in each element");
                        return Err(Problem::parameter(&cut(other), problem));
                    }
                    None => value,
                },
                Some((name, _)) => return Err(Problem::parameter(&name, "must be an array")),
            },
        };
        Ok(request.json(body.to_string()))
    }

    /// Names parameters that are given by position.
    fn named(&self, values: Vec<Value>) -> Result<Map<String, Value>, Problem> {
        if values.len() > self.positions.len() {
            let (given, max) = (values.len(), self.positions.len());
            let detail = format!(
                "params: {} takes at most {max} by position, {given} are given; give an object with names",
                self.name
            );
            return Err(Problem::new(StatusCode::BAD_REQUEST, detail));
        }
        Ok(self.positions.iter().map(|name| (*name).to_owned()).zip(values).collect())
    }

    /// Fills the last path whose parameters are all given.
    fn path(&self, given: &mut Map<String, Value>) -> Result<String, Problem> {
        let is_filled = |path: &&&'static str| placeholders(path).all(|name| key_of(given, name).is_some());
        let path = self.paths.iter().rfind(is_filled).or(self.paths.first()).copied().unwrap_or_default();
        let mut filled = String::new();
        for segment in path.split('/').skip(1) {
            filled.push('/');
            match placeholder(segment) {
                None => filled.push_str(segment),
                Some(name) => {
                    let (name, value) =
                        take(given, name).ok_or_else(|| Problem::parameter(name, "is missing"))?;
                    let segment = path_segment(&text(&name, &value)?);
                    filled.push_str(&segment.map_err(|problem| Problem::parameter(&name, problem))?);
                }
            }
        }
        Ok(filled)
    }

    fn query(&self, given: &mut Map<String, Value>) -> Result<String, Problem> {
        let mut pairs = Vec::new();
        for known in self.query {
            let Some((name, value)) = take(given, known) else { continue };
            let values = match value {
                Value::Array(values) => values,
                value => vec![value],
            };
            for value in values {
                pairs.push(format!("{known}={}", percent_encoded(&text(&name, &value)?)));
            }
        }
        Ok(pairs.join("&"))
    }

    fn unknown(&self, name: &str) -> Problem {
        let in_paths = self.paths.last().into_iter().flat_map(|path| placeholders(path));
        let mut known: Vec<&str> = in_paths.chain(self.query.iter().copied()).collect();
        known.extend(self.has_key.then_some(KEY));
        let problem = match known.as_slice() {
            [] => "unknown; the method has no parameters".to_owned(),
            known => format!("unknown; the parameters are {}", known.join(", ")),
        };
        Problem::parameter(&cut(name), problem)
    }
}

fn placeholder(segment: &str) -> Option<&str> {
    segment.strip_prefix('{')?.strip_suffix('}')
}

fn placeholders(path: &'static str) -> impl Iterator<Item = &'static str> {
    path.split('/').filter_map(placeholder)
}

/// Cuts a name of a client for an error.
fn cut(name: &str) -> String {
    name.chars().take(64).collect()
}

/// Returns the key under which a parameter is given, in any case.
fn key_of<'a>(given: &'a Map<String, Value>, name: &str) -> Option<&'a String> {
    given.keys().find(|key| *key == name).or_else(|| given.keys().find(|key| key.eq_ignore_ascii_case(name)))
}

/// Removes a parameter and returns it with its name as given.
fn take(given: &mut Map<String, Value>, name: &str) -> Option<(String, Value)> {
    let key = key_of(given, name)?.clone();
    given.remove_entry(&key)
}

/// Returns a parameter as a part of a path, query or header.
fn text(name: &str, value: &Value) -> Result<String, Problem> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(flag) => Ok(flag.to_string()),
        _ => Err(Problem::parameter(name, "must be a text, a number or a boolean")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn call(method: &str, params: Value) -> Result<InnerRequest, String> {
        let params = match params {
            Value::Object(named) => Params::ByName(named),
            Value::Array(values) => Params::ByPosition(values),
            _ => unreachable!(),
        };
        Method::find(method).unwrap().request(params).map_err(|problem| problem.detail().to_owned())
    }

    #[track_caller]
    fn becomes(method: &str, params: Value, expected: &str, body: Option<Value>) {
        let request = call(method, params).unwrap();
        assert_eq!(format!("{} {}", request.method, request.target), expected);
        let sent =
            (!request.body.is_empty()).then(|| serde_json::from_slice::<Value>(&request.body).unwrap());
        assert_eq!(sent, body);
    }

    #[test]
    fn each_call_becomes_a_request_to_its_path() {
        becomes("services.list", json!({}), "GET /services", None);
        becomes(
            "Services.List",
            json!({ "Tag": ["a", "b&c"], "health": null }),
            "GET /services?tag=a&tag=b%26c",
            None,
        );
        becomes("services.get", json!(["watch"]), "GET /services/%77atch", None);
        becomes("services.get", json!({ "id": "w/1", "name": "web" }), "GET /services/%77eb/%77%2F1", None);
        let registration = json!({ "name": "web", "port": 80 });
        becomes("services.register", registration.clone(), "POST /services", Some(registration.clone()));
        becomes("services.register", json!(["web", 80]), "POST /services", Some(registration.clone()));
        let with_node = json!({ "name": "web", "port": 80, "node": "n2" });
        becomes("services.register", with_node, "POST /services?node=n2", Some(registration));
        becomes("services.deregister", json!(["w1"]), "DELETE /services/%771", None);
        becomes(
            "services.deregister",
            json!({ "id": "w1", "name": "web" }),
            "DELETE /services/%77eb/%771",
            None,
        );
        becomes("MEMBERS.LIST", json!([]), "GET /members", None);
        becomes("why", json!(["web"]), "GET /why/%77eb", None);
        becomes("students.list", json!({ "q": "A B" }), "GET /students?q=A%20B", None);
        becomes("students.get", json!([7]), "GET /students/%37", None);
        let student = json!({ "firstName": "A", "lastName": "B" });
        becomes("students.add", json!(["A", "B"]), "POST /students", Some(student.clone()));
        becomes("students.replace", json!([12, "A", "B"]), "PUT /students/%312", Some(student));
        becomes(
            "students.remove",
            json!({ "id": 1, "ack": "local" }),
            "DELETE /students/%31?ack=local",
            None,
        );
        let grade = json!({ "title": "T", "type": "Quiz", "score": 9.5 });
        becomes("students.addGrade", json!([1, "T", "Quiz", 9.5]), "POST /students/%31/grades", Some(grade));
        becomes("students.removegrade", json!([1, 2]), "DELETE /students/%31/grades/%32", None);
        becomes("log.append", json!(["m"]), "POST /log", Some(json!({ "message": "m" })));
        let records = json!([{ "message": "a" }, { "message": "b" }]);
        becomes("log.append", json!({ "records": records.clone() }), "POST /log", Some(records));
    }

    #[test]
    fn a_wrong_parameter_is_named() {
        for (method, params, words) in [
            ("services.get", json!({}), "name: is missing"),
            ("services.get", json!({ "name": "" }), "name: is empty"),
            ("services.get", json!({ "name": {} }), "name: must be a text"),
            (
                "services.list",
                json!({ "tags": "a" }),
                "tags: unknown; the parameters are tag, health, zone, near",
            ),
            ("services.list", json!({ "tag": [["a"]] }), "tag: must be a text"),
            ("services.list", json!({ "index": 7 }), "index: unknown"),
            ("members.list", json!({ "x": 1 }), "x: unknown; the method has no parameters"),
            ("why", json!(["a", "b"]), "params: why takes at most 1 by position, 2 are given"),
            ("log.append", json!({ "records": 1 }), "records: must be an array"),
            (
                "log.append",
                json!({ "records": [], "level": "info" }),
                "level: cannot be combined with records",
            ),
            ("students.add", json!({ "idempotencyKey": "a\nb" }), "idempotencyKey: must consist of"),
        ] {
            let problem = call(method, params).unwrap_err();
            assert!(problem.starts_with(words), "{method}: {problem}");
        }
    }

    #[test]
    fn the_key_of_a_write_becomes_its_header() {
        let request = call("log.append", json!({ "message": "m", "idempotencyKey": "k 1" })).unwrap();
        assert_eq!(request.headers, [(IDEMPOTENCY_KEY, HeaderValue::from_static("k 1"))]);
        assert_eq!(request.body, json!({ "message": "m" }).to_string());
    }
}
