//! What can be said about a node, in each of the three places where it can be said: flags, environment, file.
//!
//! There is one list of options, [`Options`]. Clap makes flags of it and serde the keys of the file; a variable of the environment is handed to clap as
//! if it were a flag, so that all three understand the same words. Nothing is checked here beyond the shape.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    num::NonZeroU32,
    path::{Path, PathBuf},
};

use clap::{Args, CommandFactory as _, Parser, builder::BoolishValueParser};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, Visitor},
};

use super::error::ConfigError;
use crate::storage::read_file;

/// The largest configuration file. A guess far above any real one.
const FILE_BYTES_MAX: usize = 1024 * 1024;
const ENV_PREFIX: &str = "HEARSAY_";
/// Variables that are no options of a node.
const OTHER_VARIABLES: [&str; 5] =
    ["HEARSAY_CONFIG", "HEARSAY_LOG", "HEARSAY_NODE", "HEARSAY_SHIP", "HEARSAY_TOKEN"];

// The comments of the fields are what `node --help` prints.
/// Every option of a node; `None` and empty lists where nothing was said.
#[derive(Args, Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
#[command(next_help_heading = "Options of a node")]
pub struct Options {
    /// Plug-ins to run; repeat it or separate with commas [default: none, a plain agent]
    #[arg(long, value_name = "ROLE", value_delimiter = ',')]
    pub role: Vec<String>,
    /// Name of this node [default: the host's name and the end of the node's id]
    #[arg(long)]
    pub name: Option<String>,
    /// Which cluster to belong to; nodes of different clusters ignore each other [default: default]
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// Where to serve HTTP: IP:PORT, :PORT, PORT or IP; 0.0.0.0 is IPv4 alone, [::] both [default: [::],
    /// first free port from 7500]
    #[arg(long, value_name = "ADDRESS")]
    #[serde(deserialize_with = "text_or_port")]
    pub http: Option<String>,
    /// Where to listen for other nodes [default: [::], first free port from 7600]
    #[arg(long, value_name = "ADDRESS")]
    #[serde(deserialize_with = "text_or_port")]
    pub swarm: Option<String>,
    /// Where the gateway listens, with --role gateway [default: [::], first free port from 8080]
    #[arg(long, value_name = "ADDRESS")]
    #[serde(deserialize_with = "text_or_port")]
    pub gateway: Option<String>,
    /// Where programs may be that the gateway passes requests on to: a range of addresses such as 10.0.0.0/8
    /// (repeatable) [default: all but those that no node may call]
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub gateway_allow: Vec<String>,
    /// Which services may announce which routes of the gateway: SERVICE=HOST/PREFIX, SERVICE=/PREFIX, or
    /// SERVICE=*/PREFIX for every host (repeatable) [default: all, but not the paths of built-in roles]
    #[arg(long, value_name = "RULE", value_delimiter = ',')]
    pub gateway_routes: Vec<String>,
    /// Where to answer DNS [default: 127.0.0.1, first free port from 7553]
    #[arg(long, value_name = "ADDRESS")]
    #[serde(deserialize_with = "text_or_port")]
    pub dns: Option<String>,
    /// Where others reach this node, in place of the interfaces' addresses: a host name, an IP address or a
    /// network interface; the port, if it is mapped to another one than the swarm's (repeatable)
    #[arg(long, value_name = "HOST[:PORT]", value_delimiter = ',')]
    pub advertise: Vec<String>,
    /// Where others reach this node's HTTP, if that port is mapped to another one [default: the hosts of
    /// --advertise, and the port of --http]
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise_http: Option<String>,
    /// A node to join: host, host:port or multiaddr (repeatable); retried for ever
    #[arg(long, value_name = "NODE", value_delimiter = ',')]
    pub join: Vec<String>,
    /// Do not look for nodes on the local network by mDNS
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_parser = BoolishValueParser::new(), hide_possible_values = true)]
    pub no_mdns: Option<bool>,
    /// File with the cluster's key, made by `node keygen`; only nodes that have it can join [default: the credential hearsay.cluster.key of a service, if any]
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// File with the ids of the nodes to admit, one a line [default: all]
    #[arg(long, value_name = "FILE")]
    pub allow: Option<PathBuf>,
    /// Directory for keys and state [default: first free slot under $XDG_STATE_HOME/hearsay/CLUSTER]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Keep nothing on disk: a new identity at every start
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_parser = BoolishValueParser::new(), hide_possible_values = true)]
    pub ephemeral: Option<bool>,
    /// Where to put the Unix socket: a path, a directory, or none [default: in the first of /run/hearsay,
    /// $XDG_RUNTIME_DIR/hearsay and the data directory that can be used]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<String>,
    /// Load sample data into the plug-ins
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_parser = BoolishValueParser::new(), hide_possible_values = true)]
    pub demo: Option<bool>,
    /// Where this node stands (a rack, an availability zone), for those who prefer the near
    #[arg(long)]
    pub zone: Option<String>,
    /// Label of the instances that this node offers (repeatable)
    #[arg(long, value_delimiter = ',')]
    pub tag: Vec<String>,
    /// How many replicas a journal has, for `majority` to be counted of [default: every replica that ever kept it, until `node forget`]
    #[arg(long, value_name = "N")]
    pub replicas_expected: Option<NonZeroU32>,
    /// How long the log plug-in keeps records, such as 12h or 30d, or unlimited [default: 30d]
    #[arg(long, value_name = "AGE")]
    pub log_max_age: Option<String>,
    /// How much the log plug-in keeps, such as 500MB or 1GiB, or unlimited; the oldest goes first [default: 1GiB]
    #[arg(long, value_name = "SIZE")]
    pub log_max_bytes: Option<String>,
    /// Further host name that requests may carry in their Host header (repeatable)
    #[arg(long, value_name = "HOST", value_delimiter = ',')]
    pub allow_host: Vec<String>,
    /// Proxy that many clients come through: its address or network. It has no share per host (repeatable)
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub trusted_proxy: Vec<String>,
    /// Let anybody on the network write to the plug-ins' paths without the API token
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_parser = BoolishValueParser::new(), hide_possible_values = true)]
    pub open: Option<bool>,
    /// Take no write over loopback without the API token either: for machines that several users share. The Unix socket remains
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_parser = BoolishValueParser::new(), hide_possible_values = true)]
    pub loopback_needs_token: Option<bool>,
    /// Connections that HTTP holds at a time, as far as this process may open files [default: 20000]
    #[arg(long, value_name = "N")]
    pub max_connections: Option<NonZeroU32>,
    /// Blocking queries, event streams and held registrations at a time; at most four fifths of the connections [default: 16000]
    #[arg(long, value_name = "N")]
    pub max_streams: Option<NonZeroU32>,
    /// Directory of files that register programs: *.toml, and *.json as Consul has them; changes are picked up
    #[arg(long, value_name = "DIR")]
    pub services_dir: Option<PathBuf>,
    /// Let files of --services-dir have checks that run a command
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_parser = BoolishValueParser::new(), hide_possible_values = true)]
    pub allow_exec_checks: Option<bool>,
    /// How to write the log: text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
}

