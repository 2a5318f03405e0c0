//! Tests of the parsing of registrations: both dialects and the native form, any spelling of keys, defaults
//! of checks, and refusals that name the field and the limit.

use std::time::Duration;

use hearsay_protocol::Health;
use serde_json::json;

use super::*;
use crate::registry::checks::{CheckKind, CheckTls};

fn here() -> RegistrationSource {
    RegistrationSource::caller([127, 0, 0, 1].into())
}

fn read_json(value: Value) -> Result<Registration, Invalid> {
    read_value(value, here(), "abcdef")
}

fn ok(value: Value) -> Registration {
    read_json(value).unwrap()
}

fn refused(value: Value) -> String {
    read_json(value).unwrap_err().to_string()
}

fn only_check(value: Value) -> CheckSpec {
    let registration = ok(json!({"name": "web", "port": 8080, "check": value}));
    registration.checks.into_iter().next().unwrap()
}

#[test]
fn dialect_1_is_parsed_as_in_its_tutorials() {
    let registration = ok(json!({
        "ServiceName": "Grading Service",
        "ServiceURL": " http://localhost:6000/students ",
        "RequiredServices": ["Log Service"],
        "ServiceUpdateURL": "http://localhost:6000/services",
        "HeartbeatURL": "http://localhost:6000/heartbeat",
    }));
    assert_eq!(
        (registration.service.as_str(), registration.dialect),
        ("Grading Service", Dialect::ServiceUrl)
    );
    assert_eq!((registration.host.clone(), registration.local_host.as_str()), (None, "localhost"));
    assert_eq!(registration.port, 6000);
    assert_eq!(registration.meta["path"], "/students");
    assert_eq!(registration.id, "Grading Service-6000-abcdef");
    assert_eq!(registration.updates.as_deref(), Some("http://localhost:6000/services"));
    assert!(registration.requires.contains("Log Service"));
    let check = &registration.checks[0];
    assert_eq!(
        (check.interval, check.failures_before_critical, check.retry_interval),
        (Duration::from_secs(3), 3, Some(Duration::from_secs(1)))
    );
    assert!(matches!(&check.kind, CheckKind::Http(http) if http.url == "http://localhost:6000/heartbeat"));
    assert_eq!(check.id, "service:Grading Service-6000-abcdef");
}

#[test]
fn targets_are_attributed_to_their_fields() {
    let fields = |value| {
        let registration = ok(value);
        let checks = registration.checks.iter().map(|check| check_field(check, &registration));
        (checks.collect::<Vec<_>>(), updates_field(&registration))
    };
    let two = json!({"Name": "Portal", "Addr": "10.0.0.1:5000", "RequiredServices": ["Grading"]});
    assert_eq!(fields(two), (vec!["Addr"], "Addr"));
    let own = json!({
        "Name": "Portal", "Addr": "10.0.0.1:5000", "RequiredServices": ["Grading"], "updates": "http://10.0.0.2/u",
        "HeartbeatURL": "http://10.0.0.1:5000/heart-beat", "checks": [{"tcp": true}, {"http": "/"}],
    });
    assert_eq!(fields(own), (vec!["tcp", "http", "HeartbeatURL"], "updates"));
}

#[test]
fn dialect_2_implies_a_heartbeat_and_notifications_at_its_address() {
    let registration =
        ok(json!({"Name": "Portal", "Addr": "127.0.0.1:5000", "RequiredServices": ["Grading"]}));
    assert_eq!(registration.dialect, Dialect::NameAddr);
    assert_eq!(registration.updates.as_deref(), Some("http://127.0.0.1:5000/services"));
    let check = &registration.checks[0];
    assert!(matches!(&check.kind, CheckKind::Http(http) if http.url == "http://127.0.0.1:5000/heart-beat"));
    assert_eq!(check.interval, Duration::from_secs(30));
    assert_eq!(ok(json!({"Name": "Log", "Addr": ":4000"})).updates, None, "it requires nothing");
}

