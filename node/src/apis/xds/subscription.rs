//! [`Subscription`]: the resources of one kind that a client wants, and those that it is to get next.

use std::{collections::BTreeSet, ops::Bound, sync::Arc};

use tonic::Status;

use super::{catalog::Catalog, kind::Kind, listener::service_of, routes::ALL_SERVICES};

/// Name by which a client subscribes to all resources of a kind.
const WILDCARD: &str = "*";
/// Names of one kind to which a stream may subscribe.
pub(super) const NAMES_MAX: usize = 32_768;
/// Bytes of a name. No service has a longer one.
pub(super) const NAME_BYTES_MAX: usize = 128;
/// Bytes that a name takes in a set, without its text.
pub(super) const ENTRY_BYTES: usize = 32;

/// The resources of one kind that a stream has subscribed to.
#[derive(Debug)]
pub(super) struct Subscription {
    kind: Kind,
    is_wildcard: bool,
    /// Whether the client has stated names. A client that never did wants all resources (LDS and CDS).
    has_stated: bool,
    names: BTreeSet<Arc<str>>,
    /// Bytes of the texts of names that the catalog does not share.
    own_bytes: usize,
    /// Names whose resources are to be sent.
    pending: BTreeSet<Arc<str>>,
    /// Version of the catalog up to which changes are sent or pending.
    position: u64,
}

impl Subscription {
    /// Returns a subscription to nothing, as of the catalog's newest version.
    pub(super) fn new(kind: Kind, catalog: &Catalog) -> Self {
        Self {
            kind,
            is_wildcard: false,
            has_stated: false,
            names: BTreeSet::new(),
            own_bytes: 0,
            pending: BTreeSet::new(),
            position: catalog.version(),
        }
    }

    /// Subscribes to names, whose resources become pending. Without names, a client that never stated any
    /// subscribes to all, if the kind can be wanted as a whole.
    ///
    /// # Errors
    /// A name is too long, or there are too many.
    pub(super) fn subscribe(&mut self, names: &[String], catalog: &Catalog) -> Result<(), Status> {
        let is_first = names.is_empty() && !self.has_stated && !self.is_wildcard;
        // Once, however often a request repeats the wildcard. Endpoints and routes cannot be wanted as a
        // whole, and no service has this name.
        if self.kind.is_whole() && (is_first || names.iter().any(|name| name == WILDCARD)) {
            self.is_wildcard = true;
            self.pending.extend(catalog.names().cloned());
        }
        self.has_stated |= !names.is_empty();
        for name in names.iter().filter(|name| *name != WILDCARD) {
            if name.len() > NAME_BYTES_MAX {
                let length = name.len();
                return Err(Status::invalid_argument(format!(
                    "resource_names: a name of {length} bytes; names have at most {NAME_BYTES_MAX}"
                )));
            }
            let is_shared = catalog.service(name).is_some();
            let name = catalog.intern(name);
            self.pending.insert(Arc::clone(&name));
            if self.names.insert(Arc::clone(&name)) && !is_shared {
                self.own_bytes += text_bytes(&name);
            }
            if self.names.len() > NAMES_MAX {
                return Err(Status::resource_exhausted(format!(
                    "resource_names: a stream can subscribe to at most {NAMES_MAX} names of a type; use several streams"
                )));
            }
        }
        Ok(())
    }

    /// Ends the subscription to names.
    pub(super) fn unsubscribe(&mut self, names: &[String]) {
        self.has_stated |= !names.is_empty();
        for name in names {
            if name == WILDCARD {
                self.is_wildcard = false;
            }
            let Some(name) = self.names.take(name.as_str()) else { continue };
            self.pending.remove(&name);
            self.give_back(&name);
            if self.is_wildcard {
                // The client waits to learn whether it still gets the resource.
                self.pending.insert(name);
            }
        }
        self.drop_unwanted();
    }

    /// Gives back the text of a name that the stream has left, unless the catalog shares it.
    fn give_back(&mut self, name: &Arc<str>) {
        if Arc::strong_count(name) == 1 {
            self.own_bytes = self.own_bytes.saturating_sub(text_bytes(name));
        }
    }

