//! `node watch`: prints changes of services as they happen.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::{
    client::Client,
    failure::Failure,
    follow::follow,
    output::{Output, Tone},
    responses::{Instance, Services},
    sse::Event,
};
use crate::escape::escaped;

/// Prints changes until interrupted, or until standard output is closed.
pub(super) async fn watch(client: &Client, output: Output) -> Result<(), Failure> {
    follow(client, "/services/watch", |event| show(output, event)).await
}

fn show(output: Output, event: &Event) -> Result<(), Failure> {
    let data: Value = serde_json::from_str(&event.data)
        .map_err(|error| Failure::Refused(format!("the event is not one of a Hearsay node: {error}")))?;
    if output.json {
        let line = json!({ "event": event.name, "id": event.id, "data": data }).to_string();
        return output.print(&format!("{}\n", escaped(&line)));
    }
    for (tone, line) in describe(&event.name, data) {
        output.line(tone, &format!("{}  {line}", time_of_day()))?;
    }
    Ok(())
}

/// Formats an event: one line for a change, one per instance of a snapshot.
fn describe(name: &str, data: Value) -> Vec<(Tone, String)> {
    let (word, tone) = match name {
        "snapshot" => ("present", Tone::Faint),
        "added" => ("added", Tone::Good),
        "changed" => ("changed", Tone::Warning),
        "removed" => ("removed", Tone::Bad),
        // An event type of a newer node; only JSON output shows it.
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

/// Returns the UTC time of day, as in a node's log.
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
    fn unknown_events_of_newer_nodes_are_ignored() {
        assert_eq!(describe("rebalanced", json!({})), []);
        assert_eq!(describe("added", json!(7)), []);
    }
}
