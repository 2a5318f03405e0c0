//! [`Endpoint`]: an instance to which the gateway sends requests, with its addresses, load, latency and
//! failures.

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    time::Duration,
};

use hearsay_protocol::{NodeId, Provider};
use hearsay_services::{
    http::covers,
    network::{Forbidden, InstanceAddress},
};
use http::{HeaderValue, uri::Authority};

use super::{latency::Latency, outlier::Outlier};
use crate::routing::policy::{GatewayPolicy, role_paths};

/// Maximum number of addresses of an instance that are tried. They are in order of preference, so after
/// several failures a further one would hardly connect.
const ADDRESSES_MAX: usize = 8;

/// An address to connect to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Address {
    /// An IP address.
    Ip(SocketAddr),
    /// A host name, which is resolved for each connection.
    Name(String, u16),
}

/// Why no request can be sent to an instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unusable {
    /// The scheme of its URL is not `http`.
    Scheme,
    /// Its URL has no host or port.
    NoAddress,
    /// The address policy forbids all its addresses.
    Forbidden(Forbidden),
}

impl Unusable {
    /// Returns the reason, as the end of a sentence.
    pub(crate) fn reason(self) -> Cow<'static, str> {
        match self {
            Self::Scheme => "the scheme of its URL is not http; the gateway speaks no other".into(),
            Self::NoAddress => "its URL has no host or port".into(),
            Self::Forbidden(rule) => rule.to_string().into(),
        }
    }
}

/// An instance to which requests can be sent.
#[derive(Debug)]
pub(crate) struct Endpoint {
    /// The id of the instance on its node.
    pub(crate) id: String,
    /// The node that states the instance.
    pub(crate) node_id: NodeId,
    /// The instance's own authority, sent as `Host` if the client's is not forwarded.
    pub(crate) host: HeaderValue,
    /// `host` as the authority of a URI, for HTTP/2.
    pub(crate) authority: Authority,
    /// The path prefixes that a role serves; `None` for a program, which gets every path.
    role_paths: Option<Box<[Cow<'static, str>]>>,
    /// The addresses, in the order in which this host should try them; at least one.
    addresses: Box<[Address]>,
    /// The position of the address that connected last.
    preferred: AtomicUsize,
    /// Whether the instance takes HTTP/2 without TLS for all requests (tag `h2c`), not only for gRPC.
    pub(crate) h2c: bool,
    /// Idle connections to the instance, of all threads.
    pub(crate) idle_connections: AtomicUsize,
    in_flight: AtomicU32,
    latency: Latency,
    /// The failures and ejections.
    pub(crate) outlier: Outlier,
    is_gone: AtomicBool,
    responses: AtomicU64,
    failures: AtomicU64,
}

impl Endpoint {
    /// Returns the endpoint of an instance.
    ///
    /// # Errors
    /// No request can be sent to the instance.
    pub(crate) fn new(provider: &Provider, policy: &GatewayPolicy) -> Result<Self, Unusable> {
        let instance = &provider.instance;
        let (authority, addresses) = locate(provider, policy)?;
        Ok(Self {
            id: provider.id.clone(),
            node_id: provider.node_id,
            host: HeaderValue::from_str(authority.as_str()).map_err(|_| Unusable::NoAddress)?,
            authority,
            role_paths: provider.is_role().then(|| role_paths(instance)),
            addresses,
            preferred: AtomicUsize::new(0),
            h2c: instance.tags.iter().any(|tag| tag == "h2c"),
            idle_connections: AtomicUsize::new(0),
            in_flight: AtomicU32::new(0),
            latency: Latency::default(),
            outlier: Outlier::default(),
            is_gone: AtomicBool::new(false),
            responses: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        })
    }

    /// Whether both lead to the same instance, so that latency, failures and connections stay valid. The
    /// order of the addresses does not matter, because the preferred address is known by now.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.authority == other.authority
            && self.h2c == other.h2c
            && self.role_paths == other.role_paths
            && self.addresses.len() == other.addresses.len()
            && self.addresses.iter().all(|address| other.addresses.contains(address))
    }

    /// Whether the instance is a role of a node. The HTTP of that node serves more than this role.
    pub(crate) fn is_role(&self) -> bool {
        self.role_paths.is_some()
    }

    /// Whether the instance gets requests for this path.
    pub(crate) fn serves(&self, path: &str) -> bool {
        let covers_path = |prefix: &Cow<'_, str>| covers(prefix, path);
        self.role_paths.as_ref().is_none_or(|prefixes| prefixes.iter().any(covers_path))
    }

