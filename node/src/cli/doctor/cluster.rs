//! Judges what nodes say of their cluster.

use std::collections::BTreeMap;

use super::{
    super::answers::{Member, Members, Network, Outsider},
    Finding,
    probe::{Reached, Told, tcp_target},
};

/// An incarnation is the time of a node's start. So far ahead of our clock, one of the two clocks is wrong.
const CLOCK_AHEAD_MS_MAX: u64 = 60_000;
/// Names listed in one finding.
const LISTED_MAX: usize = 10;

/// What one node's own view already shows.
pub(super) fn judge(ours: &Members, now_ms: u64) -> Vec<Finding> {
    let mut findings = vec![company(ours), states(ours)];
    findings.extend(ours.members.iter().find(|member| member.name == ours.node).map(advertised));
    findings.extend(names(ours));
    findings.extend(clocks(ours, now_ms));
    findings.extend(match ours.keyed {
        Some(true) => Some(Finding::ok("the cluster has a key")),
        Some(false) => Some(Finding::warn(
            "the cluster has no key: whoever reaches it can join",
            "`node keygen > cluster.key`, then start every node with --key-file cluster.key",
        )),
        // An older node does not say.
        None => None,
    });
    findings
}

fn company(ours: &Members) -> Finding {
    match ours.members.iter().filter(|member| member.is_present()).count() {
        0 | 1 => Finding::warn(
            format!("it is alone in the cluster {:?}", ours.cluster),
            "start another node; on another network, start it with --join and a host of this one. All need the same --cluster \
             and the same key, and their swarm ports (7600 and up) must be open",
        ),
        present => Finding::ok(format!("it sees {present} nodes in the cluster {:?}", ours.cluster)),
    }
}

fn states(ours: &Members) -> Finding {
    let in_state = |state: &str| -> Vec<_> {
        ours.members
            .iter()
            .filter(|member| member.state == state)
            .map(|member| member.name.as_str())
            .collect()
    };
    let (failed, suspect) = (in_state("failed"), in_state("suspect"));
    if failed.is_empty() && suspect.is_empty() {
        return Finding::ok("no member has failed");
    }
    let told = [("failed", failed), ("suspect", suspect)].map(|(state, names)| match names.len() {
        0 => None,
        _ => Some(format!("{state}: {}", listed(&names))),
    });
    Finding::warn(
        told.into_iter().flatten().collect::<Vec<_>>().join("; "),
        "`node why NAME` tells who saw what; a failed node that should be there: is its machine up, is its swarm port open? One that will \
         not come back: `node forget NAME`",
    )
}

fn advertised(me: &Member) -> Finding {
    let hosts: Vec<_> =
        me.addresses.iter().filter_map(|address| tcp_target(address)).map(|(host, _)| host).collect();
    let is_local = |host: &String| host == "localhost" || host.starts_with("127.") || host == "::1";
    if hosts.is_empty() {
        return Finding::fail(
            "it tells others no address to reach it at",
            "is a network interface up? Otherwise name one with --advertise",
        );
    }
    if hosts.iter().all(is_local) {
        return Finding::warn(
            "it tells others only loopback addresses, so no other machine can reach it",
            "fine on one machine; otherwise start it without --swarm (it then listens on every interface), or name an address with --advertise",
        );
    }
    Finding::ok(format!("it can be reached at {}", listed(&hosts)))
}

fn names(ours: &Members) -> Option<Finding> {
    let mut count = BTreeMap::<&str, usize>::new();
    for member in ours.members.iter().filter(|member| member.is_present()) {
        *count.entry(&member.name).or_default() += 1;
    }
    let twice: Vec<_> = count.into_iter().filter(|(_, count)| *count > 1).map(|(name, _)| name).collect();
    (!twice.is_empty()).then(|| {
        Finding::fail(
            format!("several live nodes have the name {}", listed(&twice)),
            "give each its own --name, or none: the default is unique",
        )
    })
}

