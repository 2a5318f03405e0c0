//! Checks properties of the parsers of addresses (CIDR ranges, `Forwarded`, origins, query parameters) for
//! any input, for the fuzz target `addresses` in `services/fuzz`.
//!
//! The fuzz target and the test that replays its corpus call the same function. It panics if a property does
//! not hold.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hearsay_protocol::WebOrigin;
use http::uri::Authority;

use crate::{
    http::{
        forwarded::{BYTES_MAX, Forwarded},
        parameters::Parameters,
    },
    network::{
        address_policy::{check_ip, is_metadata},
        cidr::Cidr,
    },
};

/// Checks the decoders of addresses: CIDR ranges, `Forwarded`, origins of instances, query parameters,
/// resolved addresses.
pub fn fuzz_addresses(bytes: &[u8]) {
    for chunk in bytes.chunks(16) {
        if let Ok(octets) = <[u8; 16]>::try_from(chunk) {
            resolved(Ipv6Addr::from(octets).into());
        }
        if let Some(octets) = chunk.first_chunk::<4>() {
            resolved(Ipv4Addr::from(*octets).into());
        }
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    network(text);
    forwarded(text);
    origin(text);
    query(text);
    if let Ok(ip) = text.parse() {
        resolved(ip);
    }
}

/// Checks that an allowed address is the one that is reached, and that no rule refuses it.
fn resolved(ip: IpAddr) {
    for is_loopback_allowed in [false, true] {
        let Ok(reached) = check_ip(ip, is_loopback_allowed) else { continue };
        assert_eq!(check_ip(reached, is_loopback_allowed), Ok(reached), "{ip}");
        assert_eq!(check_ip(reached, true), Ok(reached), "{ip}");
        assert_eq!(reached.to_canonical(), reached, "{ip} embeds an address");
        assert!(!reached.is_unspecified() && !reached.is_multicast() && !is_metadata(reached), "{ip}");
        assert!(is_loopback_allowed || !reached.is_loopback(), "{ip}");
        let is_link_local = match reached {
            IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast() || v4.octets()[0] == 0,
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        };
        assert!(!is_link_local, "{ip}");
    }
}

/// Checks that a parsed range formats to the same range, and contains its own address.
fn network(text: &str) {
    let Ok(network) = text.parse::<Cidr>() else { return };
    let written = network.to_string();
    assert_eq!(written.parse(), Ok(network), "{text:?}");
    let address = written.split('/').next().and_then(|address| address.parse().ok());
    assert!(address.is_some_and(|address| network.contains(address)), "{text:?}");
}

/// Checks that a parsed header can be formatted, and that a list parser sees one element in it.
fn forwarded(text: &str) {
    let Some(forwarded) = Forwarded::parse(text) else { return };
    let written = forwarded.write();
    if written.len() <= BYTES_MAX {
        assert_eq!(Forwarded::parse(&written), Some(forwarded), "{text:?}");
    }
    assert!(!forwarded.host.is_empty() && forwarded.host.is_ascii(), "{text:?}");
    assert!(!forwarded.host.contains([',', ';', '"', '\\', '@', '/', '?', '#', ' ']), "{text:?}");
}

/// Checks that the parser of instances and the HTTP library agree on the host and port of an origin.
fn origin(text: &str) {
    let Some((origin, _)) = WebOrigin::split(text) else { return };
    let authority: Authority = origin.authority().parse().expect("an origin has an authority");
    let host = authority.host();
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    assert_eq!(host, origin.host, "{text:?}");
    assert_eq!(authority.port_u16(), origin.port, "{text:?}");
}

fn query(text: &str) {
    match Parameters::read(Some(text), &["tag", "index", "wait"]) {
        Ok(parameters) => {
            let count = parameters.all("tag").count();
            assert_eq!(parameters.single("tag").is_ok(), count < 2);
            _ = parameters.parse::<u64>("index", "a number");
        }
        Err(problem) => assert!(!problem.detail().is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    /// Checks the property of a target for each file of its corpus.
    fn replay(target: &str, property: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
        assert!(files.len() > 9, "{target} has {} files", files.len());
        for file in files {
            // The test runner shows this output only for a failure.
            println!("{}", file.display());
            property(&fs::read(&file).unwrap());
        }
    }

    #[test]
    fn the_corpus_of_addresses_keeps_its_properties() {
        replay("addresses", super::fuzz_addresses);
    }
}
