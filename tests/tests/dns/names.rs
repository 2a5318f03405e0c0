//! Tests of names in DNS: clashes are counted and named by `node doctor`, and host names are aliases.

use hearsay_tests::{
    Cluster as _,
    registry::{plain, register},
    scenario,
};
use serde_json::json;

use crate::{S, deregister, dig::Dig, has_programs, instance};

#[test]
fn names_that_clash_are_counted_and_named_and_one_of_them_answers() {
    const TEST: &str = "names::names_that_clash_are_counted_and_named_and_one_of_them_answers";
    if !has_programs(TEST, &["dig"]) {
        return;
    }
    scenario(TEST, |lab| {
        let host = lab.host();
        let node = plain(lab, &host, 0, &[]);
        lab.until(10 * S, "it answers", |lab| lab.get(node, "/services").is_some());
        let count = |lab: &hearsay_tests::Lab, kind: &str| -> f64 {
            let metrics = lab.text(node, "/metrics").unwrap();
            let name = format!("hearsay_dns_name_clashes{{kind=\"{kind}\"}} ");
            metrics.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap()
        };
        let mut first = instance("My Web", "a", "10.77.9.1", 8001);
        first["tags"] = json!(["V1"]);
        register(&host, &first);
        let ask = || Dig::node(&host, "my-web.service.hearsay A").data();
        assert_eq!(ask(), ["10.77.9.1"]);
        assert_eq!(["service", "node", "tag"].map(|kind| count(lab, kind)), [0.0; 3]);
        let mut second = instance("my-web", "b", "10.77.9.2", 8001);
        second["tags"] = json!(["v1", "V1"]);
        register(&host, &second);
        assert_eq!(ask(), ["10.77.9.2"], "the name that is the label");
        assert_eq!(["service", "node", "tag"].map(|kind| count(lab, kind)), [1.0, 0.0, 1.0]);
        let doctor = lab.command(Some(&host), "m0", &["doctor"]).output().unwrap();
        let words = String::from_utf8_lossy(&doctor.stdout).into_owned();
        for part in [
            "my-web.service.hearsay: \"my-web\", \"My Web\"; DNS answers for \"my-web\" only",
            "these tags of the service \"my-web\" apart: \"v1\", \"V1\"",
        ] {
            assert!(words.contains(part), "{words}");
        }
        deregister(&host, "b");
        assert_eq!(ask(), ["10.77.9.1"]);
        assert_eq!(["service", "node", "tag"].map(|kind| count(lab, kind)), [0.0; 3]);
    });
}

#[test]
fn a_host_name_is_an_alias_for_every_type_that_follows_one() {
    const TEST: &str = "names::a_host_name_is_an_alias_for_every_type_that_follows_one";
    if !has_programs(TEST, &["dig"]) {
        return;
    }
    scenario(TEST, |lab| {
        let host = lab.host();
        let node = plain(lab, &host, 0, &[]);
        lab.until(10 * S, "it answers", |lab| lab.get(node, "/services").is_some());
        register(&host, &instance("db", "db-1", "db.example", 5432));
        for record_type in ["A", "AAAA", "ANY +notcp", "CNAME"] {
            let found = Dig::node(&host, &format!("db.service.hearsay {record_type}"));
            assert_eq!(found.answers, ["db.service.hearsay. 0 IN CNAME db.example."], "{found:?}");
        }
        let srv = Dig::node(&host, "_db._tcp.service.hearsay SRV");
        assert_eq!(srv.data(), ["1 1 5432 db.example."], "{srv:?}");
        Dig::node(&host, "db.service.hearsay TXT").assert_negative("NOERROR", "service.hearsay.");
        // A name with an address has no alias.
        register(&host, &instance("db", "db-2", "10.77.9.2", 5432));
        Dig::node(&host, "db.service.hearsay CNAME").assert_negative("NOERROR", "service.hearsay.");
        assert_eq!(Dig::node(&host, "db.service.hearsay A").data(), ["10.77.9.2"]);
        assert_eq!(Dig::node(&host, "db.service.hearsay SRV").answers.len(), 2);
    });
}
