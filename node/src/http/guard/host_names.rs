//! [`HostNames`]: the names under which a node may be addressed in `Host`.

use std::{collections::BTreeSet, net::IpAddr};

/// Names under which a node may be addressed over HTTP.
///
/// A web page can point a name of its own at 127.0.0.1 (DNS rebinding) and would then share an origin with
/// this node. So only these names are accepted: those of the node and of `--allow-host`, the same names below
/// `.local` (RFC 6762), `localhost` and names below it (RFC 6761), and addresses. The form of a name proves
/// nothing: a network's resolver may point a name without a dot, or below `.internal`, at any address.
#[derive(Clone, Debug, Default)]
pub struct HostNames(BTreeSet<String>);

impl HostNames {
    /// Creates the set from advertised names, the host name and configured names, all without ports.
    pub fn new(names: impl IntoIterator<Item = String>) -> Self {
        Self(names.into_iter().map(|name| canonical(&name)).filter(|name| !name.is_empty()).collect())
    }

    /// Whether `host`, without a port, is a name of this node.
    pub fn accept(&self, host: &str) -> bool {
        let host = canonical(host);
        let literal = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(&host);
        let is_own = |name: &str| self.0.contains(name);
        literal.parse::<IpAddr>().is_ok()
            || host == "localhost"
            || host.ends_with(".localhost")
            || is_own(&host)
            || host.strip_suffix(".local").is_some_and(is_own)
    }
}

fn canonical(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_nodes_own_names_and_addresses_are_accepted() {
        let names = HostNames::new(["Node1.Example.org".to_owned(), "n1".to_owned(), String::new()]);
        for host in [
            "127.0.0.1",
            "10.0.0.7",
            "[::1]",
            "localhost",
            "LOCALHOST",
            "a.localhost",
            "n1",
            "n1.local",
            "n1.local.",
            "node1.example.org",
        ] {
            assert!(names.accept(host), "{host}");
        }
        for host in [
            "evil.example",
            "example.org",
            "127.0.0.1.evil.example",
            "local.evil.example",
            "n2",
            "com",
            "attacker.local",
            "n1.evil.local",
            "x.internal",
            "n1.internal",
            "x.home.arpa",
            "grading.service.consul",
            "n.svc.cluster.local",
            "a,b",
            ".local",
            "",
            ".",
        ] {
            assert!(!names.accept(host), "{host}");
        }
    }
}
