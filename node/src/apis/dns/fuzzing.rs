//! Checks properties of DNS responses for any request. Entry point of the fuzz target `dns` in `node/fuzz`.
//!
//! The fuzz target and the test below, which replays the target's corpus, call the same function. It panics
//! where a property does not hold.

use std::{collections::BTreeMap, sync::OnceLock};

use hearsay_protocol::{Health, Instance, NamedPort};
use hickory_proto::{
    op::{Message, MessageType, OpCode, ResponseCode},
    rr::RecordType,
    serialize::binary::{BinDecodable as _, BinDecoder},
};

use super::{
    endpoints::EXAMINED_MAX,
    fixture::{Zone, web},
    message::{Client, Transport, respond},
};

/// Checks the properties for any request. The first byte selects the client and the transport.
pub fn dns(bytes: &[u8]) {
    static ZONE: OnceLock<Zone> = OnceLock::new();
    let Some((kind, request)) = bytes.split_first() else { return };
    let transport = match kind % 3 {
        0 => Transport::Udp,
        1 => Transport::Tcp,
        _ => Transport::LimitedUdp,
    };
    let ip = if kind & 0x10 == 0 { [127, 0, 0, 1] } else { [10, 77, 9, 9] }.into();
    let client = Client { ip, transport, may_read: kind & 0x20 == 0 };
    let zone = ZONE.get_or_init(zone);
    match respond(&zone.0, request, client) {
        None => assert!(request.len() < 12 || request[2] & 0x80 != 0, "a request without a response"),
        Some(response) => {
            assert!(response.examined < EXAMINED_MAX);
            check(request, client, &response.bytes);
        }
    }
}

/// Checks a response.
fn check(request: &[u8], client: Client, bytes: &[u8]) {
    let mut decoder = BinDecoder::new(bytes);
    let response = Message::read(&mut decoder).expect("a response is a message");
    assert!(decoder.is_empty(), "a response ends after its records");
    let metadata = response.metadata;
    assert!(
        request.len() >= 12 && request[2] & 0x80 == 0,
        "a response or a part of a header is not answered"
    );
    assert_eq!(bytes[..2], request[..2], "the id");
    assert_eq!(metadata.message_type, MessageType::Response);
    assert!(!metadata.recursion_available);
    let is_udp = client.transport != Transport::Tcp;
    assert!(!is_udp || client.ip.is_loopback() || bytes.len() <= 1232, "{} bytes", bytes.len());
    assert!(is_udp || !metadata.truncation);
    assert!(!metadata.truncation || response.additionals.is_empty());
    let records = response.answers.len() + response.authorities.len() + response.additionals.len();
    let Ok(asked) = Message::from_vec(request) else {
        let code = metadata.response_code;
        assert!(matches!(code, ResponseCode::FormErr | ResponseCode::NotImp) && records == 0, "{response}");
        return;
    };
    assert!(response.edns.is_none() || asked.edns.is_some());
    if asked.edns.is_none() && is_udp {
        assert!(bytes.len() <= 512, "{} bytes", bytes.len());
    }
    if let [query] = response.queries.as_slice() {
        assert!(query.name().eq_case(asked.queries[0].name()), "the case of the name");
        assert!(response.answers.iter().all(|record| record.name.eq_case(query.name())), "{response}");
    }
    let is_answer = metadata.authoritative;
    if is_answer {
        assert!(client.may_read && asked.metadata.op_code == OpCode::Query);
        // A name exists, or not; then the zone's SOA record says for how long that may be kept.
        let has_soa = response.authorities.iter().any(|record| record.record_type() == RecordType::SOA);
        assert!(!response.answers.is_empty() || has_soa || metadata.truncation, "{response}");
        assert!(matches!(metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain));
        assert!(metadata.response_code == ResponseCode::NoError || response.answers.is_empty());
    } else {
        assert_eq!(records, 0, "{response}");
    }
}

/// A table with names of every form.
fn zone() -> Zone {
    let zone = Zone::new();
    let meta = BTreeMap::from([("path".to_owned(), "/study".to_owned())]);
    let ports = vec![NamedPort { name: "metrics".into(), port: 9100, is_default: false }];
    zone.add(1, "web-1", Instance { tags: vec!["v1".into(), "eu.west".into()], meta, ports, ..web(1) });
    zone.add(
        2,
        "Web 2.a",
        Instance { address: "fd77::2".into(), url: "http://[fd77::2]:8002".into(), ..web(2) },
    );
    zone.add(2, "web-3", Instance { health: Health::Critical, ..web(3) });
    let named = Instance { address: "db.example".into(), url: "http://db.example:5432".into(), ..web(4) };
    zone.add(1, "db-1", Instance { service: "My Shop.v2".into(), ..named });
    for n in 0..200 {
        zone.add(1 + n % 2, &format!("many-{n}"), Instance { service: "many".into(), ..web(n) });
    }
    zone
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    #[test]
    fn the_corpus_of_dns_keeps_its_properties() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/dns");
        let files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
        assert!(files.len() > 30, "{} files", files.len());
        for file in files {
            // Captured, and shown where a property does not hold.
            println!("{}", file.display());
            super::dns(&fs::read(&file).unwrap());
        }
    }
}
