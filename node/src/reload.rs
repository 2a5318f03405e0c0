//! Reloading: options that are read again while the node runs, and the tasks that go by them.

use std::collections::{BTreeMap, BTreeSet};

use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle,
};

use crate::{
    config::{Config, Join},
    driver::{Neighbourhood, Order, Reloaded},
    seek,
};

/// The tasks that look for what `--join` names, one for each target.
#[derive(Debug)]
pub(crate) struct Joins {
    tasks: BTreeMap<String, JoinHandle<()>>,
    orders: mpsc::Sender<Order>,
    neighbourhood: watch::Receiver<Neighbourhood>,
}

impl Joins {
    pub(crate) fn new(orders: mpsc::Sender<Order>, neighbourhood: watch::Receiver<Neighbourhood>) -> Self {
        Self { tasks: BTreeMap::new(), orders, neighbourhood }
    }

    /// Looks for these targets and no others.
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
                tokio::spawn(seek::join(target.clone(), self.orders.clone(), self.neighbourhood.clone()))
            });
        }
    }
}

/// Reads the options again, as SIGHUP asks. Either all that can change does, or nothing; the log says which.
pub(crate) async fn reload(
    config: &mut Config,
    own_tags: &BTreeMap<String, Vec<String>>,
    orders: &mpsc::Sender<Order>,
    joins: &mut Joins,
) {
    let new = match config.reload() {
        Ok(new) => new,
        Err(error) => {
            let advice = error.advice();
            tracing::error!(%error, advice, "the options are not reloaded and nothing was changed");
            return;
        }
    };
    let reloaded = Reloaded {
        allowed: new.allowed.as_ref().map(|nodes| nodes.iter().copied().collect()),
        tags: own_tags.iter().map(|(service, own)| (service.clone(), all_tags(own, &new.tags))).collect(),
        zone: new.zone.clone(),
    };
    let (tell, told) = oneshot::channel();
    // An error: the driver is gone, and the node is stopping.
    let answer = match orders.send(Order::Reload(reloaded, tell)).await {
        Ok(()) => told.await,
        Err(_) => return,
    };
    match answer {
        Ok(Ok(())) => (),
        Ok(Err(problem)) => {
            tracing::error!(problem, "the options are not reloaded and nothing was changed");
            return;
        }
        Err(_) => return,
    }
    for warning in &new.warnings {
        tracing::warn!("{warning}");
    }
    let waiting = config.take_over(new);
    joins.set(&config.join);
    if !waiting.is_empty() {
        let options = waiting.join(", ");
        tracing::warn!(options, "these options differ and cannot change while the node runs: restart it");
    }
    tracing::info!("options reloaded");
}

/// The tags of an instance: its plug-in's, then those of `--tag`.
pub(crate) fn all_tags(own: &[String], given: &[String]) -> Vec<String> {
    own.iter().chain(given.iter().filter(|tag| !own.contains(tag))).cloned().collect()
}
