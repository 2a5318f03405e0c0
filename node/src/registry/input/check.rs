//! Parses health checks from JSON into specs, and resolves their targets against the instance's address.

use std::{collections::BTreeMap, time::Duration};

use hearsay_protocol::{Health, ID_CHARS_MAX, Invalid, NAME_CHARS_MAX, check_service_name};
use serde_json::Value;

use super::{
    fields::{Fields, check_text, invalid},
    source::RegistrationSource,
};
use crate::{
    go_duration,
    registry::{
        address::{HttpUrl, Scheme, authority, split_address},
        checks::{
            CheckKind, CheckSpec, CheckTls, HttpCheck, INTERVAL_DEFAULT, ProcessIdentity, TIMEOUT_DEFAULT,
            owner_uid,
        },
        instance::{MAINTENANCE_CHECK, NODE_MAINTENANCE_CHECK},
        registration::{Dialect, Registration},
    },
};

/// The shortest interval, timeout and TTL.
const DURATION_MIN: Duration = Duration::from_millis(100);
/// The longest interval, timeout and TTL: a year.
const DURATION_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
/// The largest threshold of hysteresis.
const THRESHOLD_MAX: u64 = 1000;
/// The longest request body, pattern or argument, in bytes.
const TEXT_BYTES_MAX: usize = 4096;
/// Maximum number of headers, status ranges or arguments.
const LIST_MAX: usize = 64;
/// Interval of the check of a `HeartbeatURL`.
const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(3);
/// Interval of the check that dialect 2 implies.
const IMPLIED_HEARTBEAT_INTERVAL: Duration = Duration::from_secs(30);
/// Checks of dialects 1 and 2 are critical after three attempts at this interval.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
const ATTEMPTS: u32 = 3;
/// Kinds of checks, as keys of the request.
const KINDS: [&str; 10] =
    ["http", "tcp", "udp", "h2ping", "grpc", "ttl", "alias", "watch", "process", "exec"];
/// Kinds that can use TLS.
const TLS_KINDS: [&str; 4] = ["http", "tcp", "h2ping", "grpc"];
/// The longest server name of TLS (RFC 1035, section 2.3.4).
const SERVER_NAME_CHARS_MAX: usize = 253;
/// Unsupported kinds of Consul's agent: normalised key, and Consul's spelling.
const FOREIGN_KINDS: [(&str, &str); 5] = [
    ("dockercontainerid", "docker_container_id"),
    ("script", "script"),
    ("osservice", "os_service"),
    ("aliasservice", "alias_service"),
    ("aliasnode", "alias_node"),
];

/// A check in a request.
pub(in crate::registry) enum CheckInput {
    /// An object of `check` or `checks`.
    Object(Value),
    /// `HeartbeatURL`.
    Heartbeat(String),
    /// The check that dialect 2 implies.
    ImpliedHeartbeat,
}

/// Parses all checks of a registration and assigns ids.
pub(in crate::registry) fn read_all(
    inputs: Vec<CheckInput>,
    registration: &Registration,
    source: RegistrationSource,
) -> Result<Vec<CheckSpec>, Invalid> {
    let several = inputs.len() > 1;
    let mut checks: Vec<CheckSpec> = Vec::new();
    for (n, input) in (1..).zip(inputs) {
        let mut spec = match input {
            CheckInput::Object(value) => read_object(value, registration, source)?,
            CheckInput::Heartbeat(url) => heartbeat_spec(&url, HEARTBEAT_INTERVAL, registration)?,
            CheckInput::ImpliedHeartbeat => {
                heartbeat_spec("/heart-beat", IMPLIED_HEARTBEAT_INTERVAL, registration)?
            }
        };
        // Each run uses the parser that `validate` uses, so an accepted check can run.
        spec.validate()?;
        if spec.id.is_empty() {
            spec.id = match several {
                true => format!("service:{}:{n}", registration.id),
                false => format!("service:{}", registration.id),
            };
        }
        if spec.name.is_empty() {
            spec.name = format!("Service '{}' check", registration.service);
        }
        if checks.iter().any(|other| other.id == spec.id) {
            return Err(invalid(
                "checks",
                format!("contains the id {:?} twice; ids must be unique", spec.id),
            ));
        }
        checks.push(spec);
    }
    Ok(checks)
}