fn clocks(ours: &Members, now_ms: u64) -> Option<Finding> {
    let limit = now_ms.saturating_add(CLOCK_AHEAD_MS_MAX);
    let ahead: Vec<_> = ours.members.iter().filter(|member| member.incarnation > limit).collect();
    let names: Vec<_> = ahead.iter().map(|member| member.name.as_str()).collect();
    (!names.is_empty()).then(|| {
        Finding::warn(
            format!("started in the future, by the clock of this machine: {}", listed(&names)),
            "the clocks differ; the cluster does not mind, but times in logs will not compare. Run NTP",
        )
    })
}

/// Whether members can be reached at what they advertise.
pub(super) fn judge_reached(members: &[Reached]) -> Vec<Finding> {
    let out_of_reach =
        members.iter().filter(|member| !member.attempts.iter().any(|(_, reached)| reached.is_ok()));
    let findings: Vec<_> = out_of_reach
        .map(|member| {
            let attempts: Vec<_> = member
                .attempts
                .iter()
                .map(|(address, reached)| format!("{address}: {}", reached.as_ref().err().map_or("", |e| e)))
                .collect();
            let tried = if attempts.is_empty() { "it tells no address".into() } else { listed(&attempts) };
            Finding::fail(
                format!("{} cannot be reached from here ({tried})", member.name),
                "refused: nothing listens there; no answer: a firewall; wrong address: start it with --advertise",
            )
        })
        .collect();
    if findings.is_empty() && !members.is_empty() {
        return vec![Finding::ok("every member's swarm port can be reached from here")];
    }
    findings
}

/// Whether members see the same cluster as the node that was asked.
pub(super) fn judge_agreement(ours: &Members, told: &[Told]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let (mut differ, mut agree) = (Vec::new(), 0);
    for Told { name, said } in told {
        match said {
            Err(problem) => findings.push(Finding::warn(
                format!("{name} could not be asked how it sees the cluster: {problem}"),
                "is its HTTP address right (--advertise), is the port open?",
            )),
            Ok(theirs) if theirs.cluster != ours.cluster => findings.push(Finding::fail(
                format!("{name} is in the cluster {:?}, not in {:?}", theirs.cluster, ours.cluster),
                "start both with the same --cluster",
            )),
            Ok(theirs) if theirs.root_hash != ours.root_hash => differ.push(name.as_str()),
            Ok(_) => agree += 1,
        }
    }
    if !differ.is_empty() {
        findings.push(Finding::fail(
            format!("these see another state of the cluster than {}: {}", ours.node, listed(&differ)),
            "on a working connection nodes agree within seconds: is there a partition? See `node members --node` of each",
        ));
    }
    if findings.is_empty() && agree > 1 {
        findings.push(Finding::ok(format!("all {agree} see the same state")));
    }
    findings
}

/// Whether nodes on this machine that answer are also known.
pub(super) fn judge_neighbours(ours: &Members, neighbours: &[Members]) -> Vec<Finding> {
    let is_known = |node: &Members| ours.members.iter().any(|member| member.name == node.node);
    let strangers = neighbours.iter().filter(|node| !is_known(node));
    strangers
        .map(|node| match node.cluster == ours.cluster {
            true => Finding::fail(
                format!(
                    "{} runs on this machine in the same cluster, and {} does not know it",
                    node.node, ours.node
                ),
                "have both the same key (or none)? Does --allow admit both? Their logs tell who refused whom",
            ),
            false => Finding::warn(
                format!("{} runs on this machine in another cluster, {:?}", node.node, node.cluster),
                "if it should be in this one, start it with the same --cluster",
            ),
        })
        .collect()
}

