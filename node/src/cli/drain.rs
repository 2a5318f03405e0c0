//! `node drain`: puts an instance or a node into maintenance without stopping it, or ends its maintenance.

use bytes::Bytes;
use clap::Args;
use http::Method;
use serde_json::{Value, json};

use super::{
    client::{Answer, Client},
    failure::Failure,
    output::{Output, Tone},
    responses::{Members, Registrations},
};
use crate::escape::percent_encoded;

/// `node drain`.
#[derive(Args, Clone, Debug)]
pub(super) struct DrainOptions {
    /// Id of an instance on any node, or name or id of the node of --node
    #[arg(value_name = "ID|NODE")]
    subject: String,
    /// Reason, for people
    #[arg(long)]
    reason: Option<String>,
    /// End the drain
    #[arg(long)]
    undo: bool,
}

/// Starts or ends a drain.
pub(super) async fn drain(client: &Client, output: Output, options: &DrainOptions) -> Result<(), Failure> {
    let subject = options.subject.as_str();
    let (is_node, node) = find_subject(client, subject).await?;
    let answer = if is_node {
        drain_node(client, options).await?
    } else {
        let reason = options.reason.as_deref().unwrap_or_default();
        let body = Bytes::from(json!({ "enable": !options.undo, "reason": reason }).to_string());
        let path = format!("/services/{}/maintenance", percent_encoded(subject));
        client.write_at_holder(Method::PUT, &path, body).await?
    };
    let answer = answer.expect_success()?;
    if output.json {
        return match serde_json::from_slice::<Value>(&answer.body) {
            Ok(_) => output.json(&answer.body),
            Err(_) => output.print(&format!("{}\n", json!({ "drained": !options.undo, "subject": subject }))),
        };
    }
    let drained = if is_node { format!("the node {node}") } else { subject.to_owned() };
    let done = match options.undo {
        true => format!("{drained} is back in service"),
        false => format!("{drained} is drained; `node drain {subject} --undo` puts it back into service"),
    };
    output.line(Tone::Good, &done)
}

/// Returns whether the subject is the node itself, and the node's name. An instance with the same id takes
/// precedence.
async fn find_subject(client: &Client, subject: &str) -> Result<(bool, String), Failure> {
    let members: Members = client.get("/members").await?.json()?;
    let is_own_id = members.members.iter().any(|member| member.name == members.node && member.id == subject);
    if members.node != subject && !is_own_id {
        return Ok((false, members.node));
    }
    let response: Registrations = match client.request(Method::GET, "/registrations").await?.expect_success()
    {
        Ok(answer) => answer.json()?,
        // An older node without registrations.
        Err(Failure::NoMatch(_)) => Registrations::default(),
        Err(failure) => return Err(failure),
    };
    Ok((!response.registrations.iter().any(|registration| registration.id == subject), members.node))
}

async fn drain_node(client: &Client, options: &DrainOptions) -> Result<Answer, Failure> {
    let reason = options.reason.as_deref().map(|reason| format!("&reason={}", percent_encoded(reason)));
    let reason = reason.unwrap_or_default();
    let path = format!("/v1/agent/maintenance?enable={}{reason}", !options.undo);
    client.request(Method::PUT, &path).await
}