fn heartbeat_spec(url: &str, interval: Duration, registration: &Registration) -> Result<CheckSpec, Invalid> {
    let url = resolve_url("HeartbeatURL", url.trim(), registration)?;
    Ok(CheckSpec {
        interval,
        failures_before_critical: ATTEMPTS,
        retry_interval: Some(RETRY_INTERVAL),
        ..spec_with_defaults(CheckKind::Http(HttpCheck { url, ..HttpCheck::default() }))
    })
}

/// Returns the request's field that contains the target of a check. Checks implied by dialects 1 and 2 are
/// recognised by their intervals.
pub(super) fn field_of(check: &CheckSpec, registration: &Registration) -> &'static str {
    let is_implied =
        check.retry_interval == Some(RETRY_INTERVAL) && check.failures_before_critical == ATTEMPTS;
    match check.kind {
        CheckKind::Http(_) if is_implied && check.interval == HEARTBEAT_INTERVAL => "HeartbeatURL",
        CheckKind::Http(_) if is_implied && registration.dialect == Dialect::NameAddr => "Addr",
        _ => check.kind.as_str(),
    }
}

fn spec_with_defaults(kind: CheckKind) -> CheckSpec {
    CheckSpec {
        id: String::new(),
        name: String::new(),
        kind,
        interval: INTERVAL_DEFAULT,
        timeout: TIMEOUT_DEFAULT,
        retry_interval: None,
        failures_before_warning: None,
        failures_before_critical: 1,
        successes_before_passing: 1,
        deregister_after: None,
        initial_status: Health::Critical,
        is_status_given: false,
    }
}

fn read_object(
    value: Value,
    registration: &Registration,
    source: RegistrationSource,
) -> Result<CheckSpec, Invalid> {
    let fields = Fields::of("check", value)?;
    if let Some((_, foreign)) = FOREIGN_KINDS.into_iter().find(|(key, _)| is_given(&fields, key)) {
        // Without the unsupported key the rest could mean another check: a command for a container would run
        // on the host.
        let problem = format!("{foreign} is not supported; use one of {}", KINDS.join(", "));
        return Err(invalid("check", problem));
    }
    let present: Vec<&str> = KINDS.into_iter().filter(|kind| is_given(&fields, kind)).collect();
    let [kind] = present.as_slice() else {
        let problem = match present.as_slice() {
            [] => format!("has no kind; give one of {}", KINDS.join(", ")),
            several => format!("has the kinds {}; give one of them", several.join(" and ")),
        };
        return Err(invalid("check", problem));
    };
    let kind = read_kind(kind, &fields, registration, source)?;
    let interval = read_duration(&fields, "interval")?.unwrap_or(INTERVAL_DEFAULT);
    let timeout = match read_duration(&fields, "timeout")? {
        Some(timeout) if timeout >= interval => {
            return Err(invalid(
                "timeout",
                format!("{timeout:?} is not below the interval of {interval:?}; choose a shorter one"),
            ));
        }
        Some(timeout) => timeout,
        // The default stays below a short interval.
        None => TIMEOUT_DEFAULT.min(interval * 4 / 5),
    };
    let threshold = |field| Ok::<_, Invalid>(fields.integer(field, 1, THRESHOLD_MAX)?.map(|n| n as u32));
    let id = fields.text("id", &["checkid"])?.unwrap_or_default();
    if !id.is_empty() {
        check_text("id", &id, ID_CHARS_MAX)?;
        if id == NODE_MAINTENANCE_CHECK || id.starts_with(MAINTENANCE_CHECK) {
            return Err(invalid("id", format!("{id:?} is the id of a maintenance check; choose another id")));
        }
    }
    let name = fields.text("name", &[])?.unwrap_or_default();
    if !name.is_empty() {
        check_text("name", &name, NAME_CHARS_MAX)?;
    }
    let initial_status = read_initial_status(&fields)?;
    Ok(CheckSpec {
        id,
        name,
        interval,
        timeout,
        retry_interval: read_duration(&fields, "retry_interval")?,
        failures_before_warning: threshold("failures_before_warning")?,
        failures_before_critical: threshold("failures_before_critical")?.unwrap_or(1),
        successes_before_passing: threshold("successes_before_passing")?.unwrap_or(1),
        deregister_after: match read_duration(&fields, "deregister_after")? {
            None => read_duration(&fields, "deregister_critical_service_after")?,
            some => some,
        },
        initial_status: initial_status.unwrap_or(Health::Critical),
        is_status_given: initial_status.is_some(),
        ..spec_with_defaults(kind)
    })
}

