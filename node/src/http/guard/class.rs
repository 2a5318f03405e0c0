//! [`Class`] of a write, which decides the proof that the write needs; and [`Classes`], which maps methods
//! and paths to them.
//!
//! | class | paths | may write |
//! | --- | --- | --- |
//! | admin | the node itself: leave, maintenance, forget | this machine, the node's token |
//! | registry | registrations and checks | this machine, the token, a member's signed request; in a cluster without key also private addresses |
//! | kv | the key/value store, user events | the same as registry, but no private addresses: a key or an event may steer a whole cluster |
//! | role | the other plug-ins' paths | the same as registry; with `--open`, every client |
//! | session | the sessions of browsers | every client, from the node's own pages |
//! | inner | JSON-RPC, MCP | every client: each [inner request](crate::http::reentry) has a class of its own and needs that proof |
//!
//! An unknown path is of the class admin, so that a path that is added later is never open by mistake.

use std::sync::Arc;

use axum::http::Method;
use hearsay_services::{
    Service,
    http::{BUILT_IN, covers, is_sign_in},
};

/// Prefix of the key/value store's own paths. Those below `/v1` are in the route table.
const KV_PREFIX: &str = "/kv";

/// The paths that fire user events. Some clients send the payload as plain text.
pub(crate) const FIRE_PREFIX: &str = "/v1/event/fire";

/// Paths that show nothing of the cluster. The first one, `/`, only redirects to the front page.
const PUBLIC: [&str; 3] = ["", "/livez", "/readyz"];

/// The class of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Class {
    /// Changes the node itself.
    Admin,
    /// Changes registrations and checks.
    Registry,
    /// Changes the key/value store, or fires a user event.
    Kv,
    /// Writes to another plug-in.
    Role,
    /// Begins or ends the session of a browser. The form itself carries the proof.
    Session,
    /// Has no effect but that of its inner requests, which pass the guard themselves.
    Inner,
}

impl Class {
    /// Returns the class of a write to a plug-in.
    pub(crate) fn of_plugin(path: &str) -> Self {
        if covers(KV_PREFIX, path) { Self::Kv } else { Self::Role }
    }

    /// Returns the class whose proof a read of a plug-in's path needs with `--private`.
    pub(crate) fn of_plugin_read(path: &str) -> Self {
        if covers(KV_PREFIX, path) { Self::Registry } else { Self::Role }
    }

    /// Returns the name of the class.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Registry => "registry",
            Self::Kv => "kv",
            Self::Role => "role",
            Self::Session => "session",
            Self::Inner => "inner",
        }
    }
}

/// The part of a node that serves a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Area {
    /// The node itself.
    Node,
    /// Paths compatible with Consul's, below `/v1`.
    Consul {
        /// Whether a POST may have plain text, which HTML forms can send.
        takes_text: bool,
    },
    /// A plug-in.
    Plugin {
        /// Whether the plug-in accepts the content types of HTML forms.
        takes_form_bodies: bool,
    },
}

/// The classes of all paths of a node.
#[derive(Debug)]
pub(crate) struct Classes {
    /// Prefix of each plug-in, and whether the plug-in accepts the content types of HTML forms.
    plugins: Vec<(String, bool)>,
    /// Writes of the node itself.
    writes: Vec<(Method, &'static str, Class)>,
}

impl Classes {
    /// Collects the classes. `writes` are the node's own: method in lower case, path and class.
    pub(crate) fn new(plugins: &[Arc<dyn Service>], writes: &[(&'static str, &'static str, Class)]) -> Self {
        let plugins = plugins.iter().flat_map(|plugin| {
            let takes_form_bodies = plugin.takes_form_bodies();
            plugin.prefixes().iter().map(move |prefix| ((*prefix).to_owned(), takes_form_bodies))
        });
        let writes = writes.iter().filter_map(|(method, path, class)| {
            Some((Method::from_bytes(method.to_ascii_uppercase().as_bytes()).ok()?, *path, *class))
        });
        Self { plugins: plugins.collect(), writes: writes.collect() }
    }

    /// Returns the part that serves a path.
    pub(crate) fn area(&self, path: &str) -> Area {
        match self.plugins.iter().find(|(prefix, _)| covers(prefix, path)) {
            Some((_, takes_form_bodies)) => Area::Plugin { takes_form_bodies: *takes_form_bodies },
            None if covers("/v1", path) => Area::Consul { takes_text: covers(FIRE_PREFIX, path) },
            None => Area::Node,
        }
    }

