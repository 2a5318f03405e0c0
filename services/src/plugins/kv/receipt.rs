//! [`Receipt`]: the entries of one write to the store, and their durability and tokens in its response.

use axum::response::{IntoResponse, Response};
use http::HeaderValue;

use crate::{
    http::append::{HEARSAY_TOKEN, with_receipt},
    journal::{Appended, Level},
};

/// Maximum number of tokens in a response. More than a value has parts, and half of what a read accepts.
const TOKENS_MAX: usize = 8;

/// The entries of one write, in the order of the appends.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Receipt(Vec<Appended>);

impl Receipt {
    /// A receipt for these entries.
    pub(super) fn new(entries: Vec<Appended>) -> Self {
        Self(entries)
    }

    /// Adds the entries of a further append.
    pub(super) fn extend(&mut self, further: Self) {
        self.0.extend(further.0);
    }

    /// Whether all entries are of one feed.
    pub(super) fn is_of_one_feed(&self) -> bool {
        let first = self.0.first().map(|entry| entry.id.feed);
        self.0.iter().all(|entry| Some(entry.id.feed) == first)
    }

    /// The lowest durability of the entries. `None`: there are no entries.
    pub(super) fn level(&self) -> Option<Level> {
        self.0.iter().map(|entry| entry.level).min()
    }

    /// Adds the lowest durability of the entries, and their tokens, to a response. Without entries there is
    /// nothing to add.
    pub(super) fn answer(&self, reply: impl IntoResponse) -> Response {
        let Some(weakest) = self.0.iter().min_by_key(|entry| entry.level) else {
            return reply.into_response();
        };
        let mut response = with_receipt(weakest, reply);
        // A replica may have an entry of a feed without an earlier one, so the token of the last entry is not
        // enough for the parts of a value. Of many entries, some are named: consecutive ones are replicated
        // together.
        let step = self.0.len().div_ceil(TOKENS_MAX);
        let named = self.0.iter().rev().step_by(step);
        let tokens: Vec<String> = named.map(|entry| entry.id.to_string()).collect();
        if let Ok(tokens) = HeaderValue::try_from(tokens.join(",")) {
            response.headers_mut().insert(HEARSAY_TOKEN, tokens);
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use hearsay_protocol::{NodeId, Version};
    use http::StatusCode;

    use super::*;
    use crate::{
        http::append::HEARSAY_ACK,
        journal::{EntryId, FeedId, HybridTime},
    };

    fn entry(boot: u64, seq: u64, level: Level) -> Appended {
        let feed = FeedId { writer: NodeId::from_public_key([7; 32]), boot };
        let id = EntryId { feed, seq: Version(seq) };
        Appended { id, time: HybridTime::from_wall(seq), level, repeated: false }
    }

    #[test]
    fn the_weakest_entry_is_the_durability_of_all() {
        let levels = [Level::Majority, Level::Local, Level::Replicated];
        let entries = (1..).zip(levels).map(|(seq, level)| entry(1, seq, level));
        let receipt = Receipt::new(entries.collect());
        let response = receipt.answer(StatusCode::NO_CONTENT);
        assert_eq!(response.headers()[HEARSAY_ACK], "local");
        let tokens = response.headers()[HEARSAY_TOKEN].to_str().unwrap();
        let mut named: Vec<String> = tokens.split(',').map(str::to_owned).collect();
        named.reverse();
        assert_eq!(named, receipt.0.iter().map(|entry| entry.id.to_string()).collect::<Vec<_>>());
        let empty = Receipt::default().answer(StatusCode::NO_CONTENT);
        assert!(empty.status() == 204 && !empty.headers().contains_key(HEARSAY_ACK));
    }

    #[test]
    fn of_many_entries_some_are_named_and_always_the_last_one() {
        for count in [8, 9, 100] {
            let receipt = Receipt::new((1..=count).map(|seq| entry(1, seq, Level::Local)).collect());
            let response = receipt.answer(StatusCode::NO_CONTENT);
            let tokens = response.headers()[HEARSAY_TOKEN].to_str().unwrap();
            assert!(tokens.split(',').count() <= TOKENS_MAX, "{count}");
            assert_eq!(tokens.split(',').next(), Some(entry(1, count, Level::Local).id.to_string().as_str()));
        }
    }

    #[test]
    fn another_run_of_the_writer_is_another_feed() {
        let mut receipt = Receipt::new(vec![entry(1, 1, Level::Local), entry(1, 2, Level::Local)]);
        assert!(receipt.is_of_one_feed());
        receipt.extend(Receipt::new(vec![entry(2, 1, Level::Local)]));
        assert!(!receipt.is_of_one_feed());
    }
}