#[test]
fn a_loopback_host_is_not_stated_to_others() {
    for host in ["localhost", "127.0.0.1", "127.8.0.1", "::1", "LOCALHOST.", "a.localhost"] {
        let registration = ok(json!({"name": "web", "address": host, "port": 1}));
        assert_eq!((registration.host, registration.local_host.as_str()), (None, host), "{host}");
    }
    let registration = ok(json!({"name": "web", "address": "10.0.0.7", "port": 80}));
    assert_eq!(
        (registration.host.as_deref(), registration.id.as_str()),
        (Some("10.0.0.7"), "web-10.0.0.7-80")
    );
    let elsewhere = RegistrationSource::caller([10, 0, 0, 9].into());
    let registration = read_value(json!({"name": "web", "port": 80}), elsewhere, "abcdef").unwrap();
    assert_eq!(registration.host.as_deref(), Some("10.0.0.9"), "the caller's");
}

#[test]
fn keys_are_found_in_any_spelling_and_unknown_ones_are_ignored() {
    let registration = ok(json!({
        "NAME": "web", "Port": 1, "unknown": {"x": 1}, "Check": {"TTL": "15s", "Failures_Before_Critical": 2},
        "meta": null,
    }));
    assert_eq!(registration.checks[0].failures_before_critical, 2);
    assert!(refused(json!({"name": "a", "Name": "b"})).contains("two spellings"));
}

#[test]
fn named_ports_exclude_the_port_and_have_one_default() {
    let ports = json!([{"name": "http", "port": 80}, {"name": "metrics", "port": 9100, "default": true}]);
    let registration = ok(json!({"name": "web", "ports": ports}));
    assert_eq!((registration.port, registration.ports.len()), (9100, 2));
    assert!(refused(json!({"name": "web", "port": 1, "ports": ports})).contains("excludes port"));
    let two = json!([{"name": "a", "port": 1, "default": true}, {"name": "b", "port": 2, "default": true}]);
    assert!(refused(json!({"name": "web", "ports": two})).contains("two defaults"));
    let same = json!([{"name": "a", "port": 1}, {"name": "a", "port": 2}]);
    assert!(refused(json!({"name": "web", "ports": same})).contains("twice"));
}

#[test]
fn bad_values_name_their_field_and_the_limit() {
    let long = "x".repeat(16 * 1024 + 1);
    let meta: serde_json::Map<_, _> = (0..65).map(|n| (format!("k{n}"), json!("v"))).collect();
    let checks = vec![json!({"ttl": "1s"}); 17];
    for (body, words) in [
        (json!({}), ["name", "missing"]),
        (json!({"name": "a/b"}), ["name", "'/'"]),
        (json!({"name": "x".repeat(129)}), ["name", "128"]),
        (json!({"name": 7}), ["name", "string"]),
        (json!({"name": "web", "port": 65536}), ["port", "65535"]),
        (json!({"name": "web", "port": "80"}), ["port", "65535"]),
        (json!({"name": "web", "weight": 65536}), ["weight", "65535"]),
        (json!({"name": "web", "tags": [long]}), ["tags", "16384"]),
        (json!({"name": "web", "tags": "a"}), ["tags", "array"]),
        (json!({"name": "web", "meta": meta}), ["meta", "64"]),
        (json!({"name": "web", "meta": {"k": "v".repeat(513)}}), ["meta", "512"]),
        (json!({"name": "web", "checks": checks}), ["checks", "16"]),
        (json!({"name": "web", "address": "0.0.0.0"}), ["address", "0.0.0.0"]),
        (json!({"Name": "web", "Addr": "0.0.0.0:80"}), ["Addr", "0.0.0.0"]),
        (json!({"name": "web", "url": "http://0.0.0.0"}), ["url", "0.0.0.0"]),
        (json!({"name": "watch"}), ["name", "path of the API"]),
        (json!({"name": "web", "id": "maintenance"}), ["id", "path of the API"]),
        (json!({"name": "web", "check": {"ttl": "1s", "id": "_node_maintenance"}}), ["id", "maintenance"]),
        (
            json!({"name": "web", "check": {"DockerContainerID": "c", "args": ["a"]}}),
            ["check", "docker_container_id"],
        ),
        (json!({"name": "web", "meta": {"": "v"}}), ["meta", "empty"]),
        (json!({"name": "web", "address": "a..b"}), ["address", "host name"]),
        (json!({"name": "web", "address": "-x"}), ["address", "host name"]),
        (json!({"name": "web", "address": "a b"}), ["address", "host name"]),
        (json!({"name": "web", "url": "ftp://a"}), ["url", "http://"]),
        (json!({"name": "web", "url": "http://user:pw@a"}), ["url", "user"]),
        (json!({"name": "web", "url": "http://a:99999"}), ["url", "65535"]),
        (json!({"name": "web", "Addr": "nowhere"}), ["Addr", "host:port"]),
        (json!({"name": "web", "requires": ["a/b"]}), ["requires", "'/'"]),
        (json!({"name": "web", "zone": "a/b"}), ["zone", "'/'"]),
        (json!({"name": "web", "updates": "x"}), ["updates", "http://"]),
    ] {
        let error = refused(body);
        assert!(words.iter().all(|word| error.contains(word)), "{words:?}: {error}");
    }
}