fn read_initial_status(fields: &Fields) -> Result<Option<Health>, Invalid> {
    Ok(Some(match fields.text("initial_status", &["status"])?.as_deref() {
        None | Some("") => return Ok(None),
        Some("critical") => Health::Critical,
        Some("warning") => Health::Warning,
        Some("passing") => Health::Passing,
        Some(other) => {
            return Err(invalid(
                "initial_status",
                format!("{other:?} is not one of passing, warning, critical"),
            ));
        }
    }))
}

/// Whether a kind is given; `false` and empty strings count as absent.
fn is_given(fields: &Fields, kind: &str) -> bool {
    let value = fields.value(kind).or_else(|| fields.value("args").filter(|_| kind == "exec"));
    match value {
        None | Some(Value::Bool(false)) => false,
        Some(Value::String(text)) => !text.trim().is_empty(),
        Some(_) => true,
    }
}

fn read_kind(
    kind: &str,
    fields: &Fields,
    registration: &Registration,
    source: RegistrationSource,
) -> Result<CheckKind, Invalid> {
    let address = |kind| read_address(fields, kind, registration);
    // Kinds without TLS would ignore its options.
    if !TLS_KINDS.contains(&kind) {
        for option in ["tls", "tlsservername"] {
            if is_given(fields, option) {
                let problem = format!("is no option of {kind} checks; leave it out");
                return Err(invalid(if option == "tls" { "tls" } else { "tls_server_name" }, problem));
            }
        }
    }
    Ok(match kind {
        "http" => CheckKind::Http(read_http(fields, registration)?),
        "tcp" => CheckKind::Tcp { address: address("tcp")?, tls: read_tls(fields, "tcp_use_tls", false)? },
        "udp" => CheckKind::Udp { address: address("udp")? },
        // TLS unless it is refused, as in Consul, whose files have this key, too.
        "h2ping" => {
            CheckKind::H2ping { address: address("h2ping")?, tls: read_tls(fields, "h2ping_use_tls", true)? }
        }
        "watch" => CheckKind::Watch { address: address("watch")? },
        "grpc" => {
            let text = match fields.value("grpc") {
                Some(Value::Bool(true)) => registration.local_address(),
                _ => fields.text("grpc", &[])?.unwrap_or_default(),
            };
            let (target, service) = text.split_once('/').unwrap_or((&text, ""));
            if service.len() > NAME_CHARS_MAX || service.chars().any(char::is_control) {
                return Err(invalid(
                    "grpc",
                    format!(
                        "the service is longer than {NAME_CHARS_MAX} characters, or contains a control character"
                    ),
                ));
            }
            CheckKind::Grpc {
                address: resolve_address("grpc", target, registration)?,
                service: service.to_owned(),
                tls: read_tls(fields, "grpc_use_tls", false)?,
            }
        }
        "ttl" => match read_duration(fields, "ttl")? {
            Some(ttl) => CheckKind::Ttl { ttl },
            None => return Err(invalid("ttl", "is missing")),
        },
        "alias" => read_alias(fields)?,
        "process" => read_process(fields, source)?,
        _ => read_exec(fields, source)?,
    })
}

/// Reads the options of TLS. `use_tls` is Consul's key for `tls`.
fn read_tls(fields: &Fields, use_tls: &'static str, default: bool) -> Result<CheckTls, Invalid> {
    let is_used = match fields.boolean("tls")? {
        None => fields.boolean(use_tls)?.unwrap_or(default),
        Some(is_used) => is_used,
    };
    Ok(CheckTls {
        is_used,
        skip_verify: fields.boolean("tls_skip_verify")?.unwrap_or(false),
        server_name: read_server_name(fields, is_used)?,
    })
}

fn read_server_name(fields: &Fields, is_tls_used: bool) -> Result<Option<String>, Invalid> {
    let name = fields.text("tls_server_name", &[])?.filter(|name| !name.is_empty());
    if let Some(name) = &name {
        check_text("tls_server_name", name, SERVER_NAME_CHARS_MAX)?;
        if !is_tls_used {
            return Err(invalid("tls_server_name", "has no effect without TLS; use TLS, or leave it out"));
        }
    }
    Ok(name)
}

