//! Reads a registration as programs send it: three dialects of JSON become one [`Registration`].
//!
//! Keys are compared without case and underscores, so `ServiceName`, `serviceName` and `service_name` are one. Unknown keys are passed over; a
//! known key with a bad value refuses the whole, and names the key and the limit.

mod check;
mod fields;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use hearsay_protocol::record::{ID_CHARS_MAX, Invalid, META_PAIRS_MAX, NamedPort, check_service_name};
use http::Uri;
use serde_json::Value;

use super::registration::{
    CHECKS_MAX, Dialect, META_KEY_BYTES_MAX, META_VALUE_BYTES_MAX, REQUIRES_MAX, Registration, Scheme,
    TAGS_BYTES_MAX,
};
use check::CheckInput;
use fields::{Fields, check_text, invalid};

/// The most named ports of an instance.
pub const PORTS_MAX: usize = 32;
/// The longest URL.
const URL_BYTES_MAX: usize = 2048;

/// Where a registration comes from: it decides what it may ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Source {
    /// The address of the caller; `None`: this machine.
    pub caller: Option<IpAddr>,
    /// Whether it came over the Unix socket, and from a process of which user.
    pub socket_uid: Option<u32>,
    /// Whether it may have `exec` checks: only a local file may, and only where the node allows it.
    pub allow_exec: bool,
    /// Whether it comes from a file.
    pub is_file: bool,
}

impl Source {
    /// A caller of HTTP.
    pub fn caller(ip: IpAddr) -> Self {
        Self { caller: Some(ip), socket_uid: None, allow_exec: false, is_file: false }
    }

    /// A caller of the Unix socket.
    pub fn socket(uid: u32) -> Self {
        Self { caller: None, socket_uid: Some(uid), allow_exec: false, is_file: false }
    }

    /// A file of `--services-dir`.
    pub fn file(allow_exec: bool) -> Self {
        Self { caller: None, socket_uid: None, allow_exec, is_file: true }
    }
}

/// Reads a registration. `suffix` is the end of this node's id; a derived id of a program on this machine ends with it, so that it is another one
/// than on the next machine.
///
/// # Errors
/// Names the field and what is allowed. Nothing was registered.
pub fn read(body: &[u8], source: Source, suffix: &str) -> Result<Registration, Invalid> {
    let value: Value =
        serde_json::from_slice(body).map_err(|error| invalid("body", format!("is no JSON: {error}")))?;
    read_value(value, source, suffix)
}

/// As [`read`], of JSON that has been parsed.
///
/// # Errors
/// Names the field and what is allowed.
pub fn read_value(value: Value, source: Source, suffix: &str) -> Result<Registration, Invalid> {
    let fields = Fields::of("body", value)?;
    let dialect = if fields.has("servicename") {
        Dialect::One
    } else if fields.has("addr") {
        Dialect::Two
    } else {
        Dialect::Native
    };
    let service = fields
        .text("name", &["servicename", "service"])?
        .ok_or_else(|| invalid("name", "is missing; it is the name of the service"))?;
    check_service_name("name", &service)?;
    let target = Target::read(&fields, source)?;
    let ports = read_ports(&fields, target.port)?;
    let port = ports.iter().find(|p| p.is_default).or(ports.first()).map_or(target.port, |p| Some(p.port));
    let port = port.unwrap_or(0);
    let requires = read_requires(&fields)?;
    let mut meta = read_meta(&fields)?;
    if let Some(path) = &target.path {
        meta.entry("path".to_owned()).or_insert_with(|| path.clone());
    }
    let mut registration = Registration {
        id: String::new(),
        service,
        scheme: target.scheme,
        host: target.host,
        local_host: target.local_host,
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
    };
    if dialect == Dialect::Two && !registration.requires.is_empty() && registration.updates.is_none() {
        registration.updates = Some(format!("{}/services", registration.local_origin()));
    }
    registration.id = match fields.text("id", &["serviceid"])? {
        Some(id) => {
            check_text("id", &id, ID_CHARS_MAX)?;
            id
        }
        None => registration.derived_id(suffix),
    };
    registration.checks = read_checks(&fields, &registration, source)?;
    Ok(registration)
}

/// Where an instance is, out of `url`, `Addr`, or `address` and `port`.
struct Target {
    scheme: Scheme,
    host: Option<String>,
    local_host: String,
    port: Option<u16>,
    path: Option<String>,
}

impl Target {
    fn read(fields: &Fields, source: Source) -> Result<Self, Invalid> {
        let url = fields.text("url", &["serviceurl"])?;
        let addr = fields.text("addr", &[])?;
        let address = fields.text("address", &[])?;
        let port = fields.integer("port", 0, u64::from(u16::MAX))?.map(|port| port as u16);
        let (scheme, host, port, path) = match (url, addr) {
            (Some(_), Some(_)) => return Err(invalid("url", "excludes Addr; give one of them")),
            (Some(url), None) => {
                if address.is_some() || port.is_some() {
                    return Err(invalid("url", "excludes address and port; give one form"));
                }
                let url = ParsedUrl::read("url", &url)?;
                (url.scheme, Some(url.host), Some(url.port), url.path)
            }
            (None, Some(addr)) => {
                let (host, port) = split_address("Addr", &addr)?;
                (Scheme::Http, Some(host).filter(|host| !host.is_empty()), Some(port), None)
            }
            (None, None) => {
                let host = address.map(|host| host.trim().to_owned()).filter(|host| !host.is_empty());
                (Scheme::Http, host, port, None)
            }
        };
        if let Some(host) = &host {
            check_host("address", host)?;
        }
        let caller = source.caller.map(|ip| ip.to_canonical());
        let (host, local_host) = match host {
            Some(host) if is_loopback(&host) => (None, host),
            Some(host) => (Some(host.clone()), host),
            None => match caller.filter(|ip| !ip.is_loopback()) {
                Some(ip) => (Some(ip.to_string()), ip.to_string()),
                None => (None, "127.0.0.1".to_owned()),
            },
        };
        Ok(Self { scheme, host, local_host, port, path })
    }
}

