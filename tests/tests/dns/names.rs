//! Tests of names in DNS: host names are aliases.

use hearsay_tests::{
    Cluster as _,
    registry::{plain, register},
    scenario,
};

use crate::{S, dig::Dig, has_programs, instance};

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
