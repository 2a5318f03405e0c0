//! [`Problem`] document: an error as `application/problem+json` (RFC 9457).
//!
//! The type is always `about:blank`, so the title is the phrase of the status (RFC 9457, section 4.2.1).
//! `detail` says what happened and what to do. Members such as `parameter` are for programs.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Map, Value, json};

/// Media type of problem documents.
pub const PROBLEM_CONTENT_TYPE: &str = "application/problem+json";

/// An error response.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    status: StatusCode,
    detail: String,
    more: Map<String, Value>,
    page: Option<HeaderValue>,
    retry_after_s: Option<u16>,
}

impl Problem {
    /// A problem with a sentence for people: what is wrong, and what to do.
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into(), more: Map::new(), page: None, retry_after_s: None }
    }

    /// A problem with status 404.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, detail)
    }

    /// A problem with status 400 for a query parameter, with its name and what is allowed.
    pub fn parameter(name: &str, problem: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, format!("{name}: {problem}")).with("parameter", name)
    }

    /// Adds a member for programs.
    #[must_use]
    pub fn with(mut self, member: &str, value: impl Into<Value>) -> Self {
        self.more.insert(member.to_owned(), value.into());
        self
    }

    /// Sets the page where the cause can be removed. A browser is redirected there with 303 instead of
    /// getting the problem.
    #[must_use]
    pub fn with_page(self, page: Option<HeaderValue>) -> Self {
        Self { page, ..self }
    }

    /// Sets the header `Retry-After`, in seconds.
    #[must_use]
    pub fn retry_after(self, seconds: u16) -> Self {
        Self { retry_after_s: Some(seconds), ..self }
    }

    /// Returns the page that [`Self::with_page`] set.
    pub fn page(&self) -> Option<&HeaderValue> {
        self.page.as_ref()
    }

    /// Returns the status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// Returns the sentence for people.
    pub fn detail(&self) -> &str {
        &self.detail
    }

    /// Returns the JSON document.
    pub fn to_json(&self) -> String {
        let mut body = json!({
            "type": "about:blank",
            "title": self.status.canonical_reason().unwrap_or("Error"),
            "status": self.status.as_u16(),
            "detail": self.detail,
        });
        if let Value::Object(members) = &mut body {
            members.extend(self.more.clone());
        }
        body.to_string()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        if let Some(page) = self.page {
            return (StatusCode::SEE_OTHER, [(header::LOCATION, page)]).into_response();
        }
        let content_type = (header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_CONTENT_TYPE));
        let mut response = (self.status, [content_type], self.to_json()).into_response();
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        // A middleware may write the problem in another form.
        response.extensions_mut().insert(self);
        response
    }
}
