//! An instance as the gateway sees it: where it is, how it has been answering, and whether it is left out for now.
//!
//! Everything here is written by many threads at once and read for every request, so it is atomics, each good for itself: a lost
//! update of a latency costs nothing.

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use hearsay_protocol::{NodeId, providers::Provider};
use http::{HeaderValue, uri::Authority};

use super::{
    policy::{GatewayPolicy, role_paths},
    pool::Kept,
};
use crate::{
    address_policy::{Forbidden, InstanceAddress},
    prefixes::covers,
};

/// Consecutive failures after which an instance is ejected, as Envoy's `consecutive_5xx`. A connection that cannot be opened, or breaks,
/// counts [`BROKEN`].
const FAILURES_MAX: u32 = 5;
/// What an answer of 5xx counts.
pub const BAD_ANSWER: u32 = 1;
/// What a broken, refused or silent connection counts: three make an ejection.
pub const BROKEN: u32 = 2;
/// The first ejection; each further one doubles it.
const EJECTION: Duration = Duration::from_secs(1);
/// The longest ejection. By then the instance's checks, or its node's death, should have taken it from the table.
const EJECTION_MAX: Duration = Duration::from_secs(60);
/// Whoever has served for so long after its last ejection starts from [`EJECTION`] again.
const FORGIVEN: Duration = Duration::from_secs(60);

/// Addresses of an instance that are tried. They are ordered: one that answers is among the first, or
/// nowhere.
const ADDRESSES_MAX: usize = 8;

/// The weight of a new sample in the moving average of latencies.
const WEIGHT: f32 = 0.1;
/// The expected latency of an instance that is not asked halves in this time, so that a slow one is asked again: one of 100 ms among
/// others of 1 ms every 1.7 s.
const HALF_LIFE_MS: f32 = 250.0;
/// A failure counts as this latency at least: refusing is quick, and must not look like being quick. Little enough that under load the
/// instance is soon asked again, and ejected if it fails again.
const FAILED_US: f32 = 20_000.0;

/// Where to connect.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// An address.
    Ip(SocketAddr),
    /// A name, which is looked up for each connection.
    Name(String, u16),
}

/// Why requests cannot be sent to an instance.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unusable {
    /// Its URL is `https`, or another scheme.
    Scheme,
    /// Its URL names no host and port.
    NoAddress,
    /// The address policy refuses each of its addresses.
    Forbidden(Forbidden),
}

impl Unusable {
    /// The reason, as the end of a sentence.
    pub fn reason(self) -> Cow<'static, str> {
        match self {
            Self::Scheme => "its URL is not http, which is all that the gateway speaks".into(),
            Self::NoAddress => "its URL names no host and port".into(),
            Self::Forbidden(rule) => rule.to_string().into(),
        }
    }
}

/// An instance that requests can be sent to.
#[derive(Debug)]
pub struct Target {
    /// Its id on its node.
    pub id: String,
    /// The node that speaks for it.
    pub node_id: NodeId,
    /// What it is asked under in `Host`, where the client's own is not passed on.
    pub host: HeaderValue,
    /// The same as the authority of an HTTP/2 request.
    pub authority: Authority,
    /// Whether it is a role of its node, and then under which prefixes it is asked.
    role_paths: Option<Box<[Cow<'static, str>]>>,
    /// Where it is, in the order in which this host should try; at least one.
    addresses: Box<[Address]>,
    /// Which of them was connected to last.
    preferred: AtomicUsize,
    /// Whether it takes HTTP/2 without TLS for everything (tag `h2c`), and not only for gRPC.
    pub h2c: bool,
    /// Connections that wait for their next request, by thread.
    pub kept: Box<[Kept]>,
    in_flight: AtomicU32,
    /// Microseconds as `f32` above, the time of the last sample in milliseconds below.
    latency: AtomicU64,
    failures: AtomicU32,
    ejection: Mutex<Ejection>,
    /// The end of the ejection in milliseconds since the start; 0 for none. Read without the lock.
    ejected_until_ms: AtomicU64,
    gone: AtomicBool,
    answered: AtomicU64,
    failed: AtomicU64,
}

#[derive(Clone, Copy, Default, Debug)]
struct Ejection {
    times: u32,
    until_ms: u64,
}

impl Target {
    /// Understands what an instance says of itself.
    ///
    /// # Errors
    /// Why nothing can be sent to it.
    pub fn new(provider: &Provider, policy: &GatewayPolicy, threads: usize) -> Result<Self, Unusable> {
        let instance = &provider.instance;
        let (authority, addresses) = locate(provider, policy)?;
        let h2c = instance.tags.iter().any(|tag| tag == "h2c");
        Ok(Self {
            id: provider.id.clone(),
            node_id: provider.node_id,
            host: HeaderValue::from_str(authority.as_str()).map_err(|_| Unusable::NoAddress)?,
            authority,
            role_paths: provider.is_role().then(|| role_paths(instance)),
            addresses,
            preferred: AtomicUsize::new(0),
            h2c,
            kept: (0..threads).map(|_| Kept::default()).collect(),
            in_flight: AtomicU32::new(0),
            latency: AtomicU64::new(0),
            failures: AtomicU32::new(0),
            ejection: Mutex::default(),
            ejected_until_ms: AtomicU64::new(0),
            gone: AtomicBool::new(false),
            answered: AtomicU64::new(0),
            failed: AtomicU64::new(0),
        })
    }

