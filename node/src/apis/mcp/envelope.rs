//! Reads the id of a message over HTTP. rmcp does not tell the id of a body that it cannot read as a message,
//! but the response must have it.

use rmcp::model::RequestId;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// JSON-RPC 2.0: the body is no JSON.
const PARSE_ERROR: i32 = -32700;
/// JSON-RPC 2.0: the JSON is no message.
const INVALID_REQUEST: i32 = -32600;

/// The error of a body that is no message.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct BadMessage {
    pub(super) code: i32,
    /// `None`: the body has no readable id. Then the response has none either.
    pub(super) id: Option<RequestId>,
    pub(super) detail: String,
}

/// Members, unparsed.
#[derive(Deserialize)]
struct Members<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
}

/// Reads a member that is present, also null.
fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

/// Returns the id of a message; `None` for a notification.
///
/// # Errors
/// The body is no JSON, or no object, or its id is not a text or a whole number.
pub(super) fn id_of(body: &[u8]) -> Result<Option<RequestId>, BadMessage> {
    let refuse = |code, detail: String| BadMessage { code, id: None, detail };
    let value: &RawValue = serde_json::from_slice(body)
        .map_err(|error| refuse(PARSE_ERROR, format!("the body is not JSON: {error}")))?;
    if value.get().starts_with('[') {
        let detail = "the body is a batch, and only version 2025-03-26 of the protocol has those; send each message by itself";
        return Err(refuse(INVALID_REQUEST, detail.to_owned()));
    }
    let members: Members<'_> = serde_json::from_str(value.get())
        .map_err(|error| refuse(INVALID_REQUEST, format!("the body is no message of JSON-RPC: {error}")))?;
    let id = members.id.map(|id| serde_json::from_str(id.get()));
    id.transpose()
        .map_err(|_| refuse(INVALID_REQUEST, "id: must be a text or a whole number of 64 bits".to_owned()))
}

/// Returns the error of a message that rmcp does not read.
pub(super) fn unread(id: Option<RequestId>) -> BadMessage {
    let detail = "the body is not one JSON-RPC 2.0 message of the Model Context Protocol";
    BadMessage { code: INVALID_REQUEST, id, detail: detail.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_text_or_a_whole_number() {
        let id = |id: &str| id_of(format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"ping"}}"#).as_bytes());
        for (text, read) in [
            ("7", RequestId::Number(7)),
            ("-1", RequestId::Number(-1)),
            ("\"a\"", RequestId::String("a".into())),
        ] {
            assert_eq!(id(text), Ok(Some(read)));
        }
        for text in [
            "null",
            "1.5",
            "true",
            "[1]",
            "{}",
            "1e999",
            "12345678901234567890123",
            "\"\\ud800\"",
            "1,\"id\":1",
        ] {
            let refused = id(text).unwrap_err();
            assert_eq!((refused.code, refused.id), (INVALID_REQUEST, None), "{text}");
        }
        assert_eq!(id_of(br#"{"method":"ping"}"#), Ok(None));
    }

    #[test]
    fn a_body_that_is_no_object_is_refused() {
        for (body, code) in [
            (&b""[..], PARSE_ERROR),
            (b"{", PARSE_ERROR),
            (b"{}{}", PARSE_ERROR),
            (b"{\"a\":\"\xff\"}", PARSE_ERROR),
            (b"7", INVALID_REQUEST),
            (b" []", INVALID_REQUEST),
        ] {
            assert_eq!(id_of(body).unwrap_err().code, code, "{}", String::from_utf8_lossy(body));
        }
    }
}
