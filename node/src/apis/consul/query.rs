//! [`Query`]: parses the parameters of requests under `/v1`, such as `index`, `wait`, `tag` and `filter`.
//!
//! Unknown parameters are ignored, as in Consul. A malformed filter is an error.

use std::time::Duration;

use axum::http::{HeaderMap, StatusCode, Uri, header};
use hearsay_protocol::Index;
use hearsay_services::{Problem, http::Parameters};

use super::filter::{self, Field, Filter};
use crate::go_duration;

/// The datacenter of every node. Hearsay has one: the cluster.
pub(super) const DATACENTER: &str = "dc1";

/// Parameters that more than one path takes.
#[derive(Clone, Debug, Default)]
pub(super) struct Query {
    /// The index that the client has seen.
    pub(super) index: Option<Index>,
    /// The longest wait of a blocking query; `None`: the default.
    pub(super) wait: Option<Duration>,
    /// The hash that the client has seen, of a query that blocks by hash.
    pub(super) hash: Option<String>,
    /// Whether only passing instances are listed: `passing`, `only-passing`.
    pub(super) is_passing: bool,
    /// Tags that an instance must have, all of them.
    pub(super) tags: Vec<String>,
    /// Metadata that a node must have: key and value, all of them.
    pub(super) node_meta: Vec<(String, String)>,
    /// The node from which distances are sorted: `near`. Only this node's own are known.
    pub(super) near: Option<String>,
    /// The filter expression, unparsed: its fields depend on the path.
    filter: Option<String>,
    /// Whether the JSON is indented.
    pub(super) is_pretty: bool,
    /// Whether the answer is plain text: `format=text`.
    pub(super) is_text: bool,
    /// `enable`, where it is there and readable.
    pub(super) enable: Option<bool>,
    /// The reason of a maintenance.
    pub(super) reason: String,
    /// The note of a check's report.
    pub(super) note: String,
    /// Whether a registration drops the checks that it does not list.
    pub(super) replaces_checks: bool,
}

impl Query {
    /// Reads the parameters of a request.
    ///
    /// # Errors
    /// 400 for a value that cannot be read, 500 for a foreign datacenter, as Consul.
    pub(super) fn read(uri: &Uri) -> Result<Self, Problem> {
        let mut query = Self::default();
        for (name, value) in Parameters::pairs(uri.query()) {
            match name.as_ref() {
                // An index that cannot be read, or -1, is none.
                "index" => query.index = value.parse::<u64>().ok().filter(|index| *index > 0).map(Index),
                "wait" => query.wait = read_wait(&value)?,
                "hash" => query.hash = Some(value.into_owned()).filter(|hash| !hash.is_empty()),
                "passing" | "only-passing" => query.is_passing = Parameters::flag(&name, &value)?,
                "tag" if !value.is_empty() => query.tags.push(value.into_owned()),
                "node-meta" => {
                    let (key, value) = value.split_once(':').unwrap_or((&value, ""));
                    query.node_meta.push((key.to_owned(), value.to_owned()));
                }
                "near" => query.near = Some(value.into_owned()).filter(|near| !near.is_empty()),
                "filter" => query.filter = Some(value.into_owned()).filter(|text| !text.trim().is_empty()),
                "pretty" => query.is_pretty = Parameters::flag(&name, &value)?,
                "format" => query.is_text = value == "text",
                "enable" => query.enable = Some(Parameters::flag(&name, &value)?),
                "reason" => query.reason = value.into_owned(),
                "note" => query.note = value.into_owned(),
                "replace-existing-checks" => query.replaces_checks = Parameters::flag(&name, &value)?,
                "dc" if !value.is_empty() && value != DATACENTER => {
                    let detail =
                        format!("No path to datacenter; this cluster is the datacenter {DATACENTER}");
                    return Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail));
                }
                _ => (),
            }
        }
        Ok(query)
    }

    /// Returns the parameters without those of a single service: `near`, `passing` and `tag`.
    pub(super) fn for_all_services(&self) -> Self {
        Self { near: None, is_passing: false, tags: Vec::new(), ..self.clone() }
    }

    /// Applies the `Accept` header: `text/plain` means `format=text`.
    pub(super) fn accepting(self, headers: &HeaderMap) -> Self {
        let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
        Self {
            is_text: self.is_text || accept.is_some_and(|accept| accept.starts_with("text/plain")),
            ..self
        }
    }

    /// Parses the filter over the fields of a path. Handlers call it before they wait, so that an error comes
    /// at once.
    ///
    /// # Errors
    /// 400 for an expression that cannot be parsed, or names another path's selector.
    pub(super) fn filter(&self, fields: &[Field]) -> Result<Option<Filter>, Problem> {
        let Some(text) = &self.filter else { return Ok(None) };
        let parsed = filter::parse(text, fields);
        parsed.map(Some).map_err(|error| Problem::new(StatusCode::BAD_REQUEST, error.to_string()))
    }
}

