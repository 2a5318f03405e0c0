//! Server-side request forgery: no check and no notification reaches a forbidden address, whether the
//! registration names it, a name resolves to it at first or later, or a redirect leads to it. A listener at
//! each of these addresses counts connections.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    path::PathBuf,
    process::Command,
};

use hearsay_tests::{
    AddressCounter, Cluster as _, Host, Lab, NodeRef,
    http::{self, Reply},
    registry::{all_see_all, plain},
    scenario,
};
use serde_json::{Value, json};

use crate::S;

/// Port of the listeners.
const PORT: u16 = 9900;
/// Metadata servers, link-local addresses, and IPv6 addresses that embed them, all on another host of the
/// LAN.
const ELSEWHERE: [&str; 14] = [
    "169.254.169.254",
    "169.254.10.1",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "fd00:ec2::254",
    "fd00:ec2::23",
    "fd20:ce::254",
    "fd00:c1::a9fe:a9fe",
    "fd00:42::42",
    "fd00:a9fe:a9fe::1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a9fe:a9fe",
    "2002:a9fe:a9fe::1",
];
/// Other spellings of these, of this host, and of groups of hosts.
const SPELLINGS: [&str; 15] = [
    "::ffff:169.254.169.254",
    "::ffff:a9fe:a9fe",
    "::169.254.169.254",
    "::ffff:0:169.254.169.254",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "fe80::1",
    "0.0.0.0",
    "0.1.2.3",
    "::",
    "::ffff:0.0.0.0",
    "224.0.0.1",
    "ff02::1",
    "::ffff:224.0.0.1",
    "255.255.255.255",
    "::ffff:255.255.255.255",
];
/// Spellings of `inet_aton`: checks do not parse them as IP addresses, the resolver does.
const NUMBERS: [&str; 4] = ["2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518"];
/// Kinds of checks that connect.
const KINDS: [&str; 6] = ["http", "tcp", "udp", "h2ping", "grpc", "watch"];

/// A node, a second one beside it, one on another host, and a host with all forbidden addresses.
struct Field {
    hosts: Vec<Host>,
    nodes: Vec<NodeRef>,
    names: PathBuf,
    here: AddressCounter,
    there: AddressCounter,
}

impl Field {
    fn new(lab: &mut Lab) -> Self {
        // Before a node starts, so that it resolves by this file.
        let names = lab.dir().join("hosts");
        fs::write(&names, "").unwrap();
        hearsay_tests::sh(&format!("mount --bind {} /etc/hosts", names.display()));
        let hosts: Vec<Host> = (0..3).map(|_| lab.host()).collect();
        let mut nodes = vec![plain(lab, &hosts[0], 0, &["--http", "[::]:7500"])];
        nodes.push(lab.start(Some(&hosts[0]), "m1", 7501, &["--name", "m1", "--http", "[::]:7501"]));
        nodes.push(plain(lab, &hosts[1], 2, &[]));
        all_see_all(lab, &nodes);
        let (near, far) = (&hosts[0], &hosts[2]);
        for (host, ip) in [(near, "fd78::1"), (far, "fd78::2")] {
            host.sh(&format!("ip addr add {ip}/64 dev eth0 nodad"));
        }
        near.sh(&format!("ip route add default via {}", far.ip));
        near.sh("ip -6 route add default via fd78::2");
        for address in ELSEWHERE {
            let (length, options) = if address.contains(':') { (128, "nodad") } else { (32, "") };
            far.sh(&format!("ip addr add {address}/{length} dev eth0 {options}"));
        }
        near.sh("nft 'add table inet lab; add chain inet lab out { type filter hook output priority 0; }; \
             add counter inet lab calls; \
             add rule inet lab out tcp flags & (syn|ack) == syn tcp dport { 7500, 7501 } counter name calls; \
             add counter inet lab datagrams; \
             add rule inet lab out udp dport { 7500, 7501, 7600, 7601, 9900 } counter name datagrams'");
        let (here, there) = (AddressCounter::start(near, PORT), AddressCounter::start(far, PORT));
        Self { hosts, nodes, names, here, there }
    }

    /// Sets the addresses of these names.
    fn resolve(&self, lines: &[(&str, &str)]) {
        let lines: String = lines.iter().map(|(name, ip)| format!("{ip} {name}\n")).collect();
        // In place, since the file is mounted.
        fs::write(&self.names, lines).unwrap();
    }

