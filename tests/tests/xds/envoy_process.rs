//! Envoy as a process of the lab, and what its admin interface says of clusters, routes and rejected updates.

use std::path::Path;

use hearsay_tests::{
    Cluster as _, Host, Lab,
    clients::{RealClient, command_on},
};
use serde_json::Value;

use super::{S, bootstrap, load::by_prefix};

/// Port of Envoy's admin interface in the shipped file.
const ADMIN_PORT: u16 = 9901;
/// Port of Envoy's listener in the shipped file.
pub(super) const ENTRY_PORT: u16 = 10_000;

/// Envoy on a host, with the bootstrap file that the host's node prints.
pub(super) struct Envoy(RealClient);

impl Envoy {
    pub(super) fn start(lab: &Lab, host: &Host, program: &Path) -> Self {
        Self::start_with(lab, host, program, &[])
    }

    /// Starts Envoy with further arguments.
    pub(super) fn start_with(lab: &Lab, host: &Host, program: &Path, more: &[&str]) -> Self {
        Self::spawn(lab, host, program, &bootstrap(lab, host, "envoy"), more)
    }

    /// Starts Envoy with another bootstrap file.
    pub(super) fn start_from(lab: &Lab, host: &Host, program: &Path, file: &Path) -> Self {
        Self::spawn(lab, host, program, file, &[])
    }

    fn spawn(lab: &Lab, host: &Host, program: &Path, file: &Path, more: &[&str]) -> Self {
        let mut command = command_on(host, program);
        command.arg("-c").arg(file).args(["--concurrency", "2", "-l", "warning"]);
        // Hot restarts share memory with every other Envoy of the machine.
        command.arg("--disable-hot-restart").args(more);
        Self(RealClient::spawn(lab, host, command, ADMIN_PORT))
    }

    /// Returns the addresses of a service to which Envoy sends requests, sorted; `None` without the cluster.
    pub(super) fn hosts(&self, service: &str) -> Option<Vec<String>> {
        let clusters = self.0.get("/clusters?format=json");
        let cluster =
            clusters["cluster_statuses"].as_array()?.iter().find(|it| it["name"] == service)?.clone();
        let hosts = cluster["host_statuses"].as_array().cloned().unwrap_or_default();
        let healthy = hosts.iter().filter(|host| host["health_status"]["eds_health_status"] == "HEALTHY");
        let mut addresses: Vec<String> = healthy
            .map(|host| {
                let address = &host["address"]["socket_address"];
                format!("{}:{}", address["address"].as_str().unwrap_or_default(), address["port_value"])
            })
            .collect();
        addresses.sort();
        Some(addresses)
    }

    /// Waits until Envoy sends requests to this many instances of `web`.
    pub(super) fn until_has(&self, lab: &Lab, count: usize) {
        lab.until(20 * S, &format!("Envoy has {count} instances"), |_| {
            self.hosts("web").map_or(0, |hosts| hosts.len()) == count
        });
    }

    /// Waits until Envoy serves requests to `web`.
    pub(super) fn until_serves(&self, lab: &Lab, host: &Host) {
        // The listener opens only with its routes.
        lab.until(20 * S, "Envoy serves a request", |_| host.enter(|| by_prefix("web", "/")) == Ok(200));
    }

    /// Returns the values of counters and gauges whose names match a regular expression.
    pub(super) fn stats(&self, names: &str) -> Vec<(String, u64)> {
        let stats = self.0.get(&format!("/stats?format=json&filter={names}"));
        let stats = stats["stats"].as_array().cloned().unwrap_or_default();
        let stat = |it: &Value| Some((it["name"].as_str()?.to_owned(), it["value"].as_u64()?));
        stats.iter().filter_map(stat).collect()
    }

    /// Asserts that Envoy has taken updates of clusters, endpoints and routes, and has rejected none.
    pub(super) fn assert_accepted_all(&self) {
        let taken = self.stats("update_success");
        for part in ["cluster_manager.cds.", "cluster.web.", ".rds."] {
            let has_taken = |(name, value): &(String, u64)| name.contains(part) && *value > 0;
            assert!(taken.iter().any(has_taken), "no update of {part}: {taken:?}");
        }
        let rejected = self.stats("update_rejected");
        assert!(
            !rejected.is_empty() && rejected.iter().all(|(_, value)| *value == 0),
            "{rejected:?}\n{}",
            self.0.log()
        );
        let dump = self.0.text("/config_dump?include_eds").unwrap();
        assert!(!dump.contains("\"error_state\""), "{dump}");
    }

    /// Returns the configuration in effect.
    pub(super) fn config(&self) -> Value {
        self.0.get("/config_dump?include_eds")
    }

    /// Returns Envoy's log so far.
    pub(super) fn log(&self) -> String {
        self.0.log()
    }
}