    /// Removes pending names that are not subscribed to.
    fn drop_unwanted(&mut self) {
        let (is_wildcard, names) = (self.is_wildcard, &self.names);
        self.pending.retain(|name| is_wildcard || names.contains(name));
    }

    /// Replaces the names. Only the resources of new names become pending.
    ///
    /// # Errors
    /// As [`subscribe`](Self::subscribe).
    pub(super) fn replace(&mut self, names: &[String], catalog: &Catalog) -> Result<(), Status> {
        if !names.is_empty() || self.has_stated {
            let stated: BTreeSet<&str> = names.iter().map(String::as_str).collect();
            let left: Vec<_> = self.names.extract_if(.., |name| !stated.contains(&**name)).collect();
            for name in left {
                self.pending.remove(&name);
                self.give_back(&name);
            }
            // A client that states names no longer wants all.
            self.is_wildcard &= stated.contains(WILDCARD);
            self.drop_unwanted();
        }
        let (is_wildcard, known) = (self.is_wildcard, &self.names);
        let new = names.iter().filter(|name| match name.as_str() {
            WILDCARD => !is_wildcard,
            name => !known.contains(name),
        });
        let new: Vec<String> = new.cloned().collect();
        if new.is_empty() && !names.is_empty() {
            return Ok(());
        }
        self.subscribe(&new, catalog)
    }

    /// Adds resources that a client has from an earlier stream, so that it gets them, or learns that they are
    /// gone.
    pub(super) fn add_pending<'a>(&mut self, names: impl Iterator<Item = &'a String>) {
        let wanted = names.filter(|name| self.is_wildcard || self.names.contains(name.as_str()));
        let wanted: Vec<Arc<str>> = wanted.take(NAMES_MAX).map(|name| name.as_str().into()).collect();
        self.pending.extend(wanted);
    }

    /// Makes pending what changed since the last call.
    ///
    /// # Errors
    /// The stream lags so far that changes are no longer known.
    pub(super) fn collect(&mut self, catalog: &Catalog) -> Result<(), Status> {
        if !catalog.reaches_back_to(self.position) {
            return Err(Status::aborted(
                "this stream has missed changes, because it reads too slowly or too many services were removed at once; reconnect",
            ));
        }
        let (is_wildcard, names) = (self.is_wildcard, &self.names);
        let mut changed = catalog.changed_after(self.kind, self.position).peekable();
        // The routes to all services follow from the set of services.
        if changed.peek().is_some()
            && self.kind == Kind::Routes
            && let Some(all) = names.get(ALL_SERVICES)
        {
            self.pending.insert(Arc::clone(all));
        }
        for name in changed {
            if is_wildcard || names.contains(name) {
                self.pending.insert(Arc::clone(name));
            }
            if self.kind == Kind::Listeners && !names.is_empty() {
                // The listeners of the name with a port follow the service, too.
                let prefix = format!("{name}:");
                let from = names.range::<str, _>((Bound::Included(&*prefix), Bound::Unbounded));
                let with_prefix = from.take_while(|listener| listener.starts_with(&prefix));
                let follow = with_prefix.filter(|listener| service_of(listener) == &**name);
                self.pending.extend(follow.cloned());
            }
        }
        self.position = catalog.version();
        Ok(())
    }

    /// Whether resources are to be sent.
    pub(super) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Takes the next pending name.
    pub(super) fn pop(&mut self) -> Option<Arc<str>> {
        self.pending.pop_first()
    }

    /// Takes all names that are subscribed to, for a response that states them all.
    pub(super) fn take_whole(&mut self, catalog: &Catalog) -> Vec<Arc<str>> {
        self.pending.clear();
        match self.is_wildcard {
            true => {
                catalog.names().chain(&self.names).cloned().collect::<BTreeSet<_>>().into_iter().collect()
            }
            false => self.names.iter().cloned().collect(),
        }
    }

    /// Returns the bytes of the names that the stream keeps.
    pub(super) fn bytes(&self) -> usize {
        ENTRY_BYTES * self.names.len() + self.own_bytes
    }
}

/// Bytes of a text that is not shared, with its counters.
fn text_bytes(name: &str) -> usize {
    2 * size_of::<usize>() + name.len()
}