/// A URL of a program.
pub(super) struct ParsedUrl {
    pub(super) scheme: Scheme,
    pub(super) host: String,
    pub(super) port: u16,
    /// The path, where it is more than `/`.
    pub(super) path: Option<String>,
}

impl ParsedUrl {
    /// Reads `http://host[:port][/path]`. Spaces around it are passed over.
    pub(super) fn read(field: &'static str, text: &str) -> Result<Self, Invalid> {
        let text = text.trim();
        if text.len() > URL_BYTES_MAX {
            return Err(invalid(
                field,
                format!("has {} bytes; at most {URL_BYTES_MAX} are allowed", text.len()),
            ));
        }
        let wrong = || invalid(field, format!("{text:?} is not a URL such as http://host:port/path"));
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let scheme = match uri.scheme_str() {
            Some("http") => Scheme::Http,
            Some("https") => Scheme::Https,
            _ => return Err(wrong()),
        };
        let authority = uri.authority().ok_or_else(wrong)?;
        if authority.as_str().contains('@') {
            return Err(invalid(field, "holds a user; leave it out, since the whole cluster would read it"));
        }
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let rest = authority.as_str().strip_prefix(authority.host()).unwrap_or_default();
        let port =
            match rest.strip_prefix(':') {
                None if rest.is_empty() => None,
                Some("") => None,
                Some(port) => Some(port.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(|| {
                    invalid(field, format!("{port:?} is not a port; 1 to 65535 are allowed"))
                })?),
                None => return Err(wrong()),
            };
        let port = port.unwrap_or(match scheme {
            Scheme::Http => 80,
            Scheme::Https => 443,
        });
        check_host(field, &host)?;
        let path = uri.path_and_query().map(|path| path.as_str().to_owned()).filter(|path| path != "/");
        Ok(Self { scheme, host, port, path: path.filter(|path| !path.is_empty()) })
    }
}

/// Splits `host:port`; the host may be empty, and an IPv6 address is in brackets.
pub(super) fn split_address(field: &'static str, text: &str) -> Result<(String, u16), Invalid> {
    let text = text.trim();
    let wrong = || invalid(field, format!("{text:?} is not host:port"));
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port = port.parse::<u16>().ok().filter(|port| *port > 0);
    let port = port.ok_or_else(|| invalid(field, format!("{text:?} has no port; 1 to 65535 are allowed")))?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    if bare.is_none() && host.contains(':') {
        return Err(wrong());
    }
    let host = bare.unwrap_or(host).to_owned();
    if !host.is_empty() {
        check_host(field, &host)?;
    }
    Ok((host, port))
}

/// Checks that a host is an IP address that can be connected to, or a name as DNS and containers write it.
fn check_host(field: &'static str, host: &str) -> Result<(), Invalid> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        let ip = ip.to_canonical();
        if ip.is_unspecified() || ip.is_multicast() {
            return Err(invalid(field, format!("{host} is no address of one host")));
        }
        return Ok(());
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if host.is_empty() || host.len() > 253 || !host.chars().all(is_name) {
        return Err(invalid(
            field,
            format!("{host:?} is neither an IP address nor a host name of at most 253 characters"),
        ));
    }
    Ok(())
}

/// Whether a host means the machine that reads it.
pub(super) fn is_loopback(host: &str) -> bool {
    let name = host.trim_end_matches('.').to_ascii_lowercase();
    name == "localhost"
        || name.ends_with(".localhost")
        || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback())
}

fn read_ports(fields: &Fields, port: Option<u16>) -> Result<Vec<NamedPort>, Invalid> {
    let Some(values) = fields.array("ports")? else { return Ok(Vec::new()) };
    if values.is_empty() {
        return Ok(Vec::new());
    }
    if port.is_some() {
        return Err(invalid("ports", "excludes port; mark one of them with \"default\": true"));
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
        let name = port.text("name", &[])?.ok_or_else(|| invalid("ports", "an element lacks its name"))?;
        check_service_name("ports", &name)?;
        let number = port.integer("port", 1, u64::from(u16::MAX))?;
        let number = number.ok_or_else(|| invalid("ports", format!("{name:?} lacks its port")))?;
        if !names.insert(name.clone()) {
            return Err(invalid("ports", format!("{name:?} is there twice")));
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
            format!("has {bytes} bytes in all; at most {TAGS_BYTES_MAX} are allowed"),
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
            _ => return Err(invalid("meta", format!("the value of {key:?} is no text"))),
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
    ParsedUrl::read("updates", url)?;
    Ok(Some(url.to_owned()))
}

fn read_checks(
    fields: &Fields,
    registration: &Registration,
    source: Source,
) -> Result<Vec<super::checks::CheckSpec>, Invalid> {
    let mut inputs = Vec::new();
    if let Some(check) = fields.value("check") {
        inputs.push(CheckInput::Object(check));
    }
    inputs.extend(fields.array("checks")?.into_iter().flatten().map(CheckInput::Object));
    if let Some(url) = fields.text("heartbeaturl", &[])?.filter(|url| !url.trim().is_empty()) {
        inputs.push(CheckInput::Heartbeat(url));
    }
    if inputs.is_empty() && registration.dialect == Dialect::Two {
        inputs.push(CheckInput::DialectTwo);
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