/// A port alone may be written as a number.
fn text_or_port<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    struct TextOrPort;
    impl Visitor<'_> for TextOrPort {
        type Value = String;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an address such as \"127.0.0.1:7500\", or a port")
        }
        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<String, E> {
            Ok(text.to_owned())
        }
        fn visit_i64<E: serde::de::Error>(self, port: i64) -> Result<String, E> {
            u16::try_from(port)
                .map(|port| port.to_string())
                .map_err(|_| E::custom(format!("{port} is no port")))
        }
    }
    deserializer.deserialize_any(TextOrPort).map(Some).map_err(D::Error::custom)
}

/// Clap wants a whole command to parse flags with; this one is never shown.
#[derive(Parser)]
struct Alone {
    #[command(flatten)]
    options: Options,
}

impl Options {
    /// The names of all options, as they are written behind `--` and in the file.
    pub fn names() -> Vec<String> {
        let command = Alone::command();
        command.get_arguments().filter_map(|arg| arg.get_long().map(str::to_owned)).collect()
    }

    /// Reads a configuration file.
    ///
    /// # Errors
    /// Names the file, the line and, for an unknown key, the known ones.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let failed = |problem: String| ConfigError::File { path: path.to_owned(), problem };
        let content = read_file(path, FILE_BYTES_MAX)
            .map_err(|error| failed(error.to_string()))?
            .ok_or_else(|| failed("there is no such file".into()))?;
        toml::from_str(&content.text).map_err(|error| failed(error.to_string().trim_end().to_owned()))
    }

    /// As [`or`](Self::or), for a layer that outranks another. Keeping nothing and keeping it somewhere exclude each other, so either, said
    /// here, silences the other below.
    pub fn over(self, mut lower: Self) -> Self {
        if self.ephemeral == Some(true) {
            lower.data_dir = None;
        }
        if self.data_dir.is_some() {
            lower.ephemeral = None;
        }
        self.or(lower)
    }

    /// Lets whatever was said here stand, and takes the rest from `lower`.
    pub fn or(self, lower: Self) -> Self {
        fn list(upper: Vec<String>, lower: Vec<String>) -> Vec<String> {
            if upper.is_empty() { lower } else { upper }
        }
        Self {
            role: list(self.role, lower.role),
            name: self.name.or(lower.name),
            cluster: self.cluster.or(lower.cluster),
            http: self.http.or(lower.http),
            swarm: self.swarm.or(lower.swarm),
            gateway: self.gateway.or(lower.gateway),
            gateway_allow: list(self.gateway_allow, lower.gateway_allow),
            gateway_routes: list(self.gateway_routes, lower.gateway_routes),
            dns: self.dns.or(lower.dns),
            advertise: list(self.advertise, lower.advertise),
            advertise_http: self.advertise_http.or(lower.advertise_http),
            join: list(self.join, lower.join),
            no_mdns: self.no_mdns.or(lower.no_mdns),
            key_file: self.key_file.or(lower.key_file),
            allow: self.allow.or(lower.allow),
            data_dir: self.data_dir.or(lower.data_dir),
            ephemeral: self.ephemeral.or(lower.ephemeral),
            socket: self.socket.or(lower.socket),
            demo: self.demo.or(lower.demo),
            zone: self.zone.or(lower.zone),
            tag: list(self.tag, lower.tag),
            replicas_expected: self.replicas_expected.or(lower.replicas_expected),
            log_max_age: self.log_max_age.or(lower.log_max_age),
            log_max_bytes: self.log_max_bytes.or(lower.log_max_bytes),
            allow_host: list(self.allow_host, lower.allow_host),
            trusted_proxy: list(self.trusted_proxy, lower.trusted_proxy),
            open: self.open.or(lower.open),
            loopback_needs_token: self.loopback_needs_token.or(lower.loopback_needs_token),
            max_connections: self.max_connections.or(lower.max_connections),
            max_streams: self.max_streams.or(lower.max_streams),
            services_dir: self.services_dir.or(lower.services_dir),
            allow_exec_checks: self.allow_exec_checks.or(lower.allow_exec_checks),
            log_format: self.log_format.or(lower.log_format),
        }
    }
}

