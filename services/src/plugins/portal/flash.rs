//! Flash cookies: pass the result of a form to the next page, with a lifetime of seconds. One cookie has the
//! outcome, which the page shows once. The other has the token of the write, for which the page's read waits.
//! So the outcome is not part of the address, and a reload does not show it again.

use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};

use crate::http::{append::HEARSAY_TOKEN, client::Reply};

/// Maximum number of bytes of a token. A longer one is dropped, and the page may then show an older state.
const TOKEN_BYTES_MAX: usize = 1024;

/// Outcome of a form.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FormOutcome {
    StudentAdded,
    StudentRenamed,
    StudentDeleted,
    GradeAdded,
    GradeRemoved,
    /// The grade or student had been removed before.
    AlreadyGone,
}

impl FormOutcome {
    const ALL: [Self; 6] = [
        Self::StudentAdded,
        Self::StudentRenamed,
        Self::StudentDeleted,
        Self::GradeAdded,
        Self::GradeRemoved,
        Self::AlreadyGone,
    ];

    fn code(self) -> &'static str {
        match self {
            Self::StudentAdded => "student-added",
            Self::StudentRenamed => "student-renamed",
            Self::StudentDeleted => "student-deleted",
            Self::GradeAdded => "grade-added",
            Self::GradeRemoved => "grade-removed",
            Self::AlreadyGone => "already-gone",
        }
    }

    /// Returns the sentence for the page.
    pub(super) fn message(self) -> &'static str {
        match self {
            Self::StudentAdded => "The student is in the book.",
            Self::StudentRenamed => "The name is changed.",
            Self::StudentDeleted => "The student is no longer in the book.",
            Self::GradeAdded => "The grade is saved.",
            Self::GradeRemoved => "The grade is removed.",
            Self::AlreadyGone => "It had been removed before.",
        }
    }
}

/// Content of the flash cookies.
#[derive(Debug, Default)]
pub(super) struct Flash {
    pub(super) done: Option<FormOutcome>,
    pub(super) token: Option<String>,
}

impl Flash {
    /// Reads the cookies.
    pub(super) fn read(headers: &HeaderMap) -> Self {
        let code = cookie(headers, "hearsay-done");
        let done = code.and_then(|code| FormOutcome::ALL.into_iter().find(|done| done.code() == code));
        let token = cookie(headers, "hearsay-token").and_then(|value| {
            let (token, _) = form_urlencoded::parse(value.as_bytes()).next()?;
            (!token.is_empty() && token.len() <= TOKEN_BYTES_MAX).then(|| token.into_owned())
        });
        Self { done, token }
    }

    /// Deletes the cookie of an outcome that the page has shown.
    pub(super) fn clear_from(&self, mut page: Response) -> Response {
        if self.done.is_some() {
            let gone = "hearsay-done=; Path=/portal; Max-Age=0; HttpOnly; SameSite=Strict";
            page.headers_mut().append(header::SET_COOKIE, HeaderValue::from_static(gone));
        }
        page
    }
}

fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let lines = headers.get_all(header::COOKIE).into_iter().filter_map(|line| line.to_str().ok());
    let mut pairs = lines.flat_map(|line| line.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(n, _)| *n == name).map(|(_, value)| value)
}

/// Redirects from a form to the page that shows the result.
pub(super) fn redirect_after(page: &str, done: FormOutcome, reply: &Reply) -> Response {
    let Ok(location) = HeaderValue::from_str(page) else { return StatusCode::NO_CONTENT.into_response() };
    let mut response = (StatusCode::SEE_OTHER, [(header::LOCATION, location)]).into_response();
    let mut keep = |name: &str, value: &str, secs: u32| {
        let cookie = format!("{name}={value}; Path=/portal; Max-Age={secs}; HttpOnly; SameSite=Strict");
        if let Ok(cookie) = HeaderValue::from_str(&cookie) {
            response.headers_mut().append(header::SET_COOKIE, cookie);
        }
    };
    keep("hearsay-done", done.code(), 10);
    let token = reply.headers.get(HEARSAY_TOKEN).filter(|token| token.len() <= TOKEN_BYTES_MAX);
    if let Some(token) = token {
        let token: String = form_urlencoded::byte_serialize(token.as_bytes()).collect();
        // After 30 s, pages no longer wait for the write.
        keep("hearsay-token", &token, 30);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_of_others_are_left_alone() {
        let mut headers = HeaderMap::new();
        headers.insert("cookie", "a=b; hearsay-done=grade-added; hearsay-token=x%3B%22+y".parse().unwrap());
        let flash = Flash::read(&headers);
        assert_eq!((flash.done, flash.token.as_deref()), (Some(FormOutcome::GradeAdded), Some("x;\" y")));
        headers.insert("cookie", "hearsay-done=<script>; hearsay-token=".parse().unwrap());
        let flash = Flash::read(&headers);
        assert_eq!((flash.done, flash.token), (None, None));
    }
}
