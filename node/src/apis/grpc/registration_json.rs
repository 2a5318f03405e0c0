//! A registration as the JSON of `POST /services`, so that the registry's parser checks it: bounds, defaults
//! and errors are those of HTTP, and errors name the same fields.

use serde_json::{Map, Value, json};

use super::messages::pb;

/// The fields of a JSON object. Fields with the default value of proto3 are left out.
#[derive(Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn text(&mut self, key: &str, value: String) {
        if !value.is_empty() {
            self.0.insert(key.to_owned(), value.into());
        }
    }

    fn flag(&mut self, key: &str, value: bool) {
        if value {
            self.0.insert(key.to_owned(), true.into());
        }
    }

    fn some(&mut self, key: &str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.0.insert(key.to_owned(), value.into());
        }
    }

    fn list(&mut self, key: &str, values: Vec<Value>) {
        if !values.is_empty() {
            self.0.insert(key.to_owned(), values.into());
        }
    }

    fn texts(&mut self, key: &str, values: Vec<String>) {
        self.list(key, values.into_iter().map(Value::from).collect());
    }

    fn pairs(&mut self, key: &str, pairs: impl IntoIterator<Item = (String, String)>) {
        let object: Map<_, _> = pairs.into_iter().map(|(name, value)| (name, value.into())).collect();
        if !object.is_empty() {
            self.0.insert(key.to_owned(), object.into());
        }
    }
}

/// Converts a registration.
pub(super) fn of_registration(registration: pb::Registration) -> Value {
    let mut fields = Fields::default();
    fields.text("id", registration.id);
    fields.text("name", registration.name);
    fields.text("address", registration.address);
    fields.some("port", Some(registration.port).filter(|port| *port != 0));
    let port = |port: pb::NamedPort| json!({ "name": port.name, "port": port.port, "default": port.default });
    fields.list("ports", registration.ports.into_iter().map(port).collect());
    fields.text("url", registration.url);
    fields.texts("tags", registration.tags);
    fields.pairs("meta", registration.meta);
    fields.some("weight", registration.weight);
    fields.text("zone", registration.zone);
    fields.texts("requires", registration.requires);
    fields.list("checks", registration.checks.into_iter().map(of_check).collect());
    fields.0.into()
}

fn of_check(check: pb::CheckDefinition) -> Value {
    let mut fields = Fields::default();
    if let Some((kind, target)) = check.kind.clone().map(of_kind) {
        fields.some(kind, Some(target));
    }
    let initial_status = check.initial_status();
    fields.text("id", check.id);
    fields.text("name", check.name);
    fields.text("interval", check.interval);
    fields.text("timeout", check.timeout);
    fields.text("retry_interval", check.retry_interval);
    fields.text("deregister_after", check.deregister_after);
    fields.some("failures_before_warning", check.failures_before_warning);
    fields.some("failures_before_critical", check.failures_before_critical);
    fields.some("successes_before_passing", check.successes_before_passing);
    fields.text("initial_status", status_word(initial_status).to_owned());
    fields.some("tls", check.tls);
    fields.flag("tls_skip_verify", check.tls_skip_verify);
    fields.text("tls_server_name", check.tls_server_name);
    fields.text("method", check.method);
    fields.pairs("header", check.header);
    fields.text("body", check.body);
    fields.texts("expect_status", check.expect_status);
    fields.text("expect_body", check.expect_body);
    fields.0.into()
}

/// Converts the kind of a check. An empty target of a connection is the instance itself.
fn of_kind(kind: pb::check_definition::Kind) -> (&'static str, Value) {
    use pb::check_definition::Kind;
    let target = |text: String| if text.is_empty() { Value::Bool(true) } else { text.into() };
    match kind {
        Kind::Http(text) => ("http", target(text)),
        Kind::Tcp(text) => ("tcp", target(text)),
        Kind::Udp(text) => ("udp", target(text)),
        Kind::H2ping(text) => ("h2ping", target(text)),
        Kind::Watch(text) => ("watch", target(text)),
        Kind::Grpc(text) => ("grpc", target(text)),
        Kind::Ttl(text) => ("ttl", text.into()),
        Kind::AliasService(name) => ("alias", json!({ "service": name })),
        Kind::AliasInstance(id) => ("alias", json!({ "instance": id })),
    }
}

/// Returns the word for a status that a client gives; empty: none.
pub(super) fn status_word(status: pb::HealthStatus) -> &'static str {
    match status {
        pb::HealthStatus::Unspecified => "",
        pb::HealthStatus::Passing => "passing",
        pb::HealthStatus::Warning => "warning",
        pb::HealthStatus::Critical => "critical",
        pb::HealthStatus::Unverified => "unverified",
    }
}

