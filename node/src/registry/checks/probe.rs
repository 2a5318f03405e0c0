//! The plan of a check: its spec, read once.

use std::time::Duration;

use hearsay_protocol::record::Invalid;
use tokio::time::timeout;

use super::{
    connect::Connector,
    exec::ExecProbe,
    grpc::GrpcProbe,
    http::HttpProbe,
    outcome::Outcome,
    spec::{CheckKind, CheckSpec, ProcessIdentity},
    tcp::TcpProbe,
};
use crate::registry::address::Target;

impl CheckSpec {
    /// Whether its addresses, headers and patterns can be used. Whether the address policy allows the target
    /// is found at each run.
    ///
    /// # Errors
    /// The field that cannot be used.
    pub fn validate(&self) -> Result<(), Invalid> {
        Plan::new(&self.kind).map(drop)
    }
}

/// The work of a check's task.
#[derive(Debug)]
pub(super) enum Plan {
    /// It runs at each interval.
    Probe(Box<Probe>),
    /// It waits for reports.
    Ttl(Duration),
    /// It waits for changes of the provider table.
    Alias { instance: Option<String>, service: Option<String> },
    /// It waits for the end of a connection.
    Watch(Target),
    /// It waits for the end of a process.
    Process(ProcessIdentity),
}

/// A check that runs at each interval.
#[derive(Debug)]
pub(super) enum Probe {
    Http(HttpProbe),
    Tcp(TcpProbe),
    Grpc(GrpcProbe),
    Exec(ExecProbe),
}

impl Plan {
    /// Reads the spec of a check.
    ///
    /// # Errors
    /// The field that cannot be used.
    pub(super) fn new(kind: &CheckKind) -> Result<Self, Invalid> {
        let probe = |probe| Self::Probe(Box::new(probe));
        Ok(match kind {
            CheckKind::Http(check) => probe(Probe::Http(HttpProbe::new(check)?)),
            CheckKind::Tcp { address } => probe(Probe::Tcp(TcpProbe::new(address)?)),
            CheckKind::Grpc { address, service, tls, tls_skip_verify } => {
                probe(Probe::Grpc(GrpcProbe::new(address, service, *tls, *tls_skip_verify)?))
            }
            CheckKind::Exec { argv } => probe(Probe::Exec(ExecProbe::new(argv)?)),
            CheckKind::Ttl { ttl } if ttl.is_zero() => {
                return Err(Invalid::new("ttl", "0s expires at once. Choose 15s, say"));
            }
            CheckKind::Ttl { ttl } => Self::Ttl(*ttl),
            CheckKind::Alias { instance: None, service: None } => {
                return Err(Invalid::new("alias", "names neither an instance nor a service"));
            }
            CheckKind::Alias { instance, service } => {
                Self::Alias { instance: instance.clone(), service: service.clone() }
            }
            CheckKind::Watch { address } => Self::Watch(Target::parse("watch", address)?),
            CheckKind::Process(identity) if identity.pid <= 0 => {
                return Err(Invalid::new("process", format!("{} is no pid", identity.pid)));
            }
            CheckKind::Process(identity) => Self::Process(identity.clone()),
        })
    }
}

impl Probe {
    /// Runs it once, for at most this long.
    pub(super) async fn run(&self, connector: &Connector, limit: Duration) -> Outcome {
        let run = async {
            match self {
                Self::Http(probe) => probe.run(connector).await,
                Self::Tcp(probe) => probe.run(connector).await,
                Self::Grpc(probe) => probe.run(connector, limit).await,
                // It ends by itself, with what the command has written by then.
                Self::Exec(probe) => return probe.run(limit).await,
            }
        };
        if matches!(self, Self::Exec(_)) {
            return run.await;
        }
        timeout(limit, run).await.unwrap_or_else(|_| Outcome::timed_out(limit))
    }
}
