//! Configuration: options from flags, environment and file, validated once and converted to a [`Config`].
//!
//! Precedence: flag, environment, file, default. An unknown key is an error, so that a misspelt option is not
//! ignored silently. The files that restrict admission are read here, too: a node that cannot read them must
//! not start.

mod address;
mod amount;
mod error;
mod options;
mod reload;
mod socket;

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    num::NonZeroU32,
    path::{Path, PathBuf},
    str::FromStr,
};

use hearsay_gateway::GatewayOptions;
use hearsay_protocol::{ID_CHARS_MAX, NodeId, TAGS_MAX, check_service_name};
use hearsay_services::{
    journal::Retention,
    network::Cidr,
    plugins::{LOG_RETENTION_DEFAULT, LOG_ROLE},
};

pub(crate) use address::list_interfaces;
pub use address::{Advertise, Host, HostPort, Join, LADDER_RUNGS, Listen, SWARM_PORT};
pub use error::ConfigError;
pub use options::{Environment, Options};
pub use socket::SocketChoice;
pub(crate) use socket::{SOCKETS_DIR, shared_dirs, temporary_dir};

use crate::{
    admission::{ClusterKey, read_allowed},
    storage::DataDir,
    system::interfaces,
};

/// First port of the HTTP ladder.
pub const HTTP_PORT: u16 = 7500;
/// First port of the gateway's ladder.
pub const GATEWAY_PORT: u16 = 8080;
/// First port of the DNS ladder.
pub const DNS_PORT: u16 = 7553;
/// First port of the ladder of gRPC.
pub const GRPC_PORT: u16 = 7700;
/// First port of the ladder of JSON-RPC over TCP.
pub const JSONRPC_PORT: u16 = 7800;
/// Default of `--max-connections`: concurrent HTTP connections. An idle one takes about 10 kB.
pub const MAX_CONNECTIONS: usize = 20_000;
/// Default of `--max-streams`: concurrent blocking queries, event streams and held registrations.
pub const MAX_STREAMS: usize = 16_000;
/// All addresses of the machine, IPv4 and IPv6.
const EVERY_ADDRESS: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
/// Loopback: only this machine.
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// The longest DNS label (RFC 1035, section 2.3.4).
const DNS_LABEL_MAX: usize = 63;
/// Name of the systemd credential with the cluster key.
const CREDENTIAL: &str = "hearsay.cluster.key";

/// Format of the log on standard error.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LogFormat {
    /// One line per event, for people.
    #[default]
    Text,
    /// One JSON object per line, for programs.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("{text:?} is not a log format; choose between text and json")),
        }
    }
}

