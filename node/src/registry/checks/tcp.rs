//! `tcp` check: passes if a connection opens; with TLS, if the handshake completes, too.

use hearsay_protocol::Invalid;

use super::{
    connect::Connector,
    outcome::Outcome,
    spec::CheckTls,
    tls::{Protocol, TlsOptions},
};
use crate::registry::address::Target;

/// A check that opens a connection and closes it.
#[derive(Debug)]
pub(super) struct TcpProbe {
    pub(super) target: Target,
    pub(super) tls: Option<TlsOptions>,
}

impl TcpProbe {
    /// Returns a check of `host:port`.
    pub(super) fn new(address: &str, tls: &CheckTls) -> Result<Self, Invalid> {
        Ok(Self { target: Target::parse("tcp", address)?, tls: TlsOptions::parse(tls, Protocol::Unstated)? })
    }

    /// Runs the check once. The caller enforces the timeout.
    pub(super) async fn run(&self, connector: &Connector) -> Outcome {
        let with_tls = if self.tls.is_some() { " with TLS" } else { "" };
        match connector.open(&self.target, self.tls.as_ref()).await {
            Ok(_) => Outcome::passing(format!("connected to {}{with_tls}", self.target)),
            Err(error) => error.into(),
        }
    }
}
