//! [`Presentation`]: chooses the addresses that a node advertises for its swarm and HTTP, and states its
//! profile and the instances of its plug-ins with them.
//!
//! The addresses of a machine change while a node runs. The advertised addresses follow the listeners of the
//! swarm, which follow the interfaces, unless `--advertise` sets them. Loopback is advertised only if there
//! is no other address, because another host that connects to it reaches itself.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

use anyhow::{Context as _, bail};
use hearsay_protocol::{
    ADDRESSES_META, AddressLimit, Command, ENTRY_BYTES_MAX, Health, Instance, Origin, Profile,
};
use libp2p::{Multiaddr, multiaddr::Protocol};

use crate::{
    config::{Advertise, Host, HostPort, list_interfaces},
    discovery,
    swarm::is_loopback,
    system::interfaces::{self, InterfaceAddress},
};

/// A plug-in's instance without its address.
#[derive(Clone, Debug)]
pub struct Offer {
    /// Name of the service.
    pub service: String,
    /// Tags.
    pub tags: Vec<String>,
    /// Metadata.
    pub meta: BTreeMap<String, String>,
}

/// The facts that a node states about itself.
#[derive(Clone, Debug)]
pub struct Presentation {
    /// Name, roles, zone and software. The addresses are filled in by [`Presentation::at`].
    pub profile: Profile,
    /// Instances of the plug-ins.
    pub offers: Vec<Offer>,
    /// Suffix of the instances' ids, which makes them unique in the cluster.
    pub suffix: String,
    /// `--advertise`.
    pub advertise: Vec<Advertise>,
    /// `--advertise-http`.
    pub advertise_http: Option<HostPort>,
    /// Port of the swarm.
    pub swarm_port: u16,
    /// Address at which HTTP listens.
    pub http: SocketAddr,
    /// Address at which gRPC listens; `None`: nowhere.
    pub grpc: Option<SocketAddr>,
    /// Start of the node, in milliseconds since the Unix epoch.
    pub since_ms: u64,
    /// Health of the node's instances: critical during maintenance.
    pub health: Health,
}

/// Bound on the value of an instance's entry. The rest of an entry is its key, its author and the signature.
const INSTANCE_BYTES_MAX: usize = ENTRY_BYTES_MAX - 512;

impl Presentation {
    /// Checks that other nodes would accept the facts. Otherwise the node would run without its services
    /// being listed anywhere.
    ///
    /// # Errors
    /// Names the service, the field and its limit.
    pub fn check(&self) -> anyhow::Result<()> {
        for command in self.at(&[], &[]) {
            let Command::SetInstance(_, instance) = command else { continue };
            let refused = || format!("the service {} with its own tags and those of --tag", instance.service);
            instance.check().and_then(|()| instance.check_stated()).with_context(refused)?;
            let bytes = instance.encode().len();
            if bytes > INSTANCE_BYTES_MAX {
                let problem =
                    anyhow::anyhow!("takes {bytes} bytes; at most {INSTANCE_BYTES_MAX} are allowed");
                return Err(problem.context(refused()));
            }
        }
        Ok(())
    }

    /// Returns a copy with other tags for the named services, and another zone.
    pub fn with(&self, tags: &BTreeMap<String, Vec<String>>, zone: Option<String>) -> Self {
        let mut new = self.clone();
        new.profile.zone = zone;
        for offer in &mut new.offers {
            if let Some(tags) = tags.get(&offer.service) {
                offer.tags.clone_from(tags);
            }
        }
        new
    }

