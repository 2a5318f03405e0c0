//! `node doctor`: diagnosis of nodes that do not see each other.
//!
//! It checks a node's answer, the members that the node lists, and their ports. Then it checks whether they
//! have the same state, which checks of registered programs fail, which names clash in DNS, and whether
//! multicast works on this machine. Each finding has a verdict and advice.
//!
//! `probe` gathers facts of nodes, and `host` those of this machine. `cluster`, `registrations`, `dns_names`
//! and the `judge_*` functions of `host` judge them without I/O, for tests. The command changes nothing and
//! sends no multicast, except for the kernel's messages when it joins and leaves a group.

mod cluster;
mod dns_names;
mod host;
mod probe;
mod registrations;

use serde::Serialize;

use crate::system::interfaces;
use hearsay_services::now_ms;

use super::{
    client::Client,
    failure::Failure,
    output::{Output, Tone},
    responses::{Members, Network, Ready},
};

/// Verdict of a check.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

/// Result of a check.
#[derive(Clone, PartialEq, Debug, Serialize)]
struct Finding {
    verdict: Verdict,
    /// The observation.
    what: String,
    /// What the user can do.
    advice: Option<String>,
}

impl Finding {
    fn ok(what: impl Into<String>) -> Self {
        Self { verdict: Verdict::Ok, what: what.into(), advice: None }
    }

    fn warn(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warn, what: what.into(), advice: Some(advice.into()) }
    }

    fn fail(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { verdict: Verdict::Fail, what: what.into(), advice: Some(advice.into()) }
    }
}

/// Runs all checks and prints the findings. The command fails if a check fails.
pub(super) async fn doctor(client: &Client, output: Output) -> Result<(), Failure> {
    let mut findings = Vec::new();
    let (mut unreachable, mut network) = (None, None);
    match get_members(client).await {
        Ok(own) => {
            findings.push(Finding::ok(format!("the node {:?} at {} answers", own.node, client.url())));
            findings.extend(check_ready(client).await);
            findings.extend(cluster::judge(&own, now_ms()));
            let reachable = probe::connect_members(&own).await;
            findings.extend(cluster::judge_reachability(&reachable));
            findings.extend(check_agreement(client, &own).await);
            findings
                .extend(registrations::get_registrations(client).await.iter().flat_map(registrations::judge));
            let services = dns_names::get_services(client).await;
            findings.extend(services.iter().flat_map(|services| dns_names::judge(services, &own)));
            let local_nodes = probe::find_local_nodes(client).await;
            findings.extend(cluster::judge_local_nodes(&own, &local_nodes));
            network = get_network(client).await;
            findings.extend(network.iter().flat_map(|network| cluster::judge_outsiders(&own, network)));
        }
        Err(failure) => {
            findings.push(Finding::fail(
                failure.to_string(),
                "start one with `node`, or give the URL of another with --node; a node prints its port when it starts",
            ));
            unreachable = Some(failure).filter(|failure| matches!(failure, Failure::Unreachable { .. }));
        }
    }
    findings.extend(host::judge_addresses(&interfaces::addresses()));
    findings.extend(host::judge_multicast(&host::interfaces(), host::mdns_port(), network.as_ref()));
    print(output, &findings)?;
    // An unreachable node takes precedence over findings, with its own exit code.
    if let Some(failure) = unreachable {
        return Err(failure);
    }
    match findings.iter().filter(|finding| finding.verdict == Verdict::Fail).count() {
        0 => Ok(()),
        1 => Err(Failure::Refused("one check failed".into())),
        failed => Err(Failure::Refused(format!("{failed} checks failed"))),
    }
}

async fn get_members(client: &Client) -> Result<Members, Failure> {
    client.get("/members").await?.json()
}

/// Returns the node's view of the network; `None`: an older node.
async fn get_network(client: &Client) -> Option<Network> {
    client.get("/network").await.ok()?.json().ok()
}

/// Checks whether the node is ready, and lists its warnings.
async fn check_ready(client: &Client) -> Vec<Finding> {
    match client.get("/readyz").await {
        Ok(answer) => {
            let mut findings = vec![Finding::ok("it is ready")];
            let Ready { warnings } = answer.json().unwrap_or_default();
            findings.extend(warnings.into_iter().map(|text| {
                Finding::warn(text, "the node works in spite of this; its log has the time of the warning")
            }));
            findings
        }
        Err(failure) => {
            let what = format!("it is not ready: {failure}");
            vec![Finding::fail(what, "wait until it has started; its log has the reason")]
        }
    }
}

/// Checks whether all members have the same state. A difference may be a change in progress, so it is checked
/// twice.
async fn check_agreement(client: &Client, own: &Members) -> Vec<Finding> {
    let first = cluster::judge_agreement(own, &probe::query_members(own).await);
    if first.iter().all(|finding| finding.verdict == Verdict::Ok) {
        return first;
    }
    tokio::time::sleep(probe::RECHECK_DELAY).await;
    match get_members(client).await {
        Ok(own) => cluster::judge_agreement(&own, &probe::query_members(&own).await),
        Err(_) => first,
    }
}

fn print(output: Output, findings: &[Finding]) -> Result<(), Failure> {
    if output.json {
        let json = serde_json::to_vec(&findings).map_err(std::io::Error::from)?;
        return output.json(&json);
    }
    for finding in findings {
        let (tone, word) = match finding.verdict {
            Verdict::Ok => (Tone::Plain, "ok"),
            Verdict::Warn => (Tone::Warning, "warn"),
            Verdict::Fail => (Tone::Bad, "FAIL"),
        };
        output.line(tone, &format!("{word:<5} {}", finding.what))?;
        if let Some(advice) = &finding.advice {
            output.line(Tone::Plain, &format!("      what to do: {advice}"))?;
        }
    }
    Ok(())
}
