//! `node kv`: gets, sets, deletes, lists and watches keys of the key/value store, through any node.

use std::{
    collections::BTreeMap,
    io::{self, Read as _, Write as _},
    time::Duration,
};

use bytes::Bytes;
use clap::Subcommand;
use hearsay_services::plugins::KV_VALUE_BYTES_MAX;
use http::{Method, StatusCode, header};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::{
    client::{Answer, Client},
    failure::Failure,
    kv_writes::show_writes,
    output::{Output, Tone},
};
use crate::escape::{escaped, percent_encoded};

/// Wait of one query of `watch`. Below the time in which the client expects an answer.
const WAIT: &str = "5s";
/// Shortest time between two queries of `watch`.
const INTERVAL: Duration = Duration::from_millis(250);

#[derive(Debug, Subcommand)]
pub(super) enum KvCommand {
    /// Print the value of a key; exit code 2 if there is none
    #[command(
        after_help = "Examples:\n  node kv get web/limit\n  node kv get -v web/limit\n  node kv get web/limit --json | jq .[0].ModifyIndex"
    )]
    Get {
        /// The key
        key: String,
        /// Print the write in effect and the one that it superseded, with node, time and entry, also of a
        /// deleted key
        #[arg(short, long)]
        verbose: bool,
    },
    /// Set the value of a key
    #[command(
        after_help = "Examples:\n  node kv put web/limit 100\n  node kv put web/config - < config.toml"
    )]
    Put {
        /// The key, at most 512 bytes
        key: String,
        /// The value, at most 128 KiB; - is standard input
        #[arg(allow_hyphen_values = true)]
        value: String,
        /// A number that is kept with the value
        #[arg(long, default_value_t = 0)]
        flags: u64,
    },
    /// Delete a key, or all keys with a prefix
    #[command(after_help = "Examples:\n  node kv delete web/limit\n  node kv delete web/ --prefix")]
    Delete {
        /// The key or prefix
        key: String,
        /// Delete all keys that begin with it
        #[arg(long)]
        prefix: bool,
    },
    /// List the keys
    #[command(after_help = "Examples:\n  node kv list\n  node kv list web/ --separator /")]
    List {
        /// Only keys that begin with this
        #[arg(default_value = "")]
        prefix: String,
        /// List each key up to the first separator after the prefix
        #[arg(long, default_value = "")]
        separator: String,
    },
    /// Print the changes of a key, or of all keys with a prefix, until interrupted
    #[command(after_help = "Examples:\n  node kv watch web/limit\n  node kv watch web/ --prefix --json")]
    Watch {
        /// The key or prefix
        key: String,
        /// Watch all keys that begin with it
        #[arg(long)]
        prefix: bool,
    },
}

pub(super) async fn run(command: &KvCommand, client: &Client, output: Output) -> Result<(), Failure> {
    match command {
        KvCommand::Get { key, verbose: false } => get(client, output, key).await,
        KvCommand::Get { key, verbose: true } => get_with_writes(client, output, key).await,
        KvCommand::Put { key, value, flags } => put(client, (key, value), *flags).await,
        KvCommand::Delete { key, prefix } => {
            let path = path(key, if *prefix { "?recurse" } else { "" });
            client.write(Method::DELETE, &path, Bytes::new()).await?.expect_success().map(drop)
        }
        KvCommand::List { prefix, separator } => list(client, output, prefix, separator).await,
        KvCommand::Watch { key, prefix } => watch(client, output, key, *prefix).await,
    }
}

/// Returns the path of a key.
fn path(key: &str, query: &str) -> String {
    match key {
        "" => format!("/v1/kv{query}"),
        key => format!("/v1/kv/{}{query}", percent_encoded(key)),
    }
}

fn check_key(key: &str) -> Result<(), Failure> {
    match key {
        "" => Err(Failure::Usage("the key is empty; give at least one character".into())),
        _ => Ok(()),
    }
}