#[test]
fn a_check_has_exactly_one_known_kind_and_sound_times() {
    for (check, words) in [
        (json!({"interval": "1s"}), ["no kind", "http"]),
        (json!({"smtp": "x"}), ["no kind", "tcp"]),
        (json!({"http": "/", "ttl": "1s"}), ["http and ttl", "one"]),
        (json!({"http": "/", "interval": "1s", "timeout": "1s"}), ["timeout", "interval"]),
        (json!({"http": "/", "interval": "1ms"}), ["interval", "100ms"]),
        (json!({"http": "/", "interval": "soon"}), ["interval", "10s"]),
        (json!({"http": "/", "method": "G T"}), ["method", "G T"]),
        (json!({"http": "/", "expect_body": "("}), ["expect_body", "unclosed group"]),
        (json!({"http": "/", "expect_status": [99]}), ["expect_status", "100"]),
        (json!({"http": "/", "header": {"a b": "c"}}), ["header", "a b"]),
        (json!({"http": "/", "failures_before_critical": 0}), ["failures_before_critical", "1 to 1000"]),
        (json!({"exec": ["true"]}), ["exec", "--services-dir"]),
        (json!({"process": {"pid": 1}}), ["process", "socket"]),
        (json!({"ttl": "1s", "initial_status": "fine"}), ["initial_status", "passing"]),
        (json!({"udp": "nowhere"}), ["udp", "host:port"]),
        (json!({"udp": true, "tls": true}), ["tls", "udp checks"]),
        (json!({"watch": true, "tls_server_name": "a"}), ["tls_server_name", "watch checks"]),
        (json!({"tcp": true, "tls_server_name": "a"}), ["tls_server_name", "without TLS"]),
        (json!({"http": "/", "tls_server_name": "a"}), ["tls_server_name", "without TLS"]),
        (json!({"http": "/", "tls": true}), ["tls", "URL"]),
        (json!({"grpc": true, "tls": true, "tls_server_name": "a b"}), ["tls_server_name", "host name"]),
        (json!({"h2ping": true, "tls": "yes"}), ["tls", "true or false"]),
        (json!({"ttl": "1s", "alias_node": "n1"}), ["check", "alias_node"]),
    ] {
        let error = refused(json!({"name": "web", "port": 1, "check": check}));
        assert!(words.iter().all(|word| error.contains(word)), "{words:?}: {error}");
    }
    assert!(refused(json!({"name": "web", "check": {"watch": true}})).contains("watch"), "it has no port");
}

