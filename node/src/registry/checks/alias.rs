//! `alias` check: passes while another instance of this node, or any instance of a service, is passing.
//!
//! It reads the provider table after each change of the table. Without runs there is no hysteresis: each
//! outcome becomes the status.

use std::time::Duration;

use hearsay_protocol::{Health, NodeId, Provider, ProviderTable};
use tokio::time::{Instant, sleep_until};

use super::{outcome::Outcome, reporter::Reporter};
use crate::view::View;

/// Time for which a restored check keeps its status while its target is unknown. After a restart the table
/// has to fill first.
const RESTORE_GRACE: Duration = Duration::from_secs(10);

/// State of a running `alias` check.
#[derive(Debug)]
pub(super) struct Alias<'a> {
    pub(super) reporter: &'a Reporter,
    pub(super) view: &'a View,
    /// This node's id.
    pub(super) me: NodeId,
    /// The id of the followed instance, on this node.
    pub(super) instance: Option<&'a str>,
    /// The name of the followed service.
    pub(super) service: Option<&'a str>,
}

impl Alias<'_> {
    /// Runs the check.
    pub(super) async fn run(self, is_restored: bool) {
        let mut changes = self.view.subscribe();
        let grace_end = Instant::now() + RESTORE_GRACE;
        let mut is_awaited = is_restored;
        loop {
            changes.borrow_and_update();
            let is_grace = is_awaited && Instant::now() < grace_end;
            match self.view.read(|table| self.read_outcome(table)) {
                Some(outcome) => {
                    is_awaited = false;
                    self.reporter.set_if_new(outcome).await;
                }
                None if is_grace => (),
                None => self.reporter.set_if_new(self.unknown_outcome()).await,
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = sleep_until(grace_end), if is_grace => (),
            }
        }
    }

    /// Reads the outcome from the table. `None`: the followed instance or service is not in it.
    fn read_outcome(&self, table: &ProviderTable) -> Option<Outcome> {
        let own = self.reporter.key().instance.as_str();
        if let Some(id) = self.instance {
            let instance = table.instance(self.me, id).filter(|_| id != own)?;
            return Some(Outcome::new(instance.health, format!("instance {id} is {}", instance.health)));
        }
        let service = self.service?;
        // A check whose instance followed itself would never change.
        let is_own = |provider: &Provider| provider.node_id == self.me && provider.id == own;
        // A duplicate registration of the same program with another node does not count.
        let place = table.providers(service).find(|p| is_own(p)).and_then(|own| own.endpoint());
        let others = table.providers_distinct(service);
        let others = others.filter(|p| !is_own(p) && (place.is_none() || p.endpoint() != place));
        let health: Vec<Health> = others.map(|provider| provider.instance.health).collect();
        let passing = health.iter().filter(|health| **health == Health::Passing).count();
        let best = *health.iter().min()?;
        Some(Outcome::new(best, format!("{passing} of {} instances of {service} pass", health.len())))
    }

    fn unknown_outcome(&self) -> Outcome {
        match (self.instance, self.service) {
            (Some(id), _) => Outcome::critical(format!("this node holds no other instance {id}")),
            (None, service) => {
                Outcome::critical(format!("no other instance of {} is known", service.unwrap_or_default()))
            }
        }
    }
}