/// Validated configuration of a node. Every value is within its bounds.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    /// The plug-ins to run, each once, in the order given.
    pub roles: Vec<String>,
    /// The node's name, if given. See [`Config::name_of`].
    pub name: Option<String>,
    /// The cluster of the node.
    pub cluster: String,
    /// Listener of HTTP.
    pub http: Listen,
    /// Listener of the swarm.
    pub swarm: Listen,
    /// Listener of the gateway plug-in.
    pub gateway: Listen,
    /// Further options of the gateway.
    pub gateway_options: GatewayOptions,
    /// Listener of DNS.
    pub dns: Listen,
    /// Listener of gRPC.
    pub grpc: Listen,
    /// TTL of DNS records, in seconds.
    pub dns_ttl: u32,
    /// Listener of JSON-RPC over TCP.
    pub jsonrpc_tcp: Option<Listen>,
    /// Advertised addresses of the swarm, in place of the interfaces' addresses. The node's URLs contain the
    /// host of the first one.
    pub advertise: Vec<Advertise>,
    /// Advertised address of HTTP, in place of the one derived from `advertise` and the interfaces.
    pub advertise_http: Option<HostPort>,
    /// Nodes to dial at the start until one answers, and whenever the node has no connection.
    pub join: Vec<Join>,
    /// Whether to discover nodes by mDNS.
    pub mdns: bool,
    /// The cluster key; `None`: a cluster without a key.
    pub cluster_key: Option<ClusterKey>,
    /// Ids of the nodes to admit; `None`: all.
    pub allowed: Option<BTreeSet<NodeId>>,
    /// The data directory.
    pub data_dir: DataDir,
    /// Location of the Unix socket.
    pub socket: SocketChoice,
    /// Whether plug-ins load sample data.
    pub demo: bool,
    /// The zone of the node.
    pub zone: Option<String>,
    /// Tags of the instances that the node offers.
    pub tags: Vec<String>,
    /// Expected number of replicas of a journal.
    pub replicas_expected: Option<NonZeroU32>,
    /// Retention of the log plug-in.
    pub log_retention: Retention,
    /// Further host names allowed in the `Host` header.
    pub allowed_hosts: Vec<Host>,
    /// Proxies of many clients, exempt from the share per host.
    pub trusted_proxies: Vec<Cidr>,
    /// Whether writes to the plug-ins' paths need no API token.
    pub open: bool,
    /// File with the API token, in place of the one in the data directory.
    pub api_token_file: Option<PathBuf>,
    /// Whether reads need the same proof as writes.
    pub private: bool,
    /// Whether writes over loopback need the API token, too.
    pub loopback_needs_token: bool,
    /// Limit of concurrent HTTP connections.
    pub max_connections: usize,
    /// Limit of concurrent blocking queries, event streams and held registrations.
    pub max_streams: usize,
    /// Directory of registration files.
    pub services_dir: Option<PathBuf>,
    /// Whether registration files may have `exec` checks.
    pub allow_exec_checks: bool,
    /// Format of the log.
    pub log_format: LogFormat,
    /// Warnings, to be logged once the log is open.
    pub warnings: Vec<String>,
    /// The inputs, for a reload.
    source: reload::ConfigSource,
}

impl Config {
    /// Merges and validates flags, environment and file. `file` is the path that was given as a flag; `roles`
    /// are the names of this program's plug-ins.
    ///
    /// # Errors
    /// The first invalid option, with its name.
    pub fn load(
        flags: Options,
        file: Option<PathBuf>,
        environment: &Environment,
        roles: &[&str],
    ) -> Result<Self, ConfigError> {
        let source = reload::ConfigSource {
            flags: flags.clone(),
            file: file.clone(),
            environment: environment.clone(),
            roles: roles.iter().map(ToString::to_string).collect(),
        };
        let file = file.or_else(|| environment.get("HEARSAY_CONFIG").map(PathBuf::from));
        let from_file = file.as_deref().map(Options::from_file).transpose()?.unwrap_or_default();
        let options = flags.over(environment.options()?).over(from_file);
        let mut config = Self::check(options, environment, roles)?;
        config.source = source;
        if !config.roles.iter().any(|role| role == "gateway") {
            let given = [
                ("gateway", is_given(config.gateway, EVERY_ADDRESS, GATEWAY_PORT)),
                ("gateway-allow", !config.gateway_options.allow.is_empty()),
                ("gateway-routes", !config.gateway_options.routes.is_empty()),
            ];
            let idle = given.into_iter().filter(|(_, is_given)| *is_given).map(|(option, _)| option);
            config
                .warnings
                .extend(idle.map(|option| format!("--{option} has no effect without --role gateway")));
        }
        if config.log_retention != LOG_RETENTION_DEFAULT && !config.roles.iter().any(|role| role == LOG_ROLE)
        {
            config
                .warnings
                .push("--log-max-age and --log-max-bytes have no effect without --role log".into());
        }
        config.warnings.extend(config.unmapped_http());
        config.warnings.extend(config.unprotected_reads());
        config.warnings.extend(config.private_dns()?);
        config.warnings.extend(config.private_jsonrpc()?);
        let unknown = environment.unknown();
        config
            .warnings
            .extend(unknown.iter().map(|name| format!("the environment variable {name} is not an option of a node and is ignored; check its spelling")));
        Ok(config)
    }

    /// Returns a warning if other options weaken `--private`.
    fn unprotected_reads(&self) -> Option<String> {
        let why = match (self.private, &self.cluster_key, self.open) {
            (true, None, _) => {
                "the cluster has no key, so private addresses can still read; give it a key (--key-file)"
            }
            (true, Some(_), true) => {
                "with --open every client can read the paths of the plug-ins; leave --open out to prevent it"
            }
            _ => return None,
        };
        Some(format!("--private: {why}"))
    }

