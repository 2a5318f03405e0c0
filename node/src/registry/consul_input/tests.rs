//! Tests of Consul's form: defaults, spellings, ids, durations and refusals.

use hearsay_protocol::Health;

use super::*;
use crate::registry::checks::{CheckKind, CheckTls};

fn read(body: Value) -> Result<Registration, Invalid> {
    read_consul(body.to_string().as_bytes(), RegistrationSource::caller([127, 0, 0, 1].into()), "abcdef")
}

fn refused(body: Value) -> (&'static str, String) {
    let invalid = read(body).unwrap_err();
    (invalid.field, invalid.problem)
}

fn only_check(check: Value) -> (CheckSpec, ConsulCheck) {
    let registration = read(json!({ "Name": "web", "Port": 8080, "Check": check })).unwrap();
    let sent = registration.consul.unwrap().checks.into_values().next().unwrap();
    (registration.checks.into_iter().next().unwrap(), sent)
}

#[test]
fn the_id_defaults_to_the_name_and_the_address_to_the_nodes() {
    let registration = read(json!({ "Name": "web", "Port": 8080 })).unwrap();
    assert_eq!((registration.id.as_str(), registration.service.as_str()), ("web", "web"));
    assert_eq!((registration.host, registration.port), (None, 8080));
    let fields = registration.consul.unwrap();
    assert_eq!((fields.address.as_str(), fields.warning_weight), ("", 1));
    let registration = read(json!({ "Name": "web", "ID": "", "Address": "10.0.0.7" })).unwrap();
    assert_eq!((registration.id.as_str(), registration.host.as_deref()), ("web", Some("10.0.0.7")));
}

#[test]
fn keys_are_read_in_every_spelling_and_unknown_ones_are_ignored() {
    for body in [
        json!({ "Name": "web", "EnableTagOverride": true, "TaggedAddresses": { "lan": { "Address": "a", "Port": 1 } } }),
        json!({ "name": "web", "enable_tag_override": true, "tagged_addresses": { "lan": { "address": "a", "port": 1 } } }),
        json!({ "NAME": "web", "enabletagoverride": true, "taggedAddresses": { "lan": { "address": "a", "PORT": 1 } },
            "Kind": "connect-proxy", "Proxy": { "x": 1 }, "Connect": { "Native": true }, "SocketPath": "/x",
            "Service": {}, "Token": "t", "Namespace": "n", "Partition": "p", "Locality": { "Region": "r" } }),
    ] {
        let fields = read(body).unwrap().consul.unwrap();
        assert!(fields.enable_tag_override);
        let lan = TaggedAddress { address: "a".into(), port: 1 };
        assert_eq!(fields.tagged_addresses, BTreeMap::from([("lan".to_owned(), lan)]));
    }
}

#[test]
fn ports_exclude_a_port_but_not_a_zero() {
    let ports = json!([{ "Name": "http", "Port": 80 }, { "Name": "metrics", "Port": 81, "Default": true }]);
    let registration = read(json!({ "Name": "web", "Port": 0, "Ports": ports })).unwrap();
    assert_eq!((registration.port, registration.ports.len()), (81, 2));
    assert_eq!(refused(json!({ "Name": "web", "Port": 1, "Ports": ports })).0, "ports");
}

#[test]
fn empty_tags_are_dropped() {
    for (tags, expected) in [(json!(["", "v1", ""]), vec!["v1"]), (json!([""]), vec![]), (json!([]), vec![])]
    {
        assert_eq!(read(json!({ "Name": "web", "Tags": tags })).unwrap().tags, expected, "{tags}");
    }
    assert_eq!(refused(json!({ "Name": "web", "Tags": ["", 1] })).0, "tags");
}

