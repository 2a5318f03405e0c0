//! `node doctor`: why do my nodes not see each other?
//!
//! It looks at what can be wrong, in the order in which it goes wrong: is there a node; whom does it know; can they be reached from here; do they
//! agree; which checks of registered programs fail; can nodes find each other by multicast on this machine. Each finding is a verdict and, unless all is well, what to do.
//!
//! Gathering facts and judging them are apart: `cluster` and `host` judge without touching anything, so that each judgement can be tested.
//! Nothing is changed and nothing is sent by multicast, but for the kernel's own announcement that it joined a group, and left it again.

mod cluster;
mod host;
mod probe;
mod registrations;

use serde::Serialize;

use crate::{interfaces, timestamp::now_ms};

use super::{
    answers::{Members, Network, Ready},
    client::Client,
    failure::Failure,
    output::{Output, Tone},
};

/// How one check ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

/// What one check found.
#[derive(Clone, PartialEq, Debug, Serialize)]
struct Finding {
    verdict: Verdict,
    /// What is the case.
    what: String,
    /// What to do about it.
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

/// Checks everything and prints the findings. A failed check makes the command fail.
pub(super) async fn doctor(client: &Client, output: Output) -> Result<(), Failure> {
    let mut findings = Vec::new();
    let (mut unreachable, mut network) = (None, None);
    match members(client).await {
        Ok(ours) => {
            findings.push(Finding::ok(format!("the node {:?} at {} answers", ours.node, client.url())));
            findings.extend(ready(client).await);
            findings.extend(cluster::judge(&ours, now_ms()));
            let reached = probe::reach_members(&ours).await;
            findings.extend(cluster::judge_reached(&reached));
            findings.extend(agreement(client, &ours).await);
            findings.extend(registrations::held(client).await.iter().flat_map(registrations::judge));
            let neighbours = probe::nodes_on_this_host(client).await;
            findings.extend(cluster::judge_neighbours(&ours, &neighbours));
            network = network_around(client).await;
            findings.extend(network.iter().flat_map(|network| cluster::judge_outsiders(&ours, network)));
        }
        Err(failure) => {
            findings.push(Finding::fail(
                failure.to_string(),
                "start one with `node`, or name another with --node URL; the port it took is among the lines it printed",
            ));
            unreachable = Some(failure).filter(|failure| matches!(failure, Failure::Unreachable { .. }));
        }
    }
    findings.extend(host::judge_addresses(&interfaces::addresses()));
    findings.extend(host::judge(&host::interfaces(), host::mdns_port(), network.as_ref()));
    print(output, &findings)?;
    // What could not be asked is worse than what was found, and has an exit code of its own.
    if let Some(failure) = unreachable {
        return Err(failure);
    }
    match findings.iter().filter(|finding| finding.verdict == Verdict::Fail).count() {
        0 => Ok(()),
        1 => Err(Failure::Refused("one check failed".into())),
        failed => Err(Failure::Refused(format!("{failed} checks failed"))),
    }
}

async fn members(client: &Client) -> Result<Members, Failure> {
    client.get("/members").await?.json()
}

/// What the node hears around it; an older one does not say.
async fn network_around(client: &Client) -> Option<Network> {
    client.get("/network").await.ok()?.json().ok()
}

/// Whether the node is ready, and what it warns of.
async fn ready(client: &Client) -> Vec<Finding> {
    match client.get("/readyz").await {
        Ok(answer) => {
            let mut findings = vec![Finding::ok("it is ready")];
            let Ready { warnings } = answer.json().unwrap_or_default();
            findings.extend(warnings.into_iter().map(|text| {
                Finding::warn(text, "the node serves all the same; its log tells since when this is so")
            }));
            findings
        }
        Err(failure) => {
            let what = format!("it is not ready: {failure}");
            vec![Finding::fail(what, "wait until it has started, and see its log")]
        }
    }
}

/// Whether all members hold the same state. A difference may be a change on its way, so it is looked at twice.
async fn agreement(client: &Client, ours: &Members) -> Vec<Finding> {
    let first = cluster::judge_agreement(ours, &probe::ask_members(ours).await);
    if first.iter().all(|finding| finding.verdict == Verdict::Ok) {
        return first;
    }
    tokio::time::sleep(probe::SECOND_LOOK).await;
    match members(client).await {
        Ok(ours) => cluster::judge_agreement(&ours, &probe::ask_members(&ours).await),
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
