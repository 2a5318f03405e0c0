//! Parses registrations and validates them: three forms of JSON (the native one, dialect 1 with `ServiceName`
//! and dialect 2 with `Name` and `Addr`) become one [`Registration`].
//!
//! Keys are compared without case, underscores and hyphens: `ServiceName`, `serviceName` and `service_name`
//! are equal. Unknown keys are ignored. A known key with a bad value is an error that names the key and the
//! limit.

pub(super) mod check;
pub(super) mod fields;
mod source;

use std::collections::{BTreeMap, BTreeSet};

use hearsay_protocol::{ID_CHARS_MAX, Invalid, META_PAIRS_MAX, NamedPort, check_service_name};
use serde_json::Value;

pub use source::RegistrationSource;

use super::{
    address::{Host, HttpUrl, Scheme, split_address},
    checks::CheckSpec,
    registration::{
        CHECKS_MAX, Dialect, META_KEY_BYTES_MAX, META_VALUE_BYTES_MAX, REQUIRES_MAX, Registration,
        TAGS_BYTES_MAX,
    },
};
use check::CheckInput;
use fields::{Fields, check_text, invalid};

/// Words that are segments of API paths: `/services/watch`, `/services/{id}/maintenance`.
const RESERVED: [&str; 2] = ["watch", "maintenance"];

/// Maximum number of named ports of an instance.
pub const PORTS_MAX: usize = 32;

/// Parses a registration. `suffix` is the short form of this node's id. The derived id of a program on this
/// machine ends with it, so that it differs from the ids on other machines.
///
/// # Errors
/// Names the field and the allowed values.
pub fn read(body: &[u8], source: RegistrationSource, suffix: &str) -> Result<Registration, Invalid> {
    let value: Value =
        serde_json::from_slice(body).map_err(|error| invalid("body", format!("is not JSON: {error}")))?;
    read_value(value, source, suffix)
}

/// Same as [`read`], from a JSON value.
///
/// # Errors
/// Names the field and the allowed values.
pub fn read_value(value: Value, source: RegistrationSource, suffix: &str) -> Result<Registration, Invalid> {
    let fields = Fields::of("body", value)?;
    let dialect = if fields.has("servicename") {
        Dialect::ServiceUrl
    } else if fields.has("addr") {
        Dialect::NameAddr
    } else {
        Dialect::Native
    };
    let service = fields
        .text("name", &["servicename", "service"])?
        .ok_or_else(|| invalid("name", "is missing; give the name of the service"))?;
    check_service_name("name", &service)?;
    check_not_reserved("name", &service)?;
    let address = InstanceAddress::read(&fields, source)?;
    let ports = read_ports(&fields, address.port)?;
    let port = ports.iter().find(|p| p.is_default).or(ports.first()).map_or(address.port, |p| Some(p.port));
    let port = port.unwrap_or(0);
    let requires = read_requires(&fields)?;
    let mut meta = read_meta(&fields)?;
    if let Some(path) = &address.path {
        meta.entry("path".to_owned()).or_insert_with(|| path.clone());
    }
    let mut registration = Registration {
        id: String::new(),
        service,
        scheme: address.scheme,
        host: address.host,
        local_host: address.local_host,
        port,
        ports,
        tags: read_tags(&fields)?,
        meta,
        zone: read_zone(&fields)?,
        weight: fields.integer("weight", 0, u64::from(u16::MAX))?.map(|weight| weight as u16),
        updates: read_updates(&fields)?,
        requires,
        dialect,
        checks: Vec::new(),
        registered_from: None,
        consul: None,
    };
    if dialect == Dialect::NameAddr && !registration.requires.is_empty() && registration.updates.is_none() {
        registration.updates = Some(format!("{}/services", registration.local_origin()));
    }
    registration.id = match fields.text("id", &["serviceid"])? {
        Some(id) => {
            check_text("id", &id, ID_CHARS_MAX)?;
            check_not_reserved("id", &id)?;
            id
        }
        None => registration.derived_id(suffix),
    };
    registration.checks = read_checks(&fields, &registration, source)?;
    Ok(registration)
}

