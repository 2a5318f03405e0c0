//! Findings of `node doctor` about the cluster: size, states, names, clocks, reachability, agreement and
//! outsiders.

use std::collections::BTreeMap;

use hearsay_protocol::NodeId;

use super::{
    super::responses::{Member, Members, Network, Outsider},
    Finding,
    probe::{MemberReport, PRIVATE, Reachability, tcp_target},
};

/// An incarnation is a node's start time. If it is this far in the future, one of the clocks is wrong.
const CLOCK_AHEAD_MS_MAX: u64 = 60_000;
/// Maximum number of names in a finding.
const LISTED_MAX: usize = 10;

/// Judges the node's view of the cluster: size, failed members, advertised addresses, names, clocks and key.
pub(super) fn judge(own: &Members, now_ms: u64) -> Vec<Finding> {
    let mut findings = vec![judge_size(own), judge_states(own)];
    findings.extend(own.members.iter().find(|member| member.name == own.node).map(judge_advertised));
    findings.extend(judge_names(own));
    findings.extend(judge_clocks(own, now_ms));
    findings.extend(match own.keyed {
        Some(true) => Some(Finding::ok("the cluster has a key")),
        Some(false) => Some(Finding::warn(
            "the cluster has no key, so every host that reaches it can join",
            "run `node keygen > cluster.key`, then start every node with --key-file cluster.key",
        )),
        // Older nodes do not report whether the cluster has a key.
        None => None,
    });
    findings
}

fn judge_size(own: &Members) -> Finding {
    match own.members.iter().filter(|member| member.is_present()).count() {
        0 | 1 => Finding::warn(
            format!("it is alone in the cluster {:?}", own.cluster),
            "start another node; on another network, start it with --join and a host of this one. All nodes need the same --cluster \
             and the same key, and their swarm ports (7600 and up) must be open",
        ),
        present => Finding::ok(format!("it sees {present} nodes in the cluster {:?}", own.cluster)),
    }
}

fn judge_states(own: &Members) -> Finding {
    let in_state = |state: &str| -> Vec<_> {
        own.members.iter().filter(|member| member.state == state).map(|member| member.name.as_str()).collect()
    };
    let (failed, suspect) = (in_state("failed"), in_state("suspect"));
    if failed.is_empty() && suspect.is_empty() {
        return Finding::ok("no member has failed");
    }
    let groups = [("failed", failed), ("suspect", suspect)].map(|(state, names)| match names.len() {
        0 => None,
        _ => Some(format!("{state}: {}", list(&names))),
    });
    Finding::warn(
        groups.into_iter().flatten().collect::<Vec<_>>().join("; "),
        "`node why NAME` shows which node observed what. If a failed node should run: is its machine up, is its swarm port open? If it \
         will not come back: `node forget NAME`",
    )
}

fn judge_advertised(member: &Member) -> Finding {
    let hosts: Vec<_> =
        member.addresses.iter().filter_map(|address| tcp_target(address)).map(|(host, _)| host).collect();
    let is_local = |host: &String| host == "localhost" || host.starts_with("127.") || host == "::1";
    if hosts.is_empty() {
        return Finding::fail(
            "it advertises no address",
            "is a network interface up? Otherwise give an address with --advertise",
        );
    }
    if hosts.iter().all(is_local) {
        return Finding::warn(
            "it advertises only loopback addresses, so no other machine can reach it",
            "this is fine on one machine; otherwise start it without --swarm (then it listens on all interfaces), or give an address with --advertise",
        );
    }
    Finding::ok(format!("it advertises {}", list(&hosts)))
}

fn judge_names(own: &Members) -> Option<Finding> {
    let mut count = BTreeMap::<&str, usize>::new();
    for member in own.members.iter().filter(|member| member.is_present()) {
        *count.entry(stated_name(member)).or_default() += 1;
    }
    let duplicates: Vec<_> =
        count.into_iter().filter(|(_, count)| *count > 1).map(|(name, _)| name).collect();
    (!duplicates.is_empty()).then(|| {
        Finding::fail(
            format!("several live nodes have the name {}; this node shows all but the first as NAME-ID", list(&duplicates)),
            "give each its own --name, or none, because the default is unique; if you started only one of them, \
             another host pretends to be it: `node members` shows its address",
        )
    })
}

/// The name that a member states. A namesake is shown with the end of its id.
fn stated_name(member: &Member) -> &str {
    let ending = member.id.parse::<NodeId>().map(|id| format!("-{}", id.short()));
    let stated = ending.ok().and_then(|ending| member.name.strip_suffix(&ending));
    stated.filter(|_| member.namesake).unwrap_or(&member.name)
}

