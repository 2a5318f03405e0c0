//! Raw options of a node, as given by flags, environment variables and the configuration file.
//!
//! [`Options`] is the one list. clap derives the flags and serde the keys of the file. Variables are parsed
//! by clap like flags, so that all three sources accept the same values. Only the shape is checked here.

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

/// The largest configuration file, in bytes. Guess; far above any real one.
const FILE_BYTES_MAX: usize = 1024 * 1024;
const ENV_PREFIX: &str = "HEARSAY_";
/// Known variables that are not options of a node.
const OTHER_VARIABLES: [&str; 5] =
    ["HEARSAY_CONFIG", "HEARSAY_LOG", "HEARSAY_NODE", "HEARSAY_SHIP", "HEARSAY_TOKEN"];

// `node --help` prints the doc comments of the fields.
/// All options of a node; `None` or empty: not given.
#[derive(Args, Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
#[command(next_help_heading = "Options of a node")]
pub struct Options {
    /// Plug-ins to run (repeatable, or separated by commas) [default: none, a plain agent]
    #[arg(long, value_name = "ROLE", value_delimiter = ',')]
    pub role: Vec<String>,
    /// Name of this node [default: the host's name and the end of the node's id]
    #[arg(long)]
    pub name: Option<String>,
    /// Cluster of this node; nodes of different clusters ignore each other [default: default]
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// Address to serve HTTP at: IP:PORT, :PORT, PORT or IP; 0.0.0.0 is only IPv4, [::] is both [default:
    /// [::], first free port from 7500]
    #[arg(long, value_name = "ADDRESS")]
    #[serde(deserialize_with = "text_or_port")]
    pub http: Option<String>,
    /// Address to listen at for other nodes [default: [::], first free port from 7600]
    #[arg(long, value_name = "ADDRESS")]
    #[serde(deserialize_with = "text_or_port")]
    pub swarm: Option<String>,
    /// Address of the gateway, with --role gateway [default: [::], first free port from 8080]
    #[arg(long, value_name = "ADDRESS")]
    #[serde(deserialize_with = "text_or_port")]
    pub gateway: Option<String>,
    /// Range of addresses to which the gateway may forward requests, such as 10.0.0.0/8 (repeatable)
    /// [default: all that the address policy allows]
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub gateway_allow: Vec<String>,
    /// Gateway route that a service may announce: SERVICE=HOST/PREFIX, SERVICE=/PREFIX, or SERVICE=*/PREFIX
    /// for every host (repeatable) [default: all, except the paths of built-in roles]
    #[arg(long, value_name = "RULE", value_delimiter = ',')]
    pub gateway_routes: Vec<String>,
    /// Address to answer DNS at, over UDP and TCP [default: 127.0.0.1, first free port from 7553]
    #[arg(long, value_name = "ADDRESS")]
    #[serde(deserialize_with = "text_or_port")]
    pub dns: Option<String>,
    /// Seconds for which resolvers may keep a DNS record [default: 0]
    #[arg(long, value_name = "SECONDS")]
    pub dns_ttl: Option<u32>,
    /// Address to serve gRPC and xDS at [default: every address, first free port from 7700]
    #[arg(long, value_name = "ADDRESS")]
    #[serde(deserialize_with = "text_or_port")]
    pub grpc: Option<String>,
    /// Address to answer JSON-RPC at, by lines over TCP; without a port the first free one from 7800
    /// [default: none; POST /rpc of HTTP needs no option]
    #[arg(long, value_name = "ADDRESS")]
    #[serde(deserialize_with = "text_or_port")]
    pub jsonrpc_tcp: Option<String>,
    /// Address at which others reach this node, in place of the interfaces' addresses: a host name, an IP
    /// address or a network interface, with the port if it is mapped (repeatable)
    #[arg(long, value_name = "HOST[:PORT]", value_delimiter = ',')]
    pub advertise: Vec<String>,
    /// Address at which others reach this node's HTTP, if its port is mapped [default: the hosts of
    /// --advertise, with the port of --http]
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise_http: Option<String>,
    /// Node to join: host, host:port or multiaddr (repeatable); retried until one answers
    #[arg(long, value_name = "NODE", value_delimiter = ',')]
    pub join: Vec<String>,
    /// Do not discover nodes on the local network by mDNS
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_parser = BoolishValueParser::new(), hide_possible_values = true)]
    pub no_mdns: Option<bool>,
    /// File with the cluster key, made by `node keygen`; only nodes with the same key can join [default: the
    /// systemd credential hearsay.cluster.key, if any]
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// File with the ids of the nodes to admit, one per line [default: all nodes]
    #[arg(long, value_name = "FILE")]
    pub allow: Option<PathBuf>,
    /// Directory for keys and state [default: first free slot under $XDG_STATE_HOME/hearsay/CLUSTER]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Store nothing on disk; the node has a new identity at each start
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_parser = BoolishValueParser::new(), hide_possible_values = true)]
    pub ephemeral: Option<bool>,
    /// Unix socket: a path, a directory, or none [default: in the first usable of /run/hearsay,
    /// $XDG_RUNTIME_DIR/hearsay and the data directory]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<String>,
    /// Load sample data into the plug-ins
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_parser = BoolishValueParser::new(), hide_possible_values = true)]
    pub demo: Option<bool>,
    /// Zone of this node, such as a rack or an availability zone; clients can prefer near instances
    #[arg(long)]
    pub zone: Option<String>,
    /// Tag of the instances that this node offers (repeatable)
    #[arg(long, value_delimiter = ',')]
    pub tag: Vec<String>,
    /// Number of replicas of a journal, for the level `majority` [default: all replicas that ever stored it,
    /// without those removed by `node forget`]
    #[arg(long, value_name = "N")]
    pub replicas_expected: Option<NonZeroU32>,
    /// Retention time of the log plug-in, such as 12h or 30d, or unlimited [default: 30d]
    #[arg(long, value_name = "AGE")]
    pub log_max_age: Option<String>,
    /// Size limit of the log plug-in, such as 500MB or 1GiB, or unlimited; the oldest records are removed
    /// first [default: 1GiB]
    #[arg(long, value_name = "SIZE")]
    pub log_max_bytes: Option<String>,
    /// Further host name that is allowed in the Host header of requests (repeatable)
    #[arg(long, value_name = "HOST", value_delimiter = ',')]
    pub allow_host: Vec<String>,
    /// Address or network of a proxy with many clients; the share per host does not apply to it (repeatable)
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    pub trusted_proxy: Vec<String>,
    /// Allow writes to the plug-ins' paths, except /kv, from the network without the API token
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_parser = BoolishValueParser::new(), hide_possible_values = true)]
    pub open: Option<bool>,
    /// File with an API token for several nodes, 64 hexadecimal digits [default: each node makes its own,
    /// DATA-DIR/api-token]
    #[arg(long, value_name = "FILE")]
    pub api_token_file: Option<PathBuf>,
    /// Require the same proof for reads as for writes: the API token, a session of the pages, or the
    /// signature of another private node. Probes stay open
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_parser = BoolishValueParser::new(), hide_possible_values = true)]
    pub private: Option<bool>,
    /// Require the API token for writes over loopback, too, on a machine of several users. The Unix socket
    /// does not need it
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_parser = BoolishValueParser::new(), hide_possible_values = true)]
    pub loopback_needs_token: Option<bool>,
    /// Limit of concurrent HTTP connections; also bounded by the limit of open files [default: 20000]
    #[arg(long, value_name = "N")]
    pub max_connections: Option<NonZeroU32>,
    /// Limit of concurrent blocking queries, event streams and held registrations; at most four fifths of the
    /// connections [default: 16000]
    #[arg(long, value_name = "N")]
    pub max_streams: Option<NonZeroU32>,
    /// Directory of registration files: *.toml, and *.json in Consul's format; the node watches it for
    /// changes
    #[arg(long, value_name = "DIR")]
    pub services_dir: Option<PathBuf>,
    /// Allow checks that run a command in files of --services-dir
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_parser = BoolishValueParser::new(), hide_possible_values = true)]
    pub allow_exec_checks: Option<bool>,
    /// Format of the log: text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
}

