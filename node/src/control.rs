//! What the front ends (HTTP, signals) ask of the driver.

use hearsay_protocol::{NodeId, providers::MemberState};
use tokio::sync::oneshot;

/// A request to the driver. It travels over a bounded channel; whoever finds that full says so to its user and does not wait.
#[derive(Debug)]
pub enum Control {
    /// Say goodbye to the others, drain and stop.
    Leave,
    /// Forget a member that has failed or left. Answered once readers see the effect.
    Forget(NodeId, oneshot::Sender<Forgetting>),
}

/// What an order to forget came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Forgetting {
    /// The member is forgotten here, and the others are told.
    Done,
    /// There is no such member.
    Unknown,
    /// This node holds it in a state in which it is not forgotten.
    Present(MemberState),
}
