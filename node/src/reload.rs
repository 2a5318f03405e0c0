//! Applies changed options while the node runs (`reload`), and starts and stops the tasks of `--join`
//! ([`Joins`]).

use std::collections::{BTreeMap, BTreeSet};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use crate::{
    config::{Config, Join},
    discovery,
    driver_command::{DriverCommand, Neighbourhood, Reloaded},
};

/// Join tasks: one for each target of `--join`, which connects to it.
#[derive(Debug)]
pub(crate) struct Joins {
    tasks: BTreeMap<String, JoinHandle<()>>,
    orders: mpsc::Sender<DriverCommand>,
    neighbourhood: watch::Receiver<Neighbourhood>,
}

impl Joins {
    /// Creates the set without tasks.
    pub(crate) fn new(
        orders: mpsc::Sender<DriverCommand>,
        neighbourhood: watch::Receiver<Neighbourhood>,
    ) -> Self {
        Self { tasks: BTreeMap::new(), orders, neighbourhood }
    }

    /// Starts and stops tasks, so that there is one for each of these targets.
    pub(crate) fn set(&mut self, targets: &[Join]) {
        let wanted: BTreeSet<String> = targets.iter().map(ToString::to_string).collect();
        self.tasks.retain(|target, task| {
            let stays = wanted.contains(target);
            if !stays {
                task.abort();
            }
            stays
        });
        for target in targets {
            self.tasks.entry(target.to_string()).or_insert_with(|| {
                tokio::spawn(discovery::join(target.clone(), self.orders.clone(), self.neighbourhood.clone()))
            });
        }
    }
}

/// Reloads the options on SIGHUP. Either every change takes effect that needs no restart, or none does. The
/// log names the changes that need one.
pub(crate) async fn reload(
    config: &mut Config,
    own_tags: &BTreeMap<String, Vec<String>>,
    orders: &mpsc::Sender<DriverCommand>,
    joins: &mut Joins,
) {
    let new = match config.reload() {
        Ok(new) => new,
        Err(error) => {
            let advice = error.advice();
            tracing::error!(%error, advice, "options not reloaded; nothing was changed");
            return;
        }
    };
    let reloaded = Reloaded {
        allowed: new.allowed.as_ref().map(|nodes| nodes.iter().copied().collect()),
        tags: own_tags.iter().map(|(service, own)| (service.clone(), all_tags(own, &new.tags))).collect(),
        zone: new.zone.clone(),
    };
    let (sender, outcome) = oneshot::channel();
    // An error means that the driver is gone: the node is stopping.
    let outcome = match orders.send(DriverCommand::Reload(reloaded, sender)).await {
        Ok(()) => outcome.await,
        Err(_) => return,
    };
    match outcome {
        Ok(Ok(())) => (),
        Ok(Err(problem)) => {
            tracing::error!(problem, "options not reloaded; nothing was changed");
            return;
        }
        Err(_) => return,
    }
    for warning in &new.warnings {
        tracing::warn!("{warning}");
    }
    let unchanged = config.take_over(new);
    joins.set(&config.join);
    if !unchanged.is_empty() {
        let options = unchanged.join(", ");
        tracing::warn!(options, "these options have changed but need a restart of the node");
    }
    tracing::info!("options reloaded");
}

/// Returns the tags of an instance: those of its plug-in, then those of `--tag`.
pub(crate) fn all_tags(own: &[String], given: &[String]) -> Vec<String> {
    own.iter().chain(given.iter().filter(|tag| !own.contains(tag))).cloned().collect()
}
