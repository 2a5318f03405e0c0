//! [`OperatorRequest`]: an operator's request to the node's main loop, to leave or to forget a member.

use hearsay_protocol::NodeId;
use tokio::sync::oneshot;

use crate::driver_command::ForgetOutcome;

/// A request of an operator, from HTTP to the main loop in [`run`](crate::run). The channel is bounded. If it
/// is full, HTTP refuses the request instead of waiting.
#[derive(Debug)]
pub enum OperatorRequest {
    /// Leave the cluster, drain and stop.
    Leave,
    /// Forget a member that has failed or left. The answer is sent once readers see the effect.
    Forget(NodeId, oneshot::Sender<ForgetOutcome>),
}
