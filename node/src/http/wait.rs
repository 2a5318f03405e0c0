//! Blocking queries: `?index=&wait=`.
//!
//! A client that says which index it has seen is answered when there is a newer one for what it asks, or when its time is over;
//! so it learns of a change at once and need not ask in vain. Indexes are the node's own. One that this node has not reached yet
//! comes from another node, and is answered at once rather than held for news that would seem old.

use std::time::Duration;

use axum::http::HeaderName;
use hearsay_protocol::providers::{Index, ProviderTable};
use hearsay_services::{Problem, parameters::Parameters};

use super::site::Site;
use crate::go_duration;

/// Where every answer that can block says its index.
pub(super) const INDEX_HEADER: HeaderName = HeaderName::from_static("x-hearsay-index");
/// How long a query waits that does not say. As Consul.
const WAIT_DEFAULT: Duration = Duration::from_secs(5 * 60);
/// The longest that a query waits, whatever it says. As Consul.
const WAIT_MAX: Duration = Duration::from_secs(10 * 60);

/// What a query is ready to wait for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Wait {
    /// The index that the client has seen; `None` or zero: none.
    seen: Option<Index>,
    at_most: Duration,
}

impl Wait {
    /// The names of the parameters.
    pub(super) const PARAMETERS: [&str; 2] = ["index", "wait"];

    /// Reads the parameters.
    ///
    /// # Errors
    /// 400 for what is no index or no duration.
    pub(super) fn read(parameters: &Parameters<'_>) -> Result<Self, Problem> {
        let seen: Option<u64> =
            parameters.parse("index", "an index: the whole number of an earlier answer")?;
        let at_most = match parameters.one("wait")? {
            None => WAIT_DEFAULT,
            Some(text) => go_duration::parse(text).ok_or_else(|| {
                Parameters::refuse(
                    "wait",
                    text,
                    "a duration such as 10s, 5m or 120000ms; at most 10m are waited",
                )
            })?,
        };
        Ok(Self { seen: seen.map(Index).filter(|seen| *seen > Index(0)), at_most: at_most.min(WAIT_MAX) })
    }

    /// Returns when `index_of` (the index of what is asked for) has passed the one that was seen, or the time is over, or the
    /// node leaves.
    ///
    /// # Errors
    /// 503 when too many wait already.
    pub(super) async fn hold(
        self,
        site: &Site,
        index_of: impl Fn(&ProviderTable) -> Index,
    ) -> Result<(), Problem> {
        let Some(seen) = self.seen else { return Ok(()) };
        // Subscribed before the first look, so that no change falls between.
        let mut newest = site.view.subscribe();
        let is_news = |table: &ProviderTable| index_of(table) > seen || table.index() < seen;
        if site.read(is_news) {
            return Ok(());
        }
        let _seat = site.seat()?;
        let over = tokio::time::sleep(self.at_most);
        let leaving = site.leaving();
        tokio::pin!(over, leaving);
        loop {
            tokio::select! {
                () = &mut over => return Ok(()),
                () = &mut leaving => return Ok(()),
                changed = newest.changed() => if changed.is_err() || site.read(is_news) {
                    return Ok(());
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> Result<Wait, Problem> {
        Wait::read(&Parameters::read(Some(query), &Wait::PARAMETERS)?)
    }

    #[test]
    fn the_wait_has_a_default_and_a_cap() {
        assert_eq!(read("index=5").unwrap(), Wait { seen: Some(Index(5)), at_most: WAIT_DEFAULT });
        assert_eq!(read("index=5&wait=24h").unwrap().at_most, WAIT_MAX);
        assert_eq!(read("index=0").unwrap().seen, None);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        assert!(read("index=-1").unwrap_err().detail().starts_with("index: "));
        assert!(read("index=1&wait=10").unwrap_err().detail().contains("such as 10s"));
    }
}