/// Nodes on this network that the node cannot talk to.
pub(super) fn judge_outsiders(ours: &Members, network: &Network) -> Vec<Finding> {
    let nodes = |count: usize| if count == 1 { "1 node".to_owned() } else { format!("{count} nodes") };
    let addresses = |outsiders: &[&Outsider]| -> Vec<String> {
        outsiders.iter().map(|outsider| outsider.address.clone()).collect()
    };
    let because = |reason: &str| -> Vec<&Outsider> {
        network.outsiders.iter().filter(|outsider| outsider.reason == reason).collect()
    };
    // A node that sees others may have neighbours of a cluster that is not its own; for one that is alone this is the reason.
    let is_alone = ours.members.iter().filter(|member| member.is_present()).count() < 2;
    let finding = |what: String, advice: &str| match is_alone {
        true => Finding::fail(what, advice),
        false => Finding::warn(what, advice),
    };
    let mut findings = Vec::new();
    let keys = because("another-key");
    if !keys.is_empty() {
        let uses = if keys.len() == 1 { "uses" } else { "use" };
        findings.push(finding(
            format!(
                "{} on this network {uses} another key or none: {}",
                nodes(keys.len()),
                listed(&addresses(&keys))
            ),
            "if they belong to this cluster, start all with the same --key-file (or all without)",
        ));
    }
    let mut clusters = BTreeMap::<&str, Vec<&Outsider>>::new();
    for outsider in because("other-cluster") {
        clusters.entry(outsider.cluster.as_deref().unwrap_or_default()).or_default().push(outsider);
    }
    for (cluster, outsiders) in clusters {
        let belong = if outsiders.len() == 1 { "belongs" } else { "belong" };
        findings.push(Finding::warn(
            format!(
                "{} on this network {belong} to the cluster {cluster:?}, this node to {:?}: {}",
                nodes(outsiders.len()),
                ours.cluster,
                listed(&addresses(&outsiders))
            ),
            "if they should be in this one, start them with the same --cluster",
        ));
    }
    let silent = because("no-answer");
    if !silent.is_empty() {
        findings.push(finding(
            format!(
                "{} announced on this network or named by --join, and not reached: {}",
                nodes(silent.len()),
                listed(&addresses(&silent))
            ),
            "is a firewall between? The swarm's port (7600/tcp) must be open both ways",
        ));
    }
    findings
}

