//! [`Form`]: a submitted form of the portal's pages, with origin check, fields and idempotency key.
//!
//! Each form has a key from the page that shows it. The key becomes the `Idempotency-Key`, so that a double
//! click, a reload and a retry on another node are one write. The forms of one page share the key, with a
//! suffix each.

use http::{HeaderMap, StatusCode, header};

use crate::Problem;

/// Hexadecimal digits of a page's key.
const KEY_CHARS: usize = 32;
/// Maximum number of characters of a form's key: the page's key, a hyphen and an id.
const FORM_KEY_CHARS_MAX: usize = 128;

/// Fields of a form.
#[derive(Debug)]
pub(super) struct Form(Vec<(String, String)>);

impl Form {
    /// Parses a form.
    ///
    /// # Errors
    /// 403 for a page of another origin, 415 for another content type, 400 without a key.
    pub(super) fn read(headers: &HeaderMap, body: &[u8]) -> Result<Self, Problem> {
        check_site(headers)?;
        let content_type =
            headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let essence = content_type.split(';').next().unwrap_or_default().trim();
        if !essence.eq_ignore_ascii_case("application/x-www-form-urlencoded") {
            let detail = "this path takes the forms of the portal's pages (application/x-www-form-urlencoded); \
                          programs write to /students";
            return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail));
        }
        let form = Self(form_urlencoded::parse(body).into_owned().collect());
        let key = form.get("key");
        let is_key = key.len() >= KEY_CHARS
            && key.len() <= FORM_KEY_CHARS_MAX
            && key.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
        if !is_key {
            let detail = "the form has no key. Load the page again and send it from there";
            return Err(Problem::new(StatusCode::BAD_REQUEST, detail).with("field", "key"));
        }
        Ok(form)
    }

    /// Returns a trimmed field; empty if it is missing.
    pub(super) fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value.trim())
    }

    /// Returns the key of the form.
    pub(super) fn key(&self) -> &str {
        self.get("key")
    }

    /// Returns the key of the page. A page rendered with it gives the form the same key again.
    pub(super) fn page_key(&self) -> String {
        self.key().chars().take(KEY_CHARS).collect()
    }
}

/// Checks `Sec-Fetch-Site`: pages of another origin may not write. The node has compared `Origin` with
/// `Host`; this check also works behind a proxy that changes `Host`.
fn check_site(headers: &HeaderMap) -> Result<(), Problem> {
    match headers.get("sec-fetch-site").map(|value| value.as_bytes()) {
        None | Some(b"same-origin" | b"none") => Ok(()),
        Some(_) => Err(Problem::new(StatusCode::FORBIDDEN, "pages of another origin may not write here")),
    }
}

/// Returns a new key. `None` if the system has no random numbers, because a key must never repeat.
pub(super) fn new_key() -> Option<String> {
    let mut bytes = [0; KEY_CHARS / 2];
    getrandom::fill(&mut bytes).ok()?;
    Some(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// A refused form, with the reason.
#[derive(Clone, Debug)]
pub(super) struct RefusedForm {
    /// The reason, as a sentence.
    pub(super) why: String,
    /// The name of the wrong field in the API, if known.
    pub(super) field: Option<String>,
}

impl RefusedForm {
    /// The refusal of a grading node.
    pub(super) fn from_problem(status: StatusCode, body: &[u8]) -> Self {
        let problem: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        let text = |name: &str| {
            problem.get(name).and_then(|v| v.as_str()).map(|t| t.chars().take(300).collect::<String>())
        };
        let why =
            text("detail").or_else(|| text("title")).unwrap_or_else(|| format!("refused with {status}"));
        // A detail starts with the field, if there is one: "score: 101 is not …".
        let named = || why.split_once(':').map(|(name, _)| name.to_owned());
        let field = text("field").or_else(|| text("parameter")).or_else(named);
        Self { why, field }
    }

    /// A refusal of the page itself.
    pub(super) fn field(field: &str, why: impl Into<String>) -> Self {
        Self { why: why.into(), field: Some(field.to_owned()) }
    }

    /// Returns whether the refusal is about this field.
    pub(super) fn is_about(&self, field: &str) -> bool {
        self.field.as_ref().is_some_and(|f| f.eq_ignore_ascii_case(field))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_new_each_time_and_are_taken_back() {
        let (a, b) = (new_key().unwrap(), new_key().unwrap());
        assert_ne!(a, b);
        let mut headers = HeaderMap::new();
        headers.insert("content-type", "application/x-www-form-urlencoded".parse().unwrap());
        let form = Form::read(&headers, format!("key={a}&title=+a+%26b").as_bytes()).unwrap();
        assert_eq!((form.key(), form.get("title"), form.get("none")), (a.as_str(), "a &b", ""));
        for body in ["", "key=", "key=<b>", &format!("key={}", "a".repeat(129))] {
            assert_eq!(Form::read(&headers, body.as_bytes()).unwrap_err().status(), 400, "{body}");
        }
    }

    #[test]
    fn a_page_from_elsewhere_may_not_write() {
        let mut headers = HeaderMap::new();
        for site in ["cross-site", "same-site"] {
            headers.insert("sec-fetch-site", site.parse().unwrap());
            assert_eq!(Form::read(&headers, b"").unwrap_err().status(), 403);
        }
    }

    #[test]
    fn a_refusal_knows_its_field() {
        let refused = |json: &str| RefusedForm::from_problem(StatusCode::BAD_REQUEST, json.as_bytes());
        assert!(refused(r#"{"detail":"score: 101 is not a number from 0 to 100"}"#).is_about("score"));
        assert!(refused(r#"{"detail":"no","field":"Title"}"#).is_about("title"));
        assert_eq!(refused("<html>").why, "refused with 400 Bad Request");
    }
}
