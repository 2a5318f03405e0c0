//! Requests and responses in the two versions of JSON-RPC.
//!
//! Version 2.0 is that of jsonrpc.org. In version 1.0, which Go's `net/rpc/jsonrpc` speaks, a request has no
//! `jsonrpc`, `params` is an array, and a response has both `result` and `error`. Go's client reads only a
//! text as an error; for any other value it ends the connection.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize,
    de::{IgnoredAny, SeqAccess, Visitor},
};
use serde_json::{Map, Value, value::RawValue};

use super::error::RpcError;

/// Requests of a batch. Guess.
pub(super) const BATCH_MAX: usize = 100;

/// Version of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Version {
    One,
    Two,
}

/// Parameters of a call.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Params {
    ByName(Map<String, Value>),
    ByPosition(Vec<Value>),
}

/// A request.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Request {
    pub(super) version: Version,
    /// `None`: a notification, which has no response.
    pub(super) id: Option<Value>,
    pub(super) method: String,
    pub(super) params: Params,
}

/// A message: one request, or a batch.
#[derive(Debug)]
pub(super) enum Message<'a> {
    One(Value),
    Batch(Batch<'a>),
}

/// The requests of a batch, unparsed: parsed, they may take ten times the memory, and a batch waits for its
/// calls.
#[derive(Debug)]
pub(super) struct Batch<'a> {
    /// The first [`BATCH_MAX`].
    pub(super) requests: Vec<&'a RawValue>,
    /// The number of all.
    pub(super) count: usize,
}

impl<'a> Message<'a> {
    /// Reads a message.
    ///
    /// # Errors
    /// It is not JSON.
    pub(super) fn read(bytes: &'a [u8]) -> serde_json::Result<Self> {
        match bytes.trim_ascii_start().first() {
            Some(b'[') => serde_json::from_slice(bytes).map(Self::Batch),
            _ => serde_json::from_slice(bytes).map(Self::One),
        }
    }
}

impl<'de> Deserialize<'de> for Batch<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Array;

        impl<'de> Visitor<'de> for Array {
            type Value = Batch<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of requests")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Self::Value, A::Error> {
                let mut batch = Batch { requests: Vec::new(), count: 0 };
                while batch.count < BATCH_MAX
                    && let Some(request) = array.next_element()?
                {
                    batch.requests.push(request);
                    batch.count += 1;
                }
                while array.next_element::<IgnoredAny>()?.is_some() {
                    batch.count += 1;
                }
                Ok(batch)
            }
        }

        from.deserialize_seq(Array)
    }
}

/// An object that is no request, with the version and id for the response to it.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Refused {
    pub(super) version: Version,
    pub(super) id: Value,
    pub(super) error: RpcError,
}

impl Request {
    /// Reads a request. `default`: the version of one without `jsonrpc`; `None`: it is refused.
    ///
    /// # Errors
    /// The value is no request.
    pub(super) fn read(value: Value, default: Option<Version>) -> Result<Self, Box<Refused>> {
        let refuse = |version: Option<Version>, id: Option<&Value>, detail: String| {
            let id = id.filter(|id| id.is_string() || id.is_number()).cloned().unwrap_or_default();
            let version = version.unwrap_or(Version::Two);
            Box::new(Refused { version, id, error: RpcError::invalid_request(detail) })
        };
        let Value::Object(mut members) = value else {
            return Err(refuse(default, None, "a request is a JSON object".to_owned()));
        };
        let id = members.remove("id");
        let version = match members.get("jsonrpc") {
            Some(Value::String(two)) if two == "2.0" => Some(Version::Two),
            None | Some(Value::Null) => default,
            Some(_) => None,
        };
        let Some(version) = version else {
            return Err(refuse(default, id.as_ref(), "jsonrpc: must be \"2.0\"".to_owned()));
        };
        let refuse = |detail: &str| Err(refuse(Some(version), id.as_ref(), detail.to_owned()));
        if !matches!(id, None | Some(Value::Null | Value::String(_) | Value::Number(_))) {
            return refuse("id: must be a text, a number or null");
        }
        let method = match members.remove("method") {
            Some(Value::String(method)) => method,
            Some(_) => return refuse("method: must be a text"),
            None => return refuse("method: is missing"),
        };
        let params = match members.remove("params") {
            None => Params::ByPosition(Vec::new()),
            Some(Value::Null) if version == Version::One => Params::ByPosition(Vec::new()),
            Some(Value::Array(values)) => Params::of_array(values),
            Some(Value::Object(named)) if version == Version::Two => Params::ByName(named),
            Some(_) if version == Version::One => return refuse("params: must be an array"),
            Some(_) => return refuse("params: must be an object or an array"),
        };
        // In version 1.0 a notification has the id null.
        let id = id.filter(|id| version == Version::Two || !id.is_null());
        Ok(Self { version, id, method, params })
    }
}