/// Deserialises an address; a port alone may be a number.
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
                .map_err(|_| E::custom(format!("{port} is not a port; give a number from 0 to 65535")))
        }
    }
    deserializer.deserialize_any(TextOrPort).map(Some).map_err(D::Error::custom)
}

/// A clap command that has only the options of a node, to parse variables with.
#[derive(Parser)]
struct OptionsCommand {
    #[command(flatten)]
    options: Options,
}

impl Options {
    /// Returns the names of all options, as in flags (without `--`) and in the file.
    pub fn names() -> Vec<String> {
        let command = OptionsCommand::command();
        command.get_arguments().filter_map(|arg| arg.get_long().map(str::to_owned)).collect()
    }

    /// Reads a configuration file.
    ///
    /// # Errors
    /// Names the file, the line and, for an unknown key, the known keys.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let failed = |problem: String| ConfigError::File { path: path.to_owned(), problem };
        let content = read_file(path, FILE_BYTES_MAX)
            .map_err(|error| failed(error.to_string()))?
            .ok_or_else(|| failed("the file does not exist".into()))?;
        toml::from_str(&content.text).map_err(|error| failed(error.to_string().trim_end().to_owned()))
    }

    /// Like [`or`](Self::or), but for two different sources: `ephemeral` and `data_dir` exclude each other,
    /// so if `self` sets one of them, the other is dropped from `lower` and not combined with it.
    pub fn over(self, mut lower: Self) -> Self {
        if self.ephemeral == Some(true) {
            lower.data_dir = None;
        }
        if self.data_dir.is_some() {
            lower.ephemeral = None;
        }
        self.or(lower)
    }

    /// Returns these options, with those that are not given taken from `lower`.
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
            grpc: self.grpc.or(lower.grpc),
            dns_ttl: self.dns_ttl.or(lower.dns_ttl),
            jsonrpc_tcp: self.jsonrpc_tcp.or(lower.jsonrpc_tcp),
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
            api_token_file: self.api_token_file.or(lower.api_token_file),
            private: self.private.or(lower.private),
            loopback_needs_token: self.loopback_needs_token.or(lower.loopback_needs_token),
            max_connections: self.max_connections.or(lower.max_connections),
            max_streams: self.max_streams.or(lower.max_streams),
            services_dir: self.services_dir.or(lower.services_dir),
            allow_exec_checks: self.allow_exec_checks.or(lower.allow_exec_checks),
            log_format: self.log_format.or(lower.log_format),
        }
    }
}

