//! Main task of a running node: waits for signals, an operator's requests and the end of the driver. It also
//! reloads the options on SIGHUP, and stores the known members every 30 s.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use hearsay_protocol::{Member, NodeId};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot},
};

use crate::{
    config::Config,
    driver_command::DriverCommand,
    hangup::{self, OnHangup},
    operator_request::OperatorRequest,
    reload::{self, Joins},
    signing::Signing,
    storage::{REMEMBERED_MAX, Remembered, Storage},
    view::View,
};

/// How often the members are stored for the next start.
const REMEMBER_EVERY: Duration = Duration::from_secs(30);
/// Time after the start at which the members are stored first, so that a copy of a young node's data
/// directory has them, too.
const REMEMBER_FIRST: Duration = Duration::from_secs(2);

/// Events that the main task waits for, besides signals.
pub(super) struct StopRequests {
    /// The end of the driver.
    pub(super) driver_ended: oneshot::Receiver<anyhow::Result<()>>,
    /// Requests of an operator over HTTP: leave, forget.
    pub(super) operator_requests: mpsc::Receiver<OperatorRequest>,
}

/// State of the main task.
pub(super) struct Node {
    pub(super) view: Arc<View>,
    pub(super) me: NodeId,
    pub(super) storage: Storage,
    pub(super) driver: mpsc::Sender<DriverCommand>,
    pub(super) config: Config,
    /// The tags that each plug-in has by default.
    pub(super) own_tags: BTreeMap<String, Vec<String>>,
    pub(super) joins: Joins,
    pub(super) signing: Arc<Signing>,
}

impl Node {
    /// Runs until a signal or an operator stops the node, or the driver ends.
    ///
    /// # Errors
    /// Why the driver ended.
    pub(super) async fn run_until_stopped(&mut self, stop_requests: StopRequests) -> anyhow::Result<()> {
        let StopRequests { mut driver_ended, mut operator_requests } = stop_requests;
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let on_hangup = OnHangup::of_this_process();
        let mut hangup = on_hangup.signals()?;
        let first = tokio::time::Instant::now() + REMEMBER_FIRST;
        let mut remember = tokio::time::interval_at(first, REMEMBER_EVERY);
        loop {
            tokio::select! {
                ended = &mut driver_ended => return ended.unwrap_or_else(|_| anyhow::bail!("the node's driver stopped; this is a defect")),
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                () = hangup::next(&mut hangup) => match on_hangup {
                    OnHangup::Reload => self.reload().await,
                    // With `Ignore`, `hangup::next` never returns.
                    OnHangup::Leave | OnHangup::Ignore => break,
                },
                request = operator_requests.recv() => match request {
                    Some(OperatorRequest::Forget(id, answer)) => _ = self.driver.send(DriverCommand::Forget(id, answer)).await,
                    Some(OperatorRequest::Leave) | None => break,
                },
                _ = remember.tick() => self.remember_members(),
            }
        }
        tokio::spawn(exit_at_signal(terminate, interrupt));
        tracing::info!("leaving; a second signal stops at once");
        Ok(())
    }

    async fn reload(&mut self) {
        reload::reload(&mut self.config, &self.own_tags, &self.driver, &mut self.joins).await;
        self.signing.set_allowed(self.config.allowed.clone());
    }

    /// Stores the members to dial at the next start, the present ones first. The last node of a cluster to
    /// leave sees no present member, so members that left before count too.
    pub(super) fn remember_members(&self) {
        let peers: Vec<Remembered> = self.view.read(|table| {
            let mut others: Vec<_> =
                table.members().filter(|m| m.id != self.me && !m.addresses.is_empty()).collect();
            others.sort_by_key(|member| (!member.state.is_present(), member.rank));
            let remembered = |m: &Member| Remembered {
                id: m.id,
                name: m.name.clone(),
                addresses: m.addresses.clone(),
                rank: m.rank,
            };
            others.into_iter().take(REMEMBERED_MAX).map(remembered).collect()
        });
        // Before the node has met a member, those stored by its last run are kept.
        if !peers.is_empty()
            && let Err(error) = self.storage.remember(&peers)
        {
            tracing::warn!(%error, "cannot store the known members");
        }
    }
}

/// Ends the process at the next signal.
async fn exit_at_signal(mut terminate: Signal, mut interrupt: Signal) {
    tokio::select! {
        _ = terminate.recv() => (),
        _ = interrupt.recv() => (),
    }
    std::process::exit(1);
}
