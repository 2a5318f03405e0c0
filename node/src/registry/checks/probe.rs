//! Parses a check's spec into a [`Plan`] (probe at intervals, or wait for a report, change or exit), which
//! also validates the spec. Runs one probe (HTTP, TCP, UDP, HTTP/2 PING, gRPC, exec) with its time limit.

use std::time::Duration;

use hearsay_protocol::Invalid;
use tokio::time::timeout;

use super::{
    connect::Connector,
    exec::ExecProbe,
    grpc::GrpcProbe,
    h2ping::H2pingProbe,
    http::HttpProbe,
    outcome::Outcome,
    spec::{CheckKind, CheckSpec, ProcessIdentity},
    tcp::TcpProbe,
    udp::UdpProbe,
};
use crate::registry::address::Target;

impl CheckSpec {
    /// Checks addresses, headers and patterns. The address policy judges the target at each run.
    ///
    /// # Errors
    /// Names the invalid field.
    pub fn validate(&self) -> Result<(), Invalid> {
        Plan::new(&self.kind).map(drop)
    }
}

/// The work of a check's task.
#[derive(Debug)]
pub(super) enum Plan {
    /// Runs at each interval.
    Probe(Box<Probe>),
    /// Waits for reports.
    Ttl(Duration),
    /// Waits for changes of the provider table.
    Alias { instance: Option<String>, service: Option<String> },
    /// Waits for the end of a connection.
    Watch(Target),
    /// Waits for the end of a process.
    Process(ProcessIdentity),
}

/// A check that runs at each interval.
#[derive(Debug)]
pub(super) enum Probe {
    Http(HttpProbe),
    Tcp(TcpProbe),
    Udp(UdpProbe),
    H2ping(H2pingProbe),
    Grpc(GrpcProbe),
    Exec(ExecProbe),
}

impl Plan {
    /// Parses the spec of a check.
    ///
    /// # Errors
    /// Names the invalid field.
    pub(super) fn new(kind: &CheckKind) -> Result<Self, Invalid> {
        let probe = |probe| Self::Probe(Box::new(probe));
        Ok(match kind {
            CheckKind::Http(check) => probe(Probe::Http(HttpProbe::new(check)?)),
            CheckKind::Tcp { address, tls } => probe(Probe::Tcp(TcpProbe::new(address, tls)?)),
            CheckKind::Udp { address } => probe(Probe::Udp(UdpProbe::new(address)?)),
            CheckKind::H2ping { address, tls } => probe(Probe::H2ping(H2pingProbe::new(address, tls)?)),
            CheckKind::Grpc { address, service, tls } => {
                probe(Probe::Grpc(GrpcProbe::new(address, service, tls)?))
            }
            CheckKind::Exec { argv } => probe(Probe::Exec(ExecProbe::new(argv)?)),
            CheckKind::Ttl { ttl } if ttl.is_zero() => {
                return Err(Invalid::new("ttl", "0s expires at once; choose 15s, for example"));
            }
            CheckKind::Ttl { ttl } => Self::Ttl(*ttl),
            CheckKind::Alias { instance: None, service: None } => {
                return Err(Invalid::new("alias", "has neither an instance nor a service; give one of them"));
            }
            CheckKind::Alias { instance, service } => {
                Self::Alias { instance: instance.clone(), service: service.clone() }
            }
            CheckKind::Watch { address } => Self::Watch(Target::parse("watch", address)?),
            CheckKind::Process(identity) if identity.pid <= 0 => {
                return Err(Invalid::new("process", format!("{} is not a pid", identity.pid)));
            }
            CheckKind::Process(identity) => Self::Process(identity.clone()),
        })
    }
}

impl Probe {
    /// Runs the check once, for at most `limit`.
    pub(super) async fn run(&self, connector: &Connector, limit: Duration) -> Outcome {
        let run = async {
            match self {
                Self::Http(probe) => probe.run(connector).await,
                Self::Tcp(probe) => probe.run(connector).await,
                Self::H2ping(probe) => probe.run(connector).await,
                Self::Grpc(probe) => probe.run(connector, limit).await,
                // These enforce the limit themselves: a timeout of a command reports the output so far, and
                // silence after a datagram is a success.
                Self::Exec(probe) => probe.run(limit).await,
                Self::Udp(probe) => probe.run(connector, limit).await,
            }
        };
        if matches!(self, Self::Exec(_) | Self::Udp(_)) {
            return run.await;
        }
        timeout(limit, run).await.unwrap_or_else(|_| Outcome::timed_out(limit))
    }

    /// Whether a run usually lasts as long as its time limit.
    pub(super) fn is_slow(&self) -> bool {
        matches!(self, Self::Udp(_))
    }
}