/// An answer to a read.
struct Fetched {
    index: u64,
    /// Whether no node can answer now: none keeps the store, those that do fail, or too many requests wait.
    is_unavailable: bool,
    answer: Answer,
}

impl Fetched {
    /// Returns the answer.
    ///
    /// # Errors
    /// No node can answer now.
    fn available(self) -> Result<Self, Failure> {
        if self.is_unavailable { Err(Failure::Refused(self.answer.problem())) } else { Ok(self) }
    }
}

async fn fetch(client: &Client, path: &str) -> Result<Fetched, Failure> {
    let response = client.send(Method::GET, path, &[(header::ACCEPT, "application/json")]).await?;
    let header = |name: &str| response.headers().get(name)?.to_str().ok();
    let index = header("x-consul-index").and_then(|index| index.parse().ok()).unwrap_or(0);
    let is_missing = header("x-consul-knownleader") == Some("false");
    let is_refused = response.status() == StatusCode::TOO_MANY_REQUESTS;
    let is_unavailable = is_missing || is_refused || response.status().is_server_error();
    Ok(Fetched { index, is_unavailable, answer: client.read(response).await? })
}

async fn get(client: &Client, output: Output, key: &str) -> Result<(), Failure> {
    check_key(key)?;
    let path = path(key, if output.json { "" } else { "?raw" });
    let answer = fetch(client, &path).await?.available()?.answer.expect_success()?;
    if output.json {
        return output.json(&answer.body);
    }
    // The bytes are the user's own, so they are printed as they are.
    let mut out = io::stdout().lock();
    out.write_all(&answer.body)?;
    out.flush()?;
    Ok(())
}

async fn get_with_writes(client: &Client, output: Output, key: &str) -> Result<(), Failure> {
    check_key(key)?;
    let answer = fetch(client, &path(key, "?writes")).await?.available()?.answer;
    show_writes(output, key, answer)
}

async fn put(client: &Client, (key, value): (&str, &str), flags: u64) -> Result<(), Failure> {
    check_key(key)?;
    let value = match value {
        "-" => {
            let mut value = Vec::new();
            // One byte more shows that the value is too large, without reading all of it.
            io::stdin()
                .lock()
                .take(KV_VALUE_BYTES_MAX as u64 + 1)
                .read_to_end(&mut value)
                .map_err(|error| Failure::Failed(error.into()))?;
            Bytes::from(value)
        }
        value => Bytes::from(value.to_owned()),
    };
    if value.len() > KV_VALUE_BYTES_MAX {
        return Err(Failure::Usage(format!("the value is larger than {KV_VALUE_BYTES_MAX} bytes")));
    }
    let path = path(key, &format!("?flags={flags}"));
    client.write(Method::PUT, &path, value).await?.expect_success().map(drop)
}

async fn list(client: &Client, output: Output, prefix: &str, separator: &str) -> Result<(), Failure> {
    let path = path(prefix, &format!("?keys&separator={}", percent_encoded(separator)));
    let answer = fetch(client, &path).await?.available()?.answer.expect_success()?;
    if output.json {
        return output.json(&answer.body);
    }
    let keys: Vec<String> = answer.json()?;
    keys.iter().try_for_each(|key| output.line(Tone::Plain, key))
}

/// A key and its value, in Consul's form.
#[derive(Clone, PartialEq, Debug, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Pair {
    key: String,
    flags: u64,
    /// In base64; `None` for an empty value and, when printed, for a deleted key.
    value: Option<String>,
    create_index: u64,
    modify_index: u64,
}

/// A line of `watch --json`.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct KvChange<'a> {
    change: &'a str,
    #[serde(flatten)]
    pair: &'a Pair,
}