    /// Registers over the socket, so that the test makes no connection to the node's port.
    fn send(&self, lab: &Lab, body: &Value) -> Reply {
        let socket = lab.socket(self.nodes[0]);
        http::send_over_socket(&socket, "POST /services", &body.to_string(), 10 * S).unwrap()
    }

    /// Returns the newest outputs of the checks of the first node, by instance.
    fn outputs(&self, lab: &Lab) -> Vec<(String, String, String)> {
        let all = lab.get(self.nodes[0], "/registrations").unwrap_or_default();
        let all = all["registrations"].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let checks = all.iter().flat_map(|one| {
            let checks = one["checks"].as_array().cloned().unwrap_or_default();
            checks.into_iter().map(|c| (text(&one["id"]), text(&c["status"]), text(&c["output"])))
        });
        checks.collect()
    }

    /// Waits until the checks of these instances are critical because the policy refuses their targets.
    fn all_are_refused(&self, lab: &Lab, what: &str, is_meant: impl Fn(&str) -> bool) {
        lab.until(20 * S, what, |lab| {
            let outputs = self.outputs(lab);
            let mut meant = outputs.iter().filter(|(id, ..)| is_meant(id)).peekable();
            meant.peek().is_some()
                && meant.all(|(_, status, output)| status == "critical" && output.starts_with("not called: "))
        });
    }

    /// Returns the connections to the HTTP ports of the first host's nodes, from that host.
    fn calls_of_nodes(&self) -> u64 {
        self.counter("calls")
    }

    /// Returns the value of a counter of the first host's firewall.
    fn counter(&self, name: &str) -> u64 {
        let list = ["netns", "exec", &self.hosts[0].name, "nft", "list", "counter", "inet", "lab", name];
        let list = String::from_utf8(Command::new("ip").args(list).output().unwrap().stdout).unwrap();
        let packets = list.split_once("packets ").unwrap().1.split(' ').next().unwrap();
        packets.parse().unwrap()
    }

    /// Asserts that no connection has reached a forbidden address.
    fn nothing_was_called(&self) {
        let allowed: IpAddr = self.hosts[2].ip.parse().unwrap();
        let mut there = self.there.accepted();
        there.remove(&allowed);
        assert!(there.is_empty() && self.here.accepted().is_empty(), "{there:?} {:?}", self.here.accepted());
        assert_eq!((self.calls_of_nodes(), self.counter("datagrams")), (0, 0));
    }
}

/// Formats host and port as in URLs.
fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Returns all registrations that make a node call this address, with the field at fault.
fn registrations(target: &str) -> Vec<(String, Value, &'static str)> {
    let url = format!("http://{target}/x");
    let mut all = Vec::new();
    let mut add = |form: &str, body: Value, field| all.push((form.to_owned(), body, field));
    // Hundreds of checks: with a shorter timeout a busy machine makes some of them late.
    let options = json!({"interval": "2s", "timeout": "1900ms"});
    for kind in KINDS {
        let mut check = options.clone();
        check[kind] = json!(if kind == "http" { url.clone() } else { target.to_owned() });
        add(kind, json!({"name": "web", "port": 1, "check": check}), kind);
    }
    add("updates", json!({"name": "web", "port": 1, "requires": ["db"], "updates": url}), "updates");
    add("addr", json!({"Name": "web", "Addr": target}), "Addr");
    let heartbeat = json!({"ServiceName": "web", "ServiceURL": "http://10.77.9.9:80", "HeartbeatURL": url});
    add("heartbeat", heartbeat, "HeartbeatURL");
    all
}

#[test]
fn forbidden_addresses_are_refused_by_name_of_the_field() {
    scenario("forbidden::forbidden_addresses_are_refused_by_name_of_the_field", |lab| {
        let field = Field::new(lab);
        let mut targets: Vec<String> =
            ELSEWHERE.iter().chain(&SPELLINGS).map(|host| authority(host, PORT)).collect();
        // Nodes: this one, the one beside it, and one of another host, HTTP and swarm.
        for host in ["127.0.0.1", "localhost", "127.9.9.9", "::1", "::ffff:127.0.0.1", &field.hosts[0].ip] {
            targets.extend([7500, 7501, 7600, 7601].map(|port| authority(host, port)));
        }
        targets.extend([7500, 7600].map(|port| authority(&field.hosts[1].ip, port)));
        let mut refused = 0;
        for target in &targets {
            for (form, body, at) in registrations(target) {
                let reply = field.send(lab, &body);
                let names = reply.body.contains(&format!("{at}: "));
                assert!(reply.status == 400 && names, "{form} at {target}: {reply:?}");
                refused += 1;
            }
        }
        let list = lab.get(field.nodes[0], "/registrations").unwrap();
        assert_eq!(list["registrations"], json!([]));
        println!("{refused} registrations refused, {} addresses", targets.len());
        field.nothing_was_called();
    });
}

