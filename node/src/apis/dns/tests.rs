//! Tests of DNS responses to encoded requests: records of services, nodes and DNS-SD, response codes, SOA
//! records, sizes, truncation and the rate limit.

use std::collections::BTreeMap;

use hearsay_protocol::{Health, Instance, Member, NamedPort};
use hickory_proto::{
    op::{Edns, Message, MessageType, OpCode, Query, ResponseCode},
    rr::{DNSClass, Name, RData, RecordType},
    serialize::binary::{BinDecodable as _, BinDecoder},
};

use super::{
    endpoints::EXAMINED_MAX,
    fixture::{Zone, member, web},
    message::{Client, Transport, respond},
};

const LOOPBACK: &str = "127.0.0.1";
const REMOTE: &str = "10.77.9.9";

impl Zone {
    /// The response to a request of these bytes.
    fn send(&self, request: &[u8], client: &str, transport: Transport) -> Option<Vec<u8>> {
        self.respond(request, client, transport).map(|response| response.bytes)
    }

    fn request(&self, request: &Message, client: &str, transport: Transport) -> Message {
        let bytes = self.send(&request.to_vec().unwrap(), client, transport).unwrap();
        Message::from_vec(&bytes).unwrap()
    }

    /// The response to a question over UDP from this machine, without EDNS.
    fn ask(&self, name: &str, record_type: RecordType) -> Message {
        self.request(&question(name, record_type), LOOPBACK, Transport::Udp)
    }
}

fn question(name: &str, record_type: RecordType) -> Message {
    let mut message = Message::new(77, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), record_type));
    message
}

fn with_edns(mut message: Message, bytes: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(bytes);
    message.set_edns(edns);
    message
}

fn addresses(message: &Message) -> Vec<String> {
    let mut found: Vec<String> =
        message.answers.iter().filter_map(|record| record.data.ip_addr()).map(|ip| ip.to_string()).collect();
    found.sort();
    found
}

/// `weight port target` of each SRV record.
fn srv(message: &Message) -> Vec<String> {
    let of = |data: &RData| match data {
        RData::SRV(srv) => Some(format!("{} {} {}", srv.weight, srv.port, srv.target)),
        _ => None,
    };
    message.answers.iter().filter_map(|record| of(&record.data)).collect()
}

fn code(message: &Message) -> ResponseCode {
    message.metadata.response_code
}

/// NOERROR without answers, with the SOA of this zone.
fn assert_no_data(message: &Message, zone: &str) {
    assert_eq!((code(message), message.answers.len()), (ResponseCode::NoError, 0), "{message}");
    assert_soa(message, zone);
}

fn assert_soa(message: &Message, zone: &str) {
    let [soa] = message.authorities.as_slice() else { panic!("{message}") };
    assert_eq!((soa.name.to_ascii().as_str(), soa.ttl), (zone, 1));
    let RData::SOA(data) = &soa.data else { panic!("{message}") };
    assert_eq!(data.minimum, 1);
}

#[test]
fn a_service_has_the_addresses_of_its_instances_that_are_not_critical() {
    let zone = Zone::new();
    zone.add(1, "web-1", web(1));
    zone.add(2, "web-2", Instance { health: Health::Warning, ..web(2) });
    zone.add(2, "web-3", Instance { health: Health::Critical, ..web(3) });
    for name in
        ["web.service.hearsay.", "web.service.dc1.consul.", "_web._tcp.service.consul.", "_web._tcp.hearsay."]
    {
        let response = zone.ask(name, RecordType::A);
        assert_eq!(addresses(&response), ["10.77.1.1", "10.77.1.2"], "{name}");
        let metadata = response.metadata;
        assert!(metadata.authoritative && metadata.recursion_desired && !metadata.recursion_available);
        assert!(response.answers.iter().all(|record| record.ttl == 0));
    }
    assert_eq!(addresses(&zone.ask("v2.web.service.hearsay.", RecordType::A)), ["10.77.1.2"]);
    assert_eq!(addresses(&zone.ask("_web._v1.service.hearsay.", RecordType::A)), ["10.77.1.1"]);
    assert_eq!(code(&zone.ask("v3.web.service.hearsay.", RecordType::A)), ResponseCode::NXDomain);
}

