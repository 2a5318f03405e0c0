//! Cluster membership: which nodes exist, which of them are alive, and which are connected to each other.

mod case;
pub(crate) mod connections;
pub(crate) mod evidence;
pub(crate) mod liveness;
pub(crate) mod overlay;
pub(crate) mod patience;
pub(crate) mod prober;
pub(crate) mod state;