fn listed<S: AsRef<str>>(names: &[S]) -> String {
    let mut text = names.iter().take(LISTED_MAX).map(AsRef::as_ref).collect::<Vec<_>>().join(", ");
    if names.len() > LISTED_MAX {
        text += &format!(" and {} more", names.len() - LISTED_MAX);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{super::Verdict, *};

    fn member(name: &str, address: &str) -> Member {
        Member {
            name: name.into(),
            state: "alive".into(),
            addresses: vec![address.into()],
            ..Member::default()
        }
    }

    fn two() -> Members {
        Members {
            cluster: "default".into(),
            node: "a".into(),
            root_hash: "1234".into(),
            keyed: Some(true),
            members: vec![member("a", "/ip4/10.0.0.1/tcp/7600"), member("b", "/ip4/10.0.0.2/tcp/7600")],
        }
    }

    fn verdict(findings: &[Finding], part: &str) -> Option<Verdict> {
        findings.iter().find(|finding| finding.what.contains(part)).map(|finding| finding.verdict)
    }

    #[test]
    fn a_healthy_cluster_is_all_ok() {
        let findings = judge(&two(), 0);
        assert!(findings.iter().all(|finding| finding.verdict == Verdict::Ok), "{findings:?}");
    }

    #[test]
    fn each_thing_wrong_with_the_view_has_its_verdict() {
        type Spoil = fn(&mut Members);
        let table: [(Spoil, &str, Verdict); 8] = [
            (|m| m.members.truncate(1), "alone", Verdict::Warn),
            (|m| m.members[1].state = "failed".into(), "failed: b", Verdict::Warn),
            (|m| m.members[1].state = "suspect".into(), "suspect: b", Verdict::Warn),
            (|m| m.members[0].addresses.clear(), "no address", Verdict::Fail),
            (
                |m| m.members[0].addresses = vec!["/ip4/127.0.0.1/tcp/7600".into()],
                "only loopback",
                Verdict::Warn,
            ),
            (|m| m.members[1].name = "a".into(), "the name a", Verdict::Fail),
            (|m| m.members[1].incarnation = 1_000_000, "future", Verdict::Warn),
            (|m| m.keyed = Some(false), "no key", Verdict::Warn),
        ];
        for (spoil, part, expected) in table {
            let mut members = two();
            spoil(&mut members);
            assert_eq!(verdict(&judge(&members, 0), part), Some(expected), "{part}");
        }
    }

    #[test]
    fn a_member_is_in_reach_by_any_one_of_its_addresses() {
        let reached = |attempts: &[Result<(), &str>]| {
            let attempts =
                attempts.iter().map(|a| ("/ip4/10.0.0.2/tcp/7600".into(), a.map_err(str::to_owned)));
            vec![Reached { name: "b".into(), attempts: attempts.collect() }]
        };
        assert_eq!(judge_reached(&reached(&[Err("no answer"), Ok(())]))[0].verdict, Verdict::Ok);
        let findings = judge_reached(&reached(&[Err("no answer")]));
        assert_eq!(findings[0].verdict, Verdict::Fail);
        assert!(
            findings[0].what.contains("10.0.0.2") && findings[0].what.contains("no answer"),
            "{findings:?}"
        );
        assert_eq!(judge_reached(&reached(&[]))[0].verdict, Verdict::Fail);
    }

    #[test]
    fn members_that_see_another_state_or_another_cluster_are_named() {
        let told = |name: &str, cluster: &str, hash: &str| Told {
            name: name.into(),
            said: Ok(Members { cluster: cluster.into(), root_hash: hash.into(), ..Members::default() }),
        };
        let same = [told("a", "default", "1234"), told("b", "default", "1234")];
        assert_eq!(verdict(&judge_agreement(&two(), &same), "same state"), Some(Verdict::Ok));
        let findings = judge_agreement(&two(), &[told("b", "default", "9999"), told("c", "shop", "1234")]);
        assert_eq!(verdict(&findings, "another state of the cluster than a: b"), Some(Verdict::Fail));
        assert_eq!(verdict(&findings, "c is in the cluster \"shop\""), Some(Verdict::Fail));
        let silent = [Told { name: "b".into(), said: Err("refused".into()) }];
        assert_eq!(verdict(&judge_agreement(&two(), &silent), "b could not be asked"), Some(Verdict::Warn));
    }

    #[test]
    fn a_node_next_door_that_nobody_knows_is_told_of() {
        let next_door = |cluster: &str| {
            let members = Members { cluster: cluster.into(), node: "z".into(), ..Members::default() };
            judge_neighbours(&two(), &[members])
        };
        assert_eq!(verdict(&next_door("default"), "z runs on this machine in the same"), Some(Verdict::Fail));
        assert_eq!(verdict(&next_door("shop"), "in another cluster"), Some(Verdict::Warn));
        let known = Members { node: "b".into(), ..Members::default() };
        assert_eq!(judge_neighbours(&two(), &[known]), []);
    }

    #[test]
    fn nodes_that_cannot_be_talked_to_are_counted_by_the_reason() {
        let outsider = |n: usize, reason: &str, cluster: Option<&str>| Outsider {
            address: format!("10.77.0.{n}:7600"),
            reason: reason.into(),
            cluster: cluster.map(Into::into),
        };
        let mut network = Network::default();
        assert_eq!(judge_outsiders(&two(), &network), []);
        network.outsiders = (1..=12).map(|n| outsider(n, "another-key", None)).collect();
        network.outsiders.push(outsider(20, "other-cluster", Some("shop")));
        network.outsiders.push(outsider(30, "no-answer", None));
        let mut alone = two();
        alone.members.truncate(1);
        let key = "12 nodes on this network use another key or none: 10.77.0.1:7600, ";
        assert_eq!(verdict(&judge_outsiders(&two(), &network), key), Some(Verdict::Warn));
        let findings = judge_outsiders(&alone, &network);
        assert_eq!(verdict(&findings, key), Some(Verdict::Fail), "{findings:?}");
        let cluster = "1 node on this network belongs to the cluster \"shop\", this node to \"default\": 10.77.0.20:7600";
        assert_eq!(verdict(&findings, cluster), Some(Verdict::Warn), "{findings:?}");
        assert_eq!(verdict(&findings, "not reached: 10.77.0.30:7600"), Some(Verdict::Fail), "{findings:?}");
    }
}
