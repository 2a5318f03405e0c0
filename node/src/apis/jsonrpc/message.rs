//! Requests and responses in the two versions of JSON-RPC.
//!
//! Version 2.0 is that of jsonrpc.org. In version 1.0, which Go's `net/rpc/jsonrpc` speaks, a request has no
//! `jsonrpc`, `params` is an array, and a response has both `result` and `error`. Go's client reads only a
//! text as an error; for any other value it ends the connection.

use std::{borrow::Cow, fmt};

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
#[derive(Debug)]
pub(super) struct Request<'a> {
    pub(super) version: Version,
    /// The text of a number, a text or null, which the response repeats unchanged: a parsed number loses
    /// digits. `None`: a notification, which has no response.
    pub(super) id: Option<&'a RawValue>,
    pub(super) method: String,
    pub(super) params: Params,
}

/// A message: one request, or a batch.
#[derive(Debug)]
pub(super) enum Message<'a> {
    One(&'a RawValue),
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

/// A value that is no request, with the version and id for the response to it.
#[derive(Debug)]
pub(super) struct Refused<'a> {
    pub(super) version: Version,
    pub(super) id: &'a RawValue,
    pub(super) error: RpcError,
}

/// The members of a request, unparsed.
#[derive(Deserialize)]
struct Members<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    jsonrpc: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    method: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    params: Option<&'a RawValue>,
}

/// Reads a member that is present, also null: an id that is null is no missing id.
fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

fn is_null(value: &RawValue) -> bool {
    value.get() == "null"
}

/// Whether a value other than null may be an id. A text with half a surrogate pair is none: few clients could
/// read the response, and in a batch it would spoil all others.
fn is_text_or_number(value: &RawValue) -> bool {
    match value.get().as_bytes().first() {
        Some(b'"') => serde_json::from_str::<Cow<'_, str>>(value.get()).is_ok(),
        Some(b'-' | b'0'..=b'9') => true,
        _ => false,
    }
}

impl<'a> Request<'a> {
    /// Reads a request. `default`: the version of one without `jsonrpc`; `None`: it is refused.
    ///
    /// # Errors
    /// The value is no request.
    pub(super) fn read(value: &'a RawValue, default: Option<Version>) -> Result<Self, Box<Refused<'a>>> {
        let refuse = |version: Option<Version>, id: Option<&'a RawValue>, detail: String| {
            let id = id.filter(|id| is_text_or_number(id)).unwrap_or(RawValue::NULL);
            let version = version.unwrap_or(Version::Two);
            Box::new(Refused { version, id, error: RpcError::invalid_request(detail) })
        };
        if !value.get().starts_with('{') {
            return Err(refuse(default, None, "a request is a JSON object".to_owned()));
        }
        let members: Members<'a> = serde_json::from_str(value.get())
            .map_err(|error| refuse(default, None, format!("the request cannot be read: {error}")))?;
        let id = members.id;
        let version = match members.jsonrpc {
            None => default,
            Some(null) if is_null(null) => default,
            Some(named) => serde_json::from_str(named.get())
                .is_ok_and(|name: String| name == "2.0")
                .then_some(Version::Two),
        };
        let Some(version) = version else {
            return Err(refuse(default, id, "jsonrpc: must be \"2.0\"".to_owned()));
        };
        let refuse = |detail: &str| refuse(Some(version), id, detail.to_owned());
        if id.is_some_and(|id| !is_null(id) && !is_text_or_number(id)) {
            return Err(refuse("id: must be a text, a number or null"));
        }
        let method = members.method.ok_or_else(|| refuse("method: is missing"))?;
        let method = serde_json::from_str(method.get()).map_err(|_| refuse("method: must be a text"))?;
        let params = match members.params.map(|params| serde_json::from_str::<Value>(params.get())) {
            None => Params::ByPosition(Vec::new()),
            Some(Ok(Value::Null)) if version == Version::One => Params::ByPosition(Vec::new()),
            Some(Ok(Value::Array(values))) => Params::of_array(values),
            Some(Ok(Value::Object(named))) if version == Version::Two => Params::ByName(named),
            Some(Ok(_)) if version == Version::One => return Err(refuse("params: must be an array")),
            Some(Ok(_)) => return Err(refuse("params: must be an object or an array")),
            // A number may be out of range, and values may be nested too deeply.
            Some(Err(error)) => return Err(refuse(&format!("params: cannot be read: {error}"))),
        };
        // In version 1.0 a notification has the id null.
        let id = id.filter(|id| version == Version::Two || !is_null(id));
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
    id: &'a RawValue,
}

#[derive(Serialize)]
struct ErrorObject<'a> {
    code: i32,
    message: &'a str,
    data: &'a Value,
}

