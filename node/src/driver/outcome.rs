//! [`Outcome`]: answer to a driver command, sent once readers of the view can see the command's effect.

use tokio::sync::oneshot;

use crate::driver_command::{Fired, ForgetOutcome};

/// The result of a command.
pub(super) enum Outcome {
    Forgotten(oneshot::Sender<ForgetOutcome>, ForgetOutcome),
    Stated(oneshot::Sender<()>),
    Fired(oneshot::Sender<Fired>, Fired),
}

impl Outcome {
    /// Sends the result to the caller, which may be gone.
    pub(super) fn send(self) {
        match self {
            Self::Forgotten(answer, outcome) => _ = answer.send(outcome),
            Self::Stated(answer) => _ = answer.send(()),
            Self::Fired(answer, fired) => _ = answer.send(fired),
        }
    }
}
