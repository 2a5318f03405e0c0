//! [`Banner`]: the lines that a node prints when it has started, with its name, roles, addresses and data
//! directory.

use std::{fmt::Write as _, net::SocketAddr, path::PathBuf};

use hearsay_protocol::NodeId;

use crate::{escape::escaped, system::interfaces::reachable_here};

/// Content of the banner.
#[derive(Clone, Debug)]
pub struct Banner {
    /// The node's name.
    pub name: String,
    /// The node's id.
    pub id: NodeId,
    /// The cluster's name.
    pub cluster: String,
    /// The plug-ins that the node runs.
    pub roles: Vec<String>,
    /// Address at which HTTP listens.
    pub http: SocketAddr,
    /// Advertised origins, `http://host:port`.
    pub advertised: Vec<String>,
    /// Address at which the gateway listens, if it runs.
    pub gateway: Option<SocketAddr>,
    /// Address at which DNS answers, if enabled.
    pub dns: Option<SocketAddr>,
    /// Address at which gRPC listens, if enabled.
    pub grpc: Option<SocketAddr>,
    /// Address at which JSON-RPC answers over TCP, if enabled.
    pub jsonrpc: Option<SocketAddr>,
    /// Path of the Unix socket, if there is one.
    pub socket: Option<PathBuf>,
    /// Address at which the swarm listens.
    pub swarm: SocketAddr,
    /// Data directory; `None` for an ephemeral node.
    pub data_dir: Option<PathBuf>,
    /// Whether the node discovers others by mDNS.
    pub mdns: bool,
    /// Values of `--join`.
    pub join: Vec<String>,
    /// Number of members that the node remembers from its last run.
    pub remembered: usize,
    /// Whether the cluster has a key.
    pub keyed: bool,
}

impl Banner {
    /// Returns the lines, with a newline at the end.
    pub fn render(&self) -> String {
        let mut text =
            format!("hearsay {} · cluster {}\n", env!("CARGO_PKG_VERSION"), escaped(&self.cluster));
        let mut line = |label: &str, value: &str| {
            // Writing to a String cannot fail.
            _ = writeln!(text, "  {label:<9} {}", escaped(value));
        };
        line("name", &self.name);
        line("id", &self.id.to_string());
        line(
            "roles",
            &if self.roles.is_empty() { "none: a plain agent".into() } else { self.roles.join(", ") },
        );
        let origin = format!("http://{}", reachable_here(self.http));
        line("services", &format!("{origin}/services"));
        let portal = if self.roles.iter().any(|role| role == "portal") {
            format!("{origin}/portal ")
        } else {
            String::new()
        };
        line("pages", &format!("{portal}{origin}/ui"));
        let elsewhere: Vec<_> = self.advertised.iter().filter(|url| **url != origin).cloned().collect();
        if !elsewhere.is_empty() {
            line("reachable", &elsewhere.join(" "));
        }
        if let Some(gateway) = self.gateway {
            line("gateway", &format!("http://{}", reachable_here(gateway)));
        }
        if let Some(dns) = self.dns {
            line("dns", &dns.to_string());
        }
        if let Some(grpc) = self.grpc {
            line("grpc", &reachable_here(grpc).to_string());
        }
        if let Some(jsonrpc) = self.jsonrpc {
            line("jsonrpc", &jsonrpc.to_string());
        }
        if let Some(socket) = &self.socket {
            line("socket", &socket.display().to_string());
        }
        line("swarm", &self.swarm.to_string());
        match &self.data_dir {
            Some(dir) => line("data", &dir.display().to_string()),
            None => line("data", "none: this identity ends with the process"),
        }
        line("finds", &self.ways().join(", "));
        if !self.keyed {
            text += "  warning: this cluster has no key, so every machine that reaches it can join. To close it, create a key with\n  \
                     `node keygen > cluster.key` and start every node with --key-file cluster.key\n";
        }
        text
    }

    fn ways(&self) -> Vec<String> {
        let mut ways = vec!["nodes on this host".to_owned()];
        if self.mdns {
            ways.push("the local network by mDNS".into());
        }
        if self.remembered > 0 {
            ways.push(format!("{} remembered", self.remembered));
        }
        ways.extend(self.join.iter().map(|join| format!("--join {join}")));
        ways
    }
}

#[cfg(test)]
mod tests {
    use hearsay_protocol::Identity;

    use super::*;

    fn banner() -> Banner {
        Banner {
            name: "db1-00aa11".into(),
            id: Identity::from_seed(&[1; 32]).id(),
            cluster: "default".into(),
            roles: vec!["grading".into(), "log".into()],
            http: SocketAddr::from(([0, 0, 0, 0], 7501)),
            advertised: vec!["http://10.0.0.1:7501".into()],
            gateway: None,
            dns: None,
            grpc: None,
            jsonrpc: None,
            socket: Some("/run/hearsay/default-7501.sock".into()),
            swarm: SocketAddr::from(([0, 0, 0, 0], 7601)),
            data_dir: Some("/state/1".into()),
            mdns: true,
            join: vec!["seed:7600".into()],
            remembered: 2,
            keyed: true,
        }
    }

    #[test]
    fn a_started_node_says_who_it_is_where_to_click_and_how_it_finds_others() {
        let id = Identity::from_seed(&[1; 32]).id();
        let expected = format!(
            "hearsay {} · cluster default
  name      db1-00aa11
  id        {id}
  roles     grading, log
  services  http://127.0.0.1:7501/services
  pages     http://127.0.0.1:7501/ui
  reachable http://10.0.0.1:7501
  socket    /run/hearsay/default-7501.sock
  swarm     0.0.0.0:7601
  data      /state/1
  finds     nodes on this host, the local network by mDNS, 2 remembered, --join seed:7600
",
            env!("CARGO_PKG_VERSION")
        );
        assert_eq!(banner().render(), expected);
    }

    #[test]
    fn whoever_runs_the_portal_can_click_on_it() {
        let text = Banner { roles: vec!["portal".into()], ..banner() }.render();
        assert!(
            text.contains("  pages     http://127.0.0.1:7501/portal http://127.0.0.1:7501/ui\n"),
            "{text}"
        );
    }

    #[test]
    fn an_open_cluster_is_warned_of_and_a_plain_ephemeral_agent_says_so() {
        let text = Banner { keyed: false, roles: vec![], data_dir: None, mdns: false, ..banner() }.render();
        for part in ["warning", "node keygen", "--key-file", "plain agent", "ends with the process"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("mDNS"), "{text}");
    }
}