/// Reads `wait`. Zero stands for the default, as in Consul.
fn read_wait(value: &str) -> Result<Option<Duration>, Problem> {
    if value.is_empty() {
        return Ok(None);
    }
    let wait = go_duration::parse(value).ok_or_else(|| {
        Parameters::refuse("wait", value, "a duration such as 10s, 5m or 120000ms; at most 10m are waited")
    })?;
    Ok(Some(wait).filter(|wait| !wait.is_zero()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> Result<Query, Problem> {
        Query::read(&format!("/v1/x?{query}").parse().unwrap())
    }

    #[test]
    fn an_index_that_cannot_be_read_is_none() {
        for text in ["index=", "index=0", "index=-1", "index=x", "index=1.5", "stale"] {
            assert_eq!(read(text).unwrap().index, None, "{text}");
        }
        assert_eq!(read("index=7&wait=10s").unwrap().index, Some(Index(7)));
    }

    #[test]
    fn waits_are_gos_durations_and_zero_is_the_default() {
        for (text, expected) in [("wait=", None), ("wait=0s", None), ("wait=0", None), ("", None)] {
            assert_eq!(read(text).unwrap().wait, expected, "{text}");
        }
        assert_eq!(read("wait=120000ms").unwrap().wait, Some(Duration::from_secs(120)));
        assert_eq!(read("wait=1m30s").unwrap().wait, Some(Duration::from_secs(90)));
        assert_eq!(read("wait=10").unwrap_err().status(), 400);
    }

    #[test]
    fn a_flag_is_true_when_it_is_there_unless_it_says_otherwise() {
        for (text, expected) in [
            ("", false),
            ("passing", true),
            ("passing=", true),
            ("passing=1", true),
            ("passing=t", true),
            ("passing=true", true),
            ("passing=True", true),
            ("only-passing=1", true),
            ("passing=0", false),
            ("passing=false", false),
            ("passing=False", false),
        ] {
            assert_eq!(read(text).unwrap().is_passing, expected, "{text}");
        }
        assert_eq!(read("passing=maybe").unwrap_err().status(), 400);
    }

    #[test]
    fn tags_and_node_meta_repeat() {
        let query = read("tag=a&tag=b%20c&tag=&node-meta=zone:east&node-meta=x").unwrap();
        assert_eq!(query.tags, ["a", "b c"]);
        let expected = [("zone".to_owned(), "east".to_owned()), ("x".to_owned(), String::new())];
        assert_eq!(query.node_meta, expected);
    }

    #[test]
    fn only_our_datacenter_is_known() {
        assert!(read("dc=dc1").is_ok() && read("dc=").is_ok());
        let problem = read("dc=dc2").unwrap_err();
        assert!(problem.status() == 500 && problem.detail().starts_with("No path to datacenter"));
    }

    #[test]
    fn unknown_parameters_are_ignored_and_a_bad_filter_is_not() {
        let ignored = "stale&consistent&cached&ns=x&partition=x&peer=x&sg=x&merge-central-config&connect=1&token=x&segment=x&what=ever";
        assert!(read(ignored).unwrap().filter(&[]).unwrap().is_none());
        assert_eq!(read("filter=x").unwrap().filter(&[]).unwrap_err().status(), 400);
    }
}
