//! What a node is told to be: options out of flags, environment and file, checked once and turned into a [`Config`] that needs no more checking.
//!
//! A flag outranks the environment, which outranks the file, which outranks the default. An unknown key is an error, because a misspelt option that is
//! quietly ignored is worse than a node that does not start. Files that say who may join are read here too: a node that cannot read them must not start.

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

use hearsay_protocol::{
    NodeId,
    record::{ID_CHARS_MAX, TAGS_MAX, check_service_name},
};
use hearsay_services::{cidr::Cidr, gateway::options::GatewayOptions, journal::Retention, log};

pub(crate) use address::listed;
pub use address::{Advertise, Host, HostPort, Join, LADDER_RUNGS, Listen, SWARM_PORT};
pub use error::ConfigError;
pub use options::{Environment, Options};
pub use socket::SocketChoice;
pub(crate) use socket::{SOCKETS_DIR, shared_dirs, temporary_dir};

use crate::{
    admission::{ClusterKey, read_allowed},
    interfaces,
    storage::DataDir,
};

/// The first rung of the HTTP ladder.
pub const HTTP_PORT: u16 = 7500;
/// The first rung of the gateway's ladder.
pub const GATEWAY_PORT: u16 = 8080;
/// The first rung of the DNS ladder.
pub const DNS_PORT: u16 = 7553;
/// Connections that HTTP holds at a time, unless `--max-connections` says otherwise. Each takes about 10 kB when idle.
pub const MAX_CONNECTIONS: usize = 20_000;
/// Blocking queries, event streams and held registrations at a time, unless `--max-streams` says otherwise.
pub const MAX_STREAMS: usize = 16_000;
/// Every address of the machine, of both families.
const EVERY_ADDRESS: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
/// This machine alone.
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// The longest name that still is a DNS label (RFC 1035, section 2.3.4).
const DNS_LABEL_MAX: usize = 63;
/// The name of the credential that is the cluster's key.
const CREDENTIAL: &str = "hearsay.cluster.key";

/// How to write the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LogFormat {
    /// A line for people.
    #[default]
    Text,
    /// A JSON object a line, for programs.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(format!("{text:?} is no log format; there are text and json")),
        }
    }
}

/// What a node is told to be. Every value is within its bounds.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    /// The plug-ins to run, each once, in the order given.
    pub roles: Vec<String>,
    /// The node's name, where one was given. See [`Config::name_of`].
    pub name: Option<String>,
    /// The cluster to belong to.
    pub cluster: String,
    /// Where to serve HTTP.
    pub http: Listen,
    /// Where to listen for other nodes.
    pub swarm: Listen,
    /// Where the gateway plug-in listens, if it runs.
    pub gateway: Listen,
    /// What else is said about it.
    pub gateway_options: GatewayOptions,
    /// Where to answer DNS.
    pub dns: Listen,
    /// Where others reach the swarm, in place of the interfaces' addresses; the host of the first is the one
    /// in URLs.
    pub advertise: Vec<Advertise>,
    /// Where others reach HTTP, in place of what follows from `advertise` and the interfaces.
    pub advertise_http: Option<HostPort>,
    /// Whom to dial until somebody answers, and again whenever alone.
    pub join: Vec<Join>,
    /// Whether to look for others by multicast.
    pub mdns: bool,
    /// What strangers do not have; `None` is an open cluster.
    pub cluster_key: Option<ClusterKey>,
    /// The nodes to admit; `None` admits all.
    pub allowed: Option<BTreeSet<NodeId>>,
    /// Where to keep state.
    pub data_dir: DataDir,
    /// Where the Unix socket is to be.
    pub socket: SocketChoice,
    /// Whether plug-ins load sample data.
    pub demo: bool,
    /// Where the node stands.
    pub zone: Option<String>,
    /// Labels of the instances that the node offers.
    pub tags: Vec<String>,
    /// How many replicas a journal should have.
    pub replicas_expected: Option<NonZeroU32>,
    /// How long and how much the log plug-in keeps, if it runs.
    pub log_retention: Retention,
    /// Names besides its own that requests may carry in their `Host` header.
    pub allowed_hosts: Vec<Host>,
    /// Proxies that many clients come through.
    pub trusted_proxies: Vec<Cidr>,
    /// Whether anybody may write to the plug-ins' paths.
    pub open: bool,
    /// Whether writes over loopback need the API token too.
    pub loopback_needs_token: bool,
    /// Connections that HTTP holds at a time.
    pub max_connections: usize,
    /// Blocking queries, event streams and held registrations at a time.
    pub max_streams: usize,
    /// Where the files are that register programs.
    pub services_dir: Option<PathBuf>,
    /// Whether they may have checks that run a command.
    pub allow_exec_checks: bool,
    /// How to write the log.
    pub log_format: LogFormat,
    /// What is not wrong enough to stop, in words. To be logged once there is a log.
    pub warnings: Vec<String>,
    /// What it was made of, to be read again.
    source: reload::Source,
}

