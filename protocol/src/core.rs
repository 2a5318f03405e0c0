//! Core: one node's protocol state machine. Composes membership, anti-entropy and the provider table's
//! changes.
//!
//! Sans-I/O: the same seed and the same inputs at the same times give the same outputs. The driver passes
//! inputs in and carries outputs out.
//!
//! The contract:
//! - Call [`Core::handle`] with every input, in order, with times that never decrease.
//! - After each call drain [`Core::poll_output`] to `None`, and carry out the outputs in that order.
//! - Pass [`Input::Tick`](crate::Input::Tick) when [`Core::poll_timeout`] is due. An early tick does nothing.
//!   A late tick shows that this node is short of CPU; the core then waits longer for other nodes.
//! - After [`Output::Fatal`](crate::Output::Fatal), stop.
//!
//! `core/learn.rs` applies entries of other nodes, `core/judge.rs` draws verdicts, `core/announce.rs` states
//! facts about this node, `core/clash.rs` defends its key, `core/forget.rs` removes members that are gone,
//! and `core/user_events.rs` fires and receives user events. `core/machine.rs` has the state that these files
//! share.

mod announce;
mod clash;
mod forget;
mod forget_orders;
mod judge;
mod key_clash;
mod learn;
mod machine;
mod messages;
mod namesakes;
mod next_version;
mod own;
mod rate_limit;
#[cfg(test)]
mod tests;
mod user_event_state;
mod user_events;

pub use machine::{Core, Startup};
pub use user_event_state::UserEventCounters;
