//! `node watch`: every change as it happens, over connections that come and go.
//!
//! The first connection must succeed, or the command fails as every other does. After that, a node that restarts is waited for, and asked to go on
//! where the last event left off.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{Method, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use super::{
    answers::{Instance, Services},
    client::Client,
    failure::Failure,
    output::{Output, Tone},
    sse::{Event, Parser},
};
use crate::escape::escaped;

/// A stream that is silent for so long is dead: nodes send a comment several times a minute. Asking again costs nothing in any case.
const SILENCE_MAX: Duration = Duration::from_secs(60);
const BACKOFF_MIN: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Prints changes until interrupted, or until nobody reads them.
pub(super) async fn watch(client: &Client, output: Output) -> Result<(), Failure> {
    let mut last_id = None;
    let mut body = open(client, None).await?;
    loop {
        let broken = follow(body, output, &mut last_id).await?;
        eprintln!("the connection to {} is lost ({}); trying again", client.url(), escaped(&broken));
        body = reopen(client, last_id.as_deref()).await?;
    }
}

async fn open(client: &Client, last_id: Option<&str>) -> Result<Incoming, Failure> {
    let mut headers = vec![(header::ACCEPT, "text/event-stream")];
    headers.extend(last_id.map(|id| (header::HeaderName::from_static("last-event-id"), id)));
    let response = client.send(Method::GET, "/services/watch", &headers).await?;
    if !response.status().is_success() {
        let refusal = client.read(response).await?;
        return Err(refusal.expect_success().err().unwrap_or_else(|| Failure::Refused("no stream".into())));
    }
    Ok(response.into_body())
}

/// Tries for as long as it takes; only a refusal ends it.
async fn reopen(client: &Client, last_id: Option<&str>) -> Result<Incoming, Failure> {
    let mut pause = BACKOFF_MIN;
    loop {
        sleep(pause).await;
        match open(client, last_id).await {
            Err(Failure::Unreachable { .. }) => pause = (pause * 2).min(BACKOFF_MAX),
            opened => return opened,
        }
    }
}

/// Prints what the stream brings. Returns why it ended, in words.
async fn follow(mut body: Incoming, output: Output, last_id: &mut Option<String>) -> Result<String, Failure> {
    let mut parser = Parser::default();
    loop {
        let piece = match timeout(SILENCE_MAX, body.frame()).await {
            Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
            Ok(Some(Err(error))) => return Ok(error.to_string()),
            Ok(None) => return Ok("the node closed it".into()),
            Err(_) => return Ok("nothing comes".into()),
        };
        let events = parser.feed(&piece).map_err(|error| Failure::Refused(error.to_string()))?;
        for event in events {
            show(output, &event)?;
            if event.id.is_some() {
                *last_id = event.id;
            }
        }
    }
}

fn show(output: Output, event: &Event) -> Result<(), Failure> {
    let data: Value = serde_json::from_str(&event.data)
        .map_err(|error| Failure::Refused(format!("that event is not a node's: {error}")))?;
    if output.json {
        let line = json!({ "event": event.name, "id": event.id, "data": data }).to_string();
        return output.print(&format!("{}\n", escaped(&line)));
    }
    for (tone, line) in describe(&event.name, data) {
        output.line(tone, &format!("{}  {line}", time_of_day()))?;
    }
    Ok(())
}

/// An event in words: one line for a change, one for each instance of a snapshot.
fn describe(name: &str, data: Value) -> Vec<(Tone, String)> {
    let (word, tone) = match name {
        "snapshot" => ("present", Tone::Faint),
        "added" => ("added", Tone::Good),
        "changed" => ("changed", Tone::Warning),
        "removed" => ("removed", Tone::Bad),
        // Of a newer node: shown to those who read JSON.
        _ => return Vec::new(),
    };
    let instances: Vec<Instance> = match data {
        Value::Object(ref object) if object.contains_key("services") => {
            let services: Services = serde_json::from_value(data).unwrap_or_default();
            services.services.into_values().flatten().collect()
        }
        Value::Array(_) => serde_json::from_value(data).unwrap_or_default(),
        _ => serde_json::from_value(data).map(|instance| vec![instance]).unwrap_or_default(),
    };
    let line = |i: &Instance| format!("{word:<7}  {}  {}  {}  {}", i.name, i.node, i.url, i.health);
    instances.iter().map(|instance| (tone, line(instance))).collect()
}

/// The time in UTC, as in a node's log.
fn time_of_day() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() % 86_400;
    format!("{:02}:{:02}:{:02}Z", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_a_line_and_a_snapshot_one_for_each_instance() {
        let instance = json!({"name": "web", "node": "a", "url": "http://a:80", "health": "passing"});
        let line = "web  a  http://a:80  passing";
        assert_eq!(describe("added", instance.clone()), [(Tone::Good, format!("added    {line}"))]);
        for snapshot in [json!({"services": {"web": [instance, instance]}}), json!([instance, instance])] {
            let lines = describe("snapshot", snapshot);
            assert_eq!(lines, vec![(Tone::Faint, format!("present  {line}")); 2]);
        }
    }

    #[test]
    fn what_a_newer_node_sends_besides_is_passed_over() {
        assert_eq!(describe("rebalanced", json!({})), []);
        assert_eq!(describe("added", json!(7)), []);
    }
}