    /// Whether a read of this path needs no proof even with `--private`: health probes and the sign-in page.
    pub(crate) fn is_public(&self, path: &str) -> bool {
        let path = path.strip_suffix('/').unwrap_or(path);
        PUBLIC.contains(&path) || is_sign_in(path)
    }

    /// Returns the class whose proof a read of this path needs with `--private`.
    pub(crate) fn class_of_read(&self, path: &str) -> Class {
        match self.area(path) {
            Area::Plugin { .. } => Class::of_plugin_read(path),
            Area::Node | Area::Consul { .. } => Class::Registry,
        }
    }

    /// Returns the built-in role of a path that this node does not serve because it lacks the role.
    pub(crate) fn role_elsewhere(&self, path: &str) -> Option<&'static str> {
        let is_of = |(_, prefixes): &&(_, &[&str])| prefixes.iter().any(|prefix| covers(prefix, path));
        let (role, _) = BUILT_IN.iter().find(is_of)?;
        matches!(self.area(path), Area::Node).then_some(role)
    }

    /// Returns the class of a write.
    pub(crate) fn class(&self, method: &Method, path: &str) -> Class {
        if self.plugins.iter().any(|(prefix, _)| covers(prefix, path)) {
            return Class::of_plugin(path);
        }
        let is_same = |(served, pattern, _): &&(Method, &str, Class)| {
            served == method && matches_pattern(pattern, path)
        };
        self.writes.iter().find(is_same).map_or(Class::Admin, |(_, _, class)| *class)
    }
}

/// Whether a path matches a pattern such as `/services/{name}/{id}`, with or without a trailing slash. A last
/// segment such as `{*id}` stands for one segment or more.
fn matches_pattern(pattern: &str, path: &str) -> bool {
    let path = path.strip_suffix('/').unwrap_or(path);
    let (pattern, path) = match pattern.rsplit_once("/{*") {
        None => (pattern, path),
        Some((start, _)) => {
            let slashes = start.matches('/').count();
            let Some((end, _)) = path.match_indices('/').nth(slashes) else { return false };
            if path.len() == end + 1 {
                return false;
            }
            (start, &path[..end])
        }
    };
    let mut segments = path.split('/');
    let is_same =
        |part: &str| segments.next().is_some_and(|segment| part.starts_with('{') || segment == part);
    pattern.split('/').all(is_same) && segments.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_stands_for_one_segment_and_a_last_one_with_a_star_for_several() {
        for (pattern, path, expected) in [
            ("/services", "/services", true),
            ("/services", "/services/", true),
            ("/services", "/services/a", false),
            ("/services", "/servicesa", false),
            ("/services/{name}/{id}", "/services/a/b", true),
            ("/services/{name}/{id}", "/services/a/b/", true),
            ("/services/{name}/{id}", "/services/a", false),
            ("/services/{name}/{id}", "/services/a/b/c", false),
            ("/services/{name}/maintenance", "/services/a/maintenance", true),
            ("/services/{name}/maintenance", "/services/a/b", false),
            ("/checks/{*id}", "/checks/a", true),
            ("/checks/{*id}", "/checks/a/", true),
            ("/checks/{*id}", "/checks/a/b/c", true),
            ("/checks/{*id}", "/checks", false),
            ("/checks/{*id}", "/checks/", false),
            ("/checks/{*id}", "/checks//", false),
            ("/checks/{*id}", "/other/a/b", false),
            ("/services/{name}/{*id}", "/services/a/b/c", true),
            ("/services/{name}/{*id}", "/services/a", false),
        ] {
            assert_eq!(matches_pattern(pattern, path), expected, "{pattern} {path}");
        }
    }

    #[test]
    fn what_is_not_known_is_for_administrators() {
        let classes = Classes::new(&[], &[("put", "/checks/{id}", Class::Registry)]);
        assert_eq!(classes.class(&Method::PUT, "/checks/a"), Class::Registry);
        for (method, path) in [(Method::POST, "/checks/a"), (Method::PUT, "/checks"), (Method::PUT, "/new")] {
            assert_eq!(classes.class(&method, path), Class::Admin, "{method} {path}");
        }
    }
}