#[test]
fn a_check_has_defaults_from_the_instance() {
    let check = only_check(json!({"http": "/health", "interval": "1s", "expect_status": ["200-204", 301]}));
    let CheckKind::Http(http) = &check.kind else { panic!("{check:?}") };
    assert_eq!(
        (http.url.as_str(), &http.expect_status[..]),
        ("http://127.0.0.1:8080/health", &[(200, 204), (301, 301)][..])
    );
    assert_eq!(check.timeout, Duration::from_millis(800), "below the interval");
    assert_eq!(check.initial_status, Health::Critical);
    let addresses =
        [json!({"tcp": true}), json!({"tcp": ":8080"}), json!({"tcp": "127.0.0.1:8080"})].map(only_check);
    for check in addresses {
        assert!(
            matches!(&check.kind, CheckKind::Tcp { address, .. } if address == "127.0.0.1:8080"),
            "{check:?}"
        );
    }
    let grpc = only_check(json!({"grpc": "127.0.0.1:9/my.Service"}));
    assert!(
        matches!(&grpc.kind, CheckKind::Grpc { address, service, .. } if address == "127.0.0.1:9" && service == "my.Service")
    );
    let udp = only_check(json!({"udp": true}));
    assert_eq!(udp.kind, CheckKind::Udp { address: "127.0.0.1:8080".into() });
    let several = ok(json!({"name": "web", "id": "w", "port": 1, "checks": [{"ttl": "1s"}, {"tcp": true}]}));
    let ids: Vec<_> = several.checks.iter().map(|check| check.id.as_str()).collect();
    assert_eq!(ids, ["service:w:1", "service:w:2"]);
}

#[test]
fn tls_is_used_as_stated_and_h2ping_uses_it_unless_it_is_refused() {
    let tls = |is_used, skip_verify, server_name: Option<&str>| CheckTls {
        is_used,
        skip_verify,
        server_name: server_name.map(str::to_owned),
    };
    for (check, expected) in [
        (json!({"tcp": true}), CheckTls::default()),
        (
            json!({"tcp": true, "tls": true, "tls_server_name": "a.example"}),
            tls(true, false, Some("a.example")),
        ),
        (json!({"tcp": true, "tcp_use_tls": true, "tls_skip_verify": true}), tls(true, true, None)),
        (json!({"grpc": true}), CheckTls::default()),
        (json!({"grpc": true, "grpc_use_tls": true}), tls(true, false, None)),
        (json!({"h2ping": true}), tls(true, false, None)),
        (json!({"h2ping": true, "tls": false}), CheckTls::default()),
        (json!({"h2ping": true, "h2ping_use_tls": false}), CheckTls::default()),
    ] {
        let found = match only_check(check.clone()).kind {
            CheckKind::Tcp { tls, .. } | CheckKind::Grpc { tls, .. } | CheckKind::H2ping { tls, .. } => tls,
            other => panic!("{other:?}"),
        };
        assert_eq!(found, expected, "{check}");
    }
    let https = json!({"http": "https://10.0.0.1/", "tls": true, "tls_server_name": "a.example"});
    let CheckKind::Http(http) = only_check(https).kind else { panic!("no http check") };
    assert_eq!(http.tls_server_name.as_deref(), Some("a.example"));
}

#[test]
fn checks_of_earlier_versions_are_still_read() {
    for (stored, kind) in [
        (
            json!({"kind": "tcp", "address": "a:1"}),
            CheckKind::Tcp { address: "a:1".into(), tls: CheckTls::default() },
        ),
        (
            json!({"kind": "grpc", "address": "a:1", "service": "s", "tls": true, "tls_skip_verify": false}),
            CheckKind::Grpc {
                address: "a:1".into(),
                service: "s".into(),
                tls: CheckTls { is_used: true, ..CheckTls::default() },
            },
        ),
    ] {
        assert_eq!(serde_json::from_value::<CheckKind>(stored).unwrap(), kind);
    }
}