fn read_http(fields: &Fields, registration: &Registration) -> Result<HttpCheck, Invalid> {
    let url = match fields.value("http") {
        Some(Value::Bool(true)) => "/".to_owned(),
        _ => fields.text("http", &[])?.unwrap_or_default(),
    };
    let method = fields.text("method", &[])?.unwrap_or_default().to_ascii_uppercase();
    let body = fields.text("body", &[])?.unwrap_or_default();
    let expect_body = fields.text("expect_body", &[])?.filter(|pattern| !pattern.is_empty());
    for (field, text) in [("body", Some(&body)), ("expect_body", expect_body.as_ref())] {
        if text.is_some_and(|text| text.len() > TEXT_BYTES_MAX) {
            return Err(invalid(field, format!("has more than {TEXT_BYTES_MAX} bytes")));
        }
    }
    let url = resolve_url("http", url.trim(), registration)?;
    let is_https = HttpUrl::parse("http", &url)?.scheme == Scheme::Https;
    if fields.boolean("tls")?.is_some_and(|tls| tls != is_https) {
        return Err(invalid("tls", "contradicts the URL, whose scheme decides; leave tls out"));
    }
    Ok(HttpCheck {
        url,
        method,
        headers: read_headers(fields)?,
        body,
        expect_status: read_statuses(fields)?,
        expect_body,
        tls_skip_verify: fields.boolean("tls_skip_verify")?.unwrap_or(false),
        tls_server_name: read_server_name(fields, is_https)?,
    })
}

/// Resolves a URL; a path is relative to the instance's origin.
fn resolve_url(field: &'static str, text: &str, registration: &Registration) -> Result<String, Invalid> {
    let url = match text.strip_prefix('/') {
        Some(_) => format!("{}{text}", registration.local_origin()),
        None => text.to_owned(),
    };
    if registration.port == 0 && text.starts_with('/') {
        return Err(invalid(field, "is a path, but the instance has no port; give a URL"));
    }
    HttpUrl::parse(field, &url)?.target.host.check_single(field)?;
    Ok(url)
}

fn read_headers(fields: &Fields) -> Result<BTreeMap<String, Vec<String>>, Invalid> {
    let given = match fields.object("header")? {
        None => fields.object("headers")?,
        some => some,
    };
    let mut headers = BTreeMap::new();
    for (name, value) in given.unwrap_or_default() {
        let values = match value {
            Value::String(text) => vec![text],
            Value::Array(values) => {
                let texts = values.into_iter().map(|value| value.as_str().map(str::to_owned));
                let texts: Option<Vec<_>> = texts.collect();
                texts.ok_or_else(|| invalid("header", format!("the values of {name:?} are not strings")))?
            }
            _ => return Err(invalid("header", format!("the value of {name:?} is not a string"))),
        };
        if values.iter().any(|value| value.len() > TEXT_BYTES_MAX) {
            return Err(invalid(
                "header",
                format!("a value of {name:?} has more than {TEXT_BYTES_MAX} bytes"),
            ));
        }
        headers.insert(name, values);
    }
    if headers.len() > LIST_MAX {
        return Err(invalid(
            "header",
            format!("has {} names; at most {LIST_MAX} are allowed", headers.len()),
        ));
    }
    Ok(headers)
}

/// Parses `200`, `"200-204"`, or an array of those.
fn read_statuses(fields: &Fields) -> Result<Vec<(u16, u16)>, Invalid> {
    let values = match fields.value("expectstatus") {
        None => return Ok(Vec::new()),
        Some(Value::Array(values)) => values,
        // The command line sends several statuses as one string.
        Some(Value::String(list)) => list.split(',').map(Value::from).collect(),
        Some(value) => vec![value],
    };
    let wrong = |value: &Value| {
        let start: String = value.to_string().chars().take(64).collect();
        invalid(
            "expect_status",
            format!("{start} is neither a status from 100 to 599 nor a range such as \"200-204\""),
        )
    };
    if values.len() > LIST_MAX {
        return Err(invalid(
            "expect_status",
            format!("has {} elements; at most {LIST_MAX} are allowed", values.len()),
        ));
    }
    let range = |value: &Value| {
        let is_status = |status: &u16| (100..600).contains(status);
        let parse = |text: &str| text.trim().parse::<u16>().ok().filter(is_status);
        let range = match value {
            Value::Number(_) => parse(&value.to_string()).map(|status| (status, status)),
            Value::String(text) => match text.split_once('-') {
                Some((from, to)) => parse(from).zip(parse(to)),
                None => parse(text).map(|status| (status, status)),
            },
            _ => None,
        };
        range.filter(|(from, to)| from <= to).ok_or_else(|| wrong(value))
    };
    values.iter().map(range).collect()
}

