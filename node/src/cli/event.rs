//! `node event`: fires user events, lists those that a node received, and prints new ones as they come.

use std::{
    collections::BTreeSet,
    io::{self, Read as _},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use clap::{Args, Subcommand};
use hearsay_protocol::wire::EVENT_PAYLOAD_BYTES_MAX;
use http::{Method, header};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::{
    client::Client,
    failure::Failure,
    output::{Output, Tone},
};
use crate::{
    escape::{escaped, percent_encoded},
    user_events::LISTED_MAX,
};

/// Wait of one query of `watch`. Below the time in which the client expects an answer.
const WAIT: &str = "5s";
/// Shortest time between two queries of `watch`.
const INTERVAL: Duration = Duration::from_millis(250);
/// Longest payload in a line for people, in characters.
const SHOWN_CHARS_MAX: usize = 200;

#[derive(Debug, Subcommand)]
pub(super) enum EventCommand {
    /// Fire a user event, which each node lists for programs, and print its id
    #[command(after_help = "Examples:\n  node event fire deploy --payload v2\n  \
                            node event fire reload --for-service '^web$' --payload - < note.txt")]
    Fire(FireOptions),
    /// List the newest user events of a node
    List {
        /// Only events with this name
        name: Option<String>,
    },
    /// Print user events as they come, one per line, until interrupted
    #[command(after_help = "Examples:\n  node event watch\n  \
                            node event watch deploy --json | jq -r '.Payload | @base64d'")]
    Watch {
        /// Only events with this name
        name: Option<String>,
    },
}

/// Options of `node event fire`.
#[derive(Debug, Args)]
pub(super) struct FireOptions {
    /// Name of the event, at most 128 characters
    name: String,
    /// Payload, at most 512 bytes; - is standard input
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    payload: String,
    /// Only nodes whose name matches this regular expression list the event
    #[arg(long, value_name = "REGEX", default_value = "")]
    for_node: String,
    /// Only nodes with an instance of a matching service
    #[arg(long, value_name = "REGEX", default_value = "")]
    for_service: String,
    /// Only nodes where an instance of such a service has a matching tag
    #[arg(long, value_name = "REGEX", default_value = "", requires = "for_service")]
    for_tag: String,
}

pub(super) async fn run(command: &EventCommand, client: &Client, output: Output) -> Result<(), Failure> {
    match command {
        EventCommand::Fire(options) => fire(options, client, output).await,
        EventCommand::List { name } => list(client, output, name.as_deref()).await,
        EventCommand::Watch { name } => watch(client, output, name.as_deref()).await,
    }
}

/// A user event, in Consul's form.
#[derive(Clone, PartialEq, Debug, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Fired {
    #[serde(rename = "ID")]
    id: String,
    name: String,
    /// In base64; `None` without a payload.
    payload: Option<String>,
    node_filter: String,
    service_filter: String,
    tag_filter: String,
    version: u64,
    #[serde(rename = "LTime")]
    lamport: u64,
}

impl Fired {
    /// Returns the payload as text for a line, cut if it is long.
    fn shown_payload(&self) -> String {
        let bytes = self.payload.as_deref().and_then(|payload| STANDARD.decode(payload).ok());
        let text = String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned();
        match text.char_indices().nth(SHOWN_CHARS_MAX) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text,
        }
    }
}

async fn fire(options: &FireOptions, client: &Client, output: Output) -> Result<(), Failure> {
    if options.name.is_empty() {
        return Err(Failure::Usage("the name is empty; give at least one character".into()));
    }
    let payload = match options.payload.as_str() {
        "-" => {
            let mut payload = Vec::new();
            // One byte more shows that the payload is too large, without reading all of it.
            io::stdin()
                .lock()
                .take(EVENT_PAYLOAD_BYTES_MAX as u64 + 1)
                .read_to_end(&mut payload)
                .map_err(|error| Failure::Failed(error.into()))?;
            Bytes::from(payload)
        }
        payload => Bytes::from(payload.to_owned()),
    };
    if payload.len() > EVENT_PAYLOAD_BYTES_MAX {
        return Err(Failure::Usage(format!("the payload is larger than {EVENT_PAYLOAD_BYTES_MAX} bytes")));
    }
    let path = format!(
        "/v1/event/fire/{}?node={}&service={}&tag={}",
        percent_encoded(&options.name),
        percent_encoded(&options.for_node),
        percent_encoded(&options.for_service),
        percent_encoded(&options.for_tag)
    );
    let answer = client.write(Method::PUT, &path, payload).await?.expect_success()?;
    if output.json {
        return output.json(&answer.body);
    }
    let fired: Fired = answer.json()?;
    output.line(Tone::Plain, &fired.id)
}