    /// Returns the commands that state the facts, for the current listeners of the swarm and the current
    /// interfaces.
    pub fn at(&self, listening: &[Multiaddr], interfaces: &[InterfaceAddress]) -> Vec<Command> {
        let addresses = self.addresses(listening, interfaces);
        let (host, port) = self.http(&addresses, interfaces);
        let authority = authority(&host, port);
        let mut profile = self.profile.clone();
        profile.addresses = addresses.iter().map(Multiaddr::to_string).collect();
        profile.http = Some(authority.clone());
        profile.grpc = self.grpc(&addresses, interfaces);
        let limit = self.address_limit(&host, &addresses);
        let mut commands = vec![Command::SetProfile(profile)];
        for offer in &self.offers {
            let mut meta = offer.meta.clone();
            meta.extend(limit.map(|limit| (ADDRESSES_META.to_owned(), limit.as_str().to_owned())));
            let instance = Instance {
                service: offer.service.clone(),
                address: host.clone(),
                port,
                url: format!("http://{authority}"),
                tags: offer.tags.clone(),
                meta,
                health: self.health,
                since_ms: self.since_ms,
                origin: Origin::Role,
                ..Instance::default()
            };
            let id = format!("{}-{}", offer.service, self.suffix);
            commands.push(Command::SetInstance(id, Box::new(instance)));
        }
        commands
    }

    /// Returns the swarm's addresses to advertise.
    fn addresses(&self, listening: &[Multiaddr], interfaces: &[InterfaceAddress]) -> Vec<Multiaddr> {
        if !self.advertise.is_empty() {
            let named = self.advertise.iter().flat_map(|named| self.named(named, interfaces));
            let mut addresses: Vec<Multiaddr> = Vec::new();
            named.for_each(|address| {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            });
            return addresses;
        }
        // An IPv6 link-local address is useless without its interface, which a multiaddr does not carry.
        let usable = |a: &&Multiaddr| !matches!(ip_of(a), Some(IpAddr::V6(ip)) if ip.is_unicast_link_local());
        let select = |rank: fn(&Multiaddr) -> bool| -> Vec<Multiaddr> {
            listening.iter().filter(usable).filter(|address| rank(address)).cloned().collect()
        };
        let mut addresses = select(|address| !is_loopback(address) && !is_link_local(address));
        if addresses.is_empty() {
            addresses = select(is_link_local);
        }
        if addresses.is_empty() {
            addresses = select(|_| true);
        }
        // Addresses with a route to other networks come first. The order is deterministic, so that equal sets
        // give equal headers.
        let routed = routed_ips();
        addresses.sort_by_cached_key(|a| (preference(ip_of(a), &routed), a.to_string()));
        addresses.dedup();
        addresses
    }

    /// Returns the addresses for one value of `--advertise`.
    fn named(&self, named: &Advertise, interfaces: &[InterfaceAddress]) -> Vec<Multiaddr> {
        match named {
            Advertise::Host(host, port) => vec![swarm_address(host, port.unwrap_or(self.swarm_port))],
            Advertise::Interface(name, port) => {
                let ips = of_interface(name, interfaces).into_iter().map(Host::Ip);
                ips.map(|ip| swarm_address(&ip, port.unwrap_or(self.swarm_port))).collect()
            }
        }
    }

    /// Returns the host and port of HTTP to advertise.
    fn http(&self, addresses: &[Multiaddr], interfaces: &[InterfaceAddress]) -> (String, u16) {
        if let Some(HostPort { host, port }) = &self.advertise_http {
            return (bare(host), *port);
        }
        (self.host_of(self.http, addresses, interfaces), self.http.port())
    }

    /// Returns the address of gRPC to advertise, by the same rules as that of HTTP.
    fn grpc(&self, addresses: &[Multiaddr], interfaces: &[InterfaceAddress]) -> Option<String> {
        let listener = self.grpc?;
        Some(authority(&self.host_of(listener, addresses, interfaces), listener.port()))
    }

