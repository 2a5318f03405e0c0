//! What the gateway answers for towards a role: who has asked, and under which name.
//!
//! A node answers under its own names, so that no page can make it a part of its own origin (DNS rebinding). A gateway that is
//! published as `school.example` admits that name for the roles behind it: they are asked under the authority of their own
//! node, and told the client's in `Forwarded`. A program gets what the client has sent as `Host`; what it means there is the
//! program's to know.

use std::{
    fmt,
    net::IpAddr,
    sync::{Arc, OnceLock},
};

use http::{HeaderValue, StatusCode};

use super::{announced::host_of, counters::Reason, forward::Client, request::Refusal};
use crate::{Host, Problem, forwarded::Forwarded};

/// The names under which the node of this gateway may be asked.
#[derive(Clone)]
pub struct OwnNames(Arc<dyn Host>);

impl fmt::Debug for OwnNames {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnNames")
    }
}

impl OwnNames {
    /// Those of this node.
    pub fn of(host: &Arc<dyn Host>) -> Self {
        Self(Arc::clone(host))
    }

    /// What the gateway says to roles of a request for this authority.
    ///
    /// # Errors
    /// 421: it is none of the names, or no host at all.
    fn state(&self, client: IpAddr, authority: &HeaderValue) -> Result<HeaderValue, Refusal> {
        let authority = authority.to_str().unwrap_or_default();
        let host = host_of(authority);
        let value = self.0.accepts_host(host).then_some(client).and_then(|client| {
            let value = Forwarded { client, host: authority, is_https: false }.write();
            // What could be read otherwise than it is written is not sent.
            Forwarded::parse(&value)?;
            HeaderValue::from_str(&value).ok()
        });
        value.ok_or_else(|| {
            let host: String = host.chars().take(128).collect();
            let detail = format!(
                "this gateway does not go by the name {host:?}; use its address or localhost, or start its node with --allow-host {host}"
            );
            (Reason::Host, Problem::new(StatusCode::MISDIRECTED_REQUEST, detail))
        })
    }
}

/// What the gateway has answered for last on a connection. A client asks under one name nearly always, so this is made once.
#[derive(Debug, Default)]
pub struct Published(OnceLock<(HeaderValue, HeaderValue)>);

impl Published {
    /// The value of `Forwarded` for a request of this client.
    ///
    /// # Errors
    /// 421: the name is none of the gateway's.
    pub fn get(
        &self,
        names: &OwnNames,
        client: &Client,
        authority: &HeaderValue,
    ) -> Result<HeaderValue, Refusal> {
        if let Some((_, value)) = self.0.get().filter(|(known, _)| known == authority) {
            return Ok(value.clone());
        }
        let value = names.state(client.ip, authority)?;
        // Another request of the connection may have come first.
        _ = self.0.set((authority.clone(), value.clone()));
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::MemoryHost;

    #[test]
    fn names_that_the_node_accepts_are_passed_on_and_others_are_misdirected() {
        let host: Arc<dyn Host> = Arc::new(MemoryHost::new("n1").with_name("school.example"));
        let (names, published) = (OwnNames::of(&host), Published::default());
        let get = |client: &str, authority: &str| {
            let (address, port) = (HeaderValue::from_str(client).unwrap(), HeaderValue::from_static("8080"));
            let client = Client { ip: client.parse().unwrap(), address, port };
            let authority = HeaderValue::from_str(authority).unwrap();
            let value = published.get(&names, &client, &authority);
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
