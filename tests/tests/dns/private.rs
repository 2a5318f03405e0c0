//! Tests of DNS on private nodes: clients of the node's machine are answered, others are refused and counted.

use hearsay_tests::{
    Cluster as _,
    registry::{plain, register},
    scenario,
};

use crate::{S, dig::Dig, has_programs, instance};

#[test]
fn a_private_node_answers_dns_of_its_own_machine_alone() {
    const TEST: &str = "private::a_private_node_answers_dns_of_its_own_machine_alone";
    if !has_programs(TEST, &["dig"]) {
        return;
    }
    scenario(TEST, |lab| {
        let hosts = [lab.host(), lab.host()];
        hosts[0].sh("ip addr add 10.77.3.1/16 dev eth0");
        let node = plain(lab, &hosts[0], 0, &["--private", "--dns", "0.0.0.0:7553"]);
        lab.until(10 * S, "it answers", |lab| lab.get(node, "/livez").is_some());
        assert!(lab.log(node).contains("answers only clients of this machine"), "{}", lab.log(node));
        register(&hosts[0], &instance("web", "web-1", "10.77.9.1", 8001));
        let name = "web.service.hearsay A";
        for server in ["127.0.0.1", hosts[0].ip.as_str(), "10.77.3.1"] {
            assert_eq!(Dig::at(&hosts[0], server, 7553, name).data(), ["10.77.9.1"], "{server}");
        }
        for question in
            [name, "nope.service.hearsay A", "hearsay SOA", "m0.node.hearsay A", "web.service.hearsay A +tcp"]
        {
            let found = Dig::at(&hosts[1], &hosts[0].ip, 7553, question);
            assert_eq!((found.status.as_str(), found.answers.len()), ("REFUSED", 0), "{question}: {found:?}");
            assert!(found.authorities.is_empty(), "{found:?}");
        }
        let metrics = hosts[0].send(7500, "GET /metrics", "").body;
        let refused = metrics.lines().find_map(|line| line.strip_prefix("hearsay_dns_private_total "));
        // dig repeats a question whose answer is late.
        assert!(refused.is_some_and(|count| count.parse::<u64>().unwrap() >= 5), "{metrics}");
        // An address that the machine gets later is its own, too.
        hosts[0].sh("ip addr add 10.77.3.2/16 dev eth0");
        lab.until(5 * S, "the new address is known", |_| {
            Dig::at(&hosts[0], "10.77.3.2", 7553, &format!("{name} -b 10.77.3.2")).data() == ["10.77.9.1"]
        });
    });
}

#[test]
fn a_node_whose_own_machine_needs_the_token_answers_no_dns() {
    const TEST: &str = "private::a_node_whose_own_machine_needs_the_token_answers_no_dns";
    if !has_programs(TEST, &["dig"]) {
        return;
    }
    scenario(TEST, |lab| {
        let host = lab.host();
        let both = ["--private", "--loopback-needs-token"];
        let node = plain(lab, &host, 0, &both);
        lab.until(10 * S, "it answers", |lab| lab.get(node, "/livez").is_some());
        assert_eq!(Dig::node(&host, "hearsay SOA").status, "", "no server");
        let flags = [&both[..], &["--dns", ":53", "--ephemeral", "--http", "7600"]].concat();
        let refused = lab.command(Some(&host), "m1", &flags).output().unwrap();
        let words = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && words.contains("DNS cannot carry"), "{words}");
    });
}