#[test]
fn srv_records_lead_to_addresses_that_come_along() {
    let zone = Zone::new();
    zone.add(1, "web-1", web(1));
    zone.add(
        2,
        "web-2",
        Instance { address: "fd77::2".into(), url: "http://[fd77::2]:8002".into(), ..web(2) },
    );
    let response = zone.ask("_web._tcp.service.consul.", RecordType::SRV);
    let mut records = srv(&response);
    records.sort();
    let second = "20 8002 fd770000000000000000000000000002.addr.dc1.consul.";
    assert_eq!(records, ["10 8001 0a4d0101.addr.dc1.consul.", second]);
    let types: Vec<_> = response.additionals.iter().map(hickory_proto::rr::Record::record_type).collect();
    assert!(types.contains(&RecordType::A) && types.contains(&RecordType::AAAA) && types.len() == 2);
    for target in ["0a4d0101.addr.dc1.consul.", "0a4d0101.addr.consul."] {
        assert_eq!(addresses(&zone.ask(target, RecordType::A)), ["10.77.1.1"]);
    }
    // The order is the same for a client as long as nothing changes.
    let again = zone.ask("_web._tcp.service.consul.", RecordType::SRV);
    assert_eq!(srv(&again), srv(&response));
}

#[test]
fn a_program_that_two_nodes_have_registered_is_one_record() {
    let zone = Zone::new();
    zone.add(1, "web-1", web(1));
    zone.add(2, "web-1", web(1));
    assert_eq!(srv(&zone.ask("web.service.hearsay.", RecordType::SRV)).len(), 1);
}

#[test]
fn an_instance_with_a_host_name_is_an_alias() {
    let zone = Zone::new();
    let named = Instance { address: "db.example".into(), url: "http://db.example:5432".into(), ..web(1) };
    zone.add(1, "db-1", Instance { service: "db".into(), ..named });
    let response = zone.ask("db.service.hearsay.", RecordType::A);
    assert!(matches!(&response.answers[0].data, RData::CNAME(name) if name.0.to_ascii() == "db.example."));
    assert_eq!(srv(&zone.ask("db.service.hearsay.", RecordType::SRV)), ["10 8001 db.example."]);
    let is_alias = |message: &Message| matches!(message.answers.as_slice(), [record] if record.record_type() == RecordType::CNAME);
    for record_type in [RecordType::AAAA, RecordType::ANY, RecordType::CNAME] {
        assert!(is_alias(&zone.ask("db.service.hearsay.", record_type)), "{record_type}");
    }
    assert_no_data(&zone.ask("db.service.hearsay.", RecordType::TXT), "service.hearsay.");
    // Beside an address, a name has no alias.
    zone.add(2, "db-2", Instance { service: "db".into(), ..web(2) });
    assert_eq!(addresses(&zone.ask("db.service.hearsay.", RecordType::ANY)), ["10.77.1.2"]);
    assert_no_data(&zone.ask("db.service.hearsay.", RecordType::CNAME), "service.hearsay.");
    assert_eq!(srv(&zone.ask("db.service.hearsay.", RecordType::SRV)).len(), 2);
    // An address with a zone is no name.
    zone.add(
        1,
        "l-1",
        Instance { service: "l".into(), address: "fe80::1%eth0".into(), ..Instance::default() },
    );
    assert_no_data(&zone.ask("l.service.hearsay.", RecordType::A), "service.hearsay.");
    // Nor has a node that is reached by a name alone an address.
    zone.put_member(Member {
        http: Some("n3.example:7500".into()),
        addresses: vec!["/dns4/n3.example/tcp/7600".into()],
        ..member(3)
    });
    assert!(is_alias(&zone.ask("n3.node.hearsay.", RecordType::A)));
}

#[test]
fn a_named_port_is_asked_for_by_name() {
    let zone = Zone::new();
    let ports = vec![
        NamedPort { name: "http".into(), port: 8001, is_default: true },
        NamedPort { name: "metrics".into(), port: 9100, is_default: false },
    ];
    zone.add(1, "web-1", Instance { ports, ..web(1) });
    zone.add(2, "web-2", web(2));
    let response = zone.ask("metrics.port.web.service.hearsay.", RecordType::SRV);
    assert_eq!(srv(&response), ["10 9100 0a4d0101.addr.dc1.hearsay."]);
    assert_no_data(&zone.ask("port.web.service.hearsay.", RecordType::A), "service.hearsay.");
    assert_eq!(code(&zone.ask("nope.port.web.service.hearsay.", RecordType::A)), ResponseCode::NXDomain);
}

