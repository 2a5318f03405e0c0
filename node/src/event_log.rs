//! Writes a line to the node's log for each [`Event`] of the core. Names come from other nodes and are
//! escaped.

use hearsay_protocol::{Event, MemberState};

/// Writes an event to the log.
pub fn log_event(event: &Event) {
    match event {
        Event::Member(id, name, state) => {
            let name = name.escape_debug().to_string();
            match state {
                MemberState::Alive => tracing::info!(name, %id, "member is alive"),
                MemberState::Suspect => tracing::debug!(name, %id, "member is suspect"),
                MemberState::Failed => tracing::warn!(name, %id, "member failed"),
                MemberState::Left => tracing::info!(name, %id, "member left"),
            }
        }
        Event::Accused { by, subject, strength } => {
            tracing::debug!(%by, %subject, ?strength, "member reported");
        }
        Event::Refuted { by, version } => {
            tracing::info!(%by, version = version.0, "refuted a report about this node")
        }
        Event::NameTaken { name, first, other, shown } => {
            let (name, shown) = (name.escape_debug().to_string(), shown.escape_debug().to_string());
            tracing::warn!(
                name, %first, %other, shown,
                "two live members have one name; the one known later is shown under another name: start it with \
                 another --name"
            );
        }
        Event::KeyTaken(newer) => tracing::error!(
            %newer,
            "another process runs under this node's key: its data dir was copied. This node tells it to stop; \
             give it a data dir of its own"
        ),
        Event::Forgotten { id, name, by } => {
            let name = name.escape_debug().to_string();
            tracing::info!(name, %id, %by, "member forgotten by an operator");
        }
        Event::Misbehaved(from, what) => {
            tracing::warn!(%from, what, "a peer sent a forged or malformed message")
        }
    }
}