/// Requests the listed events and the index to wait with. `index` is that of an earlier list.
async fn fetch(
    client: &Client,
    name: Option<&str>,
    index: Option<u64>,
) -> Result<(u64, Vec<Fired>, Bytes), Failure> {
    let wait = index.map(|index| format!("&index={index}&wait={WAIT}")).unwrap_or_default();
    let path = format!("/v1/event/list?name={}{wait}", percent_encoded(name.unwrap_or_default()));
    let response = client.send(Method::GET, &path, &[(header::ACCEPT, "application/json")]).await?;
    let header = response.headers().get("x-consul-index").and_then(|index| index.to_str().ok()?.parse().ok());
    let answer = client.read(response).await?.expect_success()?;
    Ok((header.unwrap_or(0), answer.json()?, answer.body))
}

async fn list(client: &Client, output: Output, name: Option<&str>) -> Result<(), Failure> {
    let (_, events, body) = fetch(client, name, None).await?;
    if output.json {
        return output.json(&body);
    }
    let row = |event: Fired| {
        let payload = event.shown_payload();
        (Tone::Plain, vec![event.lamport.to_string(), event.name, event.id, payload])
    };
    let rows: Vec<_> = events.into_iter().map(row).collect();
    output.table(&["LTIME", "NAME", "ID", "PAYLOAD"], &rows)
}

async fn watch(client: &Client, output: Output, name: Option<&str>) -> Result<(), Failure> {
    let (mut index, events, _) = fetch(client, name, None).await?;
    let mut known: BTreeSet<String> = events.into_iter().map(|event| event.id).collect();
    let mut is_lost = false;
    loop {
        let began = Instant::now();
        match fetch(client, name, Some(index)).await {
            Ok((newest, events, _)) => {
                is_lost = false;
                index = newest;
                if misses_events(&known, &events) {
                    notice!("more than {LISTED_MAX} events came at once; some of them are missing here");
                }
                for event in events.iter().filter(|event| !known.contains(&event.id)) {
                    show(output, event)?;
                }
                known = events.into_iter().map(|event| event.id).collect();
            }
            Err(Failure::Unreachable { .. }) if is_lost => (),
            Err(error @ Failure::Unreachable { .. }) => {
                is_lost = true;
                notice!("{}; trying again", escaped(&error.to_string()));
            }
            Err(error) => return Err(error),
        }
        sleep((began + INTERVAL).saturating_duration_since(Instant::now())).await;
    }
}

/// Whether events between two lists may have been displaced before they were listed.
fn misses_events(known: &BTreeSet<String>, events: &[Fired]) -> bool {
    !known.is_empty() && events.len() >= LISTED_MAX && !events.iter().any(|event| known.contains(&event.id))
}

fn show(output: Output, event: &Fired) -> Result<(), Failure> {
    if output.json {
        let line = serde_json::to_vec(event).map_err(|error| Failure::Failed(error.into()))?;
        return output.json(&line);
    }
    let line = format!("{}  {}  {}", event.name, event.id, event.shown_payload());
    output.line(Tone::Plain, line.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: usize, payload: Option<&str>) -> Fired {
        Fired {
            id: id.to_string(),
            name: "deploy".into(),
            payload: payload.map(|payload| STANDARD.encode(payload)),
            node_filter: String::new(),
            service_filter: String::new(),
            tag_filter: String::new(),
            version: 1,
            lamport: 1,
        }
    }

    #[test]
    fn a_payload_is_text_of_bounded_length() {
        assert_eq!(event(1, None).shown_payload(), "");
        assert_eq!(event(1, Some("v2")).shown_payload(), "v2");
        let long = event(1, Some(&"ü".repeat(250))).shown_payload();
        assert_eq!(long.chars().count(), SHOWN_CHARS_MAX + 1);
        assert!(long.ends_with("ü…"));
    }

    #[test]
    fn a_full_list_without_a_known_event_may_miss_some() {
        let events = |from: usize| (from..from + LISTED_MAX).map(|id| event(id, None)).collect::<Vec<_>>();
        let known: BTreeSet<String> = ["7".to_owned()].into();
        assert!(!misses_events(&known, &events(0)));
        assert!(misses_events(&known, &events(8)));
        assert!(!misses_events(&BTreeSet::new(), &events(8)));
        assert!(!misses_events(&known, &events(8)[..9]));
    }
}