    /// Returns the host to advertise for a listener.
    fn host_of(
        &self,
        listener: SocketAddr,
        addresses: &[Multiaddr],
        interfaces: &[InterfaceAddress],
    ) -> String {
        let host = match self.advertise.first() {
            Some(Advertise::Host(host, _)) => Some(bare(host)),
            Some(Advertise::Interface(name, _)) => {
                of_interface(name, interfaces).first().map(IpAddr::to_string)
            }
            None => None,
        };
        let bound = Some(listener.ip()).filter(|ip| !ip.is_unspecified()).map(|ip| ip.to_string());
        let takes = |ip: &IpAddr| listener.is_ipv6() || ip.is_ipv4();
        let own = || addresses.iter().filter_map(ip_of).find(takes).unwrap_or(Ipv4Addr::LOCALHOST.into());
        host.or(bound).unwrap_or_else(|| own().to_string())
    }

    /// Returns at which of the header's addresses HTTP listens, as a limit; `None`: at all of them.
    fn address_limit(&self, host: &str, addresses: &[Multiaddr]) -> Option<AddressLimit> {
        let is_bound = self.advertise.is_empty() && !self.http.ip().is_unspecified();
        let has_other = addresses.iter().any(|a| ip_of(a).is_none_or(|ip| ip.to_string() != host));
        if (is_bound || self.advertise_http.is_some()) && has_other {
            return Some(AddressLimit::Stated);
        }
        let has_ipv6 = addresses.iter().filter_map(ip_of).any(|ip| ip.is_ipv6());
        (self.http.ip() == IpAddr::V4(Ipv4Addr::UNSPECIFIED) && has_ipv6).then_some(AddressLimit::Ipv4)
    }
}

/// Returns a host without the brackets of an IPv6 address.
fn bare(host: &Host) -> String {
    match host {
        Host::Ip(ip) => ip.to_string(),
        Host::Name(name) => name.clone(),
    }
}

/// Returns `host:port`, with brackets around an IPv6 address.
fn authority(host: &str, port: u16) -> String {
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V6(ip)) => format!("[{ip}]:{port}"),
        _ => format!("{host}:{port}"),
    }
}

/// Returns the rank of an address among those of the machine; the lowest rank comes first. The first address
/// is used in URLs, so IPv4 takes precedence.
fn preference(ip: Option<IpAddr>, routed: &[IpAddr]) -> u8 {
    let has_route = ip.is_some_and(|ip| routed.contains(&ip));
    match (ip, has_route) {
        (Some(IpAddr::V4(_)), true) => 0,
        // Routed IPv6 comes second only if there is a routed IPv4 address.
        (Some(IpAddr::V6(_)), true) if routed.iter().any(IpAddr::is_ipv4) => 1,
        (Some(IpAddr::V4(_)), false) => 2,
        (_, true) => 3,
        (_, false) => 4,
    }
}

/// Returns the addresses of an interface that can be advertised. If no address is routable, these are its
/// loopback addresses and its link-local IPv4 addresses.
fn of_interface(name: &str, interfaces: &[InterfaceAddress]) -> Vec<IpAddr> {
    let of_name = || interfaces.iter().filter(|address| address.interface == name);
    let mut ips: Vec<IpAddr> = of_name().filter(|a| a.is_routable()).map(|a| a.ip).collect();
    if ips.is_empty() {
        ips.extend(of_name().map(|a| a.ip).filter(|ip| ip.is_ipv4() || ip.is_loopback()));
    }
    ips.sort_by_key(|ip| (!ip.is_ipv4(), *ip));
    ips
}

/// Checks the names in `--advertise` and `--advertise-http`. A word that is neither an interface nor a host
/// name that resolves is probably misspelt, or an interface of another machine. Other nodes would try to
/// resolve it.
///
/// # Errors
/// Names the option, its value, and the interfaces of this machine.
pub async fn check_advertised(
    advertise: &[Advertise],
    http: Option<&HostPort>,
    interfaces: &[InterfaceAddress],
) -> anyhow::Result<()> {
    let interface_names = || list_interfaces(&interfaces::names());
    for named in advertise {
        if let Advertise::Interface(name, _) = named
            && of_interface(name, interfaces).is_empty()
        {
            bail!(
                "--advertise {named}: this network interface has no address; use one of {}",
                interface_names()
            );
        }
    }
    let hosts = advertise.iter().filter_map(|named| match named {
        Advertise::Host(host, _) => Some(("advertise", host)),
        Advertise::Interface(..) => None,
    });
    for (option, host) in hosts.chain(http.map(|http| ("advertise-http", &http.host))) {
        // A name with a dot is no interface, and other nodes may resolve it although this one does not.
        let Host::Name(name) = host else { continue };
        if name.contains('.') {
            continue;
        }
        if let Err(problem) = discovery::lookup(name, 0).await {
            bail!(
                "--{option} {name}: neither a network interface of this machine ({}) nor a host name that resolves ({problem})",
                interface_names()
            );
        }
    }
    Ok(())
}

