//! Part of [`Registrar`]: adds or removes a single check by registering an edited registration in the place
//! of the old one, and keeps checks when a program registers again.

use hearsay_protocol::{Invalid, WEIGHT_DEFAULT};

use super::{
    super::{
        change::AddedCheck,
        error::{RegistryError, forbidden_id},
        record::Owner,
        registration::{CHECKS_MAX, ConsulFields, Registration},
        scope::Scope,
    },
    Batch, Registrar, Stated,
};

impl Registrar {
    /// Registers with the checks that the registration before had and the new one does not list.
    pub(super) fn decide_keeping_checks(
        &self,
        mut registration: Registration,
        batch: &mut Batch,
    ) -> Result<(), RegistryError> {
        let mut stated = Stated::All;
        if let Some((_, before)) = self.planned(&registration.id, batch) {
            let is_listed = |id: &str| registration.checks.iter().any(|check| check.id == id);
            let kept: Vec<_> = before.checks.into_iter().filter(|check| !is_listed(&check.id)).collect();
            let mut sent = before.consul.map(|fields| fields.checks).unwrap_or_default();
            sent.retain(|id, _| kept.iter().any(|check| check.id == *id));
            stated = Stated::AllBut(kept.iter().map(|check| check.id.clone()).collect());
            registration.checks.extend(kept);
            consul_fields(&mut registration).checks.extend(sent);
        }
        check_count(&registration)?;
        self.decide_register(registration, Owner::Api, stated, batch)
    }

    /// Adds a check to a registration, or replaces the one with the same id.
    pub(super) fn decide_add_check(
        &self,
        added: AddedCheck,
        scope: Scope,
        batch: &mut Batch,
    ) -> Result<(), RegistryError> {
        let AddedCheck { registration: registered, spec, sent } = added;
        let Some((owner, mut registration)) = self.planned(&registered, batch) else {
            let problem = format!("this node has no registration with the id {registered:?}");
            return Err(RegistryError::NotFound(problem));
        };
        if !scope.includes(&registration) {
            return Err(forbidden_id(&registered));
        }
        let id = spec.id.clone();
        registration.checks.retain(|check| check.id != id);
        registration.checks.push(spec);
        consul_fields(&mut registration).checks.insert(id.clone(), sent);
        check_count(&registration)?;
        scope.check(&registration).map_err(RegistryError::Forbidden)?;
        self.decide_edited(registration, owner, Stated::Only(id), batch)
    }

    /// Removes a check from its registration.
    pub(super) fn decide_remove_check(
        &self,
        id: &str,
        scope: Scope,
        batch: &mut Batch,
    ) -> Result<(), RegistryError> {
        let has_check = |registration: &Registration| registration.checks.iter().any(|check| check.id == id);
        let instance = self.find(batch, has_check).pop();
        let found = instance.and_then(|instance| self.planned(&instance, batch));
        let Some((owner, mut registration)) = found else {
            let id: String = id.chars().take(128).collect();
            let problem =
                format!("Unknown check ID {id:?}. Ensure that the check ID is passed, not the check name.");
            return Err(RegistryError::NotFound(problem));
        };
        if !scope.includes(&registration) {
            return Err(forbidden_id(&registration.id));
        }
        remove_check(&mut registration, id);
        self.decide_edited(registration, owner, Stated::Nothing, batch)
    }

    /// Registers an edited registration in the place of the one before.
    fn decide_edited(
        &self,
        registration: Registration,
        owner: Owner,
        stated: Stated,
        batch: &mut Batch,
    ) -> Result<(), RegistryError> {
        if let Owner::Connection(_) = owner {
            let id = &registration.id;
            let problem = format!("{id:?} is held by the connection of its program, which states its checks");
            return Err(RegistryError::Conflict(problem));
        }
        // One of a file is refused: the file states its checks.
        self.decide_register(registration, Owner::Api, stated, batch)
    }
}

/// Removes a check and its fields from a registration.
pub(super) fn remove_check(registration: &mut Registration, id: &str) {
    registration.checks.retain(|check| check.id != id);
    if let Some(fields) = &mut registration.consul {
        fields.checks.remove(id);
    }
}

/// Returns the fields in Consul's form; of a registration in another form, those that say the same.
fn consul_fields(registration: &mut Registration) -> &mut ConsulFields {
    let address = registration.host.clone().unwrap_or_default();
    registration.consul.get_or_insert_with(|| ConsulFields {
        address,
        warning_weight: WEIGHT_DEFAULT,
        ..ConsulFields::default()
    })
}

fn check_count(registration: &Registration) -> Result<(), RegistryError> {
    let count = registration.checks.len();
    if count <= CHECKS_MAX {
        return Ok(());
    }
    let problem = format!("has {count} elements; at most {CHECKS_MAX} are allowed");
    Err(RegistryError::Invalid(Invalid::new("Checks", problem)))
}