#[test]
fn names_that_resolve_to_forbidden_addresses_are_not_called() {
    scenario("forbidden::names_that_resolve_to_forbidden_addresses_are_not_called", |lab| {
        let field = Field::new(lab);
        // Control: these listeners are reachable from that host.
        let reachable = field.hosts[0].enter(|| {
            let open = |host: &&str| {
                let at: SocketAddr = authority(host, PORT).parse().unwrap();
                TcpStream::connect_timeout(&at, S).is_ok()
            };
            ELSEWHERE.iter().chain(&SPELLINGS).filter(|host| open(host)).count()
        });
        println!("{reachable} of the forbidden addresses can be reached");
        assert!(reachable >= ELSEWHERE.len() + 4, "{reachable}");
        assert_eq!(field.hosts[0].send(7500, "GET /livez", "").status, 200);
        assert_eq!(field.calls_of_nodes(), 1, "the test's own");
        field.hosts[0].enter(|| {
            let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
            socket.send_to(b"x", (field.hosts[2].ip.as_str(), PORT)).unwrap();
        });
        assert_eq!(field.counter("datagrams"), 1, "the test's own");
        field.hosts[0].sh("nft reset counters");
        field.there.reset();
        field.here.reset();
        let mut names: Vec<(String, String, u16)> = ELSEWHERE
            .iter()
            .chain(&SPELLINGS)
            .enumerate()
            .map(|(n, ip)| (format!("n{n}.test"), (*ip).to_owned(), PORT))
            .collect();
        let members = [("own", "127.0.0.1", 7500), ("own6", "::1", 7500), ("twin", "127.0.0.1", 7501)];
        let (near, other) = (field.hosts[0].ip.as_str(), field.hosts[1].ip.as_str());
        let by_lan =
            [("self", near, 7500), ("beside", near, 7501), ("other", other, 7500), ("swarm", other, 7600)];
        names.extend(
            members.into_iter().chain(by_lan).map(|(n, ip, port)| (format!("{n}.test"), ip.into(), port)),
        );
        let lines: Vec<(&str, &str)> =
            names.iter().map(|(name, ip, _)| (name.as_str(), ip.as_str())).collect();
        field.resolve(&lines);
        let numbers = NUMBERS.iter().map(|number| ((*number).to_owned(), PORT));
        let targets = names.iter().map(|(name, _, port)| (name.clone(), *port)).chain(numbers);
        let mut subscribers = 0;
        for (host, port) in targets {
            for (form, mut body, _) in registrations(&authority(&host, port)) {
                body["id"] = json!(format!("{form}-{host}"));
                let reply = field.send(lab, &body);
                assert_eq!(reply.status, 200, "{form} at {host}: {reply:?}");
                subscribers += usize::from(form == "updates");
            }
        }
        // A change of the table makes a notification due for each subscriber.
        assert_eq!(field.send(lab, &json!({"name": "db", "id": "db-1", "port": 5432})).status, 200);
        field.all_are_refused(lab, "the checks say that the policy refuses", |id| {
            id != "db-1" && !id.starts_with("updates")
        });
        lab.until(20 * S, "notifications were attempted", |lab| {
            metric(lab, field.nodes[0], "hearsay_notifications_failed_total") >= 2 * subscribers as u64
        });
        let metrics = lab.text(field.nodes[0], "/metrics").unwrap();
        let rules: BTreeSet<&str> = metrics
            .lines()
            .filter_map(|line| line.strip_prefix("hearsay_check_refused_total{rule=\"")?.split('"').next())
            .collect();
        println!("refused by these rules: {rules:?}");
        for rule in ["unspecified", "link_local", "metadata", "multicast", "broadcast", "tunnel", "member"] {
            assert!(rules.contains(rule), "{rule}: {rules:?}");
        }
        assert_eq!(metric(lab, field.nodes[0], "hearsay_notifications_delivered_total"), 0);
        field.nothing_was_called();
        assert!(field.there.accepted().is_empty(), "{:?}", field.there.accepted());
    });
}