#[test]
fn what_exists_without_records_of_a_type_is_no_error() {
    let zone = Zone::new();
    zone.add(1, "web-1", Instance { tags: vec!["a.b".into()], ..web(1) });
    assert_no_data(&zone.ask("web.service.consul.", RecordType::AAAA), "service.consul.");
    assert_no_data(&zone.ask("web.service.consul.", RecordType::TXT), "service.consul.");
    assert_no_data(&zone.ask("web.service.dc1.consul.", RecordType::AAAA), "consul.");
    assert_no_data(&zone.ask("b.web.service.consul.", RecordType::A), "service.consul.");
    assert_no_data(&zone.ask("node.hearsay.", RecordType::A), "hearsay.");
    for name in
        ["nope.service.consul.", "_grpc_config.web.service.consul.", "_grpclb._tcp.web.service.consul."]
    {
        for record_type in [RecordType::A, RecordType::TXT, RecordType::SRV] {
            let response = zone.ask(name, record_type);
            assert_eq!(code(&response), ResponseCode::NXDomain, "{name}");
            assert_soa(&response, "service.consul.");
        }
    }
}

#[test]
fn both_zones_have_an_soa_at_their_apex() {
    let zone = Zone::new();
    for name in ["hearsay.", "service.hearsay.", "consul.", "service.consul."] {
        let response = zone.ask(name, RecordType::SOA);
        assert_eq!((response.answers.len(), response.authorities.len()), (1, 0));
        assert_eq!(response.answers[0].name.to_ascii(), name);
        let servers = zone.ask(name, RecordType::NS);
        assert_eq!((servers.answers.len(), servers.additionals.len()), (1, 1), "{servers}");
    }
    assert_no_data(&zone.ask("service.consul.", RecordType::A), "service.consul.");
}

#[test]
fn a_node_has_its_addresses_and_an_address_its_node() {
    let zone = Zone::new();
    assert_eq!(addresses(&zone.ask("n2.node.dc1.consul.", RecordType::A)), ["10.77.0.2"]);
    assert_eq!(addresses(&zone.ask("N2.node.hearsay.", RecordType::AAAA)), ["fd77::2"]);
    assert_eq!(code(&zone.ask("n3.node.hearsay.", RecordType::A)), ResponseCode::NXDomain);
    let response = zone.ask("2.0.77.10.in-addr.arpa.", RecordType::PTR);
    assert!(
        matches!(&response.answers[0].data, RData::PTR(name) if name.0.to_ascii() == "n2.node.dc1.hearsay.")
    );
    assert_no_data(&zone.ask("2.0.77.10.in-addr.arpa.", RecordType::A), "2.0.77.10.in-addr.arpa.");
    assert_eq!(code(&zone.ask("9.0.77.10.in-addr.arpa.", RecordType::PTR)), ResponseCode::Refused);
}

#[test]
fn services_can_be_browsed() {
    let zone = Zone::new();
    assert_no_data(&zone.ask("_services._dns-sd._udp.hearsay.", RecordType::PTR), "hearsay.");
    let meta = BTreeMap::from([("path".to_owned(), "/study".to_owned())]);
    zone.add(1, "Web 1.a", Instance { meta, ..web(1) });
    zone.add(2, "web-2", web(2));
    let names = |name: &str| -> Vec<String> {
        let response = zone.ask(name, RecordType::PTR);
        let pointers = response.answers.iter().filter_map(|record| match &record.data {
            RData::PTR(name) => Some(name.0.to_string()),
            _ => None,
        });
        pointers.collect()
    };
    assert_eq!(names("b._dns-sd._udp.hearsay."), ["hearsay."]);
    assert_eq!(names("_services._dns-sd._udp.hearsay."), ["_web._tcp.hearsay."]);
    zone.add(2, "other-web", Instance { service: "WEB".into(), ..web(3) });
    assert_eq!(names("_services._dns-sd._udp.hearsay."), ["_web._tcp.hearsay."]);
    let instances = names("_web._tcp.hearsay.");
    assert_eq!(instances.len(), 2, "{instances:?}");
    let instance = Name::from_labels([b"web 1.A".as_slice(), b"_web", b"_tcp", b"hearsay"]).unwrap();
    let ask = |record_type| {
        let mut request = question(".", record_type);
        request.queries = vec![Query::query(instance.clone(), record_type)];
        zone.request(&request, LOOPBACK, Transport::Udp)
    };
    assert_eq!(srv(&ask(RecordType::SRV)), ["10 8001 0a4d0101.addr.dc1.hearsay."]);
    let text = ask(RecordType::TXT);
    assert!(matches!(&text.answers[0].data, RData::TXT(txt) if txt.txt_data[0].as_ref() == b"path=/study"));
    assert_no_data(&ask(RecordType::A), "hearsay.");
}

