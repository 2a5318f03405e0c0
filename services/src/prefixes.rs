//! Which plug-in owns which path.
//!
//! A request goes to the plug-in whose prefix its path begins with, segment by segment: `/log` owns `/log` and `/log/tail`, and
//! not `/logs`. So that this is one plug-in, no prefix may equal another or lie below it; the node's own paths count too.

use std::sync::Arc;

use crate::Service;

/// Path prefixes of the node itself, which no plug-in can have.
pub const RESERVED: &[&str] = &[
    "/checks",
    "/dependencies",
    "/livez",
    "/members",
    "/metrics",
    "/openapi.json",
    "/network",
    "/readyz",
    "/registrations",
    "/rpc",
    "/sd",
    "/services",
    "/ui",
    "/v1",
    "/v3",
    "/why",
];

/// The paths of the roles that come with every node. The gateway sends them to instances that their nodes announce as these roles, and to no program
/// that bears the same name or announces the same prefix.
pub const BUILT_IN: &[(&str, &[&str])] = &[
    ("log", &["/log", "/records"]),
    ("grading", &["/students"]),
    ("portal", &["/portal"]),
    ("gateway", &["/gateway"]),
    ("visits", &["/visits"]),
];

/// The paths of built-in roles where a GET changes something, so that a link can. They are writes in every other respect.
const WRITING_GETS: &[&str] = &["/visits/hit"];

/// Whether a GET of this path, with or without a slash at its end, changes something.
pub fn is_writing_get(path: &str) -> bool {
    WRITING_GETS.contains(&path.strip_suffix('/').unwrap_or(path))
}

/// Why these plug-ins cannot run on one node. Nothing was started.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PrefixClash {
    /// A path would belong to both.
    #[error(
        "{first} and {second} both claim the paths under {prefix}; run them on different nodes, or change one"
    )]
    Shared {
        /// The longer of the two prefixes.
        prefix: String,
        /// Who claimed first; `the node itself` for its own paths.
        first: String,
        /// Who claimed second.
        second: String,
    },
    /// The text is no prefix.
    #[error(
        "{plugin} claims {prefix:?}, which is no path prefix: expected segments of letters, digits, '-', '_' and '.', such as /students"
    )]
    Malformed {
        /// What was claimed.
        prefix: String,
        /// Who claimed it.
        plugin: String,
    },
}

/// Checks that every path has one owner.
///
/// # Errors
/// Names the first two that clash, and the prefix.
pub fn check(plugins: &[Arc<dyn Service>]) -> Result<(), PrefixClash> {
    let node = RESERVED.iter().map(|prefix| ("the node itself", *prefix));
    let mut claims: Vec<(&str, &str)> = node.collect();
    for plugin in plugins {
        for prefix in plugin.prefixes() {
            let (prefix, second) = (*prefix, plugin.name());
            if !is_well_formed(prefix) {
                return Err(PrefixClash::Malformed { prefix: prefix.to_owned(), plugin: second.to_owned() });
            }
            let taken = claims.iter().find(|(_, other)| covers(other, prefix) || covers(prefix, other));
            if let Some((first, other)) = taken {
                let longer = if other.len() > prefix.len() { other } else { prefix };
                return Err(PrefixClash::Shared {
                    prefix: longer.to_owned(),
                    first: (*first).to_owned(),
                    second: second.to_owned(),
                });
            }
            claims.push((second, prefix));
        }
    }
    Ok(())
}

/// Whether `path` is `prefix` or lies below it.
pub fn covers(prefix: &str, path: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether a path is one of this built-in role's. Of other roles it is not known here.
pub fn is_of_role(role: &str, path: &str) -> bool {
    let own = BUILT_IN.iter().find(|(name, _)| *name == role);
    own.is_none_or(|(_, prefixes)| prefixes.iter().any(|prefix| covers(prefix, path)))
}

fn is_well_formed(prefix: &str) -> bool {
    let segment =
        |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    prefix.strip_prefix('/').is_some_and(|path| path.split('/').all(segment))
}

#[cfg(test)]
mod tests {
    use axum::Router;

    use super::*;
    use crate::Host;

    struct Claims(&'static str, Vec<&'static str>);

    impl Service for Claims {
        fn name(&self) -> &str {
            self.0
        }
        fn prefixes(&self) -> &[&str] {
            &self.1
        }
        fn router(&self, _: Arc<dyn Host>) -> Router {
            Router::new()
        }
    }

    fn check_all(claims: &[(&'static str, &[&'static str])]) -> Result<(), String> {
        let plugins: Vec<Arc<dyn Service>> =
            claims.iter().map(|(name, p)| Arc::new(Claims(name, p.to_vec())) as Arc<dyn Service>).collect();
        check(&plugins).map_err(|e| e.to_string())
    }

    #[test]
    fn two_that_claim_one_prefix_are_both_named() {
        let error = check_all(&[("books", &["/books"]), ("library", &["/shelves", "/books"])]).unwrap_err();
        assert!(["books and library", "/books"].iter().all(|s| error.contains(s)), "{error}");
    }

    #[test]
    fn a_prefix_below_another_clashes_and_a_longer_word_does_not() {
        assert!(check_all(&[("a", &["/log"]), ("b", &["/log/tail"])]).unwrap_err().contains("/log/tail"));
        assert!(check_all(&[("a", &["/log/tail"]), ("b", &["/log"])]).unwrap_err().contains("/log/tail"));
        assert_eq!(check_all(&[("a", &["/log"]), ("b", &["/logs"])]), Ok(()));
    }

    #[test]
    fn a_role_has_the_paths_below_its_prefixes_and_no_others() {
        for (role, path) in
            [("log", "/log"), ("log", "/records/1"), ("grading", "/students/1"), ("mine", "/x")]
        {
            assert!(is_of_role(role, path), "{role} {path}");
        }
        for (role, path) in
            [("log", "/logs"), ("grading", "/"), ("grading", "/v1/agent/leave"), ("portal", "/students")]
        {
            assert!(!is_of_role(role, path), "{role} {path}");
        }
    }

    #[test]
    fn the_nodes_own_paths_are_not_to_be_had() {
        let error = check_all(&[("mine", &["/services"])]).unwrap_err();
        assert!(error.contains("the node itself and mine"), "{error}");
    }

    #[test]
    fn a_prefix_is_made_of_plain_segments() {
        for prefix in ["", "/", "log", "/log/", "//log", "/{id}", "/a b"] {
            assert!(check_all(&[("a", &[prefix])]).unwrap_err().contains("no path prefix"), "{prefix:?}");
        }
    }
}
