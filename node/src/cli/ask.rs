//! The commands that ask one question and print the answer.

use hearsay_protocol::NodeId;
use http::Method;
use serde_json::Value;

use super::{
    answers::{Members, Services, Why, age, plain},
    client::{Client, segment},
    failure::Failure,
    output::{Output, Tone},
};

/// Who offers what, or who offers `name`.
pub(super) async fn services(client: &Client, output: Output, name: Option<&str>) -> Result<(), Failure> {
    let answer = match name {
        // At its own path is the stream of events.
        Some("watch") => {
            return Err(Failure::NoMatch("the service \"watch\" is only among all: `node services`".into()));
        }
        Some(name) => client.get(&format!("/services/{}", segment(name))).await?,
        None => client.get("/services").await?,
    };
    if output.json {
        return output.json(&answer.body);
    }
    let services: Services = answer.json()?;
    let rows: Vec<_> = services
        .services
        .iter()
        .flat_map(|(service, instances)| instances.iter().map(move |instance| (service, instance)))
        .map(|(service, i)| {
            let ports = i.ports.iter().map(|port| format!("{}:{}", port.name, port.port));
            let ports = ports.collect::<Vec<_>>().join(",");
            let cells = [service, &i.node, &i.url, &i.health, &i.tags.join(","), &age(&i.since), &ports];
            (Tone::of(&i.health), cells.map(String::clone).to_vec())
        })
        .collect();
    if rows.is_empty() {
        return output.line(Tone::Plain, "no services yet; `node --role grading --demo` starts one");
    }
    output.table(&["SERVICE", "NODE", "URL", "HEALTH", "TAGS", "AGE", "PORTS"], &rows)
}

/// Which nodes there are.
pub(super) async fn members(client: &Client, output: Output) -> Result<(), Failure> {
    let answer = client.get("/members").await?;
    if output.json {
        return output.json(&answer.body);
    }
    let mut members: Members = answer.json()?;
    members.members.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
    let rows: Vec<_> = members
        .members
        .iter()
        .map(|m| {
            let rtt = m.rtt_ms.map(|ms| format!("{ms:.1} ms")).unwrap_or_default();
            let http = m.http.clone().unwrap_or_default();
            let cells = vec![
                m.name.clone(),
                m.state.clone(),
                plain(&m.since),
                m.roles.join(","),
                http,
                rtt,
                plain(&m.version),
            ];
            (Tone::of(&m.state), cells)
        })
        .collect();
    output.table(&["NAME", "STATE", "SINCE", "ROLES", "HTTP", "RTT", "VERSION"], &rows)
}

/// What happened to a service or member.
pub(super) async fn why(client: &Client, output: Output, name: &str) -> Result<(), Failure> {
    let answer = client.get(&format!("/why/{}", segment(name))).await?;
    if output.json {
        return output.json(&answer.body);
    }
    let why: Why = answer.json()?;
    if why.events.is_empty() {
        return output.line(Tone::Plain, "nothing has happened to it that this node remembers");
    }
    for event in &why.events {
        let said = if event.text.is_empty() { &event.event } else { &event.text };
        let by = event.by.as_ref().filter(|by| !said.contains(by.as_str()));
        let by = by.map(|by| format!(" (by {by})")).unwrap_or_default();
        output.line(Tone::Plain, &format!("{}  {said}{by}", plain(&event.time)))?;
    }
    Ok(())
}

/// Lets the node go.
pub(super) async fn leave(client: &Client, output: Output) -> Result<(), Failure> {
    let answer = client.ask(Method::PUT, "/v1/agent/leave").await?.expect_success()?;
    match serde_json::from_slice::<Value>(&answer.body) {
        Ok(_) if output.json => output.json(&answer.body),
        _ if output.json => output.print("{\"leaving\":true}\n"),
        _ => output.line(Tone::Good, &format!("the node at {} is leaving", client.url())),
    }
}

/// Has a member forgotten that is gone.
pub(super) async fn forget(client: &Client, output: Output, member: &str) -> Result<(), Failure> {
    let members: Members = client.get("/members").await?.json()?;
    let meant = members.members.iter().filter(|m| m.id == member || m.name == member);
    let (present, gone): (Vec<_>, Vec<_>) = meant.partition(|m| m.is_present());
    let id = match (gone.as_slice(), present.first()) {
        ([one], _) => one.id.as_str(),
        // The node says why not.
        ([], Some(one)) => one.id.as_str(),
        // The journals may still count a replica whose name the members have forgotten.
        ([], None) if member.parse::<NodeId>().is_ok() => member,
        ([], None) => {
            return Err(Failure::NoMatch(format!(
                "no member has the name or id {member:?}; `node members` lists them"
            )));
        }
        (several, _) => {
            let ids: Vec<_> = several.iter().map(|m| format!("{} ({})", m.id, m.state)).collect();
            return Err(Failure::NoMatch(format!(
                "{} members that are gone have the name {member:?}; name one by its id: {}",
                ids.len(),
                ids.join(", ")
            )));
        }
    };
    let answer = client.ask(Method::DELETE, &format!("/members/{}", segment(id))).await?.expect_success()?;
    if output.json {
        return output.json(&answer.body);
    }
    output.line(Tone::Good, &format!("{member} is forgotten; if it lives, it comes back by itself"))
}

/// Whether the node is ready.
pub(super) async fn health(client: &Client, output: Output) -> Result<(), Failure> {
    let answer = client.ask(Method::GET, "/readyz").await?;
    if !answer.status.is_success() {
        return Err(Failure::Refused(format!("the node is not ready: {}", answer.problem())));
    }
    match serde_json::from_slice::<Value>(&answer.body) {
        Ok(_) if output.json => output.json(&answer.body),
        _ if output.json => output.print("{\"ready\":true}\n"),
        _ => output.line(Tone::Good, "ready"),
    }
}