#[test]
fn a_name_comes_back_as_it_was_asked() {
    let zone = Zone::new();
    zone.add(1, "web-1", web(1));
    let response = zone.ask("wEb.SerVice.heArsAy.", RecordType::A);
    let name = Name::from_ascii("wEb.SerVice.heArsAy.").unwrap();
    assert!(response.queries[0].name().eq_case(&name) && response.answers[0].name.eq_case(&name));
}

#[test]
fn a_name_of_the_table_that_is_no_label_is_served_with_dashes() {
    let zone = Zone::new();
    zone.add(1, "shop-1", Instance { service: "My Shop.v2".into(), ..web(1) });
    assert_eq!(addresses(&zone.ask("my-shop-v2.service.hearsay.", RecordType::A)), ["10.77.1.1"]);
    // A clash: the first in byte order answers, or the name that is the label.
    zone.add(1, "shop-2", Instance { service: "My-Shop.v2".into(), ..web(2) });
    assert_eq!(addresses(&zone.ask("my-shop-v2.service.hearsay.", RecordType::A)), ["10.77.1.1"]);
    zone.add(1, "shop-3", Instance { service: "my-shop-v2".into(), ..web(3) });
    assert_eq!(addresses(&zone.ask("my-shop-v2.service.hearsay.", RecordType::A)), ["10.77.1.3"]);
    assert_eq!(addresses(&zone.ask("my.shop.v2.service.hearsay.", RecordType::A)), [""; 0]);
    zone.put_member(Member { name: "N 1".into(), http: Some("10.77.0.3:7500".into()), ..member(3) });
    assert_eq!(addresses(&zone.ask("n-1.node.hearsay.", RecordType::A)), ["10.77.0.3"]);
}

#[test]
fn a_client_that_may_not_read_is_refused_and_learns_nothing() {
    let zone = Zone::new();
    zone.add(1, "web-1", web(1));
    for (name, record_type) in [
        ("web.service.hearsay.", RecordType::A),
        ("nope.service.hearsay.", RecordType::A),
        ("hearsay.", RecordType::SOA),
        ("2.0.77.10.in-addr.arpa.", RecordType::PTR),
    ] {
        for transport in [Transport::Udp, Transport::Tcp, Transport::LimitedUdp] {
            let request = question(name, record_type).to_vec().unwrap();
            let client = Client { ip: REMOTE.parse().unwrap(), transport, may_read: false };
            let bytes = respond(&zone.0, &request, client).unwrap().bytes;
            let response = Message::from_vec(&bytes).unwrap();
            assert_eq!(code(&response), ResponseCode::Refused, "{name}");
            assert_eq!(bytes.len(), request.len(), "{name}: not larger than the request");
        }
    }
}

