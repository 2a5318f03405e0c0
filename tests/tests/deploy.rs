//! What `deploy` relies on of a node.

// In a test, what cannot be unwrapped is the failure.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, fs, os::unix::net::UnixDatagram, path::Path, time::Duration};

use hearsay_tests::{Cluster as _, scenario};

const S: Duration = Duration::from_secs(1);

#[test]
fn systemd_hears_that_a_node_is_ready_that_it_lives_and_that_it_stops() {
    scenario("systemd_hears_that_a_node_is_ready_that_it_lives_and_that_it_stops", |lab| {
        let path = lab.dir().join("notify");
        let systemd = UnixDatagram::bind(&path).unwrap();
        systemd.set_read_timeout(Some(10 * S)).unwrap();
        let heard = || {
            let mut message = [0; 1024];
            let length = systemd.recv(&mut message).expect("it is told within ten seconds");
            String::from_utf8_lossy(&message[..length]).into_owned()
        };
        let binary = std::env::var_os("NODE_BIN").unwrap();
        lab.go_on_with(&binary, &[("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "300000")]);
        let node = lab.start(None, "m1", 7500, &["--no-mdns", "--name", "m1"]);
        assert_eq!(heard(), "READY=1\nSTATUS=serves as m1\n");
        assert!(lab.get(node, "/members").is_some(), "ready is when it answers");
        for _ in 0..3 {
            assert_eq!(heard(), "WATCHDOG=1\n");
        }
        // One that stands still gives no sign, and is ended by whoever waits for it.
        lab.signal(node, "STOP");
        systemd.set_nonblocking(true).unwrap();
        while systemd.recv(&mut [0; 1024]).is_ok() {}
        systemd.set_nonblocking(false).unwrap();
        systemd.set_read_timeout(Some(S)).unwrap();
        assert!(systemd.recv(&mut [0; 1024]).is_err(), "a sign of life of a node that stands still");
        lab.signal(node, "CONT");
        lab.signal(node, "TERM");
        systemd.set_read_timeout(Some(10 * S)).unwrap();
        while heard() != "STOPPING=1\nSTATUS=leaving\n" {}
        assert!(lab.ended(node, 15 * S).success());
    });
}

/// The names of a node's figures in a text.
fn figures(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !(c.is_ascii_lowercase() || c == '_' || c == ':'));
    words.filter(|word| word.starts_with("hearsay_")).collect()
}

#[test]
fn what_is_watched_is_what_a_node_tells() {
    scenario("what_is_watched_is_what_a_node_tells", |lab| {
        let node = lab.start(None, "m1", 7500, &["--no-mdns", "--role", "log,grading,visits,portal,gateway"]);
        // The driver copies its counters once a second, and HTTP may answer before it has done so first.
        lab.until(5 * S, "its driver has told its counters", |lab| {
            lab.text(node, "/metrics").is_some_and(|metrics| metrics.contains("hearsay_lateness_seconds"))
        });
        let metrics = lab.text(node, "/metrics").unwrap();
        // Samples alone: what explains a counter leaves out the end of its name.
        let told: BTreeSet<&str> =
            metrics.lines().filter(|line| !line.starts_with('#')).flat_map(figures).collect();
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
        for file in ["prometheus/rules.yml", "prometheus/rules.test.yml", "grafana/dashboards/hearsay.json"] {
            let text = fs::read_to_string(deploy.join(file)).unwrap();
            let watched = figures(&text);
            assert!(watched.len() >= 10, "{file}: {watched:?}");
            let unknown: Vec<_> = watched.difference(&told).collect();
            assert!(unknown.is_empty(), "{file} asks for what no node tells: {unknown:?}");
        }
    });
}
