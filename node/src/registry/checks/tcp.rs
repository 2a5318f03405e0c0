//! `tcp` check: passes if a connection opens.

use hearsay_protocol::Invalid;

use super::{connect::Connector, outcome::Outcome};
use crate::registry::address::Target;

/// A check that opens a connection and closes it.
#[derive(Debug)]
pub(super) struct TcpProbe {
    pub(super) target: Target,
}

impl TcpProbe {
    /// Returns a check of `host:port`.
    pub(super) fn new(address: &str) -> Result<Self, Invalid> {
        Ok(Self { target: Target::parse("tcp", address)? })
    }

    /// Runs the check once. The caller enforces the timeout.
    pub(super) async fn run(&self, connector: &Connector) -> Outcome {
        match connector.connect(&self.target).await {
            Ok(_) => Outcome::passing(format!("connected to {}", self.target)),
            Err(error) => error.into(),
        }
    }
}
