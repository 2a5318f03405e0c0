//! Tests of a gateway and a portal on real nodes: malicious announcements and clients reach no forbidden
//! address or path, take no requests of another service, and forge no headers; `--allow-host`; a machine
//! without a network is served by loopback.

// In a test, a failed unwrap is the failure.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use hearsay_protocol::{ADDRESSES_META, Entry, Fact, Header, Incarnation, Instance, Key, Origin, Version};
use hearsay_tests::{
    AddressCounter, Cluster as _, Host, Intruder, Lab, NodeRef, Program,
    http::{self, Reply},
    registry::{all_see_all, register},
    scenario,
};
use serde_json::{Value, json};

const S: Duration = Duration::from_secs(1);
const PROGRAM: &str = env!("CARGO_BIN_EXE_program");
/// Port of the listeners that count connections to forbidden addresses.
const PORT: u16 = 9900;
/// Addresses of another host: metadata servers, link-local addresses, and IPv6 addresses that embed them.
const ELSEWHERE: [&str; 9] = [
    "169.254.169.254",
    "169.254.10.1",
    "100.100.100.200",
    "168.63.129.16",
    "fd00:ec2::254",
    "fd20:ce::254",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a9fe:a9fe",
    "2002:a9fe:a9fe::1",
];
/// Spellings of this host's addresses, and of groups of hosts.
const SPELLINGS: [&str; 14] = [
    "127.0.0.1",
    "127.9.9.9",
    "::1",
    "::ffff:127.0.0.1",
    "0.0.0.0",
    "::",
    "::ffff:0.0.0.0",
    "::ffff:169.254.169.254",
    "::169.254.169.254",
    "fe80::1",
    "224.0.0.1",
    "ff02::1",
    "255.255.255.255",
    "0.1.2.3",
];
/// Names that resolve to an address, and texts that the resolver reads as one.
const NAMES: [&str; 6] = ["localhost", "2852039166", "0x7f000001", "127.1", "meta.test", "loop.test"];

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// A gateway and a portal on one node, the roles on another, and a third host.
struct Field {
    hosts: Vec<Host>,
    door: NodeRef,
    keeper: NodeRef,
    gateway: SocketAddr,
}

impl Field {
    fn new(lab: &mut Lab, options: &[&str]) -> Self {
        let names = lab.dir().join("hosts");
        fs::write(&names, "127.0.0.1 localhost\n169.254.169.254 meta.test\n127.0.0.1 loop.test\n").unwrap();
        hearsay_tests::sh(&format!("mount --bind {} /etc/hosts", names.display()));
        let hosts: Vec<Host> = (0..3).map(|_| lab.host()).collect();
        let at_door = [&["--name", "door", "--role", "portal,gateway"], options].concat();
        let door = lab.start(Some(&hosts[0]), "door", 7500, &at_door);
        let at_keeper = ["--name", "keeper", "--role", "grading,log,visits", "--demo"];
        let keeper = lab.start(Some(&hosts[1]), "keeper", 7500, &at_keeper);
        all_see_all(lab, &[door, keeper]);
        let gateway = SocketAddr::new(lab.address(door).ip(), 8080);
        let field = Self { hosts, door, keeper, gateway };
        lab.until(10 * S, "the gateway knows the roles", |_| field.get("/students").status == 200);
        field
    }

    fn get(&self, path: &str) -> Reply {
        self.ask(&self.gateway.to_string(), &format!("GET {path}"), &[], "")
    }

    fn ask(&self, host: &str, request: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        http::send_under(host, self.gateway, request, headers, body, 30 * S).unwrap()
    }

    fn state(&self, lab: &Lab) -> Value {
        lab.get(self.door, "/gateway").unwrap()
    }

    /// Waits until the gateway lists this many instances of a service, unused ones included.
    fn knows(&self, lab: &Lab, service: &str, count: u64) {
        lab.until(10 * S, "the gateway knows the instances", |lab| {
            let state = lab.get(self.door, "/gateway").unwrap_or_default();
            let routes = state["routes"].as_array().cloned().unwrap_or_default();
            routes.iter().filter(|route| route["service"] == service).any(|route| {
                let used = route["instances"].as_array().map_or(0, Vec::len) as u64;
                used + route["unusable"].as_u64().unwrap_or(0) == count
            })
        });
    }
}

