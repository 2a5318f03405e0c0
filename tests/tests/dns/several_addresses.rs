//! Tests that a DNS server that listens on all addresses of its host sends each response from the address
//! that was queried, with IPv4 and IPv6.

use hearsay_tests::{
    Cluster as _,
    registry::{plain, register},
    scenario,
};

use crate::{S, dig::Dig, has_programs, instance};

#[test]
fn ipv4_responses_leave_from_the_address_that_was_asked() {
    assert_source_addresses(
        "several_addresses::ipv4_responses_leave_from_the_address_that_was_asked",
        "0.0.0.0",
    );
}

#[test]
fn responses_of_both_families_leave_from_the_address_that_was_asked() {
    const TEST: &str = "several_addresses::responses_of_both_families_leave_from_the_address_that_was_asked";
    assert_source_addresses(TEST, "[::]");
}

/// Asks a node that listens everywhere at each of its addresses. dig drops a response from another one.
fn assert_source_addresses(test: &str, everywhere: &str) {
    if !has_programs(test, &["dig"]) {
        return;
    }
    scenario(test, |lab| {
        let hosts = [lab.host(), lab.host()];
        for (host, ip) in hosts.iter().zip(["fd77::1", "fd77::2"]) {
            host.sh(&format!("ip addr add {ip}/64 dev eth0 nodad"));
        }
        // Addresses that the kernel does not choose by itself for packets to the client.
        hosts[0].sh("ip addr add 10.77.3.1/16 dev eth0");
        hosts[0].sh("ip addr add fd77::3:1/64 dev eth0 nodad preferred_lft 0");
        let node = plain(lab, &hosts[0], 0, &["--dns", &format!("{everywhere}:7553")]);
        lab.until(10 * S, "it answers", |lab| lab.get(node, "/services").is_some());
        register(&hosts[0], &instance("web", "web-1", "10.77.9.1", 8001));
        let mut servers = vec![hosts[0].ip.as_str(), "10.77.3.1"];
        if everywhere == "[::]" {
            servers.extend(["fd77::1", "fd77::3:1"]);
        }
        for server in servers {
            for transport in ["+notcp", "+tcp"] {
                let found = Dig::at(&hosts[1], server, 7553, &format!("web.service.hearsay A {transport}"));
                assert_eq!(found.data(), ["10.77.9.1"], "{server} {transport}: {found:?}");
            }
        }
        for local in ["127.0.0.1", "127.0.0.2"] {
            assert_eq!(Dig::at(&hosts[0], local, 7553, "web.service.hearsay A").data(), ["10.77.9.1"]);
        }
    });
}