fn swarm_address(host: &Host, port: u16) -> Multiaddr {
    let host = match host {
        Host::Ip(IpAddr::V4(ip)) => Protocol::Ip4(*ip),
        Host::Ip(IpAddr::V6(ip)) => Protocol::Ip6(*ip),
        Host::Name(name) => Protocol::Dns(name.into()),
    };
    Multiaddr::empty().with(host).with(Protocol::Tcp(port))
}

/// Returns the IP address of a multiaddr; `None` for a name.
pub fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    address.iter().find_map(|part| match part {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    })
}

/// Whether an address is link-local.
pub fn is_link_local(address: &Multiaddr) -> bool {
    ip_of(address).is_some_and(interfaces::is_link_local)
}

/// Returns the source addresses of this machine's default routes, at most one of each family. Connecting a
/// UDP socket only reads the routing table; nothing is sent. The destinations are reserved for documentation
/// (RFC 5737, RFC 3849).
fn routed_ips() -> Vec<IpAddr> {
    let documentation: [IpAddr; 2] =
        [Ipv4Addr::new(192, 0, 2, 1).into(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()];
    let source = |destination: IpAddr| {
        let any: IpAddr =
            if destination.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect((destination, 9)).ok()?;
        socket.local_addr().ok().map(|address| address.ip())
    };
    documentation.into_iter().filter_map(source).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn presentation(advertise: &[&str]) -> Presentation {
        Presentation {
            profile: Profile {
                name: "n".into(),
                addresses: vec![],
                http: None,
                roles: vec!["grading".into()],
                zone: None,
                software: "test".into(),
                ephemeral: false,
                grpc: None,
            },
            offers: vec![Offer { service: "grading".into(), tags: vec![], meta: BTreeMap::new() }],
            suffix: "abcdef".into(),
            advertise: advertise.iter().map(|a| advertise_of(a)).collect(),
            advertise_http: None,
            swarm_port: 7600,
            http: "[::]:7500".parse().unwrap(),
            grpc: "[::]:7700".parse().ok(),
            since_ms: 0,
            health: Health::Passing,
        }
    }

    /// Returns an interface if the name is one of [`two_networks`], else a host.
    fn advertise_of(text: &str) -> Advertise {
        let (name, port) =
            text.split_once(':').map_or((text, None), |(name, port)| (name, port.parse().ok()));
        match ["eth0", "tun0"].contains(&name) {
            true => Advertise::Interface(name.into(), port),
            false => Advertise::Host(name.parse().unwrap(), port),
        }
    }

    fn two_networks() -> Vec<InterfaceAddress> {
        [
            ("eth0", "10.77.0.1"),
            ("eth0", "fe80::1"),
            ("eth0", "fd77::1"),
            ("tun0", "10.88.0.5"),
            ("lo", "127.0.0.1"),
        ]
        .map(|(name, ip)| InterfaceAddress { interface: name.into(), ip: ip.parse().unwrap(), prefix: 64 })
        .into()
    }

    fn stated(presentation: &Presentation, listening: &[&str]) -> (Profile, Instance) {
        let listening: Vec<Multiaddr> = listening.iter().map(|a| a.parse().unwrap()).collect();
        let mut commands = presentation.at(&listening, &two_networks()).into_iter();
        match (commands.next(), commands.next()) {
            (Some(Command::SetProfile(p)), Some(Command::SetInstance(id, i))) if id == "grading-abcdef" => {
                (p, *i)
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn loopback_is_advertised_only_where_there_is_nothing_else() {
        let p = presentation(&[]);
        let (profile, instance) = stated(&p, &["/ip4/127.0.0.1/tcp/7600", "/ip4/10.77.0.2/tcp/7600"]);
        assert_eq!(profile.addresses, ["/ip4/10.77.0.2/tcp/7600"]);
        assert_eq!(instance.url, "http://10.77.0.2:7500");
        let (profile, instance) = stated(&p, &["/ip4/127.0.0.1/tcp/7600"]);
        assert_eq!(profile.addresses, ["/ip4/127.0.0.1/tcp/7600"]);
        assert_eq!((instance.address.as_str(), instance.port), ("127.0.0.1", 7500));
    }

    #[test]
    fn what_nobody_would_take_is_refused_at_the_start() {
        let with_tags = |count: usize, chars: usize| {
            let mut p = presentation(&[]);
            p.offers[0].tags = (0..count).map(|i| format!("{i:0chars$}")).collect();
            p.check().map_err(|error| format!("{error:#}"))
        };
        assert_eq!(with_tags(64, 8), Ok(()));
        let many = with_tags(65, 8).unwrap_err();
        assert!(many.contains("grading") && many.contains("at most 64"), "{many}");
        let large = with_tags(32, 256).unwrap_err();
        assert!(large.contains("--tag") && large.contains("bytes"), "{large}");
    }

    #[test]
    fn grpc_is_advertised_where_it_listens() {
        let of = |listener: &str, advertise_http: Option<HostPort>| {
            let p = Presentation { grpc: listener.parse().ok(), advertise_http, ..presentation(&[]) };
            stated(&p, &["/ip4/10.77.0.2/tcp/7600", "/ip6/fd77::2/tcp/7600"]).0.grpc
        };
        let edge = HostPort { host: Host::Name("edge.example".into()), port: 80 };
        assert_eq!(of("[::]:7700", None).as_deref(), Some("10.77.0.2:7700"));
        assert_eq!(of("[fd77::2]:7701", None).as_deref(), Some("[fd77::2]:7701"));
        assert_eq!(of("127.0.0.1:7702", Some(edge)).as_deref(), Some("127.0.0.1:7702"));
        assert_eq!(of("none", None), None);
    }

    #[test]
    fn what_is_advertised_outranks_the_interfaces() {
        let p = presentation(&["db1.example", "10.0.0.9"]);
        let (profile, instance) = stated(&p, &["/ip4/10.77.0.2/tcp/7600"]);
        assert_eq!(profile.addresses, ["/dns/db1.example/tcp/7600", "/ip4/10.0.0.9/tcp/7600"]);
        assert_eq!(profile.http.as_deref(), Some("db1.example:7500"));
        assert_eq!(profile.grpc.as_deref(), Some("db1.example:7700"));
        assert_eq!(instance.url, "http://db1.example:7500");
    }
    #[test]
    fn the_address_in_urls_leads_out_and_is_of_ipv4_where_there_is_any() {
        let ips =
            ["10.0.0.1", "172.17.0.1", "2001:db8::7", "fd77::1"].map(|ip| ip.parse::<IpAddr>().unwrap());
        let order = |routed: &[IpAddr]| {
            let mut ips = ips;
            ips.sort_by_key(|ip| (preference(Some(*ip), routed), ip.to_string()));
            ips.map(|ip| ip.to_string())
        };
        assert_eq!(order(&[ips[1], ips[2]]), ["172.17.0.1", "2001:db8::7", "10.0.0.1", "fd77::1"]);
        assert_eq!(order(&[ips[2]]), ["10.0.0.1", "172.17.0.1", "2001:db8::7", "fd77::1"]);
        assert_eq!(order(&[]), ["10.0.0.1", "172.17.0.1", "2001:db8::7", "fd77::1"]);
    }

    #[test]
    fn an_ipv6_link_local_address_is_never_told_and_an_ipv4_one_only_where_there_is_none_better() {
        let p = presentation(&[]);
        let advertised = |listening: &[&str]| stated(&p, listening).0.addresses;
        let (lo, link4, link6) =
            ("/ip4/127.0.0.1/tcp/7600", "/ip4/169.254.7.7/tcp/7600", "/ip6/fe80::1/tcp/7600");
        assert_eq!(advertised(&[lo, link4, link6, "/ip6/fd77::1/tcp/7600"]), ["/ip6/fd77::1/tcp/7600"]);
        assert_eq!(advertised(&[lo, link4, link6]), [link4]);
        assert_eq!(advertised(&[lo, link6, "/ip6/::1/tcp/7600"]), [lo, "/ip6/::1/tcp/7600"]);
    }

    #[test]
    fn an_interface_stands_for_the_addresses_that_it_has() {
        let (profile, instance) =
            stated(&presentation(&["eth0", "tun0:17600"]), &["/ip4/10.77.0.1/tcp/7600"]);
        assert_eq!(
            profile.addresses,
            ["/ip4/10.77.0.1/tcp/7600", "/ip6/fd77::1/tcp/7600", "/ip4/10.88.0.5/tcp/17600"]
        );
        assert_eq!(instance.url, "http://10.77.0.1:7500");
    }

    #[test]
    fn mapped_ports_are_told_and_http_has_that_address_alone() {
        let mut p = presentation(&["db1.example:17600"]);
        p.advertise_http = Some(HostPort { host: "db1.example".parse().unwrap(), port: 17500 });
        let (profile, instance) = stated(&p, &["/ip4/172.17.0.2/tcp/7600"]);
        assert_eq!(profile.addresses, ["/dns/db1.example/tcp/17600"]);
        assert_eq!(profile.http.as_deref(), Some("db1.example:17500"));
        assert_eq!((instance.url.as_str(), instance.port), ("http://db1.example:17500", 17500));
        p.advertise.clear();
        let (_, instance) = stated(&p, &["/ip4/172.17.0.2/tcp/7600"]);
        assert_eq!(instance.meta[ADDRESSES_META], "stated", "the swarm's address is none of HTTP's");
    }

    #[test]
    fn http_that_listens_at_some_addresses_says_so() {
        let listening = ["/ip4/10.77.0.1/tcp/7600", "/ip4/10.88.0.5/tcp/7600", "/ip6/fd77::1/tcp/7600"];
        let limit = |http: &str, listening: &[&str]| {
            let p = Presentation { http: http.parse().unwrap(), ..presentation(&[]) };
            stated(&p, listening).1.meta.get(ADDRESSES_META).cloned()
        };
        assert_eq!(limit("[::]:7500", &listening), None);
        assert_eq!(limit("0.0.0.0:7500", &listening).as_deref(), Some("ipv4"));
        assert_eq!(limit("0.0.0.0:7500", &listening[..2]), None);
        assert_eq!(limit("10.77.0.1:7500", &listening).as_deref(), Some("stated"));
        assert_eq!(limit("10.77.0.1:7500", &listening[..1]), None);
    }

    #[tokio::test]
    async fn a_word_that_is_neither_an_interface_nor_a_host_is_refused() {
        let check = async |named: &str| {
            let named = [advertise_of(named)];
            check_advertised(&named, None, &two_networks()).await.map_err(|error| error.to_string())
        };
        assert_eq!(check("eth0").await, Ok(()));
        assert_eq!(check("localhost").await, Ok(()));
        let error = check("eth7").await.unwrap_err();
        assert!(error.contains("--advertise eth7") && error.contains("network interface"), "{error}");
        let none = check_advertised(&[advertise_of("tun0")], None, &[]).await.unwrap_err().to_string();
        assert!(none.contains("tun0") && none.contains("no address"), "{none}");
    }
}
