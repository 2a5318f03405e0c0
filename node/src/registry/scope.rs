//! [`Scope`] of a caller: which registrations it may make and change.
//!
//! In a cluster without a key, a program on another machine has no proof but its address. So the addresses of
//! its instance, checks and notifications must be that address, and it may change only registrations that
//! were made from that address without proof.

use std::net::IpAddr;

use hearsay_protocol::Invalid;

use super::{
    address::{Host, HttpUrl, split_address},
    checks::{CheckKind, HttpCheck},
    input::{check_field, updates_field},
    registration::Registration,
};

/// The registrations that a caller may change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scope {
    /// All registrations of this node: the caller is on this machine, or has the token or a member's
    /// signature.
    All,
    /// Those that were registered from this address without proof.
    Address(IpAddr),
}

impl Scope {
    /// Returns the scope of a caller with no proof but this address; `None`: a caller with proof.
    pub fn of(unproven: Option<IpAddr>) -> Self {
        unproven.map_or(Self::All, |ip| Self::Address(ip.to_canonical()))
    }

    /// The address to store with a registration.
    pub fn address(self) -> Option<IpAddr> {
        match self {
            Self::All => None,
            Self::Address(ip) => Some(ip),
        }
    }

    /// Whether the caller may change this registration.
    pub fn includes(self, registration: &Registration) -> bool {
        self.address().is_none_or(|ip| registration.registered_from == Some(ip))
    }

    /// Refuses a registration with an address other than the caller's.
    ///
    /// # Errors
    /// Names the field.
    pub fn check(self, registration: &Registration) -> Result<(), Invalid> {
        let Some(ip) = self.address() else { return Ok(()) };
        let foreign = |field| {
            let problem = format!(
                "is not at {ip}, from which the request came. Without the node's token only that address is allowed: use it, or send the token"
            );
            Err(Invalid { field, problem })
        };
        let is_own = |host: &Host| *host == Host::Ip(ip);
        if Host::parse("address", &registration.local_host).is_ok_and(|host| !is_own(&host)) {
            return foreign("address");
        }
        for check in &registration.checks {
            let own = format!("service:{}", registration.id);
            let is_of_another = check.id.starts_with("service:")
                && check.id.strip_prefix(&own).is_none_or(|rest| !rest.is_empty() && !rest.starts_with(':'));
            if is_of_another {
                let problem =
                    format!("{:?} is the id of a check of another instance; choose another id", check.id);
                return Err(Invalid { field: "id", problem });
            }
            let target = match &check.kind {
                CheckKind::Http(http) => {
                    if let Some(field) = custom_field(http) {
                        let problem =
                            "is not allowed without the node's token; leave it out, or send the token"
                                .to_owned();
                        return Err(Invalid { field, problem });
                    }
                    HttpUrl::parse("http", &http.url).map(|url| Some(url.target.host))
                }
                CheckKind::Tcp { address, .. }
                | CheckKind::Udp { address }
                | CheckKind::H2ping { address, .. }
                | CheckKind::Watch { address }
                | CheckKind::Grpc { address, .. } => split_address("check", address).map(|(host, _)| host),
                CheckKind::Ttl { .. } | CheckKind::Alias { .. } => continue,
                CheckKind::Process(_) | CheckKind::Exec { .. } => Ok(None),
            };
            if !matches!(&target, Ok(Some(host)) if is_own(host)) {
                return foreign(check_field(check, registration));
            }
        }
        let updates = registration.updates.as_deref().map(|url| HttpUrl::parse("updates", url));
        match updates {
            Some(Ok(url)) if !is_own(&url.target.host) => foreign(updates_field(registration)),
            Some(Err(_)) => foreign(updates_field(registration)),
            _ => Ok(()),
        }
    }
}