/// Returns a metric of a node without labels.
fn metric(lab: &Lab, node: NodeRef, name: &str) -> u64 {
    let metrics = lab.text(node, "/metrics").unwrap_or_default();
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or_default()
}

#[test]
fn neither_a_name_that_changes_nor_a_redirect_leads_to_a_forbidden_address() {
    scenario("forbidden::neither_a_name_that_changes_nor_a_redirect_leads_to_a_forbidden_address", |lab| {
        let field = Field::new(lab);
        let allowed = field.hosts[2].ip.clone();
        // Of two addresses of a name only the allowed one is called.
        let mixed = [("mixed.test", allowed.as_str()), ("mixed.test", "fd00:ec2::254")];
        let names = |ip| [mixed[0], mixed[1], ("moves.test", ip)];
        field.resolve(&names(&allowed));
        let check = |id: &str, check: Value| {
            let body = json!({"name": "web", "id": id, "port": 1, "check": check});
            assert_eq!(field.send(lab, &body).status, 200);
        };
        let [interval, timeout] = ["1s", "900ms"];
        for host in ["moves", "mixed"] {
            let (target, url) = (format!("{host}.test:{PORT}"), format!("http://{host}.test:{PORT}/x"));
            check(&format!("{host}-http"), json!({"http": url, "interval": interval, "timeout": timeout}));
            check(&format!("{host}-tcp"), json!({"tcp": target, "interval": interval, "timeout": timeout}));
            check(
                &format!("{host}-watch"),
                json!({"watch": target, "interval": interval, "timeout": timeout}),
            );
        }
        let redirect = format!("http://{allowed}:{PORT}/redirect/http://169.254.169.254:{PORT}/latest");
        check("redirect", json!({"http": redirect, "interval": interval, "timeout": timeout}));
        let url = format!("http://moves.test:{PORT}/updates");
        for (id, updates) in [("told", url), ("led", redirect)] {
            let body = json!({"name": "app", "id": id, "port": 2, "requires": ["db"], "updates": updates});
            assert_eq!(field.send(lab, &body).status, 200);
        }
        let passes = |lab: &Lab, id: &str| {
            field.outputs(lab).iter().any(|(one, status, _)| one == id && status == "passing")
        };
        let kinds = ["http", "tcp", "watch"];
        lab.until(10 * S, "all pass at the address that is allowed", |lab| {
            kinds
                .iter()
                .all(|kind| passes(lab, &format!("moves-{kind}")) && passes(lab, &format!("mixed-{kind}")))
        });
        assert_eq!(field.send(lab, &json!({"name": "db", "id": "db-1", "port": 5432})).status, 200);
        let delivered = || metric(lab, field.nodes[0], "hearsay_notifications_delivered_total");
        lab.until(10 * S, "the program is told", |_| delivered() == 1);
        lab.until(10 * S, "a redirect is a failure", |lab| {
            field.outputs(lab).iter().any(|(id, status, output)| {
                id == "redirect" && status == "critical" && output.contains("is not followed")
            })
        });
        field.resolve(&names("169.254.169.254"));
        // The held connection was opened before; the next one would lead to the new address.
        field.there.close_all();
        field.all_are_refused(lab, "the policy refuses the new address", |id| id.starts_with("moves-"));
        let failed = metric(lab, field.nodes[0], "hearsay_notifications_failed_total");
        assert_eq!(field.send(lab, &json!({"name": "db", "id": "db-2", "port": 5433})).status, 200);
        lab.until(20 * S, "notifications were attempted", |lab| {
            metric(lab, field.nodes[0], "hearsay_notifications_failed_total") >= failed + 6
        });
        assert_eq!(delivered(), 1);
        field.nothing_was_called();
        field.resolve(&names(&allowed));
        lab.until(20 * S, "all pass again, and the program is told", |lab| {
            kinds.iter().all(|kind| passes(lab, &format!("moves-{kind}"))) && delivered() == 2
        });
        field.nothing_was_called();
    });
}
