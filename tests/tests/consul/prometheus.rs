//! Prometheus and VictoriaMetrics find their targets by `/sd/prometheus` and by a node's Consul interface.
//!
//! Debian's Prometheus is built without discovery by Consul. VictoriaMetrics reads the same configuration,
//! and has both.

use std::{collections::BTreeMap, fs, path::Path};

use hearsay_tests::{
    Cluster as _, Host, Lab,
    registry::{cluster, plain},
    scenario,
};
use serde_json::{Value, json};

use super::{
    clients::{RealClient, command_on, find_program},
    requests::{S, put},
};

/// Port of Prometheus' own API.
const API_PORT: u16 = 9090;
/// Period of both kinds of discovery, in seconds.
const REFRESH_S: u32 = 1;
/// Longest time from a change to the list of targets: one refresh, Prometheus' own pause of 5 s between two
/// updates of its targets, and the time of a request.
const UPDATE_MAX_S: u32 = REFRESH_S + 5 + 2;

/// Relabelling of both kinds of discovery: by a tag, and by metadata.
const HTTP_JOB: &str = "
  - job_name: http
    http_sd_configs: [{ url: 'http://127.0.0.1:7500/sd/prometheus' }]
    relabel_configs:
      - { source_labels: [__meta_hearsay_tags], regex: '.*,metrics,.*', action: keep }
      - { source_labels: [__meta_hearsay_meta_metrics_path], regex: '(.+)', target_label: __metrics_path__ }
      - { source_labels: [__meta_hearsay_service], target_label: service }
      - { source_labels: [__meta_hearsay_id], target_label: id }
      - { source_labels: [__meta_hearsay_node], target_label: node }
      - { source_labels: [__meta_hearsay_health], target_label: health }
";
const CONSUL_JOBS: &str = "
  - job_name: consul
    consul_sd_configs: [{ server: '127.0.0.1:7500' }]
    relabel_configs:
      - { source_labels: [__meta_consul_tags], regex: '.*,metrics,.*', action: keep }
      - { source_labels: [__meta_consul_service_metadata_metrics_path], regex: '(.+)', target_label: __metrics_path__ }
      - { source_labels: [__meta_consul_service], target_label: service }
      - { source_labels: [__meta_consul_service_id], target_label: id }
      - { source_labels: [__meta_consul_node], target_label: node }
      - { source_labels: [__meta_consul_dc], target_label: dc }
  - job_name: one-service
    consul_sd_configs: [{ server: '127.0.0.1:7500', services: [web], tags: [metrics] }]
    relabel_configs:
      - { source_labels: [__meta_consul_service_metadata_metrics_path], regex: '(.+)', target_label: __metrics_path__ }
      - { source_labels: [__meta_consul_service_id], target_label: id }
";

/// Starts Prometheus, which asks by HTTP every second.
fn start_prometheus(lab: &Lab, host: &Host, program: &Path) -> RealClient {
    let config = format!(
        "global: {{ scrape_interval: 1s }}\nscrape_configs: {}",
        HTTP_JOB.replace("sd/prometheus'", "sd/prometheus', refresh_interval: 1s")
    );
    let file = lab.dir().join("prometheus.yml");
    fs::write(&file, config).unwrap();
    let mut command = command_on(host, program);
    command.arg(format!("--config.file={}", file.display()));
    command.arg(format!("--storage.tsdb.path={}", lab.dir().join("prometheus").display()));
    command.arg(format!("--web.listen-address=127.0.0.1:{API_PORT}"));
    RealClient::spawn(lab, host, command, API_PORT)
}

/// Starts VictoriaMetrics, which asks by HTTP every second, and waits for changes of Consul's lists.
fn start_victoria_metrics(lab: &Lab, host: &Host, program: &Path) -> RealClient {
    let config = format!("global: {{ scrape_interval: 1s }}\nscrape_configs: {HTTP_JOB}{CONSUL_JOBS}");
    let file = lab.dir().join("victoria.yml");
    fs::write(&file, config).unwrap();
    let mut command = command_on(host, program);
    command.arg(format!("-promscrape.config={}", file.display()));
    command.args(["-promscrape.httpSDCheckInterval=1s", "-promscrape.consulSDCheckInterval=1s"]);
    command.arg(format!("-storageDataPath={}", lab.dir().join("victoria").display()));
    command.arg(format!("-httpListenAddr=127.0.0.1:{API_PORT}"));
    RealClient::spawn(lab, host, command, API_PORT)
}