/// Returns the field that makes a check's request more than a plain GET. Such a request could change state in
/// another program on the same host.
fn custom_field(http: &HttpCheck) -> Option<&'static str> {
    let fields = [
        ("method", !http.method.is_empty()),
        ("header", !http.headers.is_empty()),
        ("body", !http.body.is_empty()),
    ];
    fields.into_iter().find(|(_, given)| *given).map(|(field, _)| field)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::input::{RegistrationSource, read};

    const IP: [u8; 4] = [10, 0, 0, 9];

    fn refused(body: &str) -> Option<&'static str> {
        let registration = read(body.as_bytes(), RegistrationSource::caller(IP.into()), "abc").unwrap();
        Scope::of(Some(IP.into())).check(&registration).err().map(|invalid| invalid.field)
    }

    #[test]
    fn without_proof_a_program_registers_only_its_own_address() {
        for own in [
            r#"{"name":"web","port":80,"check":{"http":"/health"}}"#,
            r#"{"name":"web","address":"10.0.0.9","port":80,"check":{"tcp":true}}"#,
            r#"{"name":"web","url":"http://10.0.0.9:80","check":{"watch":true}}"#,
            r#"{"name":"web","port":80,"check":{"ttl":"10s"}}"#,
            r#"{"name":"web","id":"w","port":80,"checks":[{"id":"service:w:1","ttl":"9s"},{"id":"mine","ttl":"9s"}]}"#,
            r#"{"name":"web","port":80,"requires":["db"],"updates":"http://10.0.0.9:81/changes"}"#,
            r#"{"ServiceName":"web","ServiceURL":"http://10.0.0.9:80","HeartbeatURL":"/beat"}"#,
            r#"{"name":"web","Addr":"10.0.0.9:80","RequiredServices":["db"]}"#,
        ] {
            assert_eq!(refused(own), None, "{own}");
        }
        for (foreign, field) in [
            (r#"{"name":"web","address":"10.0.0.8","port":80}"#, "address"),
            (r#"{"name":"web","address":"localhost","port":80}"#, "address"),
            (r#"{"name":"web","url":"http://example.org:80"}"#, "address"),
            (r#"{"name":"web","port":80,"check":{"http":"http://10.0.0.8/"}}"#, "http"),
            (r#"{"name":"web","port":80,"check":{"http":"http://nine.example/"}}"#, "http"),
            (r#"{"name":"web","port":80,"check":{"tcp":"127.0.0.1:5432"}}"#, "tcp"),
            (r#"{"name":"web","port":80,"check":{"watch":"10.0.0.8:1"}}"#, "watch"),
            (r#"{"name":"web","port":80,"check":{"grpc":"10.0.0.8:1"}}"#, "grpc"),
            (r#"{"name":"web","port":80,"check":{"udp":"10.0.0.8:1"}}"#, "udp"),
            (r#"{"name":"web","port":80,"check":{"h2ping":"10.0.0.8:1"}}"#, "h2ping"),
            (r#"{"name":"web","port":80,"requires":["db"],"updates":"http://10.0.0.8/"}"#, "updates"),
            (r#"{"name":"web","port":80,"check":{"http":"/","method":"POST"}}"#, "method"),
            (r#"{"name":"web","port":80,"check":{"http":"/","header":{"a":"b"}}}"#, "header"),
            (r#"{"name":"web","port":80,"check":{"http":"/","body":"x"}}"#, "body"),
            (r#"{"name":"web","id":"w","port":80,"check":{"id":"service:db","ttl":"9s"}}"#, "id"),
            (r#"{"name":"web","id":"w","port":80,"check":{"id":"service:w1","ttl":"9s"}}"#, "id"),
        ] {
            assert_eq!(refused(foreign), Some(field), "{foreign}");
        }
    }

    #[test]
    fn a_scope_excludes_registrations_of_other_addresses() {
        let mut registration =
            read(br#"{"name":"web","port":80}"#, RegistrationSource::caller(IP.into()), "abc").unwrap();
        let own = Scope::of(Some(IP.into()));
        assert!(!own.includes(&registration) && Scope::All.includes(&registration));
        registration.registered_from = Some([10, 0, 0, 8].into());
        assert!(!own.includes(&registration) && Scope::All.includes(&registration));
        registration.registered_from = Some(IP.into());
        assert!(own.includes(&registration));
        assert!(Scope::of("::ffff:10.0.0.9".parse().ok()).includes(&registration));
    }
}
