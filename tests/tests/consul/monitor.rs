//! `/v1/agent/monitor` of a real node: an administrator sees a line as soon as it is written, and another
//! host sees none.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
};

use hearsay_tests::{http, registry::cluster, scenario};
use serde_json::json;

use crate::requests::{S, put};

#[test]
fn an_administrator_follows_the_log_and_another_host_does_not() {
    scenario("monitor::an_administrator_follows_the_log_and_another_host_does_not", |lab| {
        let (hosts, _) = cluster(lab, 2, &[]);
        let log = hosts[0].hold(7500, "GET /v1/agent/monitor?loglevel=info", "", "\r\n\r\n");
        let beat = json!({ "CheckID": "beat", "TTL": "1h" });
        for id in ["a", "b"] {
            put(&hosts[0], "/v1/agent/service/register", &json!({ "ID": id, "Name": "web", "Check": beat }));
        }
        log.set_read_timeout(Some(10 * S)).unwrap();
        let mut lines = BufReader::new(log).lines().map(|line| line.unwrap());
        let line = lines.find(|line| line.contains("a check was registered")).expect("the line comes");
        assert!(line.contains("[INFO]") && line.contains("hearsay_node::registry"), "{line}");
        let to: SocketAddr = format!("{}:7500", hosts[0].ip).parse().unwrap();
        let ask = || http::send(to, "GET /v1/agent/monitor", &[], "", 10 * S);
        let reply = hosts[1].enter(ask).unwrap();
        assert!([401, 403].contains(&reply.status), "{reply:?}");
    });
}
