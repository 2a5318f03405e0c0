//! Charges request bodies to a memory budget, and lists the reasons to refuse a body ([`BodyRefusal`]).

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The reason why a body is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum BodyRefusal {
    /// The body is larger than this many bytes, encoded or decoded.
    TooLarge(usize),
    /// The body did not arrive in time.
    TooSlow,
    /// All bodies together take too much memory.
    NoMemory,
    /// The connection broke, or the framing is malformed.
    Broken,
    /// The signature of the request covers another body.
    NotSigned,
    /// The content coding of the body is not supported.
    UnknownCoding,
    /// The body is not a complete stream of its content coding.
    Undecodable,
}

/// Memory charged to a body, released on drop.
pub(crate) type BodyPermit = Option<OwnedSemaphorePermit>;

/// Charges `bytes` more to a body.
///
/// # Errors
/// The budget has less left. Earlier charges stay.
pub(crate) fn charge(
    permit: &mut BodyPermit,
    bytes: usize,
    budget: &Arc<Semaphore>,
) -> Result<(), BodyRefusal> {
    let more = u32::try_from(bytes).map_err(|_| BodyRefusal::NoMemory)?;
    let more = Arc::clone(budget).try_acquire_many_owned(more).map_err(|_| BodyRefusal::NoMemory)?;
    match permit {
        Some(permit) => permit.merge(more),
        None => *permit = Some(more),
    }
    Ok(())
}