/// Returns the active targets of each job, by the label `id`.
fn targets(prometheus: &RealClient) -> BTreeMap<String, BTreeMap<String, Value>> {
    let answer = prometheus.get("/api/v1/targets?state=active");
    let mut jobs: BTreeMap<String, BTreeMap<String, Value>> = BTreeMap::new();
    for target in answer["data"]["activeTargets"].as_array().into_iter().flatten() {
        let label = |name: &str| target["labels"][name].as_str().unwrap_or_default().to_owned();
        jobs.entry(label("job")).or_default().insert(label("id"), target.clone());
    }
    jobs
}

/// Returns whether each of these jobs has exactly these targets.
fn all_have(client: &RealClient, jobs: &[&str], ids: &[&str]) -> bool {
    let found = targets(client);
    jobs.iter().all(|job| found.get(*job).is_some_and(|targets| targets.keys().eq(ids)))
}

/// Registers an instance of `web` with m1: the node of a host, whose metrics a client can read.
fn register(hosts: &[Host], id: &str, tag: &str, at: usize) {
    let body = json!({
        "Name": "web", "ID": id, "Address": hosts[at].ip, "Port": 7500, "Tags": [tag, "blue"],
        "Meta": { "metrics_path": "/metrics" }, "Check": { "TTL": "1h", "Status": "passing" },
    });
    put(&hosts[1], "/v1/agent/service/register", &body);
}

/// Asserts the URL and the labels of `web-2` in each job.
fn check_labels(client: &RealClient, hosts: &[Host]) {
    for (job, targets) in targets(client) {
        let target = &targets["web-2"];
        let url = target["scrapeUrl"].as_str().unwrap();
        assert!(url.starts_with(&format!("http://{}:7500/metrics", hosts[1].ip)), "{job}: {target}");
        let labels = match job.as_str() {
            "consul" => json!({ "service": "web", "node": "m1", "dc": "dc1" }),
            "http" => json!({ "service": "web", "node": "m1", "health": "passing" }),
            _ => json!({}),
        };
        for (label, expected) in labels.as_object().unwrap() {
            assert_eq!(&target["labels"][label], expected, "{job}: {target}");
        }
    }
}

/// Changes instances, and restarts the node that a client on m0's host asks. The client's jobs follow.
fn follow(lab: &mut Lab, jobs: &[&str], start: impl FnOnce(&Lab, &Host) -> RealClient) {
    let (hosts, nodes) = cluster(lab, 2, &[]);
    for (id, tag, at) in [("web-1", "metrics", 0), ("web-2", "metrics", 1), ("web-3", "other", 1)] {
        register(&hosts, id, tag, at);
    }
    let client = start(lab, &hosts[0]);
    lab.until(20 * S, "all jobs find both", |_| all_have(&client, jobs, &["web-1", "web-2"]));
    lab.until(10 * S, "all are scraped", |_| {
        targets(&client).values().flat_map(BTreeMap::values).all(|target| target["health"] == "up")
    });
    check_labels(&client, &hosts);

    put(&hosts[1], "/v1/agent/check/fail/service:web-1", &Value::Null);
    lab.until(UPDATE_MAX_S * S, "the label of its health follows", |_| {
        let is_critical = |job: &BTreeMap<String, Value>| {
            job.get("web-1").is_some_and(|target| target["labels"]["health"] == "critical")
        };
        targets(&client).get("http").is_some_and(is_critical)
    });
    put(&hosts[1], "/v1/agent/service/deregister/web-1", &Value::Null);
    lab.until(UPDATE_MAX_S * S, "all drop it", |_| all_have(&client, jobs, &["web-2"]));

    // While the node is away the client keeps its targets. The node's first answer has them again.
    lab.leave(nodes[0]);
    lab.ended(nodes[0], 10 * S);
    plain(lab, &hosts[0], 0, &[]);
    lab.throughout(UPDATE_MAX_S * S, "no job drops a target", |_| all_have(&client, jobs, &["web-2"]));
    register(&hosts, "web-4", "metrics", 1);
    lab.until(3 * UPDATE_MAX_S * S, "all follow again", |_| all_have(&client, jobs, &["web-2", "web-4"]));
}

#[test]
fn prometheus_follows_instances_by_http() {
    const TEST: &str = "prometheus::prometheus_follows_instances_by_http";
    let Some(program) = find_program(TEST, "prometheus", None) else { return };
    scenario(TEST, |lab| follow(lab, &["http"], |lab, host| start_prometheus(lab, host, &program)));
}

#[test]
fn victoria_metrics_follows_instances_by_consul_and_by_http() {
    const TEST: &str = "prometheus::victoria_metrics_follows_instances_by_consul_and_by_http";
    let Some(program) = find_program(TEST, "victoria-metrics", None) else { return };
    let jobs = ["http", "consul", "one-service"];
    scenario(TEST, |lab| follow(lab, &jobs, |lab, host| start_victoria_metrics(lab, host, &program)));
}
