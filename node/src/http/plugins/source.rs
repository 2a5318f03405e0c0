//! Determines the [`Source`] of a write from the connection, the caller's proofs, the signature and
//! `Forwarded`, so that a plug-in can charge the write to it.

use std::net::IpAddr;

use axum::{extract::Request, http::header};
use hearsay_services::http::{Forwarded, Source};

use crate::{http::guard::caller::Caller, signing::Signed};

/// Returns the source of a write that has passed the guard. The source of a read is unknown, because reads
/// are not charged.
pub(crate) fn source(request: &Request) -> Source {
    let Some(caller) = request.extensions().get::<Caller>() else { return Source::Unknown };
    if let Some(signed) = request.extensions().get::<Signed>() {
        // A request that the signer forwards for a client is charged to the client. The signature covers
        // `Forwarded`.
        return match forwarded_client(request) {
            Some(client) if !client.to_canonical().is_loopback() => Source::Host(client.into()),
            _ => Source::Member(signed.by),
        };
    }
    if caller.is_proven() {
        return Source::Operator;
    }
    caller.ip().map_or(Source::Unknown, |ip| Source::Host(ip.into()))
}

/// Returns the client that a gateway states in `Forwarded`.
fn forwarded_client(request: &Request) -> Option<IpAddr> {
    let value = request.headers().get(header::FORWARDED)?.to_str().ok()?;
    Some(Forwarded::parse(value)?.client)
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use hearsay_protocol::{BodyHash, NodeId};

    use super::*;
    use crate::{
        http::{guard::access::Access, server::connection::Connection},
        storage::Secret,
    };

    fn of(peer: &str, headers: &[(&'static str, &'static str)], signed: Option<Signed>) -> String {
        let access = Access { token: Some(Secret::new("abc".to_owned())), ..Access::default() };
        let mut request = Request::post("/log").body(Body::empty()).unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        let connection = Connection { peer: peer.parse().ok(), ..Connection::default() };
        let caller = Caller::of(&request, Some(&connection), signed, &access);
        request.extensions_mut().insert(caller);
        if let Some(signed) = signed {
            request.extensions_mut().insert(signed);
        }
        source(&request).to_string()
    }

    #[test]
    fn a_write_is_charged_to_what_is_known_of_its_client() {
        assert_eq!(of("127.0.0.1:9", &[], None), "operator");
        assert_eq!(of("192.168.0.7:9", &[("authorization", "Bearer abc")], None), "operator");
        assert_eq!(of("192.168.0.7:9", &[], None), "192.168.0.7");
        assert_eq!(of("[fd00:0:0:1:2:3:4:5]:9", &[], None), "fd00:0:0:1::/64");
        // A header proves nothing: a write through an untrusted proxy has no known source.
        for header in ["forwarded", "x-forwarded-for"] {
            assert_eq!(of("192.168.0.7:9", &[(header, "for=192.168.0.8")], None), "unknown");
        }
        assert_eq!(source(&Request::new(Body::empty())), Source::Unknown);
    }

    #[test]
    fn what_a_gateway_passes_on_is_charged_to_its_client_and_all_else_to_the_signer() {
        let by = NodeId::from_public_key([7; 32]);
        let signed = Some(Signed { by, body: BodyHash::of(b"") });
        assert_eq!(of("192.168.0.1:9", &[], signed), by.to_string());
        let client = |value| of("192.168.0.1:9", &[("forwarded", value), ("via", "1.1 gateway")], signed);
        assert_eq!(client("for=192.168.0.7;host=\"a\";proto=http"), "192.168.0.7");
        assert_eq!(client("for=127.0.0.1;host=\"a\";proto=http"), by.to_string());
        assert_eq!(client("for=192.168.0.7, for=192.168.0.8"), by.to_string());
    }
}
