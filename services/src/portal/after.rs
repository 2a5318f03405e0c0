//! What survives the way from a form to the page after it, in two cookies that live for seconds: that it is done, for a line on that
//! page, and the token with which the page's own read waits for what was just written. So the address of a page stays clean, and
//! a reload tells nobody twice.

use axum::response::{IntoResponse, Response};
use http::{HeaderMap, HeaderValue, StatusCode, header};

use crate::client::Reply;

use super::desk::TOKEN;

/// A longer token is not kept: the page may then show the book as it was a moment ago.
const TOKEN_BYTES_MAX: usize = 1024;

/// What was done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Done {
    StudentAdded,
    StudentRenamed,
    StudentDeleted,
    GradeAdded,
    GradeRemoved,
    /// It was gone before.
    AlreadyGone,
}

impl Done {
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

    /// As a sentence.
    pub(super) fn told(self) -> &'static str {
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

/// What a page finds of the form before it.
#[derive(Debug, Default)]
pub(super) struct After {
    pub(super) done: Option<Done>,
    pub(super) token: Option<String>,
}

impl After {
    /// Reads the cookies.
    pub(super) fn read(headers: &HeaderMap) -> Self {
        let code = cookie(headers, "hearsay-done");
        let done = code.and_then(|code| Done::ALL.into_iter().find(|done| done.code() == code));
        let token = cookie(headers, "hearsay-token").and_then(|value| {
            let (token, _) = form_urlencoded::parse(value.as_bytes()).next()?;
            (!token.is_empty() && token.len() <= TOKEN_BYTES_MAX).then(|| token.into_owned())
        });
        Self { done, token }
    }

    /// Lets a page that has told it forget it.
    pub(super) fn told(&self, mut page: Response) -> Response {
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

/// Leads from a form that was carried out to a page that shows it.
pub(super) fn lead_to(page: &str, done: Done, reply: &Reply) -> Response {
    let Ok(location) = HeaderValue::from_str(page) else { return StatusCode::NO_CONTENT.into_response() };
    let mut response = (StatusCode::SEE_OTHER, [(header::LOCATION, location)]).into_response();
    let mut keep = |name: &str, value: &str, secs: u32| {
        let cookie = format!("{name}={value}; Path=/portal; Max-Age={secs}; HttpOnly; SameSite=Strict");
        if let Ok(cookie) = HeaderValue::from_str(&cookie) {
            response.headers_mut().append(header::SET_COOKIE, cookie);
        }
    };
    keep("hearsay-done", done.code(), 10);
    let token = reply.headers.get(TOKEN).filter(|token| token.len() <= TOKEN_BYTES_MAX);
    if let Some(token) = token {
        let token: String = form_urlencoded::byte_serialize(token.as_bytes()).collect();
        // What takes longer than this to reach the others is not waited for.
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
        let after = After::read(&headers);
        assert_eq!((after.done, after.token.as_deref()), (Some(Done::GradeAdded), Some("x;\" y")));
        headers.insert("cookie", "hearsay-done=<script>; hearsay-token=".parse().unwrap());
        let after = After::read(&headers);
        assert_eq!((after.done, after.token), (None, None));
    }
}
