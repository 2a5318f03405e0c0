//! What happens in the cluster, as the log tells it to people. Names come from others and are escaped.

use hearsay_protocol::{io::Event, providers::MemberState};

/// Writes an event to the log.
pub fn log(event: &Event) {
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
            tracing::debug!(%by, %subject, ?strength, "a member is reported");
        }
        Event::Refuted { by, version } => {
            tracing::info!(%by, version = version.0, "refuted a report of this node")
        }
        Event::NameTaken(by) => {
            tracing::warn!(%by, "another live member has this node's name; give one of the two another --name")
        }
        Event::KeyTaken(newer) => tracing::error!(
            %newer,
            "another process runs under this node's key: its data dir was copied. It is being told to stop; \
             give it a data dir of its own"
        ),
        Event::Forgotten { id, name, by } => {
            let name = name.escape_debug().to_string();
            tracing::info!(name, %id, %by, "member forgotten: an operator said so");
        }
        Event::Misbehaved(from, what) => {
            tracing::warn!(%from, what, "a peer sent what is forged or malformed")
        }
    }
}