    /// Returns the instance at one of its hosts, as an argument of the address policy.
    pub(crate) fn instance_address<'a>(&self, host: &'a str) -> InstanceAddress<'a> {
        InstanceAddress { node_id: self.node_id, is_role: self.is_role(), host }
    }

    /// Returns the addresses with their positions: first the one that connected last, then the others in
    /// order.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = (usize, &Address)> {
        let preferred = self.preferred.load(Relaxed);
        let all = || self.addresses.iter().enumerate();
        all().filter(move |(at, _)| *at == preferred).chain(all().filter(move |(at, _)| *at != preferred))
    }

    /// Makes the address at this position the first to try.
    pub(crate) fn prefer_address(&self, at: usize) {
        self.preferred.store(at, Relaxed);
    }

    /// Marks the instance as gone from the provider table.
    pub(crate) fn mark_gone(&self) {
        self.is_gone.store(true, Relaxed);
    }

    /// Whether the provider table no longer lists the instance.
    pub(crate) fn is_gone(&self) -> bool {
        self.is_gone.load(Relaxed)
    }

    /// Counts a request that is being sent.
    pub(crate) fn start_request(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    /// Counts the end of a request, at which its response was forwarded or aborted.
    pub(crate) fn end_request(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }

    /// Returns the number of requests in flight.
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// Returns the cost of a further request: requests in flight times latency.
    pub(crate) fn cost(&self, now_ms: u64) -> f32 {
        // Latencies below a microsecond count as one, so that only the requests in flight matter.
        (self.in_flight() as f32 + 1.0) * self.latency_us(now_ms).max(1.0)
    }

    /// Returns the expected latency in microseconds.
    pub(crate) fn latency_us(&self, now_ms: u64) -> f32 {
        self.latency.expected_us(now_ms)
    }

    /// Records the latency of a response.
    pub(crate) fn record_response(&self, latency: Duration, now_ms: u64) {
        self.responses.fetch_add(1, Relaxed);
        self.latency.record(latency, now_ms);
    }

    /// Records a failure. Returns whether the endpoint should be ejected.
    #[must_use]
    pub(crate) fn record_failure(&self, weight: u32, now_ms: u64) -> bool {
        self.failures.fetch_add(1, Relaxed);
        self.latency.record_failure(now_ms);
        self.outlier.record_failure(weight, now_ms)
    }

    /// Returns the numbers of responses and failures so far.
    pub(crate) fn totals(&self) -> (u64, u64) {
        (self.responses.load(Relaxed), self.failures.load(Relaxed))
    }
}

/// Returns the authority of an instance and the addresses to connect to.
fn locate(provider: &Provider, policy: &GatewayPolicy) -> Result<(Authority, Box<[Address]>), Unusable> {
    let instance = &provider.instance;
    let uri = if instance.url.is_empty() {
        let host = &instance.address;
        let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
        format!("http://{host}:{}", instance.port)
    } else {
        instance.url.clone()
    };
    let uri: http::Uri = uri.parse().map_err(|_| Unusable::NoAddress)?;
    match uri.scheme_str() {
        Some("http") => (),
        Some(_) => return Err(Unusable::Scheme),
        None => return Err(Unusable::NoAddress),
    }
    let authority =
        uri.into_parts().authority.filter(|a| !a.as_str().contains('@')).ok_or(Unusable::NoAddress)?;
    let check = |authority: &Authority| {
        let address = address_of(authority)?;
        // A name is checked when it is resolved.
        if let Address::Ip(socket) = address {
            let at = InstanceAddress::of(provider, bare_host(authority));
            policy.check(at, socket).map_err(Unusable::Forbidden)?;
        }
        Ok(address)
    };
    let stated = check(&authority);
    if provider.addresses.len() < 2 {
        return Ok((authority, [stated?].into()));
    }
    let all = provider.addresses.iter().map(|a| check(&a.parse().map_err(|_| Unusable::NoAddress)?));
    let usable: Box<[Address]> = all.filter_map(Result::ok).take(ADDRESSES_MAX).collect();
    if usable.is_empty() {
        // The stated address is one of the unusable addresses.
        return Err(stated.err().unwrap_or(Unusable::NoAddress));
    }
    Ok((authority, usable))
}

