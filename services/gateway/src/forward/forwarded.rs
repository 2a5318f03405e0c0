//! Writes the `Forwarded` header (RFC 7239) of requests to built-in roles: the client's address, and the host
//! name that the client requested. Refuses a request with 421 if the node does not accept that name.
//!
//! A node responds only under its own names. Otherwise a web page could make the node part of the page's own
//! origin (DNS rebinding). If the gateway is published as `school.example`, the gateway's node must accept
//! that name (`--allow-host`), and it vouches for the name to the nodes that run the built-in roles. A
//! request to a role has the authority of the role's node in `Host`, and the client's authority in
//! `Forwarded`. A registered program, which is not a built-in role, gets the client's `Host` unchanged and
//! has to check it itself.

use std::{net::IpAddr, sync::OnceLock};

use hearsay_services::{Host, Problem, http::Forwarded};
use http::{HeaderValue, StatusCode};

use super::headers::Client;
use crate::{
    refusal::{Reason, Refusal},
    routing::route_tags::host_of,
};

/// Returns the header for a request with this authority.
///
/// # Errors
/// 421: the authority is none of the node's names, or is malformed.
fn forwarded(host: &dyn Host, client: IpAddr, authority: &HeaderValue) -> Result<HeaderValue, Refusal> {
    let authority = authority.to_str().unwrap_or_default();
    let name = host_of(authority);
    let value = host.accepts_host(name).then_some(client).and_then(|client| {
        let value = Forwarded { client, host: authority, is_https: false }.write();
        // A value that cannot be parsed again is not sent.
        Forwarded::parse(&value)?;
        HeaderValue::from_str(&value).ok()
    });
    value.ok_or_else(|| {
        let name: String = name.chars().take(128).collect();
        let detail = format!(
            "this gateway does not go by the name {name:?}; use its address or localhost, or start its node with --allow-host {name}"
        );
        (Reason::Host, Problem::new(StatusCode::MISDIRECTED_REQUEST, detail))
    })
}

/// Cache of one connection: the authority of its first request, and the header for that authority. Most
/// connections name only one authority.
#[derive(Debug, Default)]
pub(crate) struct ForwardedCache(OnceLock<(HeaderValue, HeaderValue)>);

impl ForwardedCache {
    /// Returns the header for a request of this client with this authority.
    ///
    /// # Errors
    /// 421: the authority is none of the node's names.
    pub(crate) fn get(
        &self,
        host: &dyn Host,
        client: &Client,
        authority: &HeaderValue,
    ) -> Result<HeaderValue, Refusal> {
        if let Some((_, value)) = self.0.get().filter(|(cached, _)| cached == authority) {
            return Ok(value.clone());
        }
        let value = forwarded(host, client.ip, authority)?;
        // A concurrent request of an HTTP/2 connection may have filled the cache.
        _ = self.0.set((authority.clone(), value.clone()));
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use hearsay_services::testing::MemoryHost;

    use super::*;

    #[test]
    fn names_that_the_node_accepts_are_forwarded_and_others_are_misdirected() {
        let host = MemoryHost::new("n1").with_name("school.example");
        let cache = ForwardedCache::default();
        let get = |client: &str, authority: &str| {
            let (address, port) = (HeaderValue::from_str(client).unwrap(), HeaderValue::from_static("8080"));
            let client = Client { ip: client.parse().unwrap(), address, port };
            let value = cache.get(&host, &client, &HeaderValue::from_str(authority).unwrap());
            value
                .map(|value| value.to_str().unwrap().to_owned())
                .map_err(|(_, problem)| problem.status().as_u16())
        };
        let value = "for=192.0.2.1;host=\"school.example:8443\";proto=http";
        for _ in 0..2 {
            assert_eq!(get("192.0.2.1", "school.example:8443"), Ok(value.into()));
        }
        for authority in ["evil.example", "school.example.evil", "school.example:x", ":80"] {
            assert_eq!(get("192.0.2.1", authority), Err(421), "{authority}");
        }
        assert_eq!(
            get("192.0.2.1", "school.example").unwrap(),
            "for=192.0.2.1;host=\"school.example\";proto=http"
        );
    }
}