fn judge_clocks(own: &Members, now_ms: u64) -> Option<Finding> {
    let limit = now_ms.saturating_add(CLOCK_AHEAD_MS_MAX);
    let ahead: Vec<_> = own.members.iter().filter(|member| member.incarnation > limit).collect();
    let names: Vec<_> = ahead.iter().map(|member| member.name.as_str()).collect();
    (!names.is_empty()).then(|| {
        Finding::warn(
            format!("these nodes started in the future, by the clock of this machine: {}", list(&names)),
            "the clocks differ. The cluster works, but times in logs are not comparable: run NTP",
        )
    })
}

/// Judges whether members are reachable at their advertised addresses.
pub(super) fn judge_reachability(members: &[Reachability]) -> Vec<Finding> {
    let unreachable =
        members.iter().filter(|member| !member.attempts.iter().any(|(_, reached)| reached.is_ok()));
    let findings: Vec<_> = unreachable
        .map(|member| {
            let attempts: Vec<_> = member
                .attempts
                .iter()
                .map(|(address, reached)| format!("{address}: {}", reached.as_ref().err().map_or("", |e| e)))
                .collect();
            let tried = if attempts.is_empty() { "it advertises no address".into() } else { list(&attempts) };
            Finding::fail(
                format!("{} cannot be reached from here ({tried})", member.name),
                "refused: no process listens there; no answer: a firewall; wrong address: start it with --advertise",
            )
        })
        .collect();
    if findings.is_empty() && !members.is_empty() {
        return vec![Finding::ok("every member's swarm port can be reached from here")];
    }
    findings
}

/// Judges whether members have the same view as the node.
pub(super) fn judge_agreement(own: &Members, reports: &[MemberReport]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let (mut differ, mut private, mut agree) = (Vec::new(), Vec::new(), 0);
    for MemberReport { name, view } in reports {
        match view {
            Err(problem) if problem == PRIVATE => private.push(name.as_str()),
            Err(problem) => findings.push(Finding::warn(
                format!("{name} did not answer with its view of the cluster: {problem}"),
                "is its HTTP address right (--advertise), and is the port open?",
            )),
            Ok(theirs) if theirs.cluster != own.cluster => findings.push(Finding::fail(
                format!("{name} is in the cluster {:?}, not in {:?}", theirs.cluster, own.cluster),
                "start both with the same --cluster",
            )),
            Ok(theirs) if theirs.root_hash != own.root_hash => differ.push(name.as_str()),
            Ok(_) => agree += 1,
        }
    }
    if !private.is_empty() {
        let names = list(&private);
        findings.push(Finding::ok(format!(
            "these nodes are private; only `node doctor` on their machines can compare them: {names}"
        )));
    }
    if !differ.is_empty() {
        findings.push(Finding::fail(
            format!("these nodes see another state of the cluster than {}: {}", own.node, list(&differ)),
            "connected nodes agree within seconds: is there a partition? Compare `node members --node` of each",
        ));
    }
    if findings.is_empty() && agree > 1 {
        findings.push(Finding::ok(format!("all {agree} nodes see the same state")));
    }
    findings
}

/// Judges whether the nodes on this machine are members.
pub(super) fn judge_local_nodes(own: &Members, local_nodes: &[Members]) -> Vec<Finding> {
    let is_known = |node: &Members| own.members.iter().any(|member| member.name == node.node);
    let unknown = local_nodes.iter().filter(|node| !is_known(node));
    unknown
        .map(|node| match node.cluster == own.cluster {
            true => Finding::fail(
                format!(
                    "{} runs on this machine in the same cluster, and {} does not know it",
                    node.node, own.node
                ),
                "do both have the same key (or none)? Does --allow admit both? Their logs have the refusals",
            ),
            false => Finding::warn(
                format!("{} runs on this machine in another cluster, {:?}", node.node, node.cluster),
                "if it should be in this one, start it with the same --cluster",
            ),
        })
        .collect()
}

/// Judges outsiders: nodes that were announced or named, but cannot join.
pub(super) fn judge_outsiders(own: &Members, network: &Network) -> Vec<Finding> {
    let nodes = |count: usize| if count == 1 { "1 node".to_owned() } else { format!("{count} nodes") };
    let addresses = |outsiders: &[&Outsider]| -> Vec<String> {
        outsiders.iter().map(|outsider| outsider.address.clone()).collect()
    };
    let because = |reason: &str| -> Vec<&Outsider> {
        network.outsiders.iter().filter(|outsider| outsider.reason == reason).collect()
    };
    // If the cluster has other members, outsiders may belong to another cluster on purpose. If this node is
    // alone, outsiders are the likely cause.
    let is_alone = own.members.iter().filter(|member| member.is_present()).count() < 2;
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
                list(&addresses(&keys))
            ),
            "if they belong to this cluster, start all nodes with the same --key-file (or all without)",
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
                own.cluster,
                list(&addresses(&outsiders))
            ),
            "if they should be in this one, start them with the same --cluster",
        ));
    }
    let silent = because("no-answer");
    if !silent.is_empty() {
        findings.push(finding(
            format!(
                "{} announced on this network or given with --join, but not reached: {}",
                nodes(silent.len()),
                list(&addresses(&silent))
            ),
            "is there a firewall? The swarm port (7600/tcp) must be open in both directions",
        ));
    }
    findings
}

