//! Decides which hosts are exempt from the per-host share of connection limits: loopback, `--trusted-proxy`
//! and members.
//!
//! A client is taken for a member if its IP is among the addresses that a member gossips (in its membership
//! header). The set is rebuilt when a client connects and the set is older than one second.

use std::{
    collections::BTreeSet,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use hearsay_protocol::ProviderTable;
use hearsay_services::network::{Cidr, Exempt};
use libp2p::{Multiaddr, multiaddr::Protocol};

use crate::view::View;

/// Age of the members' addresses after which they are read again. Until then shares apply to a new member.
const READ_EVERY: Duration = Duration::from_secs(1);

/// Returns the test whether a host is exempt: members of a table, and trusted networks.
pub(crate) fn exempt(view: Arc<View>, trusted: Vec<Cidr>) -> Exempt {
    let members = Mutex::new(Members::default());
    Exempt::new(move |ip| {
        trusted.iter().any(|network| network.contains(ip))
            || members.lock().unwrap_or_else(PoisonError::into_inner).contains(&view, ip)
    })
}

/// Addresses of the members. There are as many as the table has, which is bounded.
#[derive(Default)]
struct Members {
    addresses: BTreeSet<IpAddr>,
    read: Option<Instant>,
}

impl Members {
    fn contains(&mut self, view: &View, ip: IpAddr) -> bool {
        if self.read.is_none_or(|read| read.elapsed() >= READ_EVERY) {
            self.addresses = view.read(addresses);
            self.read = Some(Instant::now());
        }
        self.addresses.contains(&ip)
    }
}

/// Returns the addresses in the headers of present members.
fn addresses(table: &ProviderTable) -> BTreeSet<IpAddr> {
    let present = table.members().filter(|member| member.state.is_present());
    present.flat_map(|member| &member.addresses).filter_map(|address| ip_of(address)).collect()
}

fn ip_of(address: &str) -> Option<IpAddr> {
    match address.parse::<Multiaddr>().ok()?.iter().next()? {
        Protocol::Ip4(ip) => Some(ip.into()),
        Protocol::Ip6(ip) => Some(ip.into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use hearsay_protocol::{Change, Identity, Incarnation, Index, Member, MemberState, Time, Version};
    use hearsay_services::network::Holder;

    use super::*;
    use crate::view::Clock;

    fn member(n: u8, state: MemberState, address: &str) -> Change {
        Change::Member(Box::new(Member {
            id: Identity::from_seed(&[n; 32]).id(),
            name: format!("n{n}"),
            state,
            roles: vec![],
            addresses: vec![address.to_owned()],
            http: None,
            zone: None,
            software: "test".into(),
            protocol: 1,
            ephemeral: false,
            grpc: None,
            incarnation: Incarnation(1),
            version: Version(1),
            since: Time::ZERO,
            rtt: None,
            rank: 0,
            namesake: false,
        }))
    }

    #[test]
    fn members_that_are_present_and_trusted_networks_have_no_share() {
        let view = Arc::new(View::new(Index(0), Clock::start()));
        view.apply(
            Time::ZERO,
            [
                member(1, MemberState::Alive, "/ip4/10.0.0.1/tcp/7600"),
                member(2, MemberState::Suspect, "/ip6/fd00::2/tcp/7600"),
                member(3, MemberState::Failed, "/ip4/10.0.0.3/tcp/7600"),
                member(4, MemberState::Alive, "/dns4/db1.example/tcp/7600"),
            ],
        );
        let exempt = exempt(view, vec!["192.168.0.0/16".parse().unwrap()]);
        for (ip, is_exempt) in [
            ("10.0.0.1", true),
            ("::ffff:10.0.0.1", true),
            ("fd00::2", true),
            ("fd00::3", false),
            ("10.0.0.3", false),
            ("192.168.7.7", true),
            ("192.169.7.7", false),
            ("::1", true),
        ] {
            assert_eq!(exempt.holder(ip.parse().unwrap()) == Holder::Exempt, is_exempt, "{ip}");
        }
    }
}
