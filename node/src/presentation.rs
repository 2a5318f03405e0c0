//! How a node presents itself: its addresses, and the instances of its plug-ins at them.
//!
//! Which addresses a machine has is known only while it runs, and changes. What is advertised follows the listeners of the swarm, which
//! follow the interfaces, unless `--advertise` fixes it. Loopback is advertised only where there is nothing else: another host
//! would find itself there.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
};

use anyhow::Context as _;
use hearsay_protocol::{
    io::{Command, Profile},
    record::{ENTRY_BYTES_MAX, Health, Instance},
};
use libp2p::{Multiaddr, multiaddr::Protocol};

use crate::{config::Host, swarm::is_loopback};

/// A plug-in's instance, but for where it is.
#[derive(Clone, Debug)]
pub struct Offer {
    /// The service.
    pub service: String,
    /// Labels.
    pub tags: Vec<String>,
    /// Free pairs.
    pub meta: BTreeMap<String, String>,
}

/// What a node says of itself wherever it is.
#[derive(Clone, Debug)]
pub struct Presentation {
    /// Name, roles, zone, software; its addresses are filled in.
    pub profile: Profile,
    /// What its plug-ins offer.
    pub offers: Vec<Offer>,
    /// Ends the instances' ids, so that they differ between nodes.
    pub suffix: String,
    /// `--advertise`.
    pub advertise: Vec<Host>,
    /// The swarm's port.
    pub swarm_port: u16,
    /// Where HTTP listens.
    pub http: SocketAddr,
    /// When the node started, in milliseconds since the Unix epoch.
    pub since_ms: u64,
    /// Its health: critical while it is in maintenance.
    pub health: Health,
}

/// What an instance's value may take of an entry; the rest is its key, its author and the signature.
const INSTANCE_BYTES_MAX: usize = ENTRY_BYTES_MAX - 512;

impl Presentation {
    /// Whether others would take what this states. Otherwise the node would seem to run well, and nobody would ever see its services.
    ///
    /// # Errors
    /// Names the service, the field and its limit.
    pub fn check(&self) -> anyhow::Result<()> {
        for command in self.at(&[]) {
            let Command::SetInstance(_, instance) = command else { continue };
            let refused = || format!("the service {} with its own tags and those of --tag", instance.service);
            instance.check().with_context(refused)?;
            let bytes = instance.encode().len();
            if bytes > INSTANCE_BYTES_MAX {
                let problem =
                    anyhow::anyhow!("takes {bytes} bytes; at most {INSTANCE_BYTES_MAX} are allowed");
                return Err(problem.context(refused()));
            }
        }
        Ok(())
    }

    /// The same with other tags for the services named, and another zone.
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

    /// What to state while the swarm listens at these addresses.
    pub fn at(&self, listening: &[Multiaddr]) -> Vec<Command> {
        let addresses = self.addresses(listening);
        let host = self.host(&addresses);
        let authority = match host.parse::<IpAddr>() {
            Ok(IpAddr::V6(ip)) => format!("[{ip}]:{}", self.http.port()),
            _ => format!("{host}:{}", self.http.port()),
        };
        let mut profile = self.profile.clone();
        profile.addresses = addresses.iter().map(Multiaddr::to_string).collect();
        profile.http = Some(authority.clone());
        let mut commands = vec![Command::SetProfile(profile)];
        for offer in &self.offers {
            let instance = Instance {
                service: offer.service.clone(),
                address: host.clone(),
                port: self.http.port(),
                url: format!("http://{authority}"),
                tags: offer.tags.clone(),
                meta: offer.meta.clone(),
                health: self.health,
                since_ms: self.since_ms,
            };
            let id = format!("{}-{}", offer.service, self.suffix);
            commands.push(Command::SetInstance(id, Box::new(instance)));
        }
        commands
    }

    fn addresses(&self, listening: &[Multiaddr]) -> Vec<Multiaddr> {
        if !self.advertise.is_empty() {
            return self.advertise.iter().map(|host| swarm_address(host, self.swarm_port)).collect();
        }
        let useful = |a: &&Multiaddr| !is_loopback(a) && !is_link_local(a);
        let mut addresses: Vec<Multiaddr> = listening.iter().filter(useful).cloned().collect();
        if addresses.is_empty() {
            addresses = listening.to_vec();
        }
        // The one that leads out comes first; the others keep an order of their own, so that equal sets are equal texts.
        let primary = outward_ip();
        addresses
            .sort_by_key(|a| (ip_of(a) != primary, !matches!(ip_of(a), Some(IpAddr::V4(_))), a.to_string()));
        addresses.dedup();
        addresses
    }

    fn host(&self, addresses: &[Multiaddr]) -> String {
        if let Some(host) = self.advertise.first() {
            return match host {
                Host::Ip(ip) => ip.to_string(),
                Host::Name(name) => name.clone(),
            };
        }
        if !self.http.ip().is_unspecified() {
            return self.http.ip().to_string();
        }
        addresses.iter().find_map(ip_of).unwrap_or(Ipv4Addr::LOCALHOST.into()).to_string()
    }
}

fn swarm_address(host: &Host, port: u16) -> Multiaddr {
    let host = match host {
        Host::Ip(IpAddr::V4(ip)) => Protocol::Ip4(*ip),
        Host::Ip(IpAddr::V6(ip)) => Protocol::Ip6(*ip),
        Host::Name(name) => Protocol::Dns(name.into()),
    };
    Multiaddr::empty().with(host).with(Protocol::Tcp(port))
}

fn ip_of(address: &Multiaddr) -> Option<IpAddr> {
    address.iter().find_map(|part| match part {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    })
}

/// Whether an address means something on one link only.
pub fn is_link_local(address: &Multiaddr) -> bool {
    match ip_of(address) {
        Some(IpAddr::V4(ip)) => ip.is_link_local(),
        Some(IpAddr::V6(ip)) => ip.is_unicast_link_local(),
        None => false,
    }
}

/// The address by which this machine reaches the rest of the world. Connecting a UDP socket only asks the routing table; nothing is
/// sent. The address asked for is one reserved for documentation (RFC 5737).
fn outward_ip() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
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
            },
            offers: vec![Offer { service: "grading".into(), tags: vec![], meta: BTreeMap::new() }],
            suffix: "abcdef".into(),
            advertise: advertise.iter().map(|a| a.parse().unwrap()).collect(),
            swarm_port: 7600,
            http: "0.0.0.0:7500".parse().unwrap(),
            since_ms: 0,
            health: Health::Passing,
        }
    }

    fn stated(presentation: &Presentation, listening: &[&str]) -> (Profile, Instance) {
        let listening: Vec<Multiaddr> = listening.iter().map(|a| a.parse().unwrap()).collect();
        let mut commands = presentation.at(&listening).into_iter();
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
    fn what_is_advertised_outranks_the_interfaces() {
        let p = presentation(&["db1.example", "10.0.0.9"]);
        let (profile, instance) = stated(&p, &["/ip4/10.77.0.2/tcp/7600"]);
        assert_eq!(profile.addresses, ["/dns/db1.example/tcp/7600", "/ip4/10.0.0.9/tcp/7600"]);
        assert_eq!(profile.http.as_deref(), Some("db1.example:7500"));
        assert_eq!(instance.url, "http://db1.example:7500");
    }
}
