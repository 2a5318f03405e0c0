//! [`Wait`]: the parameters `?index=&wait=` of a blocking query, as in Consul, and the wait for a newer
//! index.
//!
//! A client states the index that it has seen. The response comes when the queried data has a newer index, or
//! at the end of `wait`. So a client learns of a change at once, without polling. Indexes belong to one node.
//! An index that this node has not reached comes from another node, so the response comes at once.

use std::time::Duration;

use axum::http::HeaderName;
use hearsay_protocol::{Index, ProviderTable};
use hearsay_services::{Problem, http::Parameters};
use tokio::sync::watch;

use crate::{go_duration, http::state::AppState};

/// Header that carries the index of a response.
pub(crate) const INDEX_HEADER: HeaderName = HeaderName::from_static("x-hearsay-index");
/// Default of `wait`, as in Consul.
const WAIT_DEFAULT: Duration = Duration::from_secs(5 * 60);
/// Bound on `wait`, as in Consul.
const WAIT_MAX: Duration = Duration::from_secs(10 * 60);

/// The parameters of a blocking query.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Wait {
    /// Index that the client has seen.
    seen: Option<Index>,
    at_most: Duration,
}

impl Wait {
    /// Names of the parameters.
    pub(crate) const PARAMETERS: [&str; 2] = ["index", "wait"];

    /// Reads the parameters.
    ///
    /// # Errors
    /// 400 for a malformed index or duration.
    pub(crate) fn read(parameters: &Parameters<'_>) -> Result<Self, Problem> {
        let seen: Option<u64> =
            parameters.parse("index", "an index: the whole number of an earlier response")?;
        let at_most = match parameters.single("wait")? {
            None => WAIT_DEFAULT,
            Some(text) => go_duration::parse(text).ok_or_else(|| {
                Parameters::refuse(
                    "wait",
                    text,
                    "a duration such as 10s, 5m or 120000ms; the wait ends after 10m at most",
                )
            })?,
        };
        Ok(Self { seen: seen.map(Index).filter(|seen| *seen > Index(0)), at_most: at_most.min(WAIT_MAX) })
    }

    /// Returns parameters that were read elsewhere; `None` stands for the default.
    pub(crate) fn new(seen: Option<Index>, at_most: Option<Duration>) -> Self {
        Self { seen, at_most: at_most.unwrap_or(WAIT_DEFAULT).min(WAIT_MAX) }
    }

    /// Returns the longest time to wait.
    pub(crate) fn at_most(self) -> Duration {
        self.at_most
    }

    /// Waits until `index_of`, the index of the queried data, exceeds the seen index, or the time is over, or
    /// the node leaves.
    ///
    /// # Errors
    /// 429 when too many requests wait.
    pub(crate) async fn hold(
        self,
        state: &AppState,
        index_of: impl Fn(&ProviderTable) -> Index,
    ) -> Result<(), Problem> {
        let Some(seen) = self.seen else { return Ok(()) };
        self.until(state, || state.read(|table| index_of(table) > seen || table.index() < seen)).await
    }

    /// Waits until a condition holds, or the time is over, or the node leaves. Each change of the provider
    /// table evaluates the condition.
    ///
    /// # Errors
    /// 429 when too many requests wait.
    pub(crate) async fn until(self, state: &AppState, holds: impl Fn() -> bool) -> Result<(), Problem> {
        self.until_changed(state, state.view.subscribe(), holds).await
    }

    /// As [`Self::until`], but each change that `newest` yields evaluates the condition.
    ///
    /// # Errors
    /// 429 when too many requests wait.
    pub(crate) async fn until_changed<T>(
        self,
        state: &AppState,
        mut newest: watch::Receiver<T>,
        holds: impl Fn() -> bool,
    ) -> Result<(), Problem> {
        // The caller subscribed before this first read, so no change is missed between the two.
        if holds() {
            return Ok(());
        }
        let _permit = state.admit_stream()?;
        let over = tokio::time::sleep(self.at_most);
        let leaving = state.leaving();
        tokio::pin!(over, leaving);
        loop {
            tokio::select! {
                () = &mut over => return Ok(()),
                () = &mut leaving => return Ok(()),
                changed = newest.changed() => if changed.is_err() || holds() {
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
