//! Which class of write a request is, and so who may make it.
//!
//! | class | paths | who may write |
//! | --- | --- | --- |
//! | admin | the node itself: leave, maintenance, forget | this machine, the node's token |
//! | registry | registrations and checks | this machine, the token, a member's signed request; in a cluster without key also private addresses |
//! | role | the plug-ins' paths | the same as registry; with `--open`, every client |
//!
//! A path that is not known is of the class admin: nothing that is added can be forgotten here.

use std::sync::Arc;

use axum::http::Method;
use hearsay_services::{
    Service,
    prefixes::{covers, is_writing_get},
};

/// The class of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Class {
    /// Of the node itself.
    Admin,
    /// Of registrations and checks.
    Registry,
    /// Of a plug-in.
    Role,
}

impl Class {
    /// Its name.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Registry => "registry",
            Self::Role => "role",
        }
    }
}

/// Whose path it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Area {
    /// The node's own.
    Node,
    /// Below `/v1`.
    Consul,
    /// A plug-in's.
    Plugin {
        /// Whether it takes the bodies of forms.
        takes_form_bodies: bool,
    },
}

/// The classes of all paths of a node.
#[derive(Debug)]
pub(super) struct Classes {
    /// Each plug-in's prefix, and whether it takes the bodies of forms.
    plugins: Vec<(String, bool)>,
    /// The node's own writes.
    writes: Vec<(Method, &'static str, Class)>,
}

impl Classes {
    /// The classes of the plug-ins' paths, and of the node's own: method in lower case, path and class of each.
    pub(super) fn new(plugins: &[Arc<dyn Service>], writes: &[(&'static str, &'static str, Class)]) -> Self {
        let plugins = plugins.iter().flat_map(|plugin| {
            let takes_form_bodies = plugin.takes_form_bodies();
            plugin.prefixes().iter().map(move |prefix| ((*prefix).to_owned(), takes_form_bodies))
        });
        let writes = writes.iter().filter_map(|(method, path, class)| {
            Some((Method::from_bytes(method.to_ascii_uppercase().as_bytes()).ok()?, *path, *class))
        });
        Self { plugins: plugins.collect(), writes: writes.collect() }
    }

    /// Whose path it is.
    pub(super) fn area(&self, path: &str) -> Area {
        match self.plugins.iter().find(|(prefix, _)| covers(prefix, path)) {
            Some((_, takes_form_bodies)) => Area::Plugin { takes_form_bodies: *takes_form_bodies },
            None if covers("/v1", path) => Area::Consul,
            None => Area::Node,
        }
    }

    /// Whether a request changes something: by its method, or because its path is one of the few where a GET does.
    pub(super) fn is_write(&self, method: &Method, path: &str) -> bool {
        !method.is_safe() || *method != Method::OPTIONS && is_writing_get(path)
    }

    /// The class of a write.
    pub(super) fn class(&self, method: &Method, path: &str) -> Class {
        if self.plugins.iter().any(|(prefix, _)| covers(prefix, path)) {
            return Class::Role;
        }
        let of = |(served, pattern, _): &&(Method, &str, Class)| served == method && is_like(pattern, path);
        self.writes.iter().find(of).map_or(Class::Admin, |(_, _, class)| *class)
    }
}

/// Whether a path is of a pattern such as `/services/{name}/{id}`, with or without a slash at its end.
fn is_like(pattern: &str, path: &str) -> bool {
    let mut segments = path.strip_suffix('/').unwrap_or(path).split('/');
    let is_same =
        |part: &str| segments.next().is_some_and(|segment| part.starts_with('{') || segment == part);
    pattern.split('/').all(is_same) && segments.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_stands_for_one_segment_each() {
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
        ] {
            assert_eq!(is_like(pattern, path), expected, "{pattern} {path}");
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