    /// Whether it is the same place under the same id, so that what was learnt of the one holds for the
    /// other. The order of the addresses does not count: which of them answers is known by now.
    pub fn is_same(&self, other: &Self) -> bool {
        self.authority == other.authority
            && self.h2c == other.h2c
            && self.role_paths == other.role_paths
            && self.addresses.len() == other.addresses.len()
            && self.addresses.iter().all(|address| other.addresses.contains(address))
    }

    /// Whether it is a role of its node: then more than this service answers at its address.
    pub fn is_role(&self) -> bool {
        self.role_paths.is_some()
    }

    /// Whether it is asked for this path.
    pub fn serves(&self, path: &str) -> bool {
        let covers_path = |prefix: &Cow<'_, str>| covers(prefix, path);
        self.role_paths.as_ref().is_none_or(|prefixes| prefixes.iter().any(covers_path))
    }

    /// The instance at this host of its addresses, as the policy wants to know it.
    pub fn at<'a>(&self, host: &'a str) -> InstanceAddress<'a> {
        InstanceAddress { node_id: self.node_id, is_role: self.is_role(), host }
    }

    /// The addresses with their positions: first the one that was connected to last, then the others in their
    /// order.
    pub fn addresses(&self) -> impl Iterator<Item = (usize, &Address)> {
        let preferred = self.preferred.load(Relaxed);
        let all = || self.addresses.iter().enumerate();
        all().filter(move |(at, _)| *at == preferred).chain(all().filter(move |(at, _)| *at != preferred))
    }

    /// Tries the address at this position first from now on.
    pub fn prefer(&self, at: usize) {
        // Nearly always it is already.
        if self.preferred.load(Relaxed) != at {
            self.preferred.store(at, Relaxed);
        }
    }

    /// The table lists it no longer.
    pub fn leave(&self) {
        self.gone.store(true, Relaxed);
        self.kept.iter().for_each(Kept::clear);
    }

    /// Whether the table lists it no longer.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Relaxed)
    }

    /// A request is sent.
    pub fn begin(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    /// Its answer was passed on whole, or given up.
    pub fn end(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }

    /// Requests sent whose answers have not ended.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// What asking it costs: the less, the better a choice.
    pub fn cost(&self, now_ms: u64) -> f32 {
        // Below a microsecond all are alike, and only the number in flight counts.
        (self.in_flight() as f32 + 1.0) * self.latency_us(now_ms).max(1.0)
    }

    /// The latency to be expected, in microseconds.
    pub fn latency_us(&self, now_ms: u64) -> f32 {
        let (us, at_ms) = unpack(self.latency.load(Relaxed));
        match (now_ms as u32).wrapping_sub(at_ms) {
            0 => us,
            // The clocks of two threads may be read in another order than they are used.
            quiet_ms if quiet_ms > u32::MAX / 2 => us,
            quiet_ms => us * (-(quiet_ms as f32) / HALF_LIFE_MS).exp2(),
        }
    }

    /// It answered, after so long.
    pub fn answered(&self, took: Duration, now_ms: u64) {
        self.answered.fetch_add(1, Relaxed);
        let sample = took.as_micros() as f32;
        let before = self.latency_us(now_ms);
        let us = if before < 1.0 { sample } else { before + WEIGHT * (sample - before) };
        self.latency.store(pack(us, now_ms), Relaxed);
    }

    /// It answered well: what it failed at before is forgiven.
    pub fn succeeded(&self) {
        // Nearly always nothing to do, and then nothing is written.
        if self.failures.load(Relaxed) != 0 {
            self.failures.store(0, Relaxed);
        }
    }

    /// It failed. Whether it should be ejected for that: see [`Self::eject`].
    #[must_use]
    pub fn failed(&self, weight: u32, now_ms: u64) -> bool {
        self.failed.fetch_add(1, Relaxed);
        self.latency.store(pack(self.latency_us(now_ms).max(FAILED_US), now_ms), Relaxed);
        let before = self.failures.fetch_add(weight, Relaxed);
        before.saturating_add(weight) >= FAILURES_MAX && !self.is_ejected(now_ms)
    }

    /// Leaves it out for a while, longer each time. When that is over, one more failure is enough.
    pub fn eject(&self, now_ms: u64) -> Duration {
        let mut ejection = self.ejection.lock().unwrap_or_else(PoisonError::into_inner);
        if ejection.until_ms > now_ms {
            return Duration::from_millis(ejection.until_ms - now_ms);
        }
        let served = Duration::from_millis(now_ms - ejection.until_ms);
        if served > FORGIVEN {
            ejection.times = 0;
        }
        let length = EJECTION.saturating_mul(1 << ejection.times.min(16)).min(EJECTION_MAX);
        // A little chance, so that those that were ejected together do not come back together.
        let length = length.mul_f32(0.9 + 0.2 * fastrand::f32());
        ejection.times += 1;
        ejection.until_ms = now_ms + u64::try_from(length.as_millis()).unwrap_or(0).max(1);
        self.ejected_until_ms.store(ejection.until_ms, Relaxed);
        self.failures.store(FAILURES_MAX - 1, Relaxed);
        length
    }

    /// Whether it is left out now.
    pub fn is_ejected(&self, now_ms: u64) -> bool {
        self.ejected_until_ms.load(Relaxed) > now_ms
    }

    /// How long it is still left out.
    pub fn ejected_for(&self, now_ms: u64) -> Duration {
        Duration::from_millis(self.ejected_until_ms.load(Relaxed).saturating_sub(now_ms))
    }

    /// Answers and failures so far.
    pub fn totals(&self) -> (u64, u64) {
        (self.answered.load(Relaxed), self.failed.load(Relaxed))
    }
}