/// A malicious member that states arbitrary instances, until it is dropped.
struct Liar {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Liar {
    /// Connects to a node and announces these instances. Its header states `http` as its HTTP address.
    fn announce(to: SocketAddr, http: &str, roles: &[&str], instances: Vec<(String, Instance)>) -> Self {
        let mut intruder = Intruder::connect([7; 32], "default", to).unwrap();
        // Its watchers reach it on the lab's bridge; otherwise they would declare it failed.
        intruder.listen(7600).unwrap();
        let node = intruder.identity.id();
        let entry = |version: u64, key, value| -> Entry {
            let version = Version(version);
            let fact = Fact { node, incarnation: Incarnation(1), version, key, value: Some(value) };
            fact.sign(&intruder.identity, "default").unwrap()
        };
        let header = Header {
            name: "liar".into(),
            addresses: vec!["/ip4/10.77.0.1/tcp/7600".into()],
            http: Some(http.into()),
            roles: roles.iter().map(|role| (*role).to_owned()).collect(),
            software: "none".into(),
            ..Header::default()
        };
        let mut entries = vec![entry(1, Key::Header, header.encode())];
        for (at, (id, instance)) in instances.into_iter().enumerate() {
            entries.push(entry(at as u64 + 2, Key::Instance(id), instance.encode()));
        }
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            intruder.gossip_entries(entries);
            // Answers pings, as a live member does.
            while !stopped.load(Relaxed) {
                intruder.let_pass(Duration::from_millis(50));
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        _ = self.thread.take().map(JoinHandle::join);
    }
}

fn instance(service: &str, target: &str, origin: Origin) -> Instance {
    let (host, port) = target.rsplit_once(':').unwrap();
    Instance {
        service: service.into(),
        address: host.trim_matches(['[', ']']).into(),
        port: port.split(['/', '?']).next().unwrap().parse().unwrap(),
        url: format!("http://{target}"),
        origin,
        ..Instance::default()
    }
}

#[test]
fn no_instance_leads_to_an_address_that_no_gateway_may_call() {
    scenario("no_instance_leads_to_an_address_that_no_gateway_may_call", |lab| {
        let field = Field::new(lab, &[]);
        let (near, other, far) = (&field.hosts[0], &field.hosts[1], &field.hosts[2]);
        near.sh("ip addr add fd78::1/64 dev eth0 nodad");
        far.sh("ip addr add fd78::2/64 dev eth0 nodad");
        near.sh(&format!("ip route add default via {}", far.ip));
        near.sh("ip -6 route add default via fd78::2");
        for address in ELSEWHERE {
            let (length, options) = if address.contains(':') { (128, "nodad") } else { (32, "") };
            far.sh(&format!("ip addr add {address}/{length} dev eth0 {options}"));
        }
        let (here, there) = (AddressCounter::start(near, PORT), AddressCounter::start(far, PORT));
        let all = ELSEWHERE.iter().chain(&SPELLINGS).chain(&NAMES);
        let mut targets: Vec<String> = all.map(|host| authority(host, PORT)).collect();
        for (host, ports) in [(near, [7500, 7600]), (other, [7500, 7600])] {
            targets.extend(ports.map(|port| authority(&host.ip, port)));
        }
        targets.push("127.0.0.1:7500".into());
        let announced = targets.iter().enumerate().map(|(at, target)| {
            let program = instance(&format!("s{at}"), target, Origin::Program);
            (format!("s{at}-1"), program)
        });
        let allowed = authority(&far.ip, PORT);
        let honest = ("honest-1".to_owned(), instance("honest", &allowed, Origin::Program));
        let swarm = SocketAddr::new(lab.address(field.door).ip(), 7600);
        let _liar = Liar::announce(swarm, "10.77.0.1:7500", &[], announced.chain([honest]).collect());
        field.knows(lab, "honest", 1);
        for (at, target) in targets.iter().enumerate() {
            for path in ["livez", "v1/agent/self"] {
                let reply = field.get(&format!("/s{at}/{path}"));
                assert_eq!(reply.status, 503, "{target}: {reply:?}");
            }
        }
        assert_eq!(field.get("/honest/x").status, 200, "what may be called is");
        assert_eq!(lab.sees(field.door, "liar").as_deref(), Some("alive"));
        let mut reached = there.accepted();
        reached.remove(&far.ip.parse().unwrap());
        assert!(reached.is_empty() && here.accepted().is_empty(), "{reached:?} {:?}", here.accepted());
        let why = field.state(lab)["ignored"].to_string();
        for word in ["metadata address", "link-local", "loopback", "a node of this cluster", "multicast"] {
            assert!(why.contains(word), "{word}: {why}");
        }
        let metrics = lab.text(field.door, "/metrics").unwrap();
        for rule in ["metadata", "link_local", "loopback", "member", "unspecified", "tunnel", "broadcast"] {
            let line = format!("hearsay_instances_refused_total{{rule=\"{rule}\"}}");
            assert!(metrics.contains(&line), "{rule}: {metrics}");
        }
    });
}

#[test]
fn a_role_leads_nowhere_but_to_its_node_and_to_no_path_but_its_own() {
    scenario("a_role_leads_nowhere_but_to_its_node_and_to_no_path_but_its_own", |lab| {
        let field = Field::new(lab, &[]);
        let here = AddressCounter::start(&field.hosts[0], PORT);
        let swarm = SocketAddr::new(lab.address(field.door).ip(), 7600);
        // Its stated HTTP address is loopback of the gateway's host, and its instances rewrite each request.
        let roles = ["grading", "log"].map(|role| {
            let leaving = instance(role, &format!("127.0.0.1:{PORT}/v1/agent/leave?"), Origin::Role);
            let meta = BTreeMap::from([(ADDRESSES_META.to_owned(), "stated".to_owned())]);
            (format!("{role}-lie"), Instance { meta, ..leaving })
        });
        let liar = Liar::announce(swarm, &format!("127.0.0.1:{PORT}"), &["grading", "log"], roles.into());
        field.knows(lab, "grading", 2);
        let portal = lab.address(field.door);
        for _ in 0..12 {
            for path in ["/portal", "/portal/log"] {
                let reply = http::send(portal, &format!("GET {path}"), &[], "", 30 * S).unwrap();
                assert_eq!(reply.status, 200, "{path}: {reply:?}");
            }
            assert_eq!(field.get("/students/1").status, 200);
        }
        assert!(here.accepted().is_empty(), "{:?}", here.accepted());
        assert_eq!(lab.sees(field.door, "liar").as_deref(), Some("alive"), "so it was there to be asked");
        drop(liar);
        for path in [
            "/grading/v1/agent/self",
            "/grading/members",
            "/log/../members",
            "/grading/",
            "/visits/x/../../livez",
        ] {
            let reply = field.get(path);
            assert!([400, 404].contains(&reply.status), "{path}: {reply:?}");
        }
        let reply = field.ask("localhost", "PUT /grading/v1/agent/leave", &[], "");
        assert_eq!(reply.status, 404, "{reply:?}");
        assert_eq!(field.get("/grading/students").status, 200);
        assert_eq!(lab.sees(field.keeper, "door").as_deref(), Some("alive"));
    });
}

#[test]
fn no_program_takes_requests_of_a_role_or_changes_those_of_others() {
    scenario("no_program_takes_requests_of_a_role_or_changes_those_of_others", |lab| {
        let field = Field::new(lab, &[]);
        let host = &field.hosts[2];
        let node = lab.start(Some(host), "m2", 7500, &["--name", "m2"]);
        all_see_all(lab, &[field.door, field.keeper, node]);
        let (thief, honest) = (Program::start(PROGRAM, host, 4000), Program::start(PROGRAM, host, 4001));
        let by_address = format!("urlprefix-{}/", field.gateway.ip());
        let tags = json!([
            "urlprefix-/students/1",
            "urlprefix-/students strip=/students",
            "urlprefix-localhost/log",
            "urlprefix-localhost/",
            by_address,
        ]);
        register(host, &json!({"name": "Aaa", "id": "thief", "port": 4000, "tags": tags}));
        // No program listens at 4002: the options of its tag must not apply to the other instance.
        let tags = json!(["urlprefix-/shop strip=/shop proto=h2c"]);
        register(host, &json!({"name": "Shops", "id": "dead", "port": 4002, "tags": tags}));
        register(host, &json!({"name": "shop", "id": "honest", "port": 4001, "tags": ["urlprefix-/shop"]}));
        field.knows(lab, "shop", 1);
        let own = field.gateway.to_string();
        for _ in 0..20 {
            for (host, path) in [
                (own.as_str(), "/students/1"),
                (&own, "/students/2"),
                ("localhost", "/students/1"),
                ("localhost", "/log"),
                ("LOCALHOST:8080", "/records"),
            ] {
                let cookie = [("cookie", "secret=1")];
                let reply = field.ask(host, &format!("GET {path}"), &cookie, "");
                assert!(reply.status == 200 || path == "/records", "{host}{path}: {reply:?}");
            }
        }
        assert_eq!(thief.count(), 0, "requests of roles");
        assert_eq!(field.ask("localhost", "GET /x", &[], "").status, 200, "what is the program's");
        assert_eq!(thief.count(), 1);
        for n in 0..12 {
            let plain = [("content-type", "text/plain")];
            let reply = field.ask("shop.test", &format!("POST /shop/{n}"), &plain, "b");
            assert_eq!(reply.status, 200, "{reply:?}");
        }
        let asked: Vec<String> = (0..12).map(|n| format!("POST /shop/{n} b")).collect();
        assert_eq!(honest.received(), asked);
        let state = field.state(lab);
        assert_eq!(state["conflicts"][0]["services"], json!(["Shops", "shop"]), "{state:#}");
        let ignored = state["ignored"].as_array().unwrap();
        assert!(ignored.iter().filter(|one| one["service"] == "Aaa").count() == 3, "{ignored:?}");
        let metrics = lab.text(field.door, "/metrics").unwrap();
        assert!(metrics.contains("hearsay_gateway_route_conflicts 1"), "{metrics}");
        // A gateway with rules takes what the rules name, and nothing else.
        let second = ["--name", "second", "--role", "gateway", "--gateway-routes", "shop=/shop"];
        let second = lab.start(
            Some(&field.hosts[1]),
            "second",
            7501,
            &[&second[..], &["--http", "[::]:7501"]].concat(),
        );
        lab.until(10 * S, "the second gateway has no conflict", |lab| {
            let state = lab.get(second, "/gateway").unwrap_or_default();
            let routes = state["routes"].as_array().cloned().unwrap_or_default();
            let shop: Vec<_> = routes
                .iter()
                .filter(|route| route["prefix"] == "/shop/" && route["service"].is_null())
                .collect();
            state["conflictsCount"] == 0 && shop.len() == 1 && shop[0]["instances"] == json!(["honest"])
        });
    });
}

#[test]
fn no_client_names_headers_that_programs_believe() {
    scenario("no_client_names_headers_that_programs_believe", |lab| {
        let field = Field::new(lab, &[]);
        let host = &field.hosts[2];
        let node = lab.start(Some(host), "m2", 7500, &["--name", "m2"]);
        all_see_all(lab, &[field.door, field.keeper, node]);
        let _program = Program::start(PROGRAM, host, 4000);
        register(host, &json!({"name": "web", "id": "web-1", "port": 4000}));
        field.knows(lab, "web", 1);
        let claims = [
            ("X-Real-IP", "127.0.0.1"),
            ("X_Real_IP", "127.0.0.1"),
            ("X_Forwarded_For", "127.0.0.1"),
            ("Transfer_Encoding", "chunked"),
            ("X-Forwarded-Port", "22"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Host", "evil.example"),
            ("X-Forwarded-For", "127.0.0.1"),
            ("Forwarded", "for=127.0.0.1;host=evil.example;proto=https"),
        ];
        let reply = field.ask("shop.example:8443", "GET /web/headers", &claims, "");
        let headers: Vec<(&str, &str)> =
            reply.body.lines().filter_map(|line| line.split_once(": ")).collect();
        assert!(headers.iter().all(|(name, _)| !name.contains('_') && *name != "forwarded"), "{headers:?}");
        let value = |name: &str| headers.iter().find(|(found, _)| *found == name).map(|(_, value)| *value);
        let client = value("x-real-ip").unwrap();
        assert_ne!(client, "127.0.0.1");
        assert_eq!(value("x-forwarded-for"), Some(format!("127.0.0.1, {client}").as_str()));
        assert_eq!(value("x-forwarded-port"), Some("8443"));
        assert_eq!(value("x-forwarded-proto"), Some("http"));
        assert_eq!(value("x-forwarded-host"), Some("shop.example:8443"));
        assert_eq!(value("host"), Some("shop.example:8443"));
    });
}

#[test]
fn a_gateway_under_a_name_of_its_own_needs_that_name_and_its_nodes_do_not() {
    scenario("a_gateway_under_a_name_of_its_own_needs_that_name_and_its_nodes_do_not", |lab| {
        let field = Field::new(lab, &["--allow-host", "school.example"]);
        for host in ["school.example", "SCHOOL.example:8443", &field.gateway.to_string(), "localhost"] {
            for path in ["/students", "/log", "/portal", "/grading/students"] {
                let reply = field.ask(host, &format!("GET {path}"), &[], "");
                assert_eq!(reply.status, 200, "{host}{path}: {reply:?}");
            }
            let front = field.ask(host, "GET /", &[], "");
            assert_eq!((front.status, front.header("location")), (303, Some("/portal")), "{front:?}");
        }
        // A page of the gateway that writes, and a page of another site.
        let student = json!({"firstName": "Ann", "lastName": "Lee"}).to_string();
        let own = field.gateway.to_string();
        for (origin, is_own) in [(format!("http://{own}"), true), ("http://evil.example".to_owned(), false)] {
            let headers = [("content-type", "application/json"), ("origin", origin.as_str())];
            let reply = field.ask(&own, "POST /students", &headers, &student);
            assert_eq!(reply.status != 403 && reply.status != 421, is_own, "{origin}: {reply:?}");
        }
        // Forwarding headers of a client are not believed.
        for claim in [
            ("forwarded", "for=127.0.0.1;host=\"school.example\";proto=http"),
            ("x-forwarded-host", "school.example"),
        ] {
            let reply = field.ask("evil.example", "GET /students", &[claim], "");
            assert!(reply.status == 421 && reply.body.contains("--allow-host evil.example"), "{reply:?}");
            let direct = lab.address(field.keeper);
            let reply =
                http::send_under("evil.example", direct, "GET /students", &[claim], "", 10 * S).unwrap();
            assert_eq!(reply.status, 421, "{reply:?}");
        }
    });
}

#[test]
fn on_a_machine_without_a_network_everything_is_reached_by_loopback() {
    scenario("on_a_machine_without_a_network_everything_is_reached_by_loopback", |lab| {
        let host = lab.host();
        host.sh("ip addr flush dev eth0");
        for (name, role, http) in
            [("door", "portal,gateway", "[::]:7500"), ("keeper", "grading,log", "[::]:7501")]
        {
            let port = http.rsplit_once(':').unwrap().1.parse().unwrap();
            lab.start(Some(&host), name, port, &["--name", name, "--role", role, "--http", http, "--demo"]);
        }
        let _program = Program::start(PROGRAM, &host, 4000);
        let listens = |port: u16| {
            let at = SocketAddr::from(([127, 0, 0, 1], port));
            host.enter(|| std::net::TcpStream::connect(at).is_ok())
        };
        lab.until(20 * S, "the nodes listen", |_| [7500, 7501, 8080].into_iter().all(listens));
        // With the other node: for the gateway it is a program on another host.
        let body = json!({"name": "web", "id": "web-1", "port": 4000}).to_string();
        assert_eq!(host.send(7501, "POST /services", &body).status, 200);
        for path in ["/students", "/log", "/portal", "/web/x", "/portal/log"] {
            lab.until(20 * S, path, |_| host.send(8080, &format!("GET {path}"), "").status == 200);
        }
        // Another listener on that host is not reached by the node's address.
        let body = json!({"name": "node", "id": "node-1", "port": 7500}).to_string();
        assert_eq!(host.send(7501, "POST /services", &body).status, 200);
        lab.until(10 * S, "the gateway knows of it", |_| {
            host.send(7500, "GET /gateway", "").body.contains("127.0.0.1:7500 is an address of a node")
        });
        assert_eq!(host.send(8080, "GET /node/members", "").status, 503);
    });
}
