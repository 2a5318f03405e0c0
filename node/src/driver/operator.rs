//! Part of [`Driver`]: applies reloaded options, and orders the cluster to forget a member.

use hearsay_protocol::{Command, Input, NodeId};
use libp2p::PeerId;

use super::state::Driver;
use crate::{
    driver_command::{ForgetOutcome, Reloaded},
    swarm::{self, node_of},
};

impl Driver {
    /// Applies reloaded options.
    ///
    /// # Errors
    /// The option that other nodes would refuse. No option was changed.
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

    /// Forgets a member that is not present, on this node and, by gossip, on all others.
    pub(super) fn forget(&mut self, id: NodeId) -> ForgetOutcome {
        match self.core.member_state(id) {
            // The table forgets a member long before the replica sets do.
            None if self.replication.journals.counts(id) => {
                self.replication.journals.forget_replica(id);
                ForgetOutcome::Done
            }
            None => ForgetOutcome::Unknown,
            Some(state) if state.is_present() => ForgetOutcome::Present(state),
            Some(_) => {
                self.handle_input(Input::Command(Command::Forget(id)));
                match self.core.member_state(id) {
                    None => ForgetOutcome::Done,
                    Some(state) => ForgetOutcome::Present(state),
                }
            }
        }
    }
}