/// Parses an address; `true` means the address of the instance.
fn read_address(
    fields: &Fields,
    field: &'static str,
    registration: &Registration,
) -> Result<String, Invalid> {
    match fields.value(field) {
        Some(Value::Bool(true)) => resolve_address(field, "", registration),
        _ => resolve_address(field, &fields.text(field, &[])?.unwrap_or_default(), registration),
    }
}

fn resolve_address(field: &'static str, text: &str, registration: &Registration) -> Result<String, Invalid> {
    if text.trim().is_empty() {
        if registration.port == 0 {
            return Err(invalid(field, "has no port, and neither has the instance; give host:port"));
        }
        return Ok(registration.local_address());
    }
    let (host, port) = split_address(field, text)?;
    match host {
        Some(host) => {
            host.check_single(field)?;
            Ok(authority(&host.to_string(), port))
        }
        None => Ok(authority(&registration.local_host, port)),
    }
}

fn read_alias(fields: &Fields) -> Result<CheckKind, Invalid> {
    if let Some(Value::Object(_)) = fields.value("alias") {
        let target = Fields::of("alias", fields.value("alias").unwrap_or_default())?;
        let (instance, service) = (target.text("instance", &["id"])?, target.text("service", &["name"])?);
        if instance.is_some() == service.is_some() {
            return Err(invalid("alias", "needs either an instance or a service; give one of them"));
        }
        if let Some(instance) = &instance {
            check_text("alias", instance, ID_CHARS_MAX)?;
        }
        if let Some(service) = &service {
            check_service_name("alias", service)?;
        }
        return Ok(CheckKind::Alias { instance, service });
    }
    let service = fields.text("alias", &[])?.unwrap_or_default();
    check_service_name("alias", &service)?;
    Ok(CheckKind::Alias { instance: None, service: Some(service) })
}

fn read_process(fields: &Fields, source: RegistrationSource) -> Result<CheckKind, Invalid> {
    let Some(uid) = source.socket_uid else {
        return Err(invalid(
            "process",
            "is only allowed over the node's Unix socket, which identifies the caller; register there",
        ));
    };
    let process = Fields::of("process", fields.value("process").unwrap_or_default())?;
    let pid = process.integer("pid", 1, i32::MAX as u64)?;
    let pid = pid.ok_or_else(|| invalid("process", "has no pid"))? as i32;
    let no_such = || invalid("process", format!("there is no process {pid}"));
    let owner = owner_uid(pid).map_err(|_| no_such())?;
    if owner != uid && uid != 0 {
        return Err(invalid(
            "process",
            format!(
                "process {pid} belongs to the user {owner}, and the caller is the user {uid}; register it as its owner"
            ),
        ));
    }
    Ok(CheckKind::Process(ProcessIdentity::of(pid).map_err(|_| no_such())?))
}

fn read_exec(fields: &Fields, source: RegistrationSource) -> Result<CheckKind, Invalid> {
    if !source.is_file {
        return Err(invalid("exec", "is only allowed in a file of --services-dir; register it there"));
    }
    if !source.allow_exec {
        return Err(invalid("exec", "is refused; start the node with --allow-exec-checks to allow it"));
    }
    // `args` is Consul's key.
    let argv = match fields.value("exec").or(fields.value("args")) {
        Some(Value::String(command)) => vec![command],
        _ if fields.has("exec") => fields.texts("exec")?,
        _ => fields.texts("args")?,
    };
    if argv.is_empty() || argv.len() > LIST_MAX || argv.iter().any(|arg| arg.len() > TEXT_BYTES_MAX) {
        return Err(invalid(
            "exec",
            format!(
                "is not a command with its arguments; give 1 to {LIST_MAX} strings of at most {TEXT_BYTES_MAX} bytes"
            ),
        ));
    }
    if argv[0].is_empty() || argv.iter().any(|arg| arg.contains('\0')) {
        return Err(invalid("exec", "contains an empty command or a NUL character"));
    }
    Ok(CheckKind::Exec { argv })
}

fn read_duration(fields: &Fields, field: &'static str) -> Result<Option<Duration>, Invalid> {
    let Some(text) = fields.text(field, &[])?.filter(|text| !text.is_empty()) else { return Ok(None) };
    let duration = go_duration::parse(&text).ok_or_else(|| {
        invalid(field, format!("{text:?} is not a duration; give one such as 10s, 1m30s or 500ms"))
    })?;
    if !(DURATION_MIN..=DURATION_MAX).contains(&duration) {
        return Err(invalid(field, format!("{text:?} is out of bounds; give {DURATION_MIN:?} to 8760h")));
    }
    Ok(Some(duration))
}
