//! Part of [`Registrar`]: decides on a change before anything is written (owners, scopes, limits and
//! selectors).

use std::{collections::BTreeMap, path::Path};

use hearsay_protocol::check_instance_size;

use super::{
    super::{
        address::HttpUrl,
        change::{Change, Registered, Selector},
        error::{RegistryError, forbidden_id},
        instance::{INSTANCES_MAX, INSTANCES_OF_CLUSTER_MAX, largest},
        record::{Maintenance, Owner, Row},
        registration::Registration,
        scope::Scope,
        store::Write,
    },
    ACKNOWLEDGED_BY, Batch, Effect, MAINTENANCE_OF, NODE_MAINTENANCE, Registrar, Reply, Stated,
    check_edits::remove_check,
};
use hearsay_services::now_ms;

/// Maximum number of registrations that one address may have without proof. Guess: a host runs some hundred
/// programs.
const UNPROVEN_MAX: usize = 512;

impl Registrar {
    /// Decides a change on the result of the earlier changes of the batch.
    pub(super) fn decide(&self, change: Change, batch: &mut Batch) {
        match change {
            Change::Register(registration, owner, answer) => {
                let id = registration.id.clone();
                match self.decide_register(*registration, owner, Stated::All, batch) {
                    Ok(()) => batch.replies.push(Reply::Registered(id, answer)),
                    // A send error means that the client is gone.
                    Err(error) => _ = answer.send(Err(error)),
                }
            }
            Change::RegisterKeepingChecks(registration, answer) => {
                let id = registration.id.clone();
                match self.decide_keeping_checks(*registration, batch) {
                    Ok(()) => batch.replies.push(Reply::Registered(id, answer)),
                    Err(error) => _ = answer.send(Err(error)),
                }
            }
            Change::AddCheck(added, scope, answer) => match self.decide_add_check(*added, scope, batch) {
                Ok(()) => batch.replies.push(Reply::Done(answer)),
                Err(error) => _ = answer.send(Err(error)),
            },
            Change::RemoveCheck(id, scope, answer) => match self.decide_remove_check(&id, scope, batch) {
                Ok(()) => batch.replies.push(Reply::Done(answer)),
                Err(error) => _ = answer.send(Err(error)),
            },
            Change::Deregister(selector, by, scope, answer) => {
                match self.decide_deregister(&selector, &by, scope, batch) {
                    Ok(ids) => batch.replies.push(Reply::Removed(ids, answer)),
                    Err(error) => _ = answer.send(Err(error)),
                }
            }
            Change::Release(registered, connection, grace) => {
                if !self.is_current(&registered, Some(connection), batch) {
                    return;
                }
                if grace.is_zero() {
                    self.plan_removal(registered.id, batch);
                } else {
                    batch.effects.push(Effect::Orphan(registered.id.clone()));
                    let timers = self.timers.0.clone();
                    tokio::spawn(async move {
                        tokio::time::sleep(grace).await;
                        // A send error means that the registrar is gone, and the registration with it.
                        _ = timers.send(Change::EndGrace(registered));
                    });
                }
            }
            Change::EndGrace(registered) => {
                let is_orphaned =
                    self.lock().registrations.get(&registered.id).is_some_and(|active| active.is_orphaned);
                if is_orphaned && self.is_current(&registered, None, batch) {
                    self.plan_removal(registered.id, batch);
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

    /// Whether a held registration is still the one that its connection made, and no earlier change of the
    /// batch concerns it.
    fn is_current(&self, registered: &Registered, connection: Option<u64>, batch: &Batch) -> bool {
        let state = self.lock();
        let active = state
            .registrations
            .get(&registered.id)
            .filter(|active| active.generation == registered.generation);
        let is_owner = active.is_some_and(|active| match (&active.owner, connection) {
            (Owner::Connection(owner), Some(connection)) => *owner == connection,
            (_, connection) => connection.is_none(),
        });
        is_owner && !batch.planned.contains_key(&registered.id)
    }

    /// Returns the registration of an id after the changes of the batch so far.
    pub(super) fn planned(&self, id: &str, batch: &Batch) -> Option<(Owner, Registration)> {
        match batch.planned.get(id) {
            Some(planned) => planned.clone(),
            None => {
                let state = self.lock();
                state
                    .registrations
                    .get(id)
                    .map(|active| (active.owner.clone(), active.row.registration.clone()))
            }
        }
    }

    pub(super) fn decide_register(
        &self,
        registration: Registration,
        owner: Owner,
        stated: Stated,
        batch: &mut Batch,
    ) -> Result<(), RegistryError> {
        let id = registration.id.clone();
        check_instance_size(&largest(&registration, &self.host))?;
        let before = self.planned(&id, batch);
        if let Some((Owner::File(file), _)) = &before
            && owner != Owner::File(file.clone())
        {
            return Err(belongs_to_file(&id, file));
        }
        let scope = Scope::of(registration.registered_from);
        if before.as_ref().is_some_and(|(_, before)| !scope.includes(before)) {
            return Err(forbidden_id(&id));
        }
        if before.is_none() {
            self.check_room(batch)?;
            self.check_share(scope, batch)?;
        }
        for (owner, deprived) in self.plan_takeovers(&registration, batch)? {
            self.plan_activation(deprived, owner, Stated::Nothing, batch);
        }
        self.plan_activation(registration, owner, stated, batch);
        Ok(())
    }

    fn plan_activation(&self, registration: Registration, owner: Owner, stated: Stated, batch: &mut Batch) {
        let id = registration.id.clone();
        let before = self.planned(&id, batch);
        let was_durable = before.as_ref().is_some_and(|(owner, _)| owner.is_durable());
        if before.as_ref().is_some_and(|(_, before)| before.updates.is_some()) {
            batch.writes.push(Write::Setting(format!("{ACKNOWLEDGED_BY}{id}"), None));
        }
        let row = Row { registration: registration.clone(), since_ms: now_ms() };
        if owner.is_durable() {
            batch.writes.push(Write::Upsert(Box::new(row.clone())));
        } else if was_durable {
            batch.writes.push(Write::Delete(id.clone()));
        }
        batch.planned.insert(id, Some((owner.clone(), registration)));
        batch.effects.push(Effect::Activate(Box::new(row), owner, stated));
    }

    fn check_room(&self, batch: &Batch) -> Result<(), RegistryError> {
        let state = self.lock();
        let is_held = |id: &String| state.registrations.contains_key(id);
        let added = batch.planned.iter().filter(|(id, planned)| planned.is_some() && !is_held(id)).count();
        let removed = batch.planned.iter().filter(|(id, planned)| planned.is_none() && is_held(id)).count();
        let count = state.registrations.len() + added - removed;
        let room = INSTANCES_MAX.saturating_sub(self.context.role_instances);
        if count >= room {
            return Err(RegistryError::Limit(format!(
                "this node has {count} registrations; with its roles, {INSTANCES_MAX} instances are the limit of a node. Register with another node"
            )));
        }
        let total = self.context.view.read(|table| table.providers_len()) + added;
        if total >= INSTANCES_OF_CLUSTER_MAX {
            return Err(RegistryError::Limit(format!(
                "the cluster has {total} instances, and {INSTANCES_OF_CLUSTER_MAX} are the limit. Deregister some first"
            )));
        }
        Ok(())
    }

    /// Refuses further registrations of an address without proof, so that one host cannot use up the limit.
    fn check_share(&self, scope: Scope, batch: &Batch) -> Result<(), RegistryError> {
        let Some(address) = scope.address() else { return Ok(()) };
        let is_from_it = |registration: &Registration| registration.registered_from == Some(address);
        let active = self.find(batch, is_from_it).len();
        if active < UNPROVEN_MAX {
            return Ok(());
        }
        Err(RegistryError::Limit(format!(
            "{address} has registered {active} programs here, the limit for an address without the node's token. Send the token, or deregister some first"
        )))
    }

    /// Returns the other registrations that lose checks to this one, without these checks.
    ///
    /// A report names only the check, so an id belongs to one instance. Between registrations in Consul's
    /// form the newer one replaces the check, as in Consul, if its caller may change the older one. Otherwise
    /// the id is refused.
    fn plan_takeovers(
        &self,
        registration: &Registration,
        batch: &Batch,
    ) -> Result<Vec<(Owner, Registration)>, RegistryError> {
        let scope = Scope::of(registration.registered_from);
        let mut deprived: BTreeMap<String, (Owner, Registration)> = BTreeMap::new();
        for check in &registration.checks {
            let Some(id) = self.other_instance_of_check(&check.id, &registration.id, batch) else { continue };
            let other = deprived.remove(&id).or_else(|| self.planned(&id, batch));
            let is_replaced = |(owner, other): &(Owner, Registration)| {
                registration.consul.is_some()
                    && other.consul.is_some()
                    && *owner == Owner::Api
                    && scope.includes(other)
            };
            let Some((owner, mut other)) = other.filter(is_replaced) else {
                return Err(RegistryError::Conflict(format!(
                    "the check id {:?} is used by the instance {id:?}; choose another id",
                    check.id
                )));
            };
            tracing::info!(
                check = check.id,
                from = id,
                to = registration.id,
                "a check was registered with another instance"
            );
            remove_check(&mut other, &check.id);
            deprived.insert(id, (owner, other));
        }
        Ok(deprived.into_values().collect())
    }

    /// Returns the id of another instance that has a check with this id.
    fn other_instance_of_check(&self, check: &str, instance: &str, batch: &Batch) -> Option<String> {
        let has = |(_, other): &(Owner, Registration)| other.checks.iter().any(|c| c.id == check);
        let mut planned = batch.planned.iter();
        let planned = planned.find(|(id, planned)| *id != instance && planned.as_ref().is_some_and(has));
        let active = || {
            let state = self.lock();
            let active = state.instance_of_check.get(check);
            active.filter(|id| *id != instance && !batch.planned.contains_key(*id)).cloned()
        };
        planned.map(|(id, _)| id.clone()).or_else(active)
    }

    fn decide_deregister(
        &self,
        selector: &Selector,
        by: &Owner,
        scope: Scope,
        batch: &mut Batch,
    ) -> Result<Vec<String>, RegistryError> {
        let ids = self.select(selector, batch);
        if ids.is_empty() {
            return Err(self.not_found(selector));
        }
        for id in &ids {
            match self.planned(id, batch) {
                Some((Owner::File(file), _)) if *by != Owner::File(file.clone()) => {
                    return Err(belongs_to_file(id, &file));
                }
                Some((_, registration)) if !scope.includes(&registration) => return Err(forbidden_id(id)),
                _ => (),
            }
        }
        ids.iter().for_each(|id| self.plan_removal(id.clone(), batch));
        Ok(ids)
    }

    fn plan_removal(&self, id: String, batch: &mut Batch) {
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

    /// Returns the ids of the selected registrations after the changes of the batch so far.
    fn select(&self, selector: &Selector, batch: &Batch) -> Vec<String> {
        let by_id = |id: &String, matches: &dyn Fn(&Registration) -> bool| {
            let planned = self.planned(id, batch).filter(|(_, registration)| matches(registration));
            planned.map(|_| id.clone()).into_iter().collect::<Vec<_>>()
        };
        match selector {
            Selector::Id(id) => by_id(id, &|_| true),
            Selector::ServiceAndId(service, id) => by_id(id, &|found| found.service == *service),
            Selector::Like(like) => {
                let found = by_id(&like.id, &|found| found.service == like.service);
                if !found.is_empty() {
                    return found;
                }
                self.find(batch, |other| {
                    other.service == like.service
                        && other.port == like.port
                        && (&other.host, other.scheme) == (&like.host, like.scheme)
                })
            }
            Selector::Url(url) => {
                let Ok(url) = HttpUrl::parse("url", url) else { return Vec::new() };
                let (host, path) = (url.target.host.to_string(), url.path_beyond_root());
                self.find(batch, |other| {
                    let is_host = host == other.local_host || other.host.as_ref() == Some(&host);
                    let is_path = path.is_none() || path == other.meta.get("path").map(String::as_str);
                    is_host && is_path && (url.scheme, url.target.port) == (other.scheme, other.port)
                })
            }
        }
    }

    pub(super) fn find(&self, batch: &Batch, matches: impl Fn(&Registration) -> bool) -> Vec<String> {
        let state = self.lock();
        let active = state.registrations.iter().filter(|(id, _)| !batch.planned.contains_key(*id));
        let active = active.filter(|(_, active)| matches(&active.row.registration)).map(|(id, _)| id.clone());
        let planned =
            batch.planned.iter().filter(|(_, planned)| planned.as_ref().is_some_and(|(_, r)| matches(r)));
        active.chain(planned.map(|(id, _)| id.clone())).collect()
    }

    /// Returns the error for an unknown registration, with its holder if the table lists it.
    fn not_found(&self, selector: &Selector) -> RegistryError {
        let id = match selector {
            Selector::Id(id) | Selector::ServiceAndId(_, id) => id,
            Selector::Like(like) => &like.id,
            Selector::Url(url) => {
                let url: String = url.chars().take(128).collect();
                return RegistryError::NotFound(format!(
                    "this node has no registration at {url:?}; /registrations lists them"
                ));
            }
        };
        let holder = self.context.view.read(|table| {
            let found = table.providers_with_id(id).next()?;
            Some((found.node_id == self.context.node_id, found.node.clone(), found.instance.service.clone()))
        });
        let id: String = id.chars().take(128).collect();
        RegistryError::NotFound(match holder {
            Some((true, _, service)) => {
                format!("{id:?} is an instance of the service {service:?}, not of the given one")
            }
            Some((false, node, _)) => return RegistryError::HeldElsewhere { id, node },
            None => format!("this node has no registration with the id {id:?}; /registrations lists them"),
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
            None => return Err(self.not_found(&Selector::Id(id))),
            Some((_, registration)) if !scope.includes(&registration) => return Err(forbidden_id(&id)),
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
