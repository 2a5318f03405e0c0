//! Parses registrations and checks in Consul's JSON form, and maps them to the native form.
//!
//! The keys are those of `PUT /v1/agent/service/register` and `/v1/agent/check/register` in Consul's API
//! documentation. Fields without a meaning for the node are stored in [`ConsulFields`] and answered as they
//! were sent: clients compare the answer with their request.

use std::{collections::BTreeMap, time::Duration};

use hearsay_protocol::Invalid;
use serde_json::{Map, Value, json};

use super::{
    checks::CheckSpec,
    input::{
        RegistrationSource,
        check::{CheckInput, read_all},
        fields::{Fields, check_text, invalid},
        read_value,
    },
    registration::{ConsulCheck, ConsulFields, Registration, TaggedAddress},
};
use crate::go_duration;

/// The interval of a check that states none. As Consul's examples.
const INTERVAL_DEFAULT: Duration = Duration::from_secs(10);
/// The shortest interval; a shorter one is raised to it. As Consul.
const INTERVAL_MIN: Duration = Duration::from_secs(1);
/// The timeout of a check that states none. As Consul.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
/// The shortest timeout; a shorter one is raised to it.
const TIMEOUT_MIN: Duration = Duration::from_millis(100);
/// The most tagged addresses of an instance. Consul's own are lan, wan and their IPv4 and IPv6 forms.
const TAGGED_ADDRESSES_MAX: usize = 16;
/// The longest host of a tagged address, in characters.
const TAGGED_HOST_CHARS_MAX: usize = 256;
/// The longest note of a check, in bytes.
const NOTES_BYTES_MAX: usize = 4096;
/// Keys of checks that this node does not run: in their normal form, and as Consul writes them.
const UNSUPPORTED: [(&str, &str); 8] = [
    ("args", "Args"),
    ("scriptargs", "ScriptArgs"),
    ("script", "Script"),
    ("shell", "Shell"),
    ("dockercontainerid", "DockerContainerID"),
    ("osservice", "OSService"),
    ("aliasnode", "AliasNode"),
    ("exec", "Exec"),
];

/// Reads a registration in Consul's form.
///
/// # Errors
/// Names the field and the allowed values. Nothing was registered.
pub fn read_consul(body: &[u8], source: RegistrationSource, suffix: &str) -> Result<Registration, Invalid> {
    let fields = Fields::of("body", parse(body)?)?;
    // A `Service` beside a `Name` is a field that Consul ignores.
    let name = match fields.text("name", &[])?.filter(|name| !name.is_empty()) {
        None => fields.text("service", &[])?.filter(|name| !name.is_empty()),
        name => name,
    };
    let name = name.ok_or_else(|| invalid("Name", "is missing; it is the name of the service"))?;
    let id = fields.text("id", &[])?.filter(|id| !id.is_empty()).unwrap_or_else(|| name.clone());
    let address = fields.text("address", &[])?.unwrap_or_default();
    let weights = match fields.value("weights") {
        Some(weights) => Some(Fields::of("Weights", weights)?),
        None => None,
    };
    let weight = |key| match &weights {
        Some(weights) => weights.integer(key, 0, u64::from(u16::MAX)),
        None => Ok(None),
    };
    let mut native = Map::new();
    native.insert("name".into(), name.into());
    native.insert("id".into(), id.into());
    native.insert("address".into(), address.clone().into());
    if let Some(port) = fields.value("port").filter(|port| !is_blank(port)) {
        native.insert("port".into(), port);
    }
    for key in ["ports", "meta"] {
        native.extend(fields.value(key).map(|value| (key.to_owned(), value)));
    }
    native.extend(fields.value("tags").map(|tags| ("tags".to_owned(), without_empty(tags))));
    native.extend(weight("Passing")?.map(|weight| ("weight".to_owned(), weight.into())));
    let (mut checks, mut sent) = (Vec::new(), Vec::new());
    for check in fields.value("check").into_iter().chain(fields.array("checks")?.into_iter().flatten()) {
        // Some clients send an empty object if they have no check.
        if check.as_object().is_some_and(|check| check.values().all(is_blank)) {
            continue;
        }
        let (check, kept) = native_check(&Fields::of("Check", check)?)?;
        checks.push(check);
        sent.push(kept);
    }
    native.insert("checks".into(), checks.into());
    let mut registration = read_value(native.into(), source, suffix)?;
    let ids = registration.checks.iter().map(|check| check.id.clone());
    registration.consul = Some(ConsulFields {
        address,
        tagged_addresses: read_tagged_addresses(&fields)?,
        warning_weight: weight("Warning")?.map_or(1, |weight| weight as u16),
        enable_tag_override: fields.boolean("EnableTagOverride")?.unwrap_or(false),
        checks: ids.zip(sent).collect(),
    });
    Ok(registration)
}

