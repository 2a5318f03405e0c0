//! What a change of registrations comes to, before anything is written: owners, limits, and which registrations are meant.

use std::path::Path;

use hearsay_protocol::record::check_size;

use super::{
    super::{
        INSTANCES_MAX, INSTANCES_OF_CLUSTER_MAX, Registered, RegistryError, Selector,
        address::HttpUrl,
        instance::largest,
        not_its_own,
        record::{Maintenance, Owner, Row},
        registration::Registration,
        scope::Scope,
        store::Write,
    },
    ACKNOWLEDGED_BY, Batch, Change, Effect, MAINTENANCE_OF, NODE_MAINTENANCE, Registrar, Reply,
};
use crate::timestamp::now_ms;

/// Registrations of one address without proof. Guess: a host runs some hundred programs at most.
const UNPROVEN_MAX: usize = 512;

impl Registrar {
    /// Decides a change by what the ones before it in the batch leave behind.
    pub(super) fn decide(&self, change: Change, batch: &mut Batch) {
        match change {
            Change::Register(registration, owner, answer) => {
                let id = registration.id.clone();
                match self.decide_register(*registration, owner, batch) {
                    Ok(()) => batch.replies.push(Reply::Registered(id, answer)),
                    // The client may be gone.
                    Err(error) => _ = answer.send(Err(error)),
                }
            }
            Change::Deregister(which, by, scope, answer) => {
                match self.decide_deregister(&which, &by, scope, batch) {
                    Ok(ids) => batch.replies.push(Reply::Removed(ids, answer)),
                    Err(error) => _ = answer.send(Err(error)),
                }
            }
            Change::Release(registered, connection, grace) => {
                if !self.is_current(&registered, Some(connection), batch) {
                    return;
                }
                if grace.is_zero() {
                    self.remove(registered.id, batch);
                } else {
                    batch.effects.push(Effect::Orphan(registered.id.clone()));
                    let timers = self.timers.0.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(grace).await;
                        // The registrar is gone: so is the registration.
                        _ = timers.send(Change::EndGrace(registered));
                    });
                }
            }
            Change::EndGrace(registered) => {
                let is_orphaned = self.lock().held.get(&registered.id).is_some_and(|held| held.is_orphaned);
                if is_orphaned && self.is_current(&registered, None, batch) {
                    self.remove(registered.id, batch);
                }
            }
            Change::Maintenance(id, reason, scope, answer) => {
                match self.decide_maintenance(id, reason, scope, batch) {
                    Ok(()) => batch.replies.push(Reply::Done(answer)),
                    Err(error) => _ = answer.send(Err(error)),
                }
            }
            Change::NodeMaintenance(reason, answer) => {
                let maintenance = reason.map(|reason| Maintenance { reason, since_ms: now_ms() });
                batch.writes.push(setting(NODE_MAINTENANCE.to_owned(), maintenance.as_ref()));
                batch.effects.push(Effect::MaintainNode(maintenance));
                batch.replies.push(Reply::Done(answer));
            }
            Change::Barrier(answer) => batch.replies.push(Reply::Barrier(answer)),
        }
    }

    /// Whether a held registration is still what its connection registered, and nothing before in this batch changes it.
    fn is_current(&self, registered: &Registered, connection: Option<u64>, batch: &Batch) -> bool {
        let state = self.lock();
        let held = state.held.get(&registered.id).filter(|held| held.generation == registered.generation);
        let is_owner = held.is_some_and(|held| match (&held.owner, connection) {
            (Owner::Connection(owner), Some(connection)) => *owner == connection,
            (_, connection) => connection.is_none(),
        });
        is_owner && !batch.planned.contains_key(&registered.id)
    }

    /// What there will be under an id after the changes of the batch so far.
    fn planned(&self, id: &str, batch: &Batch) -> Option<(Owner, Registration)> {
        match batch.planned.get(id) {
            Some(planned) => planned.clone(),
            None => {
                let state = self.lock();
                state.held.get(id).map(|held| (held.owner.clone(), held.row.registration.clone()))
            }
        }
    }

    fn decide_register(
        &self,
        registration: Registration,
        owner: Owner,
        batch: &mut Batch,
    ) -> Result<(), RegistryError> {
        let id = registration.id.clone();
        check_size(&largest(&registration, &self.host))?;
        let before = self.planned(&id, batch);
        if let Some((Owner::File(file), _)) = &before
            && owner != Owner::File(file.clone())
        {
            return Err(belongs_to_file(&id, file));
        }
        let scope = Scope::of(registration.registered_from);
        if before.as_ref().is_some_and(|(_, before)| !scope.includes(before)) {
            return Err(not_its_own(&id));
        }
        if before.is_none() {
            self.check_room(batch)?;
            self.check_share(scope, batch)?;
        }
        self.check_ids_of_checks(&registration, batch)?;
        let was_durable = before.as_ref().is_some_and(|(owner, _)| owner.is_durable());
        if before.as_ref().is_some_and(|(_, before)| before.updates.is_some()) {
            batch.writes.push(Write::Setting(format!("{ACKNOWLEDGED_BY}{id}"), None));
        }
        let row = Row { registration: registration.clone(), since_ms: now_ms() };
        if owner.is_durable() {
            batch.writes.push(Write::Put(Box::new(row.clone())));
        } else if was_durable {
            batch.writes.push(Write::Delete(id.clone()));
        }
        batch.planned.insert(id, Some((owner.clone(), registration)));
        batch.effects.push(Effect::Put(Box::new(row), owner));
        Ok(())
    }

    fn check_room(&self, batch: &Batch) -> Result<(), RegistryError> {
        let state = self.lock();
        let is_held = |id: &String| state.held.contains_key(id);
        let added = batch.planned.iter().filter(|(id, planned)| planned.is_some() && !is_held(id)).count();
        let removed = batch.planned.iter().filter(|(id, planned)| planned.is_none() && is_held(id)).count();
        let here = state.held.len() + added - removed;
        let room = INSTANCES_MAX.saturating_sub(self.parts.roles);
        if here >= room {
            return Err(RegistryError::Limit(format!(
                "this node holds {here} registrations, and {INSTANCES_MAX} instances with its roles are the limit of a node; register with another node"
            )));
        }
        let in_all = self.parts.view.read(|table| table.providers_len()) + added;
        if in_all >= INSTANCES_OF_CLUSTER_MAX {
            return Err(RegistryError::Limit(format!(
                "the cluster has {in_all} instances, and {INSTANCES_OF_CLUSTER_MAX} are its limit"
            )));
        }
        Ok(())
    }

    /// One host of the network that has shown no proof must not take the room of all others.
    fn check_share(&self, scope: Scope, batch: &Batch) -> Result<(), RegistryError> {
        let Some(address) = scope.address() else { return Ok(()) };
        let is_its_own = |registration: &Registration| registration.registered_from == Some(address);
        let held = self.matching(batch, is_its_own).len();
        if held < UNPROVEN_MAX {
            return Ok(());
        }
        Err(RegistryError::Limit(format!(
            "{address} has registered {held} programs here, which is the limit for an address without the node's token"
        )))
    }

    /// Reports name a check alone, so no two registrations may have one of the same id.
    fn check_ids_of_checks(&self, registration: &Registration, batch: &Batch) -> Result<(), RegistryError> {
        let state = self.lock();
        for check in &registration.checks {
            let held = state
                .of_check
                .get(&check.id)
                .filter(|instance| **instance != registration.id && !batch.planned.contains_key(*instance));
            let planned = batch.planned.iter().find(|(id, planned)| {
                let has = |(_, other): &(Owner, Registration)| other.checks.iter().any(|c| c.id == check.id);
                **id != registration.id && planned.as_ref().is_some_and(has)
            });
            if let Some(other) = held.or(planned.map(|(id, _)| id)) {
                return Err(RegistryError::Conflict(format!(
                    "the check {:?} is one of the instance {other:?}; give this one an id of its own",
                    check.id
                )));
            }
        }
        Ok(())
    }

    fn decide_deregister(
        &self,
        which: &Selector,
        by: &Owner,
        scope: Scope,
        batch: &mut Batch,
    ) -> Result<Vec<String>, RegistryError> {
        let ids = self.select(which, batch);
        if ids.is_empty() {
            return Err(self.not_here(which));
        }
        for id in &ids {
            match self.planned(id, batch) {
                Some((Owner::File(file), _)) if *by != Owner::File(file.clone()) => {
                    return Err(belongs_to_file(id, &file));
                }
                Some((_, registration)) if !scope.includes(&registration) => return Err(not_its_own(id)),
                _ => (),
            }
        }
        ids.iter().for_each(|id| self.remove(id.clone(), batch));
        Ok(ids)
    }

    fn remove(&self, id: String, batch: &mut Batch) {
        if let Some((_, registration)) = self.planned(&id, batch).filter(|(owner, _)| owner.is_durable()) {
            batch.writes.push(Write::Delete(id.clone()));
            if registration.updates.is_some() {
                batch.writes.push(Write::Setting(format!("{ACKNOWLEDGED_BY}{id}"), None));
            }
        }
        if self.lock().maintenance.contains_key(&id) {
            batch.writes.push(setting(format!("{MAINTENANCE_OF}{id}"), None));
        }
        batch.planned.insert(id.clone(), None);
        batch.effects.push(Effect::Remove(id));
    }

    /// The registrations that are meant, after the changes of the batch so far.
    fn select(&self, which: &Selector, batch: &Batch) -> Vec<String> {
        let by_id = |id: &String, is_meant: &dyn Fn(&Registration) -> bool| {
            let planned = self.planned(id, batch).filter(|(_, registration)| is_meant(registration));
            planned.map(|_| id.clone()).into_iter().collect::<Vec<_>>()
        };
        match which {
            Selector::Id(id) => by_id(id, &|_| true),
            Selector::ServiceAndId(service, id) => by_id(id, &|found| found.service == *service),
            Selector::Like(like) => {
                let found = by_id(&like.id, &|found| found.service == like.service);
                if !found.is_empty() {
                    return found;
                }
                self.matching(batch, |other| {
                    other.service == like.service
                        && other.port == like.port
                        && (&other.host, other.scheme) == (&like.host, like.scheme)
                })
            }
            Selector::Url(url) => {
                let Ok(url) = HttpUrl::parse("url", url) else { return Vec::new() };
                let (host, path) = (url.target.host.to_string(), url.path_beyond_root());
                self.matching(batch, |other| {
                    let is_host = host == other.local_host || other.host.as_ref() == Some(&host);
                    let is_path = path.is_none() || path == other.meta.get("path").map(String::as_str);
                    is_host && is_path && (url.scheme, url.target.port) == (other.scheme, other.port)
                })
            }
        }
    }

    fn matching(&self, batch: &Batch, is_meant: impl Fn(&Registration) -> bool) -> Vec<String> {
        let state = self.lock();
        let held = state.held.iter().filter(|(id, _)| !batch.planned.contains_key(*id));
        let held = held.filter(|(_, held)| is_meant(&held.row.registration)).map(|(id, _)| id.clone());
        let planned =
            batch.planned.iter().filter(|(_, planned)| planned.as_ref().is_some_and(|(_, r)| is_meant(r)));
        held.chain(planned.map(|(id, _)| id.clone())).collect()
    }

    /// Says that a registration is not here, and who holds it if that is known.
    fn not_here(&self, which: &Selector) -> RegistryError {
        let id = match which {
            Selector::Id(id) | Selector::ServiceAndId(_, id) => id,
            Selector::Like(like) => &like.id,
            Selector::Url(url) => {
                let url: String = url.chars().take(128).collect();
                return RegistryError::NotFound(format!("this node holds no registration at {url:?}"));
            }
        };
        let holder = self.parts.view.read(|table| {
            let found = table.providers_with_id(id).next()?;
            Some((found.node_id == self.parts.me, found.node.clone(), found.instance.service.clone()))
        });
        let id: String = id.chars().take(128).collect();
        RegistryError::NotFound(match holder {
            Some((true, _, service)) => {
                format!("{id:?} is an instance of the service {service:?}, not of that one")
            }
            Some((false, node, _)) => return RegistryError::HeldElsewhere { id, node },
            None => format!("this node holds no registration with the id {id:?}; /registrations lists them"),
        })
    }

    fn decide_maintenance(
        &self,
        id: String,
        reason: Option<String>,
        scope: Scope,
        batch: &mut Batch,
    ) -> Result<(), RegistryError> {
        match self.planned(&id, batch) {
            None => return Err(self.not_here(&Selector::Id(id))),
            Some((_, registration)) if !scope.includes(&registration) => return Err(not_its_own(&id)),
            Some(_) => (),
        }
        let maintenance = reason.map(|reason| Maintenance { reason, since_ms: now_ms() });
        batch.writes.push(setting(format!("{MAINTENANCE_OF}{id}"), maintenance.as_ref()));
        batch.effects.push(Effect::Maintain(id, maintenance));
        Ok(())
    }
}

fn setting(name: String, maintenance: Option<&Maintenance>) -> Write {
    Write::Setting(name, maintenance.and_then(|maintenance| serde_json::to_string(maintenance).ok()))
}

fn belongs_to_file(id: &str, file: &Path) -> RegistryError {
    RegistryError::Conflict(format!("{id:?} is registered by the file {}; change that file", file.display()))
}
