//! The memory that request bodies take, and why a body is refused.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Why a body was not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refusal {
    /// It is larger than so many bytes, decoded or not.
    TooLarge(usize),
    /// It did not arrive in time.
    TooSlow,
    /// All bodies together take too much memory.
    NoRoom,
    /// It broke off.
    Broken,
    /// Its request was signed with another body.
    NotSigned,
    /// Its content coding is not one that is decoded.
    UnknownCoding,
    /// It is no whole stream of its content coding.
    Undecodable,
}

/// The room that a body takes, until it is dropped.
pub(super) type Room = Option<OwnedSemaphorePermit>;

/// Takes so many more bytes of the room.
///
/// # Errors
/// There are not as many left.
pub(super) fn charge(taken: &mut Room, bytes: usize, room: &Arc<Semaphore>) -> Result<(), Refusal> {
    let more = u32::try_from(bytes).map_err(|_| Refusal::NoRoom)?;
    let more = Arc::clone(room).try_acquire_many_owned(more).map_err(|_| Refusal::NoRoom)?;
    match taken {
        Some(taken) => taken.merge(more),
        None => *taken = Some(more),
    }
    Ok(())
}