/// A check in Consul's form, for an instance that is registered already.
#[derive(Debug)]
pub struct ConsulCheckInput {
    /// The id of the instance.
    pub instance: String,
    check: Value,
    kept: ConsulCheck,
}

impl ConsulCheckInput {
    /// Reads a check that is registered apart from its instance.
    ///
    /// # Errors
    /// Names the field and the allowed values.
    pub fn parse(body: &[u8]) -> Result<Self, Invalid> {
        let fields = Fields::of("body", parse(body)?)?;
        let instance = fields.text("serviceid", &[])?.filter(|id| !id.is_empty()).ok_or_else(|| {
            invalid("ServiceID", "is missing; this node has checks of instances, and none of its own")
        })?;
        let name = fields.text("name", &[])?.filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| invalid("Name", "is missing; it is the name of the check"))?;
        let (mut check, kept) = native_check(&fields)?;
        if let Value::Object(check) = &mut check {
            check.entry("id").or_insert_with(|| name.into());
        }
        Ok(Self { instance, check, kept })
    }

    /// Reads the check as one of this registration.
    ///
    /// # Errors
    /// Names the field and the allowed values.
    pub fn of_registration(
        self,
        registration: &Registration,
        source: RegistrationSource,
    ) -> Result<(CheckSpec, ConsulCheck), Invalid> {
        let mut read = read_all(vec![CheckInput::Object(self.check)], registration, source)?;
        read.pop().map(|spec| (spec, self.kept)).ok_or_else(|| invalid("Check", "is missing"))
    }
}

pub(super) fn parse(body: &[u8]) -> Result<Value, Invalid> {
    serde_json::from_slice(body).map_err(|error| invalid("body", format!("is no JSON: {error}")))
}

/// Removes the empty tags, which some clients send. The native form refuses them.
fn without_empty(mut tags: Value) -> Value {
    if let Value::Array(tags) = &mut tags {
        tags.retain(|tag| tag.as_str() != Some(""));
    }
    tags
}

/// Returns whether a value means the same as an absent one.
pub(super) fn is_blank(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(elements) => elements.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::Bool(true) => false,
    }
}

/// Maps a check to the native form, and returns the fields that are stored as they were sent.
fn native_check(fields: &Fields) -> Result<(Value, ConsulCheck), Invalid> {
    let given = |key: &str| fields.value(key).filter(|value| !is_blank(value));
    if let Some((_, field)) = UNSUPPORTED.into_iter().find(|(key, _)| given(key).is_some()) {
        return Err(invalid(
            field,
            "is not supported by this node; it has http, tcp, udp, h2ping, grpc, ttl and alias checks",
        ));
    }
    let mut native = Map::new();
    let copied = [
        ("http", "http"),
        ("tcp", "tcp"),
        ("udp", "udp"),
        ("h2ping", "h2ping"),
        ("grpc", "grpc"),
        ("method", "method"),
        ("header", "header"),
        ("body", "body"),
        ("tlsskipverify", "tls_skip_verify"),
        ("name", "name"),
        ("status", "initial_status"),
    ];
    for (key, native_key) in copied {
        native.extend(given(key).map(|value| (native_key.to_owned(), value)));
    }
    add_tls(fields, &mut native)?;
    if let Some(id) = given("checkid").or_else(|| given("id")) {
        native.insert("id".into(), id);
    }
    if let Some(instance) = given("aliasservice") {
        native.insert("alias".into(), json!({ "instance": instance }));
    }
    // Zero and one mean the same: the first success or failure changes the status.
    for (key, native_key) in [
        ("successbeforepassing", "successes_before_passing"),
        ("failuresbeforewarning", "failures_before_warning"),
        ("failuresbeforecritical", "failures_before_critical"),
    ] {
        native.extend(given(key).map(|value| (native_key.to_owned(), value)));
    }
    for (key, native_key) in [("TTL", "ttl"), ("DeregisterCriticalServiceAfter", "deregister_after")] {
        let duration = read_duration(fields, key)?;
        native.extend(duration.map(|duration| (native_key.to_owned(), as_text(duration))));
    }
    let timeout = read_duration(fields, "Timeout")?;
    if !native.contains_key("ttl") {
        let interval = read_duration(fields, "Interval")?.unwrap_or(INTERVAL_DEFAULT).max(INTERVAL_MIN);
        // A run ends before the next one begins.
        let effective = timeout.unwrap_or(TIMEOUT_DEFAULT).max(TIMEOUT_MIN).min(interval - interval / 100);
        native.insert("interval".into(), as_text(interval));
        native.insert("timeout".into(), as_text(effective));
    }
    let notes = fields.text("notes", &[])?.unwrap_or_default();
    if notes.len() > NOTES_BYTES_MAX {
        let problem = format!("has {} bytes; at most {NOTES_BYTES_MAX} are allowed", notes.len());
        return Err(invalid("Notes", problem));
    }
    Ok((native.into(), ConsulCheck { notes, timeout }))
}