    /// Returns a warning if `--private` leaves clients without an answer that `--dns` seems to be for.
    ///
    /// # Errors
    /// No client may use the DNS server that `--dns` asks for.
    fn private_dns(&self) -> Result<Option<String>, ConfigError> {
        let (Listen::Exactly(at) | Listen::Ladder(at)) = self.dns;
        if !self.private || !is_given(self.dns, LOOPBACK, DNS_PORT) {
            return Ok(None);
        }
        if self.loopback_needs_token {
            let problem = "with --private and --loopback-needs-token every read needs the API token, which DNS cannot carry; \
                           leave one of the three options out";
            return Err(ConfigError::option("dns", problem));
        }
        let is_beyond = !at.ip().to_canonical().is_loopback();
        Ok(is_beyond.then(|| {
            format!("--private: DNS at {at} answers only clients of this machine and refuses others, because DNS carries no proof")
        }))
    }

    /// Returns a warning if `--private` leaves clients of JSON-RPC over TCP without an answer.
    ///
    /// # Errors
    /// No client may use the listener.
    fn private_jsonrpc(&self) -> Result<Option<String>, ConfigError> {
        let Some(Listen::Exactly(at) | Listen::Ladder(at)) = self.jsonrpc_tcp.filter(|_| self.private) else {
            return Ok(None);
        };
        if self.loopback_needs_token {
            let problem = "with --private and --loopback-needs-token every read needs the API token, which JSON-RPC over TCP cannot carry; \
                           leave one of the three options out, or use POST /rpc";
            return Err(ConfigError::option("jsonrpc-tcp", problem));
        }
        let is_beyond = !at.ip().to_canonical().is_loopback();
        Ok(is_beyond.then(|| {
            format!("--private: JSON-RPC at {at} carries no token, so calls of other machines have no proof; they can use POST /rpc")
        }))
    }

    fn check(options: Options, environment: &Environment, roles: &[&str]) -> Result<Self, ConfigError> {
        let mut warnings = Vec::new();
        let cluster_key = match options.key_file.or_else(|| credential(environment)) {
            Some(path) => {
                let (key, warning) = ClusterKey::read(&path)?;
                warnings.extend(warning);
                Some(key)
            }
            None => None,
        };
        let named = |field, name: Option<String>| match name {
            Some(name) => check_service_name(field, &name).map(|()| Some(name)),
            None => Ok(None),
        };
        Ok(Self {
            roles: check_roles(options.role, roles)?,
            name: named("name", options.name)?,
            cluster: named("cluster", options.cluster)?.unwrap_or_else(|| "default".into()),
            http: listen("http", options.http, EVERY_ADDRESS, HTTP_PORT)?,
            swarm: listen("swarm", options.swarm, EVERY_ADDRESS, SWARM_PORT)?,
            gateway: listen("gateway", options.gateway, EVERY_ADDRESS, GATEWAY_PORT)?,
            gateway_options: GatewayOptions {
                allow: parse_all("gateway-allow", &options.gateway_allow)?,
                routes: parse_all("gateway-routes", &options.gateway_routes)?,
            },
            dns: listen("dns", options.dns, LOOPBACK, DNS_PORT)?,
            grpc: listen("grpc", options.grpc, EVERY_ADDRESS, GRPC_PORT)?,
            dns_ttl: options.dns_ttl.unwrap_or(0),
            jsonrpc_tcp: optional_listen("jsonrpc-tcp", options.jsonrpc_tcp, LOOPBACK, JSONRPC_PORT)?,
            advertise: advertised(&options.advertise)?,
            advertise_http: advertised_http(options.advertise_http)?,
            join: parse_all("join", &options.join)?,
            mdns: !options.no_mdns.unwrap_or(false),
            cluster_key,
            allowed: options.allow.as_deref().map(read_allowed).transpose()?,
            data_dir: data_dir(options.ephemeral, options.data_dir, environment)?,
            socket: SocketChoice::read(options.socket.as_deref(), environment),
            demo: options.demo.unwrap_or(false),
            zone: named("zone", options.zone)?,
            tags: check_tags(options.tag)?,
            replicas_expected: options.replicas_expected,
            log_retention: log_retention(options.log_max_age, options.log_max_bytes)?,
            allowed_hosts: parse_all("allow-host", &options.allow_host)?,
            trusted_proxies: parse_all("trusted-proxy", &options.trusted_proxy)?,
            open: options.open.unwrap_or(false),
            api_token_file: options.api_token_file,
            private: options.private.unwrap_or(false),
            loopback_needs_token: options.loopback_needs_token.unwrap_or(false),
            max_connections: options.max_connections.map_or(MAX_CONNECTIONS, |n| n.get() as usize),
            max_streams: options.max_streams.map_or(MAX_STREAMS, |n| n.get() as usize),
            services_dir: options.services_dir,
            allow_exec_checks: options.allow_exec_checks.unwrap_or(false),
            log_format: match options.log_format {
                Some(text) => {
                    text.parse().map_err(|problem: String| ConfigError::option("log-format", problem))?
                }
                None => LogFormat::default(),
            },
            warnings,
            source: reload::ConfigSource::default(),
        })
    }