#[test]
fn checks_are_mapped_with_consuls_defaults() {
    let (spec, sent) = only_check(json!({ "HTTP": "http://127.0.0.1:8080/health" }));
    assert!(matches!(&spec.kind, CheckKind::Http(http) if http.url == "http://127.0.0.1:8080/health"));
    assert_eq!((spec.id.as_str(), spec.name.as_str()), ("service:web", "Service 'web' check"));
    assert_eq!((spec.interval, spec.initial_status), (Duration::from_secs(10), Health::Critical));
    assert_eq!((spec.failures_before_critical, spec.successes_before_passing), (1, 1));
    assert!(spec.timeout < spec.interval && spec.timeout > Duration::from_secs(9), "ten seconds, cut");
    assert_eq!((sent.timeout, sent.notes.as_str()), (None, ""));
    let (spec, sent) = only_check(json!({
        "CheckID": "c", "ID": "i", "Name": "n", "TCP": "127.0.0.1:8080", "Interval": "30s", "Timeout": "1m",
        "Status": "passing", "Notes": "for people", "SuccessBeforePassing": 3, "FailuresBeforeWarning": 1,
        "FailuresBeforeCritical": 2, "DeregisterCriticalServiceAfter": "500ms",
    }));
    assert_eq!((spec.id.as_str(), spec.name.as_str(), spec.initial_status), ("c", "n", Health::Passing));
    assert!(matches!(&spec.kind, CheckKind::Tcp { address, .. } if address == "127.0.0.1:8080"));
    assert_eq!((spec.successes_before_passing, spec.failures_before_warning), (3, Some(1)));
    assert_eq!((spec.failures_before_critical, spec.deregister_after), (2, Some(Duration::from_millis(500))));
    assert_eq!((sent.timeout, sent.notes.as_str()), (Some(Duration::from_secs(60)), "for people"));
    assert!(spec.timeout < spec.interval, "{spec:?}");
    let (spec, _) =
        only_check(json!({ "GRPC": "127.0.0.1:8080/shop.Cart", "GRPCUseTLS": true, "TLSSkipVerify": true }));
    let expected = CheckKind::Grpc {
        address: "127.0.0.1:8080".into(),
        service: "shop.Cart".into(),
        tls: CheckTls { is_used: true, skip_verify: true, server_name: None },
    };
    assert_eq!(spec.kind, expected);
    let (spec, _) = only_check(json!({ "AliasService": "db-1" }));
    assert_eq!(spec.kind, CheckKind::Alias { instance: Some("db-1".into()), service: None });
}

#[test]
fn tls_is_mapped_as_consul_documents_it() {
    let tls = |is_used, server_name: Option<&str>| CheckTls {
        is_used,
        skip_verify: false,
        server_name: server_name.map(str::to_owned),
    };
    for (check, expected) in [
        (json!({ "TCP": "10.0.0.1:1", "TCPUseTLS": true, "TLSServerName": "a" }), tls(true, Some("a"))),
        // Without TLS the name has no effect, as in Consul.
        (json!({ "TCP": "10.0.0.1:1", "TLSServerName": "a" }), tls(false, None)),
        (json!({ "GRPC": "10.0.0.1:1", "grpc_use_tls": true, "tls_server_name": "a" }), tls(true, Some("a"))),
        (json!({ "GRPC": "10.0.0.1:1", "TCPUseTLS": true }), tls(false, None)),
        (json!({ "H2PING": "10.0.0.1:1" }), tls(true, None)),
        (json!({ "H2PING": "10.0.0.1:1", "H2PingUseTLS": false, "TLSServerName": "" }), tls(false, None)),
    ] {
        let (spec, _) = only_check(check.clone());
        let found = match spec.kind {
            CheckKind::Tcp { tls, .. } | CheckKind::Grpc { tls, .. } | CheckKind::H2ping { tls, .. } => tls,
            other => panic!("{other:?}"),
        };
        assert_eq!(found, expected, "{check}");
    }
    for (url, expected) in [("https://10.0.0.1/", Some("a")), ("http://10.0.0.1/", None)] {
        let (spec, _) = only_check(json!({ "HTTP": url, "TLSServerName": "a", "TLSSkipVerify": true }));
        let CheckKind::Http(http) = spec.kind else { panic!("{spec:?}") };
        assert_eq!((http.tls_server_name.as_deref(), http.tls_skip_verify), (expected, true), "{url}");
    }
    let (spec, _) = only_check(json!({ "UDP": "10.0.0.1:53", "TLSServerName": "a", "TLSSkipVerify": true }));
    assert_eq!(spec.kind, CheckKind::Udp { address: "10.0.0.1:53".into() });
    let check = json!({ "TCP": "10.0.0.1:1", "TCPUseTLS": "yes" });
    assert_eq!(refused(json!({ "Name": "web", "Check": check })).0, "TCPUseTLS");
}