#[test]
fn what_is_no_question_of_these_zones_is_refused() {
    let zone = Zone::new();
    for (name, record_type) in [
        ("example.com.", RecordType::A),
        (".", RecordType::NS),
        ("hearsay.", RecordType::AXFR),
        ("hearsay.example.", RecordType::A),
    ] {
        let response = zone.ask(name, record_type);
        assert_eq!(code(&response), ResponseCode::Refused, "{name} {record_type}");
        assert!(response.answers.is_empty() && !response.metadata.authoritative);
    }
    let mut chaos = question("hearsay.", RecordType::TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(code(&zone.request(&chaos, LOOPBACK, Transport::Udp)), ResponseCode::Refused);
    let mut update = question("hearsay.", RecordType::SOA);
    update.metadata.op_code = OpCode::Update;
    assert_eq!(code(&zone.request(&update, LOOPBACK, Transport::Udp)), ResponseCode::NotImp);
    let mut two = question("hearsay.", RecordType::A);
    two.add_query(two.queries[0].clone());
    assert_eq!(code(&zone.request(&two, LOOPBACK, Transport::Udp)), ResponseCode::FormErr);
    let mut version = with_edns(question("hearsay.", RecordType::SOA), 1232);
    version.edns.as_mut().unwrap().set_version(1);
    // hickory decodes 16 as BADSIG, which has the same number (RFC 6895, section 2.3).
    assert_eq!(u16::from(code(&zone.request(&version, LOOPBACK, Transport::Udp))), 16);
}

#[test]
fn a_response_is_never_answered_and_garbage_is_a_format_error() {
    let zone = Zone::new();
    let mut response = question("web.service.hearsay.", RecordType::A).to_vec().unwrap();
    response[2] |= 0x80;
    assert_eq!(zone.send(&response, LOOPBACK, Transport::Udp), None);
    assert_eq!(zone.send(&response[..11], LOOPBACK, Transport::Udp), None);
    let garbage = [0, 77, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 63, 1];
    let answer = Message::from_vec(&zone.send(&garbage, LOOPBACK, Transport::Udp).unwrap()).unwrap();
    assert_eq!((answer.metadata.id, code(&answer)), (77, ResponseCode::FormErr));
    let announced = [0, 77, 0, 0, 255, 255, 0, 0, 0, 0, 0, 0];
    let answer = Message::from_vec(&zone.send(&announced, REMOTE, Transport::Udp).unwrap()).unwrap();
    assert_eq!((answer.queries.len(), code(&answer)), (0, ResponseCode::FormErr));
}

#[test]
fn random_bytes_never_panic() {
    let zone = Zone::new();
    zone.add(1, "web-1", web(1));
    let mut random = fastrand::Rng::with_seed(1);
    let valid = with_edns(question("v1.web.service.hearsay.", RecordType::SRV), 1232).to_vec().unwrap();
    for _ in 0..20_000 {
        let mut bytes = valid.clone();
        for _ in 0..random.usize(1..6) {
            let at = random.usize(..bytes.len());
            bytes[at] = random.u8(..);
        }
        bytes.truncate(random.usize(1..=bytes.len()));
        if let Some(answer) = zone.send(&bytes, REMOTE, Transport::Udp) {
            assert!(answer.len() <= 1232);
        }
    }
}

/// Services of so many instances that no datagram takes them.
fn crowded() -> Zone {
    let zone = Zone::new();
    for n in 0..200_u8 {
        zone.add(1 + n % 2, &format!("web-{n}"), web(n));
    }
    zone
}

/// A service of 10,200 instances of 204 nodes, at addresses of their own.
fn vast() -> Zone {
    let zone = Zone::new();
    for node in 1..=204_u8 {
        zone.add_member(node);
        for n in 0..50_u8 {
            let tags = if (node, n) == (200, 7) { vec!["Rare".to_owned()] } else { vec![] };
            let address = format!("10.78.{node}.{n}");
            zone.add(node, &format!("web-{n}"), Instance { address, tags, ..web(n) });
        }
    }
    zone
}

#[test]
fn the_work_for_a_question_is_bounded() {
    let zone = vast();
    let ask = |name: &str, record_type: RecordType, records_max: usize| {
        let name = Name::from_ascii(name).unwrap();
        zone.0.answer(&name, record_type, REMOTE.parse().unwrap(), records_max).unwrap()
    };
    for record_type in [RecordType::A, RecordType::SRV, RecordType::ANY] {
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..20 {
            let answer = ask("web.service.hearsay.", record_type, 77);
            assert_eq!((answer.answers.len(), answer.examined), (77, EXAMINED_MAX), "{record_type}");
            assert!(answer.additionals.len() <= 77);
            seen.extend(answer.answers.iter().map(|record| record.data.to_string()));
        }
        assert!(seen.len() > 500, "always the same instances: {}", seen.len());
    }
    // One instance suffices to know that the name exists.
    assert_eq!(ask("web.service.hearsay.", RecordType::TXT, 77).examined, 1);
    // What is rare is found, though not at once.
    let rare = ask("rare.web.service.hearsay.", RecordType::A, 77);
    assert_eq!((rare.answers.len(), rare.examined), (1, 204 * 50));
    // Browsing ends with the answer.
    let browsed = ask("_web._tcp.hearsay.", RecordType::PTR, 40);
    assert_eq!((browsed.answers.len(), browsed.examined), (40, 40));
    assert_eq!(ask("_services._dns-sd._udp.hearsay.", RecordType::PTR, 77).examined, 1);
    // Names that do not exist, and nodes, cost no examination.
    for name in ["nope.service.hearsay.", "n77.node.hearsay."] {
        assert_eq!(ask(name, RecordType::A, 77).examined, 0, "{name}");
    }
}

#[test]
fn a_service_that_fits_is_answered_as_a_whole() {
    let zone = vast();
    let name = Name::from_ascii("web.service.hearsay.").unwrap();
    let client = REMOTE.parse().unwrap();
    for record_type in [RecordType::A, RecordType::SRV] {
        let answer = zone.0.answer(&name, record_type, client, 20_000).unwrap();
        assert_eq!((answer.answers.len(), answer.examined), (204 * 50, 204 * 50), "{record_type}");
    }
}

#[test]
fn a_response_is_as_large_as_its_client_takes() {
    let zone = crowded();
    for record_type in [RecordType::A, RecordType::SRV] {
        let plain = question("web.service.hearsay.", record_type);
        let size = |request: &Message, client: &str, transport: Transport| {
            let bytes = zone.send(&request.to_vec().unwrap(), client, transport).unwrap();
            let message = Message::from_vec(&bytes).unwrap();
            (bytes.len(), message.answers.len(), message.metadata.truncation)
        };
        let (bytes, answers, is_truncated) = size(&plain, REMOTE, Transport::Udp);
        assert!(bytes <= 512 && answers > 3 && is_truncated, "{bytes} {answers}");
        let (bytes, more, is_truncated) = size(&with_edns(plain.clone(), 4096), REMOTE, Transport::Udp);
        assert!(bytes <= 1232 && more > answers && is_truncated, "{bytes} {more}");
        let (bytes, more, _) = size(&with_edns(plain.clone(), 4096), LOOPBACK, Transport::Udp);
        assert!(bytes <= 4096 && more > answers, "{bytes} {more}");
        let (_, all, is_truncated) = size(&plain, REMOTE, Transport::Tcp);
        assert!(all == 200 && !is_truncated, "{all}");
        let tiny = with_edns(plain, 100);
        assert!(size(&tiny, REMOTE, Transport::Udp).0 <= 512);
    }
}

#[test]
fn a_truncated_response_ends_after_its_records_and_keeps_edns() {
    let zone = crowded();
    for record_type in [RecordType::A, RecordType::SRV] {
        for bytes_max in 512..600 {
            let request = with_edns(question("web.service.hearsay.", record_type), bytes_max);
            let bytes = zone.send(&request.to_vec().unwrap(), REMOTE, Transport::Udp).unwrap();
            let mut decoder = BinDecoder::new(&bytes);
            let response = Message::read(&mut decoder).unwrap();
            assert!(response.metadata.truncation && response.edns.is_some() && decoder.is_empty());
            assert!(bytes.len() <= usize::from(bytes_max) && response.answers.len() > 3);
        }
    }
}

#[test]
fn additional_records_are_dropped_before_answers_and_without_a_sign() {
    let zone = Zone::new();
    for n in 0..9 {
        zone.add(1, &format!("web-{n}"), web(n));
    }
    let response = zone.ask("web.service.hearsay.", RecordType::SRV);
    assert!(!response.metadata.truncation && response.answers.len() == 9);
    assert!(response.additionals.len() < 9, "{}", response.additionals.len());
}

#[test]
fn a_client_beyond_its_rate_is_sent_to_tcp() {
    let zone = crowded();
    let limited = question("web.service.hearsay.", RecordType::A);
    let response = zone.request(&limited, REMOTE, Transport::LimitedUdp);
    assert!(response.metadata.truncation && response.answers.is_empty());
    assert_eq!(code(&response), ResponseCode::NoError);
}
