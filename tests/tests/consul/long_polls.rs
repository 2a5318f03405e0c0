//! Tests of many blocking queries, and of indexes over restarts: of five thousand long polls those of a
//! changed service wake and no others, and no index falls.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use hearsay_tests::{Cluster as _, Lab, NodeRef, scenario};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;

use super::{
    S,
    requests::{index_of, passing, put},
};

const SERVICES: usize = 50;
const POLLS_PER_SERVICE: usize = 100;
/// Memory of the node for one waiting query and its connection. Most of it are hyper's two buffers of 8 KiB.
/// A third one would be too much.
const KB_PER_QUERY_MAX: u64 = 22;
const RESTARTS: usize = 20;

fn service(number: usize) -> String {
    format!("svc-{number:02}")
}

fn register(host: &hearsay_tests::Host, number: usize, version: usize) {
    let name = service(number);
    let body = json!({ "Name": name, "ID": name, "Address": "10.77.9.9", "Port": 8000 + number, "Tags": [format!("v{version}")],
        "Check": { "TTL": "1h", "Status": "passing" } });
    put(host, "/v1/agent/service/register", &body);
}

/// Opens a long poll of a service.
fn poll(address: SocketAddr, number: usize, index: u64) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    let path = format!("/v1/health/service/{}?passing&index={index}&wait=10m", service(number));
    write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").unwrap();
    stream
}

/// Returns the rest of an answer.
fn answer(stream: &mut TcpStream) -> String {
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(10 * S)).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// Whether nothing has arrived, not even the end of the connection.
fn is_silent(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    stream.peek(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

/// Number of blocking queries and streams of a node; `None` without an answer.
fn waiting(lab: &Lab, node: NodeRef) -> Option<usize> {
    let metrics = lab.text(node, "/metrics")?;
    metrics.lines().find_map(|line| line.strip_prefix("hearsay_http_waiting ")?.parse().ok())
}

/// Allows this process and its later children as many files as the system does.
fn allow_files() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    assert!(maximum.is_none_or(|files| files >= 8192), "too few files for the queries: {maximum:?}");
}

#[test]
fn of_five_thousand_long_polls_only_those_of_the_changed_service_wake() {
    scenario("long_polls::of_five_thousand_long_polls_only_those_of_the_changed_service_wake", |lab| {
        allow_files();
        let host = lab.host();
        let node = lab.start(Some(&host), "m0", 7500, &["--name", "m0"]);
        lab.until(10 * S, "it answers", |lab| lab.get(node, "/v1/agent/self").is_some());
        (0..SERVICES).for_each(|number| register(&host, number, 1));
        lab.until(10 * S, "all are listed", |lab| {
            (0..SERVICES).all(|number| passing(lab, node, &service(number)) == [service(number)])
        });
        let without = lab.resident_kb(node);
        let indexes: Vec<u64> = (0..SERVICES)
            .map(|number| index_of(&host, &format!("/v1/health/service/{}", service(number))))
            .collect();
        let address = lab.address(node);
        let mut polls: Vec<(usize, TcpStream)> = (0..SERVICES * POLLS_PER_SERVICE)
            .map(|poll_number| poll_number % SERVICES)
            .map(|number| (number, poll(address, number, indexes[number])))
            .collect();
        lab.until(30 * S, "all queries wait", |lab| waiting(lab, node) == Some(polls.len()));
        let resident = lab.resident_kb(node);
        println!("{without} KiB resident without queries, {resident} KiB with {} queries", polls.len());
        let growth_max = KB_PER_QUERY_MAX * polls.len() as u64;
        assert!(resident - without <= growth_max, "{without} KiB, then {resident} KiB");
        // The second change comes after the first one, so a query that the first one woke by mistake has
        // been answered when those of the second one are.
        for changed in [7, 31] {
            register(&host, changed, 2);
            let (woken, others): (Vec<_>, Vec<_>) =
                polls.into_iter().partition(|(number, _)| *number == changed);
            assert_eq!(woken.len(), POLLS_PER_SERVICE);
            for (_, mut stream) in woken {
                let text = answer(&mut stream);
                assert!(text.contains(" 200 OK") && text.contains("\"v2\""), "{text}");
            }
            polls = others;
        }
        lab.until(5 * S, "the others wait", |lab| waiting(lab, node) == Some(polls.len()));
        assert!(polls.iter().all(|(_, stream)| is_silent(stream)), "a query of another service was answered");
        drop(polls);
        lab.until(10 * S, "closed queries are forgotten", |lab| waiting(lab, node) == Some(0));
    });
}

#[test]
fn no_index_falls_over_twenty_restarts() {
    scenario("long_polls::no_index_falls_over_twenty_restarts", |lab| {
        let host = lab.host();
        let start = |lab: &mut Lab| lab.start(Some(&host), "m0", 7500, &["--name", "m0", "--role", "kv"]);
        let mut node = start(lab);
        let paths = [
            "/v1/health/service/svc-00",
            "/v1/health/state/any",
            "/v1/catalog/services",
            "/v1/catalog/nodes",
            "/v1/kv/limit",
            "/v1/kv?recurse",
            "/v1/kv/absent",
        ];
        let mut last = paths.map(|_| 0);
        for restart in 0..=RESTARTS {
            lab.until(20 * S, "it keeps keys", |lab| {
                lab.get(node, "/v1/health/service/kv?passing").is_some_and(|list| !list[0].is_null())
            });
            if restart == 0 {
                register(&host, 0, 0);
                assert_eq!(host.send(7500, "PUT /v1/kv/limit", "0").body, "true");
            }
            for (path, last) in paths.iter().zip(&mut last) {
                let index = index_of(&host, path);
                assert!(index >= *last, "restart {restart}: {path}: {index} after {last}");
                *last = index;
            }
            register(&host, 0, restart + 1);
            assert_eq!(host.send(7500, "PUT /v1/kv/limit", &restart.to_string()).body, "true");
            for (path, last) in paths.iter().zip(&mut last) {
                let index = index_of(&host, path);
                let is_changed = ["svc-00", "state", "services", "limit", "recurse"]
                    .iter()
                    .any(|part| path.contains(part));
                assert!(
                    index > *last || index == *last && !is_changed,
                    "{restart}: {path}: {index} after {last}"
                );
                *last = index;
            }
            if restart % 2 == 0 {
                lab.crash(node);
            } else {
                lab.leave(node);
            }
            node = start(lab);
        }
    });
}