#[test]
fn durations_are_texts_or_nanoseconds_and_short_intervals_are_raised() {
    for (ttl, seconds) in [(json!("15s"), 15), (json!("1m"), 60), (json!(2_000_000_000_u64), 2)] {
        let (spec, _) = only_check(json!({ "TTL": ttl }));
        assert_eq!(spec.kind, CheckKind::Ttl { ttl: Duration::from_secs(seconds) });
    }
    let (spec, _) = only_check(json!({ "TCP": "127.0.0.1:1", "Interval": "10ms" }));
    assert_eq!(spec.interval, Duration::from_secs(1));
    let (spec, sent) = only_check(json!({ "TCP": "127.0.0.1:1", "Timeout": "10ms" }));
    assert_eq!((spec.timeout, sent.timeout), (Duration::from_millis(100), Some(Duration::from_millis(10))));
    for hours in [720, 8760] {
        let long = format!("{hours}h");
        let (spec, _) = only_check(json!({ "TTL": long, "DeregisterCriticalServiceAfter": long }));
        let expected = Duration::from_secs(hours * 3600);
        assert_eq!((spec.kind, spec.deregister_after), (CheckKind::Ttl { ttl: expected }, Some(expected)));
    }
    let (field, problem) = refused(json!({ "Name": "web", "Check": { "TTL": "8760h1s" } }));
    assert!(field == "ttl" && problem.contains("8760h"), "{field}: {problem}");
    let endless = json!({ "TCP": "127.0.0.1:1", "Interval": "5000000000000000h" });
    assert_eq!(refused(json!({ "Name": "web", "Check": endless })).0, "interval");
    for (key, value) in
        [("TTL", json!("soon")), ("TTL", json!(-1)), ("Interval", json!([1])), ("Timeout", json!("5"))]
    {
        let (field, problem) =
            refused(json!({ "Name": "web", "Check": { "TCP": "127.0.0.1:1", key: value } }));
        assert_eq!(field, key, "{problem}");
    }
}

#[test]
fn blank_checks_count_as_none_and_several_are_numbered() {
    let blank = json!({ "Name": "", "HTTP": "", "Interval": "", "TLSSkipVerify": false, "Header": {} });
    let registration = read(json!({ "Name": "web", "Check": {}, "Checks": [blank] })).unwrap();
    assert!(registration.checks.is_empty());
    let checks = json!([{ "TTL": "1m", "Notes": "first" }, {}, { "TTL": "2m", "Notes": "second" }]);
    let registration = read(json!({ "Name": "web", "Checks": checks })).unwrap();
    let ids: Vec<&str> = registration.checks.iter().map(|check| check.id.as_str()).collect();
    assert_eq!(ids, ["service:web:1", "service:web:2"]);
    let fields = registration.consul.unwrap();
    assert_eq!(fields.checks["service:web:2"].notes, "second");
}

#[test]
fn every_unsupported_kind_is_named() {
    for (_, field) in UNSUPPORTED {
        let check = json!({ field: "x", "HTTP": "http://127.0.0.1/" });
        assert_eq!(refused(json!({ "Name": "web", "Check": check })).0, field);
        let absent = json!({ field: "", "TTL": "1m" });
        assert!(read(json!({ "Name": "web", "Check": absent })).is_ok(), "{field}");
    }
}

#[test]
fn bounds_are_named() {
    let tagged: Map<String, Value> = (0..17).map(|n| (n.to_string(), json!({ "Address": "a" }))).collect();
    for (body, field, word) in [
        (json!({ "Name": "web", "Tags": ["x".repeat(16 * 1024 + 1)] }), "tags", "16384"),
        (json!({ "Name": "web", "Meta": { "k": "x".repeat(513) } }), "meta", "512"),
        (json!({ "Name": "web", "TaggedAddresses": tagged }), "TaggedAddresses", "16"),
        (json!({ "Name": "web", "Check": { "TTL": "1m", "Notes": "x".repeat(4097) } }), "Notes", "4096"),
        (json!({ "Name": "web", "Weights": { "Passing": 65_536 } }), "Passing", "65535"),
    ] {
        let (found, problem) = refused(body);
        assert!(found == field && problem.contains(word), "{found}: {problem}");
    }
}

#[test]
fn a_check_of_its_own_names_its_instance_and_takes_its_name_as_id() {
    let parse = |body: Value| ConsulCheckInput::parse(body.to_string().as_bytes());
    let input = parse(json!({ "ServiceID": "web", "Name": "beat", "TTL": "1m", "Notes": "n" })).unwrap();
    assert_eq!(input.instance, "web");
    let web = read(json!({ "Name": "web", "Port": 8080 })).unwrap();
    let source = RegistrationSource::caller([127, 0, 0, 1].into());
    let (spec, sent) = input.of_registration(&web, source).unwrap();
    assert_eq!((spec.id.as_str(), spec.name.as_str(), sent.notes.as_str()), ("beat", "beat", "n"));
    let input = parse(json!({ "ServiceID": "web", "CheckID": "c", "Name": "beat", "TTL": "1m" })).unwrap();
    assert_eq!(input.of_registration(&web, source).unwrap().0.id, "c");
    for (body, field) in [
        (json!({ "Name": "beat", "TTL": "1m" }), "ServiceID"),
        (json!({ "ServiceID": "web", "TTL": "1m" }), "Name"),
        (json!({ "ServiceID": "web", "Name": "beat", "OSService": "x" }), "OSService"),
    ] {
        assert_eq!(parse(body).unwrap_err().field, field);
    }
}