/// Maps the TLS options of the check's kind. As in Consul, they have no effect where the check uses no TLS:
/// some clients send them with every check.
fn add_tls(fields: &Fields, native: &mut Map<String, Value>) -> Result<(), Invalid> {
    let option =
        [("tcp", "TCPUseTLS", false), ("grpc", "GRPCUseTLS", false), ("h2ping", "H2PingUseTLS", true)]
            .into_iter()
            .find(|(kind, ..)| native.contains_key(*kind));
    let is_https = native
        .get("http")
        .and_then(Value::as_str)
        .is_some_and(|url| url.trim().get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://")));
    let mut is_used = is_https;
    if let Some((_, key, default)) = option {
        is_used = fields.boolean(key)?.unwrap_or(default);
        native.insert("tls".into(), is_used.into());
    }
    if let Some(name) = fields.text("TLSServerName", &[])?.filter(|name| is_used && !name.is_empty()) {
        native.insert("tls_server_name".into(), name.into());
    }
    Ok(())
}

/// A duration as Go writes it, or a number of nanoseconds. Zero stands for none.
fn read_duration(fields: &Fields, field: &'static str) -> Result<Option<Duration>, Invalid> {
    let Some(value) = fields.value(&field.to_ascii_lowercase()).filter(|value| !is_blank(value)) else {
        return Ok(None);
    };
    let duration = match &value {
        Value::String(text) => go_duration::parse(text),
        other => other.as_u64().map(Duration::from_nanos),
    };
    let duration = duration.ok_or_else(|| {
        let shown: String = value.to_string().chars().take(64).collect();
        invalid(field, format!("{shown} is no duration such as 10s, 1m30s or 500ms"))
    })?;
    Ok(Some(duration).filter(|duration| !duration.is_zero()))
}

/// A duration as the native form takes it.
fn as_text(duration: Duration) -> Value {
    go_duration::format(duration).into()
}

fn read_tagged_addresses(fields: &Fields) -> Result<BTreeMap<String, TaggedAddress>, Invalid> {
    const FIELD: &str = "TaggedAddresses";
    let given = fields.object(FIELD)?.unwrap_or_default();
    if given.len() > TAGGED_ADDRESSES_MAX {
        let problem = format!("has {} elements; at most {TAGGED_ADDRESSES_MAX} are allowed", given.len());
        return Err(invalid(FIELD, problem));
    }
    let read = |(tag, value): (String, Value)| {
        check_text(FIELD, &tag, TAGGED_HOST_CHARS_MAX)?;
        let fields = Fields::of(FIELD, value)?;
        let address = fields.text("address", &[])?.unwrap_or_default();
        check_text(FIELD, &address, TAGGED_HOST_CHARS_MAX)?;
        let port = fields.integer("port", 0, u64::from(u16::MAX))?.unwrap_or(0) as u16;
        Ok((tag, TaggedAddress { address, port }))
    };
    given.into_iter().map(read).collect()
}

#[cfg(test)]
mod tests;