/// Environment variables. An argument, so that tests do not change the environment of the process.
#[derive(Clone, Debug, Default)]
pub struct Environment(BTreeMap<String, OsString>);

impl Environment {
    /// Returns the environment of this process.
    pub fn of_process() -> Self {
        std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value))).collect()
    }

    /// Returns a variable's value. An empty value counts as not set: compose files and CI systems pass
    /// missing values as empty.
    pub fn get(&self, name: &str) -> Option<&OsString> {
        self.0.get(name).filter(|value| !value.is_empty())
    }

    /// Returns the directory in a variable. Relative paths are ignored (XDG base directory specification).
    pub(crate) fn directory(&self, name: &str) -> Option<PathBuf> {
        self.get(name).map(PathBuf::from).filter(|path| path.is_absolute())
    }

    /// Returns the user's state directory (XDG base directory specification).
    pub(crate) fn state_home(&self) -> Option<PathBuf> {
        self.directory("XDG_STATE_HOME").or_else(|| Some(self.directory("HOME")?.join(".local/state")))
    }

    /// Returns the options in `HEARSAY_*` variables.
    ///
    /// # Errors
    /// Names the variable with an invalid value.
    pub fn options(&self) -> Result<Options, ConfigError> {
        let mut options = Options::default();
        for name in Options::names() {
            let variable = variable(&name);
            let Some(value) = self.get(&variable) else { continue };
            let mut flag = OsString::from(format!("--{name}="));
            flag.push(value);
            let parsed = OptionsCommand::try_parse_from([OsString::new(), flag])
                .map_err(|error| ConfigError::Environment { variable, problem: first_line(&error) })?;
            options = options.or(parsed.options);
        }
        Ok(options)
    }

    /// Returns unknown `HEARSAY_*` variables, most likely misspelt. They are not an error, because Kubernetes
    /// sets such variables for a service named `hearsay`.
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