fn pack(us: f32, now_ms: u64) -> u64 {
    u64::from(us.to_bits()) << 32 | (now_ms & 0xffff_ffff)
}

fn unpack(packed: u64) -> (f32, u32) {
    (f32::from_bits((packed >> 32) as u32), packed as u32)
}

/// Understands where an instance is: under which authority it is asked, and which addresses lead there.
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
    let judged = |authority: &Authority| {
        let address = address_of(authority)?;
        // A name is judged when it is resolved.
        if let Address::Ip(socket) = address {
            let at = InstanceAddress::of(provider, bare_host(authority));
            policy.check(at, socket).map_err(Unusable::Forbidden)?;
        }
        Ok(address)
    };
    let stated = judged(&authority);
    if provider.addresses.len() < 2 {
        return Ok((authority, [stated?].into()));
    }
    let all = provider.addresses.iter().map(|a| judged(&a.parse().map_err(|_| Unusable::NoAddress)?));
    let usable: Box<[Address]> = all.filter_map(Result::ok).take(ADDRESSES_MAX).collect();
    if usable.is_empty() {
        // Then the stated one is among those that are not.
        return Err(stated.err().unwrap_or(Unusable::NoAddress));
    }
    Ok((authority, usable))
}

/// The host of an authority, without brackets.
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
    use crate::gateway::fixture::{policy, provider, target};

    #[test]
    fn a_url_is_understood_or_refused_with_the_reason() {
        let at = |url: &str| {
            let target = Target::new(&provider("web", "a", url, &[]), &policy(), 1)?;
            let addresses: Vec<_> = target.addresses().map(|(_, address)| address.clone()).collect();
            assert_eq!(addresses.len(), 1);
            Ok((addresses[0].clone(), target.authority.to_string()))
        };
        let ip = |text: &str| Address::Ip(text.parse().unwrap());
        assert_eq!(at("http://10.0.0.1:80"), Ok((ip("10.0.0.1:80"), "10.0.0.1:80".into())));
        assert_eq!(at("http://[::1]:81/"), Ok((ip("[::1]:81"), "[::1]:81".into())));
        assert_eq!(at("http://db"), Ok((Address::Name("db".into(), 80), "db".into())));
        // From the fields of the instance.
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
    fn a_role_is_asked_for_its_own_paths_and_a_program_for_any() {
        let of = |provider: Provider| Target::new(&provider, &policy(), 1).unwrap();
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
            Target::new(&grading, &policy(), 1)
        };
        let order = |target: &Target| target.addresses().map(|(_, a)| a.clone()).collect::<Vec<_>>();
        let ip = |text: &str| Address::Ip(text.parse().unwrap());
        let target = of(&["10.1.0.1:80", "169.254.0.1:80", "10.0.0.1:80", "[fd77::1]:80"]).unwrap();
        assert_eq!(order(&target), [ip("10.1.0.1:80"), ip("10.0.0.1:80"), ip("[fd77::1]:80")]);
        target.prefer(2);
        assert_eq!(order(&target), [ip("[fd77::1]:80"), ip("10.1.0.1:80"), ip("10.0.0.1:80")]);
        assert_eq!(target.authority, "10.0.0.1:80", "it is asked under the name that it states");
        let reordered = of(&["[fd77::1]:80", "10.0.0.1:80", "10.1.0.1:80"]).unwrap();
        assert!(target.is_same(&reordered) && !target.is_same(&of(&["10.0.0.1:80", "10.9.0.1:80"]).unwrap()));
        let many: Vec<_> = (0..100).map(|n| format!("10.2.0.{n}:80")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        assert_eq!(order(&of(&many).unwrap()).len(), ADDRESSES_MAX);
        assert_eq!(of(&["169.254.0.1:80", "[fe80::1]:80"]).unwrap_err(), Unusable::NoAddress);
    }

    #[test]
    fn latency_follows_the_samples_and_is_forgotten_when_nobody_asks() {
        let target = target("a");
        for _ in 0..100 {
            target.answered(Duration::from_millis(8), 1_000);
        }
        assert!((7_900.0..8_100.0).contains(&target.latency_us(1_000)));
        assert!((3_900.0..4_100.0).contains(&target.latency_us(1_250)), "halved after a quarter of a second");
        assert!(target.latency_us(60_000) < 1.0);
        let idle = target.cost(1_000);
        target.begin();
        assert!((target.cost(1_000) / idle - 2.0).abs() < 0.01);
        target.end();
        assert_eq!(target.in_flight(), 0);
    }

    #[test]
    fn three_broken_connections_or_five_bad_answers_are_too_many() {
        let broken = target("a");
        assert_eq!([1, 2, 3].map(|ms| broken.failed(BROKEN, ms)), [false, false, true]);
        let bad = target("b");
        let told: Vec<_> = (0..5).map(|ms| bad.failed(BAD_ANSWER, ms)).collect();
        assert_eq!(told, [false, false, false, false, true]);
        let forgiven = target("c");
        assert!((0..4).all(|ms| !forgiven.failed(BAD_ANSWER, ms)));
        forgiven.succeeded();
        assert!(!forgiven.failed(BAD_ANSWER, 9));
    }

    #[test]
    fn an_ejection_ends_and_the_next_one_is_longer_and_comes_sooner() {
        let target = target("a");
        let first = target.eject(1_000);
        assert!(target.is_ejected(1_001) && !target.is_ejected(1_000 + 1_101));
        assert!((0.9..=1.1).contains(&first.as_secs_f32()), "{first:?}");
        assert!(target.failed(BROKEN, 2_200), "one failure is enough after an ejection");
        let second = target.eject(2_200);
        assert!((1.8..=2.2).contains(&second.as_secs_f32()), "{second:?}");
        assert!(!target.failed(BROKEN, 2_300), "it is ejected already");
        let mut now = 2_200;
        for _ in 0..20 {
            now += u64::try_from(target.eject(now).as_millis()).unwrap() + 1;
        }
        let longest = target.eject(now);
        assert!((54.0..=66.0).contains(&longest.as_secs_f32()), "{longest:?}");
        let later = now + 66_000 + 61_000;
        assert!(target.eject(later) < Duration::from_secs(2), "forgotten after a good minute");
    }
}
