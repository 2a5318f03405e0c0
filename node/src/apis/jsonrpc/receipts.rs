//! [`Receipts`]: the tokens and the durability of the writes to the grade book, for later calls of the same
//! message or connection and for the headers of the response to a message.
//!
//! A node without the role carries out each call at any node that has it, so a call without the tokens of
//! earlier ones may miss their writes. The log is not covered: the result of `log.append` has the receipt, no
//! method reads the log, and a read would wait in vain for the token of another journal.

use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use hearsay_services::{
    http::{HEARSAY_ACK, HEARSAY_TOKEN},
    journal::Level,
};

/// Tokens that a path takes.
const TOKENS_MAX: usize = 16;

/// The receipts of the calls so far.
#[derive(Debug, Default)]
pub(super) struct Receipts {
    /// Tokens of the message.
    asked: Vec<String>,
    /// Tokens of writes, at most [`TOKENS_MAX`]: writes of one message are mostly replicated together.
    written: Vec<String>,
    /// The number of tokens of writes that are not sent any more.
    dropped: usize,
    /// Lowest durability of the writes.
    ack: Option<Level>,
}

impl Receipts {
    /// Returns the tokens of a message. The path refuses one that is malformed, and too many.
    pub(super) fn of_message(headers: &HeaderMap) -> Self {
        Self { asked: tokens_of(headers).collect(), ..Self::default() }
    }

    /// Whether requests to this path take tokens and have receipts.
    pub(super) fn cover(target: &str) -> bool {
        target.starts_with("/students")
    }

    /// Records the answer to a call. After 503 the tokens of earlier writes are not sent any more: an entry
    /// may be lost with the only disk that has it, and then every further call would be refused.
    pub(super) fn record(&mut self, status: StatusCode, headers: &HeaderMap) {
        if status == StatusCode::SERVICE_UNAVAILABLE {
            self.dropped = self.written.len();
        }
        if !status.is_success() {
            return;
        }
        self.written.extend(tokens_of(headers));
        let excess = self.written.len().saturating_sub(TOKENS_MAX);
        self.written.drain(..excess);
        self.dropped = self.dropped.saturating_sub(excess);
        let levels = [Level::Local, Level::Replicated, Level::Majority];
        let ack =
            headers.get(HEARSAY_ACK).and_then(|ack| levels.into_iter().find(|level| ack == level.name()));
        self.ack = self.ack.into_iter().chain(ack).min();
    }

    /// Returns the header with which the next call is sent.
    pub(super) fn token(&self) -> Option<(HeaderName, HeaderValue)> {
        let written = &self.written[self.dropped..];
        if written.is_empty() {
            return header(&self.asked);
        }
        let all = [&self.asked[..], written].concat();
        header(&all[all.len().saturating_sub(TOKENS_MAX)..])
    }

    /// Returns the headers of the response to a message: the tokens of its writes, and their lowest
    /// durability.
    pub(super) fn headers(&self) -> HeaderMap {
        let ack = self.ack.map(|level| (HEARSAY_ACK, HeaderValue::from_static(level.name())));
        header(&self.written).into_iter().chain(ack).collect()
    }
}

/// Returns the tokens in the headers of a message or an answer.
fn tokens_of(headers: &HeaderMap) -> impl Iterator<Item = String> {
    let texts = headers.get_all(HEARSAY_TOKEN).into_iter().map(|value| value.to_str().unwrap_or_default());
    texts.flat_map(|text| text.split(',').map(|token| token.trim().to_owned()))
}

/// Returns tokens as one header: a forwarded request has only the first of several.
fn header(tokens: &[String]) -> Option<(HeaderName, HeaderValue)> {
    let value = HeaderValue::try_from(tokens.join(",")).ok().filter(|_| !tokens.is_empty())?;
    Some((HEARSAY_TOKEN, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(token: &str, ack: &'static str) -> HeaderMap {
        let token = HeaderValue::try_from(token).unwrap();
        HeaderMap::from_iter([(HEARSAY_TOKEN, token), (HEARSAY_ACK, HeaderValue::from_static(ack))])
    }

    fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
        headers.get(name).map(|value| value.to_str().unwrap())
    }

    #[test]
    fn a_call_has_the_tokens_of_the_message_and_of_earlier_writes_and_a_response_those_of_writes() {
        let mut outer = answer("a, b", "majority");
        outer.append(HEARSAY_TOKEN, HeaderValue::from_static("c"));
        let mut receipts = Receipts::of_message(&outer);
        assert_eq!(receipts.token().unwrap().1, "a,b,c");
        assert!(receipts.headers().is_empty(), "nothing was written");
        receipts.record(StatusCode::OK, &HeaderMap::new());
        assert!(receipts.headers().is_empty(), "a read");
        receipts.record(StatusCode::OK, &answer("d", "majority"));
        receipts.record(StatusCode::OK, &answer("e", "local"));
        receipts.record(StatusCode::OK, &answer("f", "replicated"));
        assert_eq!(receipts.token().unwrap().1, "a,b,c,d,e,f");
        let headers = receipts.headers();
        assert_eq!(
            (text(&headers, HEARSAY_TOKEN), text(&headers, HEARSAY_ACK)),
            (Some("d,e,f"), Some("local"))
        );
    }

    #[test]
    fn the_oldest_tokens_are_dropped_beyond_the_limit_of_a_path() {
        let mut receipts = Receipts::of_message(&answer("a,b", "local"));
        for number in 0..20 {
            receipts.record(StatusCode::OK, &answer(&number.to_string(), "local"));
        }
        let kept: Vec<String> = (4..20).map(|number| number.to_string()).collect();
        assert_eq!(receipts.token().unwrap().1, kept.join(",").as_str());
        assert_eq!(text(&receipts.headers(), HEARSAY_TOKEN), Some(kept.join(",").as_str()));
        // The path refuses the tokens of a client that sends too many.
        let many = vec!["t"; 17].join(",");
        assert_eq!(Receipts::of_message(&answer(&many, "local")).token().unwrap().1, many.as_str());
    }
    #[test]
    fn an_entry_that_does_not_arrive_does_not_refuse_every_further_call() {
        let mut receipts = Receipts::of_message(&answer("a", "local"));
        receipts.record(StatusCode::OK, &answer("b", "local"));
        receipts.record(StatusCode::CONFLICT, &answer("c", "local"));
        assert_eq!(receipts.token().unwrap().1, "a,b");
        receipts.record(StatusCode::SERVICE_UNAVAILABLE, &HeaderMap::new());
        assert_eq!(receipts.token().unwrap().1, "a", "what the client asks for stays");
        receipts.record(StatusCode::OK, &answer("d", "local"));
        assert_eq!(receipts.token().unwrap().1, "a,d");
        assert_eq!(text(&receipts.headers(), HEARSAY_TOKEN), Some("b,d"));
        for number in 0..16 {
            receipts.record(StatusCode::OK, &answer(&number.to_string(), "local"));
        }
        assert_eq!(receipts.token().unwrap().1.to_str().unwrap().split(',').count(), 16);
    }
}
