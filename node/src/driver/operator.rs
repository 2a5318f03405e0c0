//! What an operator asks of a running node: other options, and forgetting a member.

use hearsay_protocol::{
    NodeId,
    io::{Command, Input},
};
use libp2p::PeerId;
use tokio::sync::oneshot;

use super::{Driver, Reloaded};
use crate::{
    control::Forgetting,
    swarm::{self, node_of},
};

/// What an order came to, told once readers see it.
pub(super) enum Outcome {
    Forgotten(oneshot::Sender<Forgetting>, Forgetting),
    Stated(oneshot::Sender<()>),
}

impl Outcome {
    pub(super) fn tell(self) {
        // The client may be gone.
        match self {
            Self::Forgotten(tell, outcome) => _ = tell.send(outcome),
            Self::Stated(tell) => _ = tell.send(()),
        }
    }
}

impl Driver {
    /// Goes by other options from now on.
    ///
    /// # Errors
    /// Which of them others would not take. Nothing was changed.
    pub(super) fn reload(&mut self, reloaded: Reloaded) -> Result<(), String> {
        let Reloaded { allowed, tags, zone } = reloaded;
        let presentation = self.presentation.with(&tags, zone);
        presentation.check().map_err(|error| format!("{error:#}"))?;
        self.presentation = presentation;
        self.present_addresses();
        self.swarm.behaviour_mut().allowed = allowed.as_deref().map(swarm::allow).into();
        if let Some(allowed) = allowed {
            let is_refused = |peer: &&PeerId| node_of(**peer).is_none_or(|node| !allowed.contains(&node));
            let refused: Vec<PeerId> = self.connected.keys().filter(is_refused).copied().collect();
            for peer in refused {
                _ = self.swarm.disconnect_peer_id(peer);
            }
        }
        Ok(())
    }

    /// Forgets a member that is not present, here and, by gossip, everywhere.
    pub(super) fn forget(&mut self, id: NodeId) -> Forgetting {
        match self.core.concluded(id) {
            // The table forgets a member long before the journals do.
            None if self.replication.journals.counts(id) => {
                self.replication.journals.forget_replica(id);
                Forgetting::Done
            }
            None => Forgetting::Unknown,
            Some(state) if state.is_present() => Forgetting::Present(state),
            Some(_) => {
                self.feed(Input::Command(Command::Forget(id)));
                match self.core.concluded(id) {
                    None => Forgetting::Done,
                    Some(state) => Forgetting::Present(state),
                }
            }
        }
    }
}
