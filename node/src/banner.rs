//! What a node prints when it starts: a few lines that a person can read, and click.

use std::{fmt::Write as _, net::SocketAddr, path::PathBuf};

use hearsay_protocol::NodeId;

use crate::{escape::escaped, interfaces::reachable_here};

/// What is worth knowing of a node that has just started.
#[derive(Clone, Debug)]
pub struct Banner {
    /// The node's name.
    pub name: String,
    /// Its key.
    pub id: NodeId,
    /// Its cluster.
    pub cluster: String,
    /// The plug-ins it runs.
    pub roles: Vec<String>,
    /// Where its HTTP listens.
    pub http: SocketAddr,
    /// The origins that it tells others, `http://host:port`.
    pub advertised: Vec<String>,
    /// Where its gateway listens, if it runs one.
    pub gateway: Option<SocketAddr>,
    /// Where its DNS answers, if it does.
    pub dns: Option<SocketAddr>,
    /// Where its Unix socket is, if it has one.
    pub socket: Option<PathBuf>,
    /// Where its swarm listens.
    pub swarm: SocketAddr,
    /// Where it keeps its state; `None` if nowhere.
    pub data_dir: Option<PathBuf>,
    /// Whether it looks for others by multicast.
    pub mdns: bool,
    /// Whom it dials, as they were given.
    pub join: Vec<String>,
    /// How many members it remembers from before.
    pub remembered: usize,
    /// Whether strangers are kept out by a key.
    pub keyed: bool,
}

impl Banner {
    /// The lines, with the newline at the end.
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
            text += "  warning: this cluster has no key, so anybody who reaches it can join. To close it, make one with\n  \
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