fn list<S: AsRef<str>>(names: &[S]) -> String {
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

    fn two_members() -> Members {
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
        let findings = judge(&two_members(), 0);
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
            let mut members = two_members();
            spoil(&mut members);
            assert_eq!(verdict(&judge(&members, 0), part), Some(expected), "{part}");
        }
    }

    #[test]
    fn a_member_is_in_reach_by_any_one_of_its_addresses() {
        let reached = |attempts: &[Result<(), &str>]| {
            let attempts =
                attempts.iter().map(|a| ("/ip4/10.0.0.2/tcp/7600".into(), a.map_err(str::to_owned)));
            vec![Reachability { name: "b".into(), attempts: attempts.collect() }]
        };
        assert_eq!(judge_reachability(&reached(&[Err("no answer"), Ok(())]))[0].verdict, Verdict::Ok);
        let findings = judge_reachability(&reached(&[Err("no answer")]));
        assert_eq!(findings[0].verdict, Verdict::Fail);
        assert!(
            findings[0].what.contains("10.0.0.2") && findings[0].what.contains("no answer"),
            "{findings:?}"
        );
        assert_eq!(judge_reachability(&reached(&[]))[0].verdict, Verdict::Fail);
    }

    #[test]
    fn members_that_see_another_state_or_another_cluster_are_named() {
        let report = |name: &str, cluster: &str, hash: &str| MemberReport {
            name: name.into(),
            view: Ok(Members { cluster: cluster.into(), root_hash: hash.into(), ..Members::default() }),
        };
        let same = [report("a", "default", "1234"), report("b", "default", "1234")];
        assert_eq!(verdict(&judge_agreement(&two_members(), &same), "same state"), Some(Verdict::Ok));
        let findings =
            judge_agreement(&two_members(), &[report("b", "default", "9999"), report("c", "shop", "1234")]);
        assert_eq!(verdict(&findings, "another state of the cluster than a: b"), Some(Verdict::Fail));
        assert_eq!(verdict(&findings, "c is in the cluster \"shop\""), Some(Verdict::Fail));
        let private =
            [report("a", "default", "1234"), MemberReport { name: "b".into(), view: Err(PRIVATE.into()) }];
        let findings = judge_agreement(&two_members(), &private);
        assert_eq!(verdict(&findings, "these nodes are private"), Some(Verdict::Ok));
        assert_eq!(verdict(&findings, "did not answer with its view"), None);
        let silent = [MemberReport { name: "b".into(), view: Err("refused".into()) }];
        assert_eq!(
            verdict(&judge_agreement(&two_members(), &silent), "b did not answer with its view"),
            Some(Verdict::Warn)
        );
    }

    #[test]
    fn a_local_node_that_is_not_a_member_is_reported() {
        let next_door = |cluster: &str| {
            let members = Members { cluster: cluster.into(), node: "z".into(), ..Members::default() };
            judge_local_nodes(&two_members(), &[members])
        };
        assert_eq!(verdict(&next_door("default"), "z runs on this machine in the same"), Some(Verdict::Fail));
        assert_eq!(verdict(&next_door("shop"), "in another cluster"), Some(Verdict::Warn));
        let known = Members { node: "b".into(), ..Members::default() };
        assert_eq!(judge_local_nodes(&two_members(), &[known]), []);
    }

    #[test]
    fn nodes_that_cannot_be_talked_to_are_counted_by_the_reason() {
        let outsider = |n: usize, reason: &str, cluster: Option<&str>| Outsider {
            address: format!("10.77.0.{n}:7600"),
            reason: reason.into(),
            cluster: cluster.map(Into::into),
        };
        let mut network = Network::default();
        assert_eq!(judge_outsiders(&two_members(), &network), []);
        network.outsiders = (1..=12).map(|n| outsider(n, "another-key", None)).collect();
        network.outsiders.push(outsider(20, "other-cluster", Some("shop")));
        network.outsiders.push(outsider(30, "no-answer", None));
        let mut alone = two_members();
        alone.members.truncate(1);
        let key = "12 nodes on this network use another key or none: 10.77.0.1:7600, ";
        assert_eq!(verdict(&judge_outsiders(&two_members(), &network), key), Some(Verdict::Warn));
        let findings = judge_outsiders(&alone, &network);
        assert_eq!(verdict(&findings, key), Some(Verdict::Fail), "{findings:?}");
        let cluster = "1 node on this network belongs to the cluster \"shop\", this node to \"default\": 10.77.0.20:7600";
        assert_eq!(verdict(&findings, cluster), Some(Verdict::Warn), "{findings:?}");
        assert_eq!(verdict(&findings, "not reached: 10.77.0.30:7600"), Some(Verdict::Fail), "{findings:?}");
    }
}
