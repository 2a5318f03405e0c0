//! `node services`, `members`, `why`, `leave`, `forget` and `health`: short commands that send a request to
//! one node and print the result.

use hearsay_protocol::NodeId;
use http::Method;
use serde_json::Value;

use super::{
    client::Client,
    failure::Failure,
    output::{Output, Tone},
    responses::{Members, Services, Why, age, plain},
};
use crate::escape::percent_encoded;

/// Prints all services, or the instances of one.
pub(super) async fn services(client: &Client, output: Output, name: Option<&str>) -> Result<(), Failure> {
    let answer = match name {
        // `/services/watch` is the event stream.
        Some("watch") => {
            return Err(Failure::NoMatch(
                "the service \"watch\" cannot be listed alone; `node services` lists all services".into(),
            ));
        }
        Some(name) => client.get(&format!("/services/{}", percent_encoded(name))).await?,
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
        return output
            .line(Tone::Plain, "there are no services yet; `node --role grading --demo` starts one");
    }
    output.table(&["SERVICE", "NODE", "URL", "HEALTH", "TAGS", "AGE", "PORTS"], &rows)
}

/// Prints the members of the cluster.
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

/// Prints the events that explain the state of a service or member.
pub(super) async fn why(client: &Client, output: Output, name: &str) -> Result<(), Failure> {
    let answer = client.get(&format!("/why/{}", percent_encoded(name))).await?;
    if output.json {
        return output.json(&answer.body);
    }
    let why: Why = answer.json()?;
    if why.events.is_empty() {
        return output.line(Tone::Plain, "this node remembers no event of it");
    }
    for event in &why.events {
        let text = if event.text.is_empty() { &event.event } else { &event.text };
        let by = event.by.as_ref().filter(|by| !text.contains(by.as_str()));
        let by = by.map(|by| format!(" (by {by})")).unwrap_or_default();
        output.line(Tone::Plain, &format!("{}  {text}{by}", plain(&event.time)))?;
    }
    Ok(())
}

/// Makes the node leave the cluster and stop.
pub(super) async fn leave(client: &Client, output: Output) -> Result<(), Failure> {
    let answer = client.request(Method::PUT, "/v1/agent/leave").await?.expect_success()?;
    match serde_json::from_slice::<Value>(&answer.body) {
        Ok(_) if output.json => output.json(&answer.body),
        _ if output.json => output.print("{\"leaving\":true}\n"),
        _ => output.line(Tone::Good, &format!("the node at {} is leaving", client.url())),
    }
}

/// Makes the cluster forget a failed or left member.
pub(super) async fn forget(client: &Client, output: Output, member: &str) -> Result<(), Failure> {
    let members: Members = client.get("/members").await?.json()?;
    let matching = members.members.iter().filter(|m| m.id == member || m.name == member);
    let (present, gone): (Vec<_>, Vec<_>) = matching.partition(|m| m.is_present());
    let id = match (gone.as_slice(), present.first()) {
        ([member], _) => member.id.as_str(),
        // The node refuses, with the reason.
        ([], Some(member)) => member.id.as_str(),
        // Journals may still count a replica that is no longer a member.
        ([], None) if member.parse::<NodeId>().is_ok() => member,
        ([], None) => {
            return Err(Failure::NoMatch(format!(
                "no member has the name or id {member:?}; `node members` lists them"
            )));
        }
        (several, _) => {
            let ids: Vec<_> = several.iter().map(|m| format!("{} ({})", m.id, m.state)).collect();
            return Err(Failure::NoMatch(format!(
                "{} failed or left members have the name {member:?}; give the id of one of them: {}",
                ids.len(),
                ids.join(", ")
            )));
        }
    };
    let answer = client
        .request(Method::DELETE, &format!("/members/{}", percent_encoded(id)))
        .await?
        .expect_success()?;
    if output.json {
        return output.json(&answer.body);
    }
    output.line(Tone::Good, &format!("{member} is forgotten; if it is alive, it joins again"))
}

/// Prints whether the node is ready.
pub(super) async fn health(client: &Client, output: Output) -> Result<(), Failure> {
    let answer = client.request(Method::GET, "/readyz").await?;
    if !answer.status.is_success() {
        return Err(Failure::Refused(format!("the node is not ready: {}", answer.problem())));
    }
    match serde_json::from_slice::<Value>(&answer.body) {
        Ok(_) if output.json => output.json(&answer.body),
        _ if output.json => output.print("{\"ready\":true}\n"),
        _ => output.line(Tone::Good, "ready"),
    }
}
