//! Path prefixes of plug-ins: which of them a path lies below, the check that no two prefixes overlap, and
//! the [`Effect`] of a request (read or write).
//!
//! A request goes to the plug-in whose prefix its path starts with, by whole segments: `/log` owns `/log` and
//! `/log/tail` but not `/logs`. To make that unambiguous, no prefix may be equal to another or lie below it.
//! The paths of the node count too.

use std::sync::Arc;

use http::Method;

use crate::Service;

/// Path prefixes of the node, which no plug-in can have.
pub const RESERVED: &[&str] = &[
    "/checks",
    "/dependencies",
    "/livez",
    "/login",
    "/logout",
    "/mcp",
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

/// Paths of the built-in roles. The gateway sends them only to instances that their nodes announce as these
/// roles, not to programs with the same name or prefix.
pub const BUILT_IN: &[(&str, &[&str])] = &[
    ("log", &["/log", "/records"]),
    ("grading", &["/students"]),
    ("portal", &["/portal"]),
    ("gateway", &["/gateway"]),
    ("visits", &["/visits"]),
    ("kv", &["/kv"]),
];

/// Paths at which a browser starts a session with the API token of a node, and ends it. The gateway serves
/// them for the sessions of its node.
pub const SIGN_IN_PATHS: [&str; 2] = ["/login", "/logout"];

/// Returns whether a path is one of [`SIGN_IN_PATHS`], or lies below one.
pub fn is_sign_in(path: &str) -> bool {
    SIGN_IN_PATHS.iter().any(|prefix| covers(prefix, path))
}

/// Paths of built-in roles at which a GET has an effect, so that a link can cause it. They are treated as
/// writes.
const WRITING_GETS: &[&str] = &["/visits/hit"];

/// Prefix of paths at which a POST only reads: discovery of Envoy by REST, whose body states what is asked
/// for.
const READING_POSTS: &str = "/v3/discovery:";

/// Effect of a request, which follows from its method and path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Effect {
    /// No effect.
    Read,
    /// A possible effect.
    Write,
    /// A possible effect in spite of a safe method, so that a link or an image can cause it.
    WriteByGet,
}

impl Effect {
    /// The effect of a method and path, with or without a slash at the end.
    pub fn of(method: &Method, path: &str) -> Self {
        match method {
            &Method::OPTIONS => Self::Read,
            &Method::POST if path.starts_with(READING_POSTS) => Self::Read,
            method if !method.is_safe() => Self::Write,
            _ if WRITING_GETS.contains(&path.strip_suffix('/').unwrap_or(path)) => Self::WriteByGet,
            _ => Self::Read,
        }
    }

    /// Returns whether the request may have an effect.
    pub fn is_write(self) -> bool {
        self != Self::Read
    }
}

/// Plug-ins that cannot run on one node. Nothing was started.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PrefixClash {
    /// Some paths would belong to two owners.
    #[error(
        "{first} and {second} both claim the paths under {prefix}; run them on different nodes, or change one"
    )]
    Shared {
        /// The longer of the two prefixes.
        prefix: String,
        /// First owner; `the node itself` for its own paths.
        first: String,
        /// Second owner.
        second: String,
    },
    /// The prefix is malformed.
    #[error(
        "{plugin} claims {prefix:?}, which is not a path prefix: expected segments of letters, digits, '-', '_' and '.', such as /students"
    )]
    Malformed {
        /// The prefix.
        prefix: String,
        /// Name of the plug-in.
        plugin: String,
    },
}

/// Checks that every path has one owner.
///
/// # Errors
/// The first two owners that clash, and the prefix.
pub fn check_prefixes(plugins: &[Arc<dyn Service>]) -> Result<(), PrefixClash> {
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

/// Returns whether `path` is `prefix` or lies below it.
pub fn covers(prefix: &str, path: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Returns whether a path belongs to this role. True for a role that is not built in, whose paths are unknown
/// here.
pub(crate) fn is_of_role(role: &str, path: &str) -> bool {
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
        check_prefixes(&plugins).map_err(|e| e.to_string())
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
            assert!(check_all(&[("a", &[prefix])]).unwrap_err().contains("not a path prefix"), "{prefix:?}");
        }
    }
}