impl Config {
    /// Puts together what flags, environment and file say. `file` is the one given as a flag; `roles` names the plug-ins of this program.
    ///
    /// # Errors
    /// The first thing that is wrong, with its name.
    pub fn load(
        flags: Options,
        file: Option<PathBuf>,
        environment: &Environment,
        roles: &[&str],
    ) -> Result<Self, ConfigError> {
        let source = reload::Source {
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
        let idle = config.idle_options();
        config.warnings.extend(idle.map(|option| format!("--{option} has no effect in this version")));
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
        if config.log_retention != log::KEPT && !config.roles.iter().any(|role| role == log::ROLE) {
            config
                .warnings
                .push("--log-max-age and --log-max-bytes have no effect without --role log".into());
        }
        config.warnings.extend(config.unmapped_http());
        let unknown = environment.unknown();
        config
            .warnings
            .extend(unknown.iter().map(|name| format!("{name} is set and means nothing to a node")));
        Ok(config)
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
            source: reload::Source::default(),
        })
    }

    /// Options that were given and belong to what is not built yet. They are checked, so that a file that is right stays right.
    fn idle_options(&self) -> impl Iterator<Item = &'static str> + use<> {
        let idle = [("dns", is_given(self.dns, LOOPBACK, DNS_PORT))];
        idle.into_iter().filter(|(_, given)| *given).map(|(option, _)| option)
    }

    /// A mapped swarm port whose host's HTTP port is probably mapped as well.
    fn unmapped_http(&self) -> Option<String> {
        let (Listen::Exactly(own) | Listen::Ladder(own)) = self.swarm;
        let is_mapped = |advertise: &&Advertise| match advertise {
            Advertise::Host(_, port) | Advertise::Interface(_, port) => {
                port.is_some_and(|port| port != own.port())
            }
        };
        let mapped = self.advertise.iter().find(is_mapped).filter(|_| self.advertise_http.is_none())?;
        Some(format!(
            "--advertise {mapped} names another port than the swarm's own, and nothing names that of HTTP: others are told the port at which it \
             listens here. If that is mapped too, name it with --advertise-http HOST:PORT"
        ))
    }

    /// The node's name: the one it was given, or its host's name and the end of its id. The latter is a DNS label, and no other node's.
    pub fn name_of(&self, id: NodeId) -> String {
        self.name.clone().unwrap_or_else(|| default_name(&hostname(), id))
    }
}

/// Whether an option to listen says other than its default.
fn is_given(listen: Listen, ip: IpAddr, port: u16) -> bool {
    listen != Listen::Ladder((ip, port).into())
}

/// What this machine calls itself.
pub fn hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

fn default_name(hostname: &str, id: NodeId) -> String {
    let label = hostname.split('.').next().unwrap_or_default();
    let safe: String = label.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
    let id = id.short();
    // All ASCII by now, so that bytes are characters.
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

fn log_retention(age: Option<String>, bytes: Option<String>) -> Result<Retention, ConfigError> {
    let wrong = |option| move |problem: String| ConfigError::option(option, problem);
    Ok(Retention {
        age: age.map_or(Ok(log::KEPT.age), |text| amount::age(&text)).map_err(wrong("log-max-age"))?,
        bytes: bytes
            .map_or(Ok(log::KEPT.bytes), |text| amount::bytes(&text))
            .map_err(wrong("log-max-bytes"))?,
    })
}

fn parse_all<T: FromStr<Err = String>>(
    option: &'static str,
    texts: &[String],
) -> Result<Vec<T>, ConfigError> {
    // A trailing comma, or a list that a template filled with nothing, is no reason to stop.
    let texts = texts.iter().map(|text| text.trim()).filter(|text| !text.is_empty());
    texts.map(|text| text.parse().map_err(|problem| ConfigError::option(option, problem))).collect()
}

/// The longest host that can be advertised: with a port it must fit where others write it down.
const ADVERTISED_CHARS_MAX: usize = ID_CHARS_MAX - ":65535".len();

fn advertised(texts: &[String]) -> Result<Vec<Advertise>, ConfigError> {
    let texts: Vec<_> = texts.iter().map(|text| text.trim()).filter(|text| !text.is_empty()).collect();
    if texts.is_empty() {
        return Ok(Vec::new());
    }
    let interfaces = interfaces::names();
    let wrong = |problem| ConfigError::option("advertise", problem);
    let parse = |text: &&str| Advertise::parse(text, &interfaces).and_then(check_length).map_err(wrong);
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
            Err(format!("{text} is longer than {ADVERTISED_CHARS_MAX} characters"))
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
                format!("there is no role {role:?}; there are: {known}"),
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
        return Err(ConfigError::option(
            "tag",
            format!("there are {count} tags; at most {TAGS_MAX} are allowed"),
        ));
    }
    match tags.iter().find(|t| t.chars().count() > ID_CHARS_MAX || t.chars().any(char::is_control)) {
        Some(tag) => Err(ConfigError::option(
            "tag",
            format!("{tag:?} is no tag: 1 to {ID_CHARS_MAX} characters, none of them a control character"),
        )),
        None => Ok(tags),
    }
}

/// The cluster's key, where systemd passes it to the service (`LoadCredential=`, systemd.exec(5)). One that cannot be looked at counts: a cluster
/// that is meant to be closed must not run open.
fn credential(environment: &Environment) -> Option<PathBuf> {
    let path = Path::new(environment.get("CREDENTIALS_DIRECTORY")?).join(CREDENTIAL);
    path.try_exists().unwrap_or(true).then_some(path)
}

/// Where a node that is told this keeps its state.
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