#[derive(Serialize)]
struct ResponseOne<'a> {
    id: &'a RawValue,
    result: Option<&'a RawValue>,
    error: Option<String>,
}

/// Writes a response.
pub(super) fn response(version: Version, id: &RawValue, outcome: Result<&RawValue, &RpcError>) -> String {
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

    fn raw(value: &Value) -> Box<RawValue> {
        RawValue::from_string(value.to_string()).unwrap()
    }

    fn refusal(value: Value, default: Option<Version>) -> (Version, Value, String) {
        let value = raw(&value);
        let Refused { version, id, error } = *Request::read(&value, default).unwrap_err();
        assert_eq!(error.code, -32600);
        (version, serde_json::from_str(id.get()).unwrap(), error.message)
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
        let read = |members: &str| {
            let request = format!("{{\"jsonrpc\":\"2.0\",\"method\":\"why\"{members}}}");
            let request = RawValue::from_string(request).unwrap();
            let read = Request::read(&request, None);
            read.map(|read| read.id.map(|id| id.get().to_owned())).map_err(|refused| refused.error.message)
        };
        assert_eq!(read(""), Ok(None));
        let texts = ["null", "7", "-1.50", "12345678901234567890123456789", "1e999", "\"x\"", "\"\\u0041\""];
        for id in texts {
            assert_eq!(read(&format!(", \"id\": {id} ")), Ok(Some(id.to_owned())), "its text is unchanged");
        }
        for id in ["true", "{}", "[1]", "\"\\ud800\""] {
            assert!(read(&format!(",\"id\":{id}")).unwrap_err().starts_with("id: must be"), "{id}");
        }
        assert!(read(",\"id\":1,\"id\":2").unwrap_err().contains("duplicate field"));
        assert!(read(",\"params\":[1e999]").unwrap_err().starts_with("params: cannot be read: number"));
        let deep = format!(",\"params\":{}{}", "[".repeat(200), "]".repeat(200));
        assert!(read(&deep).unwrap_err().starts_with("params: cannot be read: recursion"));
    }

    #[test]
    fn parameters_are_named_or_listed_and_an_only_object_names_them() {
        let read = |params: Value| {
            let request = json!({ "jsonrpc": "2.0", "method": "why", "params": params, "id": 1 });
            Request::read(&raw(&request), None).unwrap().params
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
        let go = raw(&json!({ "method": "Services.List", "params": [{}], "id": 0 }));
        let request = Request::read(&go, Some(Version::One)).unwrap();
        assert_eq!((request.version, request.id.map(RawValue::get)), (Version::One, Some("0")));
        assert_eq!(request.params, Params::ByName(Map::new()));
        let notification = raw(&json!({ "method": "why", "params": ["a"], "id": null }));
        assert!(Request::read(&notification, Some(Version::One)).unwrap().id.is_none());
        let two = raw(&json!({ "jsonrpc": "2.0", "method": "why", "id": 1 }));
        assert_eq!(Request::read(&two, Some(Version::One)).unwrap().version, Version::Two);
        let named = json!({ "method": "why", "params": {}, "id": 1 });
        assert_eq!(refusal(named, Some(Version::One)).0, Version::One);
    }

    #[test]
    fn a_response_has_the_form_of_its_version() {
        let result = RawValue::from_string("{\"a\":1}".to_owned()).unwrap();
        let error = RpcError { code: -32004, message: "gone".to_owned(), data: json!({ "status": 404 }) };
        let write = |version, outcome| response(version, &raw(&json!(7)), outcome);
        assert_eq!(write(Version::Two, Ok(&*result)), r#"{"jsonrpc":"2.0","result":{"a":1},"id":7}"#);
        assert_eq!(
            write(Version::Two, Err(&error)),
            r#"{"jsonrpc":"2.0","error":{"code":-32004,"message":"gone","data":{"status":404}},"id":7}"#
        );
        assert_eq!(write(Version::One, Ok(&*result)), r#"{"id":7,"result":{"a":1},"error":null}"#);
        assert_eq!(write(Version::One, Err(&error)), r#"{"id":7,"result":null,"error":"gone (-32004)"}"#);
    }
}
