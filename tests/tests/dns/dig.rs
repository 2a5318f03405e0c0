//! Tests of DNS answers with dig, whose output [`Dig`] parses: every form of a name, response codes,
//! truncation and the retry over TCP, header flags and EDNS.

use std::process::Command;

use hearsay_tests::{
    Cluster as _, Host, NodeRef,
    registry::{all_have, cluster, plain, register},
    scenario,
};
use serde_json::json;

use crate::{S, has_programs, instance};

/// A response as dig prints it. Records have one space between their fields.
#[derive(Debug)]
pub(crate) struct Dig {
    pub(crate) status: String,
    pub(crate) answers: Vec<String>,
    pub(crate) authorities: Vec<String>,
    additionals: Vec<String>,
    text: String,
}

impl Dig {
    /// Asks the node of a host, from the host.
    pub(crate) fn node(host: &Host, arguments: &str) -> Self {
        Self::at(host, "127.0.0.1", 7553, arguments)
    }

    /// Asks a server, from a host. A server that does not answer has an empty status.
    pub(crate) fn at(host: &Host, server: &str, port: u16, arguments: &str) -> Self {
        let mut command = Command::new("ip");
        command.args([
            "netns",
            "exec",
            &host.name,
            "dig",
            "-r",
            &format!("@{server}"),
            "-p",
            &port.to_string(),
        ]);
        command.args(["+tries=2", "+time=5"]).args(arguments.split(' '));
        let output = command.output().unwrap();
        Self::parse(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn parse(text: String) -> Self {
        let header = text.lines().find_map(|line| line.split_once(", status: "));
        let status = header.map(|(_, rest)| rest.split(',').next().unwrap_or_default().to_owned());
        let section = |name: &str| -> Vec<String> {
            let start = format!(";; {name} SECTION:");
            let lines = text.lines().skip_while(|line| *line != start).skip(1);
            let records = lines.take_while(|line| !line.is_empty());
            records.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
        };
        let (answers, authorities) = (section("ANSWER"), section("AUTHORITY"));
        let additionals = section("ADDITIONAL");
        Self { status: status.unwrap_or_default(), answers, authorities, additionals, text }
    }

    /// The data of the answers, sorted.
    pub(crate) fn data(&self) -> Vec<String> {
        let data = |record: &String| record.splitn(5, ' ').nth(4).unwrap_or_default().to_owned();
        let mut found: Vec<String> = self.answers.iter().map(data).collect();
        found.sort();
        found
    }

    fn has_flag(&self, flag: &str) -> bool {
        let flags = self.text.lines().find_map(|line| line.strip_prefix(";; flags:"));
        flags.is_some_and(|line| line.split(';').next().unwrap_or_default().split(' ').any(|own| own == flag))
    }

    /// The size of the last response, in bytes.
    fn bytes(&self) -> usize {
        let line = self.text.lines().find_map(|line| line.strip_prefix(";; MSG SIZE  rcvd: "));
        line.and_then(|size| size.parse().ok()).unwrap_or_else(|| panic!("{self:?}"))
    }

    /// Asserts that there is no answer but the zone's SOA, which resolvers may keep for 1 s.
    pub(crate) fn assert_negative(&self, status: &str, zone: &str) {
        assert_eq!((self.status.as_str(), self.answers.len()), (status, 0), "{self:?}");
        let [soa] = self.authorities.as_slice() else { panic!("{self:?}") };
        assert!(soa.starts_with(&format!("{zone} 1 IN SOA ")) && soa.ends_with(" 1"), "{soa}");
    }
}

#[test]
fn every_form_of_a_name_is_answered() {
    const TEST: &str = "dig::every_form_of_a_name_is_answered";
    if !has_programs(TEST, &["dig"]) {
        return;
    }
    scenario(TEST, |lab| {
        let (hosts, nodes) = cluster(lab, 2, &[]);
        let host = &hosts[0];
        for name in ["_services._dns-sd._udp.hearsay", "_dns-sd._udp.hearsay"] {
            Dig::node(host, &format!("{name} PTR")).assert_negative("NOERROR", "hearsay.");
        }
        let mut web = instance("web", "web-1", "10.77.9.1", 8001);
        web["tags"] = json!(["v1", "eu.west"]);
        web["meta"] = json!({ "path": "/shop and more" });
        web["weight"] = json!(7);
        register(host, &web);
        let mut web = instance("web", "web-2", "10.77.9.2", 0);
        web.as_object_mut().unwrap().remove("port");
        web["ports"] =
            json!([{ "name": "http", "port": 8002, "default": true }, { "name": "metrics", "port": 9100 }]);
        web["tags"] = json!(["v2"]);
        register(&hosts[1], &web);
        register(host, &instance("six", "six-1", "fd77::9", 80));
        lab.until(5 * S, "both nodes list all", |lab| {
            all_have(lab, &nodes, "web", 2) && all_have(lab, &nodes, "six", 1)
        });
        for domain in ["hearsay", "consul"] {
            assert_forms(host, domain);
        }
        let reverse = Dig::node(host, &format!("-x {}", hosts[1].ip));
        assert_eq!(reverse.data(), ["m1.node.dc1.hearsay."], "{reverse:?}");
        assert_eq!(Dig::node(host, "-x 10.9.9.9").status, "REFUSED");
        assert_browsing(host);
    });
}

/// The names of services, nodes and addresses below a domain.
fn assert_forms(host: &Host, domain: &str) {
    let first = format!("1 7 8001 0a4d0901.addr.dc1.{domain}.");
    let second = format!("1 1 8002 0a4d0902.addr.dc1.{domain}.");
    let metrics = format!("1 1 9100 0a4d0902.addr.dc1.{domain}.");
    let six = format!("1 1 80 fd770000000000000000000000000009.addr.dc1.{domain}.");
    for (name, record_type, expected) in [
        ("web.service", "A", vec!["10.77.9.1", "10.77.9.2"]),
        ("web.service.dc1", "A", vec!["10.77.9.1", "10.77.9.2"]),
        ("web.service", "SRV", vec![second.as_str(), &first]),
        ("v1.web.service", "SRV", vec![&first]),
        ("eu.west.web.service.dc1", "A", vec!["10.77.9.1"]),
        ("_web._tcp.service", "SRV", vec![&second, &first]),
        ("_web._tcp.service.dc1", "A", vec!["10.77.9.1", "10.77.9.2"]),
        ("_web._tcp", "SRV", vec![&second, &first]),
        ("_web._v2.service", "SRV", vec![&second]),
        ("_web._v2", "A", vec!["10.77.9.2"]),
        ("metrics.port.web.service", "SRV", vec![&metrics]),
        ("six.service", "AAAA", vec!["fd77::9"]),
        ("six.service", "SRV", vec![&six]),
        ("0a4d0901.addr.dc1", "A", vec!["10.77.9.1"]),
        ("fd770000000000000000000000000009.addr", "AAAA", vec!["fd77::9"]),
        ("m0.node", "A", vec![host.ip.as_str()]),
        ("M0.Node.DC1", "A", vec![host.ip.as_str()]),
    ] {
        let found = Dig::node(host, &format!("{name}.{domain} {record_type}"));
        let mut expected: Vec<&str> = expected;
        expected.sort_unstable();
        assert_eq!(found.status, "NOERROR", "{name}.{domain}: {found:?}");
        let addresses: Vec<String> = found.data();
        // A node may have an address of IPv6 besides; it has exactly these of the type.
        assert_eq!(addresses, expected, "{name}.{domain} {record_type}: {found:?}");
        assert!(found.has_flag("aa") && !found.has_flag("ra") && !found.has_flag("tc"), "{found:?}");
        assert!(found.answers.iter().all(|record| record.split(' ').nth(1) == Some("0")), "{found:?}");
        assert!(found.text.contains("(UDP)"), "{found:?}");
    }
    let srv = Dig::node(host, &format!("web.service.{domain} SRV"));
    let mut along = srv.additionals.clone();
    along.sort();
    let address = |digits: &str, ip: &str| format!("{digits}.addr.dc1.{domain}. 0 IN A {ip}");
    assert_eq!(along, [address("0a4d0901", "10.77.9.1"), address("0a4d0902", "10.77.9.2")]);
    let (zone, below) = (format!("{domain}."), format!("service.{domain}."));
    for (name, record_type, status, zone) in [
        ("web.service", "AAAA", "NOERROR", &below),
        ("six.service", "A", "NOERROR", &below),
        ("web.service", "TXT", "NOERROR", &below),
        ("web.service.dc1", "AAAA", "NOERROR", &zone),
        ("node", "A", "NOERROR", &zone),
        ("nope.service", "A", "NXDOMAIN", &below),
        ("v3.web.service", "SRV", "NXDOMAIN", &below),
        ("_grpc_config.web.service", "TXT", "NXDOMAIN", &below),
        ("_grpclb._tcp.web.service", "SRV", "NXDOMAIN", &below),
        ("nope.node", "A", "NXDOMAIN", &zone),
    ] {
        let found = Dig::node(host, &format!("{name}.{domain} {record_type}"));
        found.assert_negative(status, zone);
    }
    for zone in [&zone, &below] {
        let soa = Dig::node(host, &format!("{zone} SOA"));
        assert!(soa.answers.len() == 1 && soa.answers[0].starts_with(&format!("{zone} 1 IN SOA")), "{soa:?}");
    }
}

/// The names of DNS-SD.
fn assert_browsing(host: &Host) {
    for (name, record_type, expected) in [
        ("b._dns-sd._udp", "PTR", vec!["hearsay."]),
        ("_services._dns-sd._udp", "PTR", vec!["_six._tcp.hearsay.", "_web._tcp.hearsay."]),
        ("_web._tcp", "PTR", vec!["web-1._web._tcp.hearsay.", "web-2._web._tcp.hearsay."]),
        ("web-1._web._tcp", "SRV", vec!["1 7 8001 0a4d0901.addr.dc1.hearsay."]),
        ("web-1._web._tcp", "TXT", vec!["\"path=/shop and more\""]),
        ("web-2._web._tcp", "TXT", vec!["\"\""]),
    ] {
        let found = Dig::node(host, &format!("{name}.hearsay {record_type}"));
        assert_eq!(found.data(), expected, "{name}: {found:?}");
    }
}

/// Registers instances of the service `many`, each at an address of its own.
fn register_many(host: &Host, count: usize) {
    for n in 1..=count {
        register(host, &instance("many", &format!("many-{n}"), &format!("10.77.20.{n}"), 8000));
    }
}

#[test]
fn what_does_not_fit_is_asked_for_again_over_tcp() {
    const TEST: &str = "dig::what_does_not_fit_is_asked_for_again_over_tcp";
    const MANY: usize = 60;
    if !has_programs(TEST, &["dig"]) {
        return;
    }
    scenario(TEST, |lab| {
        let hosts = [lab.host(), lab.host()];
        let node = plain(lab, &hosts[0], 0, &["--dns", "0.0.0.0:7553"]);
        lab.until(10 * S, "it answers", |lab| lab.get(node, "/services").is_some());
        register_many(&hosts[0], MANY);
        for (record_type, bytes_each) in [("SRV", 50), ("A", 16)] {
            let ask = |options: &str| {
                Dig::node(&hosts[0], &format!("{options} many.service.hearsay {record_type}"))
            };
            let cut = ask("+noedns +ignore");
            assert!(cut.has_flag("tc") && cut.bytes() <= 512 && !cut.answers.is_empty(), "{cut:?}");
            // The next record would not have fit.
            assert!(cut.bytes() + 2 * bytes_each > 512, "{cut:?}");
            let again = ask("+noedns");
            assert!(again.text.contains(";; Truncated, retrying in TCP mode."), "{again:?}");
            assert_eq!((again.answers.len(), again.has_flag("tc")), (MANY, false), "{again:?}");
            // On loopback, the client's size holds.
            let whole = ask("+bufsize=8192 +ignore");
            assert_eq!((whole.answers.len(), whole.has_flag("tc")), (MANY, false), "{whole:?}");
            assert!(whole.text.contains("(UDP)"), "{whole:?}");
            let tcp = ask("+tcp");
            assert_eq!((tcp.answers.len(), tcp.text.contains("(TCP)")), (MANY, true), "{tcp:?}");
        }
        let remote = |options: &str| {
            Dig::at(&hosts[1], &hosts[0].ip, 7553, &format!("{options} many.service.hearsay SRV"))
        };
        let cut = remote("+bufsize=8192 +ignore");
        assert!(cut.has_flag("tc") && (513..=1232).contains(&cut.bytes()), "{cut:?}");
        assert_eq!(remote("+bufsize=8192").answers.len(), MANY);
        // dig keeps a connection open for several questions.
        let open = "+tcp +keepopen many.service.hearsay A many.service.hearsay SRV";
        assert_eq!(Dig::node(&hosts[0], open).answers.len(), MANY);
    });
}

#[test]
fn flags_case_and_lifetime_are_as_resolvers_expect() {
    const TEST: &str = "dig::flags_case_and_lifetime_are_as_resolvers_expect";
    if !has_programs(TEST, &["dig"]) {
        return;
    }
    scenario(TEST, |lab| {
        let host = lab.host();
        let node: NodeRef = plain(lab, &host, 0, &["--dns-ttl", "7"]);
        lab.until(10 * S, "it answers", |lab| lab.get(node, "/services").is_some());
        register(&host, &instance("web", "web-1", "10.77.9.1", 8001));
        let cased = Dig::node(&host, "wEb.SeRvIcE.HeArSaY A");
        assert_eq!(cased.answers, ["wEb.SeRvIcE.HeArSaY. 7 IN A 10.77.9.1"], "{cased:?}");
        assert!(cased.text.contains("\n;wEb.SeRvIcE.HeArSaY."), "{cased:?}");
        let srv = Dig::node(&host, "web.service.hearsay SRV");
        assert_eq!(srv.additionals, ["0a4d0901.addr.dc1.hearsay. 7 IN A 10.77.9.1"], "{srv:?}");
        // Without a record, the SOA's lifetime holds, not that of records.
        Dig::node(&host, "nope.service.hearsay A").assert_negative("NXDOMAIN", "service.hearsay.");
        let with_edns = Dig::node(&host, "web.service.hearsay A +dnssec");
        assert!(with_edns.text.contains("; EDNS: version: 0, flags: do; udp: 1232"), "{with_edns:?}");
        let plain = Dig::node(&host, "web.service.hearsay A");
        assert!(plain.text.contains("; EDNS: version: 0, flags:; udp: 1232"), "{plain:?}");
        assert!(!Dig::node(&host, "web.service.hearsay A +noedns").text.contains("EDNS"));
        let newer = Dig::node(&host, "web.service.hearsay A +edns=1 +noednsnegotiation");
        assert_eq!((newer.status.as_str(), newer.answers.len()), ("BADVERS", 0), "{newer:?}");
        for (arguments, status) in [
            ("web.service.hearsay A +nsid +subnet=10.1.0.0/16 +ednsopt=65001:00ff +padding=128", "NOERROR"),
            ("web.service.hearsay ANY +notcp", "NOERROR"),
            ("web.service.hearsay HTTPS", "NOERROR"),
            ("web.service.hearsay TYPE65280", "NOERROR"),
            ("web.service.hearsay CH TXT", "REFUSED"),
            (". NS", "REFUSED"),
            ("example.com A", "REFUSED"),
            ("web.service.hearsay A +opcode=STATUS", "NOTIMP"),
            ("web.service.hearsay A +opcode=UPDATE", "NOTIMP"),
            ("web.service.hearsay A +header-only", "FORMERR"),
        ] {
            assert_eq!(Dig::node(&host, arguments).status, status, "{arguments}");
        }
        let transfer = Dig::node(&host, "hearsay AXFR");
        assert!(transfer.text.contains("; Transfer failed."), "{transfer:?}");
    });
}