/// The environment, as far as it concerns a node. Handed in, so that tests need not change that of the whole process.
#[derive(Clone, Debug, Default)]
pub struct Environment(BTreeMap<String, OsString>);

impl Environment {
    /// That of this process.
    pub fn of_process() -> Self {
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value))).collect()
    }

    /// A variable's value. One that is set to nothing counts as not set: compose files and CI systems pass on what they do not have as empty.
    pub fn get(&self, name: &str) -> Option<&OsString> {
        self.0.get(name).filter(|value| !value.is_empty())
    }

    /// The directory that a variable names. The XDG base directory specification: a relative path is passed over.
    pub(crate) fn directory(&self, name: &str) -> Option<PathBuf> {
        self.get(name).map(PathBuf::from).filter(|path| path.is_absolute())
    }

    /// Where programs of this user keep state, by the XDG base directory specification.
    pub(crate) fn state_home(&self) -> Option<PathBuf> {
        self.directory("XDG_STATE_HOME").or_else(|| Some(self.directory("HOME")?.join(".local/state")))
    }

    /// The options that `HEARSAY_*` variables state.
    ///
    /// # Errors
    /// Names the variable whose value its option does not take.
    pub fn options(&self) -> Result<Options, ConfigError> {
        let mut options = Options::default();
        for name in Options::names() {
            let variable = variable(&name);
            let Some(value) = self.get(&variable) else { continue };
            let mut flag = OsString::from(format!("--{name}="));
            flag.push(value);
            let parsed = Alone::try_parse_from([OsString::new(), flag])
                .map_err(|error| ConfigError::Environment { variable, problem: first_line(&error) })?;
            options = options.or(parsed.options);
        }
        Ok(options)
    }

    /// `HEARSAY_*` variables that mean nothing to a node: most likely misspelt. Not an error, because Kubernetes sets variables of its own
    /// for a service that happens to be called `hearsay`.
    pub fn unknown(&self) -> Vec<&str> {
        let known: Vec<_> = Options::names().iter().map(|name| variable(name)).collect();
        let is_of_kubernetes =
            |name: &str| ["_SERVICE_HOST", "_SERVICE_PORT", "_PORT"].iter().any(|part| name.contains(part));
        self.0
            .keys()
            .map(String::as_str)
            .filter(|name| name.starts_with(ENV_PREFIX) && !OTHER_VARIABLES.contains(name))
            .filter(|name| !known.iter().any(|k| k == name) && !is_of_kubernetes(name))
            .collect()
    }
}

impl<N: Into<String>, V: Into<OsString>> FromIterator<(N, V)> for Environment {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(variables: I) -> Self {
        Self(variables.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

fn variable(option: &str) -> String {
    format!("{ENV_PREFIX}{}", option.to_uppercase().replace('-', "_"))
}

fn first_line(error: &clap::Error) -> String {
    let text = error.to_string();
    text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
}
