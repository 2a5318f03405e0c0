//! A check, as it was registered.

use std::{collections::BTreeMap, time::Duration};

use hearsay_protocol::record::Health;
use serde::{Deserialize, Serialize};

/// The interval of a check that states none.
pub const INTERVAL_DEFAULT: Duration = Duration::from_secs(10);
/// The timeout of a check that states none.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_secs(2);
/// Longer intervals and TTLs are cut to this: a year overflows no clock.
pub(super) const DURATION_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// A check, as it was registered and has been validated.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CheckSpec {
    /// Its id, unique on this node: `service:<instance id>` of an only one, `service:<instance id>:<n>` from
    /// 1 of several, unless the registration states another.
    pub id: String,
    /// Its name, for people.
    pub name: String,
    /// Its kind, and the parameters of that kind.
    pub kind: CheckKind,
    /// From the start of one run to the start of the next.
    pub interval: Duration,
    /// How long a run may take. Below `interval`.
    pub timeout: Duration,
    /// After a failure that has not changed the status, the next run begins this much later; `None`: after `interval`.
    pub retry_interval: Option<Duration>,
    /// Failures in a row before it warns; `None`: never.
    pub failures_before_warning: Option<u32>,
    /// Failures in a row before it is critical; at least 1.
    pub failures_before_critical: u32,
    /// Successes in a row before it passes; at least 1.
    pub successes_before_passing: u32,
    /// How long it may be critical before its instance is deregistered; `None`: for ever.
    pub deregister_after: Option<Duration>,
    /// Its status before its first run.
    pub initial_status: Health,
}

/// The kind of a check, with its parameters.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum CheckKind {
    /// Sends a request.
    Http(HttpCheck),
    /// Opens a connection to `host:port`.
    Tcp {
        /// `host:port`
        address: String,
    },
    /// Calls `grpc.health.v1.Health/Check`.
    Grpc {
        /// `host:port`
        address: String,
        /// The service whose health is read; empty: the server as a whole.
        service: String,
        /// Whether to use TLS.
        tls: bool,
        /// Whether any certificate will do.
        tls_skip_verify: bool,
    },
    /// Waits for reports.
    Ttl {
        /// How long one report holds.
        ttl: Duration,
    },
    /// Follows another instance of this node (by id), or any passing instance of a service.
    Alias {
        /// The id of an instance that this node holds.
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
    /// The word that users write.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Http(_) => "http",
            Self::Tcp { .. } => "tcp",
            Self::Grpc { .. } => "grpc",
            Self::Ttl { .. } => "ttl",
            Self::Alias { .. } => "alias",
            Self::Watch { .. } => "watch",
            Self::Process(_) => "process",
            Self::Exec { .. } => "exec",
        }
    }
}

/// An HTTP request and what is expected of its answer.
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
    /// Whether any certificate will do.
    pub tls_skip_verify: bool,
}

/// Which process: a pid alone is given to another process after the first has ended.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// The pid.
    pub pid: i32,
    /// When it started, in clock ticks after the boot (field 22 of `/proc/PID/stat`).
    pub start_ticks: u64,
    /// Which boot: `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
}
