//! [`Evidence`]: a signed observation of another node's liveness.

use serde::{Deserialize, Serialize};

use crate::{Identity, Incarnation, NodeId, Version, id::Signature, record::signed_bytes};

/// Confidence of an observer in its report.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Strength {
    /// The subject does not answer.
    Weak,
    /// The subject's address refuses connections: its process is gone.
    Strong,
}

/// Evidence: one node's observation of another one's liveness, signed by the observer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Evidence {
    /// The statement that is signed.
    pub claim: Claim,
    signature: Signature,
}

/// Content of [`Evidence`]: `observer` found `subject` gone or silent, as of one version of the subject's
/// header.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Claim {
    /// The node that made the observation.
    pub observer: NodeId,
    /// The node that was observed.
    pub subject: NodeId,
    /// The subject's incarnation.
    pub incarnation: Incarnation,
    /// The version of the subject's header. A newer header refutes the claim.
    pub version: Version,
    /// Whether the observer found the subject silent or gone.
    pub strength: Strength,
}

impl Claim {
    /// Signs the claim for a cluster.
    pub fn sign(self, me: &Identity, cluster: &str) -> Evidence {
        let signature = me.sign(&signed_bytes("evidence", cluster, &self));
        Evidence { claim: self, signature }
    }
}

impl Evidence {
    /// Whether the claim carries its observer's signature for this cluster.
    pub fn is_signed(&self, cluster: &str) -> bool {
        self.claim.observer.has_signed(&signed_bytes("evidence", cluster, &self.claim), &self.signature)
    }
}