/// Refuses a word that is a segment of an API path: a request for a service of that name would reach that
/// path.
fn check_not_reserved(field: &'static str, text: &str) -> Result<(), Invalid> {
    if RESERVED.contains(&text) {
        return Err(invalid(field, format!("{text:?} is a path of the API; choose another name")));
    }
    Ok(())
}

/// Returns the request's field that contains the target of a check.
pub(super) fn check_field(check: &CheckSpec, registration: &Registration) -> &'static str {
    check::field_of(check, registration)
}

/// Returns the request's field that contains the URL of notifications. Dialect 2 has only an address.
pub(super) fn updates_field(registration: &Registration) -> &'static str {
    let of_addr = format!("{}/services", registration.local_origin());
    let is_of_addr =
        registration.dialect == Dialect::NameAddr && registration.updates.as_ref() == Some(&of_addr);
    if is_of_addr { "Addr" } else { "updates" }
}

/// The address of an instance, from `url`, `Addr`, or `address` and `port`.
struct InstanceAddress {
    scheme: Scheme,
    host: Option<String>,
    local_host: String,
    port: Option<u16>,
    path: Option<String>,
}

impl InstanceAddress {
    fn read(fields: &Fields, source: RegistrationSource) -> Result<Self, Invalid> {
        let url = fields.text("url", &["serviceurl"])?;
        let addr = fields.text("addr", &[])?;
        let address = fields.text("address", &[])?;
        let port = fields.integer("port", 0, u64::from(u16::MAX))?.map(|port| port as u16);
        let (scheme, host, port, path) = match (url, addr) {
            (Some(_), Some(_)) => {
                return Err(invalid("url", "cannot be combined with Addr; give one of them"));
            }
            (Some(url), None) => {
                if address.is_some() || port.is_some() {
                    return Err(invalid("url", "cannot be combined with address and port; give one form"));
                }
                let url = HttpUrl::parse("url", &url)?;
                let path = url.path_beyond_root().map(str::to_owned);
                url.target.host.check_single("url")?;
                (url.scheme, Some(url.target.host), Some(url.target.port), path)
            }
            (None, Some(addr)) => {
                let (host, port) = split_address("Addr", &addr)?;
                host.as_ref().map_or(Ok(()), |host| host.check_single("Addr"))?;
                (Scheme::Http, host, Some(port), None)
            }
            (None, None) => {
                let host = address.as_deref().map(str::trim).filter(|host| !host.is_empty());
                let host = host.map(|host| Host::parse("address", host)).transpose()?;
                host.as_ref().map_or(Ok(()), |host| host.check_single("address"))?;
                (Scheme::Http, host, port, None)
            }
        };
        let caller = source.caller.map(|ip| ip.to_canonical());
        let (host, local_host) = match host {
            Some(host) if host.is_loopback() => (None, host.to_string()),
            Some(host) => (Some(host.to_string()), host.to_string()),
            None => match caller.filter(|ip| !ip.is_loopback()) {
                Some(ip) => (Some(ip.to_string()), ip.to_string()),
                None => (None, "127.0.0.1".to_owned()),
            },
        };
        Ok(Self { scheme, host, local_host, port, path })
    }
}

fn read_ports(fields: &Fields, port: Option<u16>) -> Result<Vec<NamedPort>, Invalid> {
    let Some(values) = fields.array("ports")? else { return Ok(Vec::new()) };
    if values.is_empty() {
        return Ok(Vec::new());
    }
    if port.is_some() {
        return Err(invalid(
            "ports",
            "excludes port; leave port out, and mark one element with \"default\": true",
        ));
    }
    if values.len() > PORTS_MAX {
        return Err(invalid(
            "ports",
            format!("has {} elements; at most {PORTS_MAX} are allowed", values.len()),
        ));
    }
    let (mut ports, mut names) = (Vec::new(), BTreeSet::new());
    for value in values {
        let port = Fields::of("ports", value)?;
        let name = port.text("name", &[])?.ok_or_else(|| invalid("ports", "an element has no name"))?;
        check_service_name("ports", &name)?;
        let number = port.integer("port", 1, u64::from(u16::MAX))?;
        let number = number.ok_or_else(|| invalid("ports", format!("{name:?} has no port")))?;
        if !names.insert(name.clone()) {
            return Err(invalid("ports", format!("contains {name:?} twice; names must be unique")));
        }
        let is_default = port.boolean("default")?.unwrap_or(false);
        if is_default && ports.iter().any(|port: &NamedPort| port.is_default) {
            return Err(invalid("ports", "has two defaults; one is allowed"));
        }
        ports.push(NamedPort { name, port: number as u16, is_default });
    }
    Ok(ports)
}