/// Returns the host of an authority, without brackets.
fn bare_host(authority: &Authority) -> &str {
    let host = authority.host();
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

fn address_of(authority: &Authority) -> Result<Address, Unusable> {
    let host = authority.host();
    let port = authority.port_u16().unwrap_or(80);
    if host.is_empty() || port == 0 {
        return Err(Unusable::NoAddress);
    }
    let literal = bare_host(authority);
    match literal.parse::<IpAddr>() {
        Ok(ip) => Ok(Address::Ip((ip, port).into())),
        Err(_) => Ok(Address::Name(literal.to_owned(), port)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{endpoint, policy, provider};

    #[test]
    fn a_url_is_read_or_refused_with_the_reason() {
        let at = |url: &str| {
            let endpoint = Endpoint::new(&provider("web", "a", url, &[]), &policy())?;
            let addresses: Vec<_> = endpoint.addresses().map(|(_, address)| address.clone()).collect();
            assert_eq!(addresses.len(), 1);
            Ok((addresses[0].clone(), endpoint.authority.to_string()))
        };
        let ip = |text: &str| Address::Ip(text.parse().unwrap());
        assert_eq!(at("http://10.0.0.1:80"), Ok((ip("10.0.0.1:80"), "10.0.0.1:80".into())));
        assert_eq!(at("http://[::1]:81/"), Ok((ip("[::1]:81"), "[::1]:81".into())));
        assert_eq!(at("http://db"), Ok((Address::Name("db".into(), 80), "db".into())));
        // An instance without a URL is located by its address and port.
        assert_eq!(at(""), Ok((ip("10.0.0.9:99"), "10.0.0.9:99".into())));
        for (url, why) in [
            ("https://10.0.0.1", Unusable::Scheme),
            ("10.0.0.1:80", Unusable::NoAddress),
            ("http://user@10.0.0.1", Unusable::NoAddress),
            ("http://10.0.0.1:0", Unusable::NoAddress),
            ("http:// /", Unusable::NoAddress),
        ] {
            assert_eq!(at(url), Err(why), "{url}");
        }
        for (url, rule) in [
            ("http://169.254.169.254", "link_local"),
            ("http://[::ffff:169.254.169.254]", "link_local"),
            ("http://[fe80::1]:80", "link_local"),
            ("http://[fd00:ec2::254]", "metadata"),
            ("http://100.100.100.200", "metadata"),
            ("http://[64:ff9b::a9fe:a9fe]", "link_local"),
            ("http://[2002:a9fe:a9fe::]", "tunnel"),
            ("http://224.0.0.1", "multicast"),
            ("http://255.255.255.255", "broadcast"),
            ("http://0.0.0.0", "unspecified"),
        ] {
            match at(url) {
                Err(Unusable::Forbidden(refusal)) => assert_eq!(refusal.rule(), rule, "{url}"),
                other => panic!("{url}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_role_gets_its_own_paths_and_a_program_gets_any() {
        let of = |provider: Provider| Endpoint::new(&provider, &policy()).unwrap();
        let role = of(provider("grading", "g", "http://10.0.0.1:1", &["urlprefix-/"]));
        assert!(role.is_role() && role.serves("/students") && role.serves("/students/1/grades"));
        for path in ["/", "/studentship", "/v1/agent/leave", "/services", "/log", "//students"] {
            assert!(!role.serves(path), "{path}");
        }
        let program = of(Provider { role: false, ..provider("web", "w", "http://10.0.0.1:1", &[]) });
        assert!(!program.is_role() && program.serves("/v1") && program.serves("/"));
        assert!(
            !role
                .is_same(&of(Provider { role: false, ..provider("grading", "g", "http://10.0.0.1:1", &[]) }))
        );
    }

    #[test]
    fn all_usable_addresses_are_tried_and_the_one_that_worked_first() {
        let of = |addresses: &[&str]| {
            let addresses = addresses.iter().map(|a| (*a).to_owned()).collect();
            let grading = Provider { addresses, ..provider("grading", "g", "http://10.0.0.1:80", &[]) };
            Endpoint::new(&grading, &policy())
        };
        let order = |endpoint: &Endpoint| endpoint.addresses().map(|(_, a)| a.clone()).collect::<Vec<_>>();
        let ip = |text: &str| Address::Ip(text.parse().unwrap());
        let endpoint = of(&["10.1.0.1:80", "169.254.0.1:80", "10.0.0.1:80", "[fd77::1]:80"]).unwrap();
        assert_eq!(order(&endpoint), [ip("10.1.0.1:80"), ip("10.0.0.1:80"), ip("[fd77::1]:80")]);
        endpoint.prefer_address(2);
        assert_eq!(order(&endpoint), [ip("[fd77::1]:80"), ip("10.1.0.1:80"), ip("10.0.0.1:80")]);
        assert_eq!(endpoint.authority, "10.0.0.1:80", "its authority is the stated one");
        let reordered = of(&["[fd77::1]:80", "10.0.0.1:80", "10.1.0.1:80"]).unwrap();
        assert!(
            endpoint.is_same(&reordered) && !endpoint.is_same(&of(&["10.0.0.1:80", "10.9.0.1:80"]).unwrap())
        );
        let many: Vec<_> = (0..100).map(|n| format!("10.2.0.{n}:80")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        assert_eq!(order(&of(&many).unwrap()).len(), ADDRESSES_MAX);
        assert_eq!(of(&["169.254.0.1:80", "[fe80::1]:80"]).unwrap_err(), Unusable::NoAddress);
    }

    #[test]
    fn a_request_in_flight_makes_the_next_one_cost_more() {
        let endpoint = endpoint("a");
        let idle = endpoint.cost(1_000);
        endpoint.start_request();
        assert!((endpoint.cost(1_000) / idle - 2.0).abs() < 0.01);
        endpoint.end_request();
        assert_eq!(endpoint.in_flight(), 0);
    }
}
