//! Messages.
pub mod codec;
