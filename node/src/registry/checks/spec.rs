//! [`CheckSpec`]: kind, parameters, times and thresholds of a check, as registered.

use std::{collections::BTreeMap, time::Duration};

use hearsay_protocol::Health;
use serde::{Deserialize, Serialize};

/// Default interval.
pub const INTERVAL_DEFAULT: Duration = Duration::from_secs(10);
/// Default timeout.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(2);
/// Upper bound of intervals and TTLs, so that clock arithmetic cannot overflow.
pub(super) const DURATION_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// The validated spec of a check.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CheckSpec {
    /// Id, unique on this node. Default: `service:<instance id>`, or `service:<instance id>:<n>` from 1 for
    /// several checks.
    pub id: String,
    /// Name for people.
    pub name: String,
    /// Kind, with its parameters.
    pub kind: CheckKind,
    /// From the start of one run to the start of the next.
    pub interval: Duration,
    /// Time limit of a run; below `interval`.
    pub timeout: Duration,
    /// Interval after a failure that did not change the status; `None`: `interval`.
    pub retry_interval: Option<Duration>,
    /// Consecutive failures before the status is warning; `None`: never.
    pub failures_before_warning: Option<u32>,
    /// Consecutive failures before the status is critical; at least 1.
    pub failures_before_critical: u32,
    /// Consecutive successes before the status is passing; at least 1.
    pub successes_before_passing: u32,
    /// Time in critical status after which the instance is deregistered; `None`: never.
    pub deregister_after: Option<Duration>,
    /// Status before the first run.
    pub initial_status: Health,
    /// Whether the request named the initial status. Registered again with one, a check takes it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_status_given: bool,
}

/// The kind of a check, with its parameters.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum CheckKind {
    /// Sends a request.
    Http(HttpCheck),
    /// Opens a connection to `host:port`, with a TLS handshake if TLS is used.
    Tcp {
        /// `host:port`
        address: String,
        /// TLS.
        #[serde(flatten)]
        tls: CheckTls,
    },
    /// Sends a datagram to `host:port`.
    Udp {
        /// `host:port`
        address: String,
    },
    /// Sends an HTTP/2 PING frame.
    H2ping {
        /// `host:port`
        address: String,
        /// TLS.
        #[serde(flatten)]
        tls: CheckTls,
    },
    /// Calls `grpc.health.v1.Health/Check`.
    Grpc {
        /// `host:port`
        address: String,
        /// The service whose health is read; empty: the server as a whole.
        service: String,
        /// TLS.
        #[serde(flatten)]
        tls: CheckTls,
    },
    /// Waits for reports.
    Ttl {
        /// Validity of a report.
        ttl: Duration,
    },
    /// Follows another instance of this node (by id), or any passing instance of a service.
    Alias {
        /// The id of an instance of this node.
        instance: Option<String>,
        /// The name of a service.
        service: Option<String>,
    },
    /// Holds a connection to `host:port` open.
    Watch {
        /// `host:port`
        address: String,
    },
    /// Watches a process of this machine.
    Process(ProcessIdentity),
    /// Runs a command.
    Exec {
        /// The program and its arguments.
        argv: Vec<String>,
    },
}

impl CheckKind {
    /// Returns the key of the kind in requests.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Http(_) => "http",
            Self::Tcp { .. } => "tcp",
            Self::Udp { .. } => "udp",
            Self::H2ping { .. } => "h2ping",
            Self::Grpc { .. } => "grpc",
            Self::Ttl { .. } => "ttl",
            Self::Alias { .. } => "alias",
            Self::Watch { .. } => "watch",
            Self::Process(_) => "process",
            Self::Exec { .. } => "exec",
        }
    }
}

/// TLS of a check that connects.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckTls {
    /// Whether to use TLS.
    #[serde(rename = "tls")]
    pub is_used: bool,
    /// Whether to accept any certificate.
    #[serde(rename = "tls_skip_verify")]
    pub skip_verify: bool,
    /// The name that the handshake states (SNI) and that the certificate must have; `None`: the host of the
    /// address.
    #[serde(rename = "tls_server_name", skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
}

/// An HTTP request and the expected answer.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct HttpCheck {
    /// `http://` or `https://`.
    pub url: String,
    /// The method; empty means GET.
    pub method: String,
    /// Headers to send.
    pub headers: BTreeMap<String, Vec<String>>,
    /// The body to send.
    pub body: String,
    /// The statuses that pass, as inclusive ranges; empty: 2xx.
    pub expect_status: Vec<(u16, u16)>,
    /// A pattern that the first 4 KiB of the body must match.
    pub expect_body: Option<String>,
    /// Whether to accept any certificate.
    pub tls_skip_verify: bool,
    /// The name that the TLS handshake states (SNI) and that the certificate must have; `None`: the host of
    /// the URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_server_name: Option<String>,
}

/// Identity of a process. A pid alone does not suffice, because it can be reused after the process has ended.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// The pid.
    pub pid: i32,
    /// Start time, in clock ticks after the boot (field 22 of `/proc/PID/stat`).
    pub start_ticks: u64,
    /// Id of the boot: `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
}