impl Params {
    /// A client of Go sends its one argument as the only element. No method takes an object by position, so
    /// an only object has the parameters by name, in both versions.
    fn of_array(mut values: Vec<Value>) -> Self {
        match values.pop() {
            Some(Value::Object(named)) if values.is_empty() => Self::ByName(named),
            Some(last) => {
                values.push(last);
                Self::ByPosition(values)
            }
            None => Self::ByPosition(values),
        }
    }
}

#[derive(Serialize)]
struct ResponseTwo<'a> {
    jsonrpc: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorObject<'a>>,
    id: &'a Value,
}

#[derive(Serialize)]
struct ErrorObject<'a> {
    code: i32,
    message: &'a str,
    data: &'a Value,
}

#[derive(Serialize)]
struct ResponseOne<'a> {
    id: &'a Value,
    result: Option<&'a RawValue>,
    error: Option<String>,
}

/// Writes a response.
pub(super) fn response(version: Version, id: &Value, outcome: Result<&RawValue, &RpcError>) -> String {
    let (result, error) = (outcome.ok(), outcome.err());
    let written = match version {
        Version::Two => {
            let error =
                error.map(|RpcError { code, message, data }| ErrorObject { code: *code, message, data });
            serde_json::to_string(&ResponseTwo { jsonrpc: "2.0", result, error, id })
        }
        Version::One => {
            let error = error.map(|RpcError { code, message, .. }| format!("{message} ({code})"));
            serde_json::to_string(&ResponseOne { id, result, error })
        }
    };
    // Values and texts can always be written.
    written.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refusal(value: Value, default: Option<Version>) -> (Version, Value, String) {
        let Refused { version, id, error } = *Request::read(value, default).unwrap_err();
        assert_eq!(error.code, -32600);
        (version, id, error.message)
    }

    #[test]
    fn a_message_is_one_request_or_a_batch_of_which_no_more_than_the_limit_is_kept() {
        let batch = |text: &str| match Message::read(text.as_bytes()).unwrap() {
            Message::Batch(Batch { requests, count }) => Some((requests.len(), count)),
            Message::One(_) => None,
        };
        assert_eq!(batch(" [ {}, 1 ] "), Some((2, 2)));
        assert_eq!((batch("[]"), batch("{}"), batch("1")), (Some((0, 0)), None, None));
        let long = format!("[{}{{}}]", "{},".repeat(BATCH_MAX + 4));
        assert_eq!(batch(&long), Some((BATCH_MAX, BATCH_MAX + 5)));
        for text in ["", "[", "[1", "[1,]", "{}{}", "[]1", "nul"] {
            assert!(Message::read(text.as_bytes()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_request_of_version_two_has_an_id_or_is_a_notification() {
        let read = |id: Option<Value>| {
            let mut request = json!({ "jsonrpc": "2.0", "method": "why", "params": ["a"] });
            if let Some(id) = id {
                request["id"] = id;
            }
            Request::read(request, None).unwrap().id
        };
        assert_eq!(read(None), None);
        for id in [json!(null), json!(7), json!("x"), json!(1.5)] {
            assert_eq!(read(Some(id.clone())), Some(id));
        }
    }

    #[test]
    fn parameters_are_named_or_listed_and_an_only_object_names_them() {
        let read = |params: Value| {
            let request = json!({ "jsonrpc": "2.0", "method": "why", "params": params, "id": 1 });
            Request::read(request, None).unwrap().params
        };
        let named = |value: Value| Params::ByName(value.as_object().unwrap().clone());
        assert_eq!(read(json!({ "a": 1 })), named(json!({ "a": 1 })));
        assert_eq!(read(json!([{ "a": 1 }])), named(json!({ "a": 1 })));
        assert_eq!(read(json!([])), Params::ByPosition(vec![]));
        assert_eq!(read(json!([1, {}])), Params::ByPosition(vec![json!(1), json!({})]));
    }

    #[test]
    fn what_is_no_request_is_refused_with_its_member() {
        for (value, id, words) in [
            (json!(1), json!(null), "a request is a JSON object"),
            (json!({ "method": "why", "id": 3 }), json!(3), "jsonrpc: must be \"2.0\""),
            (json!({ "jsonrpc": 2, "method": "why", "id": "a" }), json!("a"), "jsonrpc: must be \"2.0\""),
            (json!({ "jsonrpc": "1.0", "method": "why" }), json!(null), "jsonrpc: must be \"2.0\""),
            (json!({ "jsonrpc": "2.0", "id": 1 }), json!(1), "method: is missing"),
            (json!({ "jsonrpc": "2.0", "method": 1, "id": 1 }), json!(1), "method: must be a text"),
            (json!({ "jsonrpc": "2.0", "method": "why", "id": [1] }), json!(null), "id: must be"),
            (
                json!({ "jsonrpc": "2.0", "method": "why", "params": "bar", "id": 1 }),
                json!(1),
                "params: must be",
            ),
            (
                json!({ "jsonrpc": "2.0", "method": "why", "params": null, "id": 1 }),
                json!(1),
                "params: must be",
            ),
        ] {
            let (version, refused_id, message) = refusal(value, None);
            assert_eq!((version, refused_id), (Version::Two, id));
            assert!(message.starts_with(words), "{message}");
        }
    }

    #[test]
    fn version_one_is_that_of_go() {
        let go = json!({ "method": "Services.List", "params": [{}], "id": 0 });
        let request = Request::read(go, Some(Version::One)).unwrap();
        assert_eq!((request.version, request.id), (Version::One, Some(json!(0))));
        assert_eq!(request.params, Params::ByName(Map::new()));
        let notification = json!({ "method": "why", "params": ["a"], "id": null });
        assert_eq!(Request::read(notification, Some(Version::One)).unwrap().id, None);
        let two = json!({ "jsonrpc": "2.0", "method": "why", "id": 1 });
        assert_eq!(Request::read(two, Some(Version::One)).unwrap().version, Version::Two);
        let named = json!({ "method": "why", "params": {}, "id": 1 });
        assert_eq!(refusal(named, Some(Version::One)).0, Version::One);
    }

    #[test]
    fn a_response_has_the_form_of_its_version() {
        let result = RawValue::from_string("{\"a\":1}".to_owned()).unwrap();
        let error = RpcError { code: -32004, message: "gone".to_owned(), data: json!({ "status": 404 }) };
        let write = |version, outcome| response(version, &json!(7), outcome);
        assert_eq!(write(Version::Two, Ok(&*result)), r#"{"jsonrpc":"2.0","result":{"a":1},"id":7}"#);
        assert_eq!(
            write(Version::Two, Err(&error)),
            r#"{"jsonrpc":"2.0","error":{"code":-32004,"message":"gone","data":{"status":404}},"id":7}"#
        );
        assert_eq!(write(Version::One, Ok(&*result)), r#"{"id":7,"result":{"a":1},"error":null}"#);
        assert_eq!(write(Version::One, Err(&error)), r#"{"id":7,"result":null,"error":"gone (-32004)"}"#);
    }
}