fn read_tags(fields: &Fields) -> Result<Vec<String>, Invalid> {
    let tags = fields.texts("tags")?;
    let bytes: usize = tags.iter().map(String::len).sum();
    if bytes > TAGS_BYTES_MAX {
        return Err(invalid(
            "tags",
            format!("has {bytes} bytes in total; at most {TAGS_BYTES_MAX} are allowed"),
        ));
    }
    for tag in &tags {
        check_text("tags", tag, TAGS_BYTES_MAX)?;
    }
    Ok(tags)
}

fn read_meta(fields: &Fields) -> Result<BTreeMap<String, String>, Invalid> {
    let Some(pairs) = fields.object("meta")? else { return Ok(BTreeMap::new()) };
    if pairs.len() > META_PAIRS_MAX {
        return Err(invalid(
            "meta",
            format!("has {} pairs; at most {META_PAIRS_MAX} are allowed", pairs.len()),
        ));
    }
    let mut meta = BTreeMap::new();
    for (key, value) in pairs {
        let value = match value {
            Value::String(text) => text,
            Value::Number(number) => number.to_string(),
            Value::Bool(flag) => flag.to_string(),
            _ => return Err(invalid("meta", format!("the value of {key:?} is not a string"))),
        };
        check_text("meta", &key, usize::MAX)?;
        if key.len() > META_KEY_BYTES_MAX || value.len() > META_VALUE_BYTES_MAX {
            return Err(invalid(
                "meta",
                format!(
                    "the pair {key:?} has {} and {} bytes; at most {META_KEY_BYTES_MAX} and {META_VALUE_BYTES_MAX} are allowed",
                    key.len(),
                    value.len()
                ),
            ));
        }
        meta.insert(key, value);
    }
    Ok(meta)
}

fn read_zone(fields: &Fields) -> Result<Option<String>, Invalid> {
    let zone = fields.text("zone", &[])?.filter(|zone| !zone.is_empty());
    if let Some(zone) = &zone {
        check_service_name("zone", zone)?;
    }
    Ok(zone)
}

fn read_requires(fields: &Fields) -> Result<BTreeSet<String>, Invalid> {
    let field = if fields.has("requires") { "requires" } else { "requiredservices" };
    let names = fields.texts(field)?;
    if names.len() > REQUIRES_MAX {
        return Err(invalid(
            "requires",
            format!("has {} elements; at most {REQUIRES_MAX} are allowed", names.len()),
        ));
    }
    names.iter().try_for_each(|name| check_service_name("requires", name))?;
    Ok(names.into_iter().collect())
}

fn read_updates(fields: &Fields) -> Result<Option<String>, Invalid> {
    let Some(url) = fields.text("updates", &["serviceupdateurl"])? else { return Ok(None) };
    let url = url.trim();
    if url.is_empty() {
        return Ok(None);
    }
    HttpUrl::parse("updates", url)?.target.host.check_single("updates")?;
    Ok(Some(url.to_owned()))
}

fn read_checks(
    fields: &Fields,
    registration: &Registration,
    source: RegistrationSource,
) -> Result<Vec<CheckSpec>, Invalid> {
    let mut inputs = Vec::new();
    if let Some(check) = fields.value("check") {
        inputs.push(CheckInput::Object(check));
    }
    inputs.extend(fields.array("checks")?.into_iter().flatten().map(CheckInput::Object));
    if let Some(url) = fields.text("heartbeaturl", &[])?.filter(|url| !url.trim().is_empty()) {
        inputs.push(CheckInput::Heartbeat(url));
    }
    if inputs.is_empty() && registration.dialect == Dialect::NameAddr {
        inputs.push(CheckInput::ImpliedHeartbeat);
    }
    if inputs.len() > CHECKS_MAX {
        return Err(invalid(
            "checks",
            format!("has {} elements; at most {CHECKS_MAX} are allowed", inputs.len()),
        ));
    }
    check::read_all(inputs, registration, source)
}

#[cfg(test)]
mod tests;