#[cfg(test)]
mod tests {
    use hearsay_protocol::Invalid;

    use super::*;
    use crate::registry::{
        input::{RegistrationSource, read_value},
        registration::Registration,
    };

    fn read(registration: pb::Registration) -> Result<Registration, Invalid> {
        read_value(of_registration(registration), RegistrationSource::caller([10, 0, 0, 9].into()), "abc")
    }

    fn web() -> pb::Registration {
        pb::Registration { name: "web".into(), port: 80, ..Default::default() }
    }

    fn check(kind: pb::check_definition::Kind) -> pb::CheckDefinition {
        pb::CheckDefinition { kind: Some(kind), ..Default::default() }
    }

    #[test]
    fn every_field_reaches_the_registry() {
        use pb::check_definition::Kind;
        let http = pb::CheckDefinition {
            id: "h".into(),
            interval: "3s".into(),
            timeout: "1s".into(),
            deregister_after: "1h".into(),
            failures_before_critical: Some(2),
            initial_status: pb::HealthStatus::Warning.into(),
            method: "HEAD".into(),
            header: [("a".to_owned(), "b".to_owned())].into(),
            expect_status: vec!["200-204".into()],
            ..check(Kind::Http("/health".into()))
        };
        let full = pb::Registration {
            id: "w".into(),
            tags: vec!["a".into()],
            meta: [("k".to_owned(), "v".to_owned())].into(),
            weight: Some(0),
            zone: "z".into(),
            requires: vec!["db".into()],
            checks: vec![http, pb::CheckDefinition { id: "t".into(), ..check(Kind::Ttl("10s".into())) }],
            ..web()
        };
        let by_json = serde_json::json!({
            "id": "w", "name": "web", "port": 80, "tags": ["a"], "meta": {"k": "v"}, "weight": 0, "zone": "z",
            "requires": ["db"],
            "checks": [
                {"id": "h", "http": "/health", "interval": "3s", "timeout": "1s", "deregister_after": "1h",
                 "failures_before_critical": 2, "initial_status": "warning", "method": "HEAD",
                 "header": {"a": "b"}, "expect_status": ["200-204"]},
                {"id": "t", "ttl": "10s"},
            ],
        });
        let source = RegistrationSource::caller([10, 0, 0, 9].into());
        let expected = read_value(by_json, source, "abc").unwrap();
        assert_eq!(format!("{:?}", read(full).unwrap()), format!("{expected:?}"));
        let ports = vec![pb::NamedPort { name: "admin".into(), port: 81, default: true }];
        let ports = read(pb::Registration { port: 0, ports, ..web() }).unwrap();
        assert_eq!((ports.port, ports.ports.len()), (81, 1));
        let own = read(pb::Registration { checks: vec![check(Kind::Tcp(String::new()))], ..web() }).unwrap();
        assert!(format!("{:?}", own.checks).contains("10.0.0.9:80"), "an empty target is the instance");
    }

    #[test]
    fn errors_name_the_fields_of_http() {
        use pb::check_definition::Kind;
        let field = |registration| read(registration).unwrap_err().field;
        assert_eq!(field(pb::Registration::default()), "name");
        assert_eq!(field(pb::Registration { port: 65_536, ..web() }), "port");
        assert_eq!(field(pb::Registration { weight: Some(65_536), ..web() }), "weight");
        assert_eq!(field(pb::Registration { url: "http://a:1".into(), ..web() }), "url");
        let meta = (0..65).map(|n| (n.to_string(), String::new())).collect();
        assert_eq!(field(pb::Registration { meta, ..web() }), "meta");
        let with = |check| pb::Registration { checks: vec![check], ..web() };
        assert_eq!(field(with(pb::CheckDefinition::default())), "check");
        assert_eq!(field(with(check(Kind::Ttl(String::new())))), "check");
        assert_eq!(field(with(check(Kind::Ttl("soon".into())))), "ttl");
        let unverified = pb::HealthStatus::Unverified.into();
        let initial = pb::CheckDefinition { initial_status: unverified, ..check(Kind::Ttl("1s".into())) };
        assert_eq!(field(with(initial)), "initial_status");
        let slow = pb::CheckDefinition { timeout: "1h".into(), ..check(Kind::Tcp(String::new())) };
        assert_eq!(field(with(slow)), "timeout");
    }
}