async fn watch(client: &Client, output: Output, key: &str, prefix: bool) -> Result<(), Failure> {
    if !prefix {
        check_key(key)?;
    }
    let recurse = if prefix { "&recurse" } else { "" };
    let first = fetch(client, &path(key, &format!("?{recurse}"))).await?.available()?;
    let mut index = first.index;
    let mut known = show_changes(output, &BTreeMap::new(), first.answer)?;
    let mut is_lost = false;
    loop {
        let began = Instant::now();
        match fetch(client, &path(key, &format!("?index={index}&wait={WAIT}{recurse}"))).await {
            Ok(fetched) if !fetched.is_unavailable => {
                is_lost = false;
                index = fetched.index;
                known = show_changes(output, &known, fetched.answer)?;
            }
            Ok(_) | Err(Failure::Unreachable { .. }) if is_lost => (),
            Ok(fetched) => {
                is_lost = true;
                notice!("{}; trying again", escaped(&fetched.answer.problem()));
            }
            Err(error @ Failure::Unreachable { .. }) => {
                is_lost = true;
                notice!("{error}; trying again");
            }
            Err(error) => return Err(error),
        }
        // An answer comes at once if it is another replica's, or an error.
        sleep((began + INTERVAL).saturating_duration_since(Instant::now())).await;
    }
}

/// Prints the changes since the last answer. Returns the keys and values of this one.
fn show_changes(
    output: Output,
    known: &BTreeMap<String, Pair>,
    answer: Answer,
) -> Result<BTreeMap<String, Pair>, Failure> {
    let now: BTreeMap<String, Pair> =
        pairs(answer)?.into_iter().map(|pair| (pair.key.clone(), pair)).collect();
    for (change, pair) in differences(known, &now) {
        if output.json {
            let line = serde_json::to_vec(&KvChange { change, pair });
            output.json(&line.map_err(|error| Failure::Failed(error.into()))?)?;
        } else {
            output.line(Tone::Plain, &format!("{change} {}", pair.key))?;
        }
    }
    Ok(now)
}

/// Returns the pairs of an answer; none if no key matches.
fn pairs(answer: Answer) -> Result<Vec<Pair>, Failure> {
    match answer.status {
        StatusCode::NOT_FOUND => Ok(Vec::new()),
        _ => answer.expect_success()?.json(),
    }
}

/// Returns the changes between two states, in the order of keys. An index alone may change with the replica.
fn differences<'a>(
    before: &'a BTreeMap<String, Pair>,
    now: &'a BTreeMap<String, Pair>,
) -> Vec<(&'static str, &'a Pair)> {
    let is_same = |old: &&Pair, new: &Pair| (&old.value, old.flags) == (&new.value, new.flags);
    let put = now.values().filter(|pair| before.get(&pair.key).filter(|old| is_same(old, pair)).is_none());
    let deleted = before.values().filter(|pair| !now.contains_key(&pair.key));
    let mut changes: Vec<_> =
        put.map(|pair| ("put", pair)).chain(deleted.map(|pair| ("delete", pair))).collect();
    changes.sort_by(|(_, one), (_, other)| one.key.cmp(&other.key));
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_prints_what_differs_and_not_what_only_has_another_index() {
        let pair = |key: &str, value: &str, modify_index| Pair {
            key: key.to_owned(),
            flags: 0,
            value: Some(value.to_owned()),
            create_index: 1,
            modify_index,
        };
        let state = |pairs: &[Pair]| pairs.iter().map(|pair| (pair.key.clone(), pair.clone())).collect();
        let before = state(&[pair("a", "1", 1), pair("b", "1", 2), pair("c", "1", 3)]);
        let now = state(&[pair("a", "1", 9), pair("b", "2", 10), pair("d", "1", 11)]);
        let found = differences(&before, &now);
        let found: Vec<_> = found.iter().map(|(change, pair)| (*change, pair.key.as_str())).collect();
        assert_eq!(found, [("put", "b"), ("delete", "c"), ("put", "d")]);
    }

    #[test]
    fn a_key_is_one_segment_of_its_path() {
        assert_eq!(path("a/b c/", "?raw"), "/v1/kv/a%2Fb%20c%2F?raw");
        assert_eq!(path("", "?keys"), "/v1/kv?keys");
    }
}