    /// Returns a warning if the swarm port is mapped, but no mapped HTTP port is given.
    fn unmapped_http(&self) -> Option<String> {
        let (Listen::Exactly(own) | Listen::Ladder(own)) = self.swarm;
        let is_mapped = |advertise: &&Advertise| match advertise {
            Advertise::Host(_, port) | Advertise::Interface(_, port) => {
                port.is_some_and(|port| port != own.port())
            }
        };
        let mapped = self.advertise.iter().find(is_mapped).filter(|_| self.advertise_http.is_none())?;
        Some(format!(
            "--advertise {mapped} has another port than the swarm, but no mapped port of HTTP is given, so others use the port at which HTTP \
             listens here. If that is mapped, too, give it with --advertise-http HOST:PORT"
        ))
    }

    /// Returns the given name, or the host's name and the short form of the id: a unique DNS label.
    pub fn name_of(&self, id: NodeId) -> String {
        self.name.clone().unwrap_or_else(|| default_name(&hostname(), id))
    }
}

/// Whether a listener differs from its default.
fn is_given(listen: Listen, ip: IpAddr, port: u16) -> bool {
    listen != Listen::Ladder((ip, port).into())
}

/// Returns the host name of this machine.
pub fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn default_name(hostname: &str, id: NodeId) -> String {
    let label = hostname.split('.').next().unwrap_or_default();
    let safe: String = label.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let id = id.short();
    // The name is ASCII only, so byte indexes are character indexes.
    let safe = safe.trim_matches('-').get(..DNS_LABEL_MAX - 1 - id.len()).unwrap_or(safe.trim_matches('-'));
    if safe.is_empty() { format!("node-{id}") } else { format!("{safe}-{id}") }
}

fn listen(option: &'static str, text: Option<String>, ip: IpAddr, port: u16) -> Result<Listen, ConfigError> {
    let default = SocketAddr::from((ip, port));
    match text {
        Some(text) => {
            Listen::parse(text.trim(), default).map_err(|problem| ConfigError::option(option, problem))
        }
        None => Ok(Listen::Ladder(default)),
    }
}

/// Like [`listen`], for a listener that is off without the option.
fn optional_listen(
    option: &'static str,
    text: Option<String>,
    ip: IpAddr,
    port: u16,
) -> Result<Option<Listen>, ConfigError> {
    text.map(|text| listen(option, Some(text), ip, port)).transpose()
}

fn log_retention(age: Option<String>, bytes: Option<String>) -> Result<Retention, ConfigError> {
    let invalid = |option| move |problem: String| ConfigError::option(option, problem);
    Ok(Retention {
        age: age
            .map_or(Ok(LOG_RETENTION_DEFAULT.age), |text| amount::parse_age(&text))
            .map_err(invalid("log-max-age"))?,
        bytes: bytes
            .map_or(Ok(LOG_RETENTION_DEFAULT.bytes), |text| amount::parse_bytes(&text))
            .map_err(invalid("log-max-bytes"))?,
    })
}

fn parse_all<T: FromStr<Err = String>>(
    option: &'static str,
    texts: &[String],
) -> Result<Vec<T>, ConfigError> {
    // Empty elements are ignored: a trailing comma, or an empty list from a template.
    let texts = texts.iter().map(|text| text.trim()).filter(|text| !text.is_empty());
    texts.map(|text| text.parse().map_err(|problem| ConfigError::option(option, problem))).collect()
}

/// The longest advertised host. Together with a port it must fit into an id of the provider table.
const ADVERTISED_CHARS_MAX: usize = ID_CHARS_MAX - ":65535".len();

fn advertised(texts: &[String]) -> Result<Vec<Advertise>, ConfigError> {
    let texts: Vec<_> = texts.iter().map(|text| text.trim()).filter(|text| !text.is_empty()).collect();
    if texts.is_empty() {
        return Ok(Vec::new());
    }
    let interfaces = interfaces::names();
    let invalid = |problem| ConfigError::option("advertise", problem);
    let parse = |text: &&str| Advertise::parse(text, &interfaces).and_then(check_length).map_err(invalid);
    texts.iter().map(parse).collect()
}

fn advertised_http(text: Option<String>) -> Result<Option<HostPort>, ConfigError> {
    let Some(text) = text.map(|text| text.trim().to_owned()).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let parsed = HostPort::parse(&text, &interfaces::names()).and_then(check_length);
    parsed.map(Some).map_err(|problem| ConfigError::option("advertise-http", problem))
}

fn check_length<T: ToString>(advertised: T) -> Result<T, String> {
    match advertised.to_string() {
        text if text.len() > ADVERTISED_CHARS_MAX => {
            Err(format!("{text} is longer than {ADVERTISED_CHARS_MAX} characters; give a shorter name"))
        }
        _ => Ok(advertised),
    }
}

fn check_roles(given: Vec<String>, known: &[&str]) -> Result<Vec<String>, ConfigError> {
    let mut roles = Vec::new();
    for role in given.iter().map(|role| role.trim()).filter(|role| !role.is_empty()) {
        if !known.contains(&role) {
            let known = known.join(", ");
            return Err(ConfigError::option(
                "role",
                format!("there is no role {role:?}; choose from {known}"),
            ));
        }
        if !roles.iter().any(|r| r == role) {
            roles.push(role.to_owned());
        }
    }
    Ok(roles)
}

fn check_tags(given: Vec<String>) -> Result<Vec<String>, ConfigError> {
    let tags = given.iter().map(|tag| tag.trim()).filter(|tag| !tag.is_empty());
    let tags: Vec<String> = tags.map(str::to_owned).collect();
    if tags.len() > TAGS_MAX {
        let count = tags.len();
        return Err(ConfigError::option("tag", format!("has {count} tags; give at most {TAGS_MAX}")));
    }
    match tags.iter().find(|t| t.chars().count() > ID_CHARS_MAX || t.chars().any(char::is_control)) {
        Some(tag) => Err(ConfigError::option(
            "tag",
            format!("{tag:?} is not a tag; give 1 to {ID_CHARS_MAX} characters without control characters"),
        )),
        None => Ok(tags),
    }
}

/// Returns the path of the cluster key that systemd passes (`LoadCredential=`, systemd.exec(5)). If it is
/// unknown whether the file exists, the path is returned: the node must not start without the key of its
/// cluster.
fn credential(environment: &Environment) -> Option<PathBuf> {
    let path = Path::new(environment.get("CREDENTIALS_DIRECTORY")?).join(CREDENTIAL);
    path.try_exists().unwrap_or(true).then_some(path)
}

/// Returns the data directory for these options.
pub(crate) fn data_dir(
    ephemeral: Option<bool>,
    dir: Option<PathBuf>,
    environment: &Environment,
) -> Result<DataDir, ConfigError> {
    match (ephemeral.unwrap_or(false), dir) {
        (true, Some(_)) => Err(ConfigError::EphemeralDataDir),
        (true, None) => Ok(DataDir::Ephemeral),
        (false, Some(dir)) => Ok(DataDir::Exactly(dir)),
        (false, None) => {
            let state = environment.state_home();
            state.map(|state| DataDir::Slots(state.join("hearsay"))).ok_or(ConfigError::Homeless)
        }
    }
}

#[cfg(test)]
mod tests;
