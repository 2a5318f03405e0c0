//! Fixture of tests and of the fuzz target: a provider table to send DNS requests to.

use std::{net::IpAddr, sync::Arc};

use hearsay_protocol::{
    Change, Incarnation, Index, Instance, Member, MemberState, NodeId, Origin, Time, Version,
};

use super::{
    answer::Source,
    message::{Client, Response, Transport, respond},
};
use crate::view::{Clock, View};

/// The id of the node with this number.
fn node_id(n: u8) -> NodeId {
    NodeId::from_public_key([n; 32])
}

/// A table to ask.
#[derive(Debug)]
pub(super) struct Zone(pub(super) Source);

impl Zone {
    /// Two nodes, and no service.
    pub(super) fn new() -> Self {
        let view = Arc::new(View::new(Index(1), Clock::start()));
        let zone = Self(Source { view, node: node_id(1), ttl: 0 });
        for n in 1..=2 {
            zone.add_member(n);
        }
        zone
    }

    fn apply(&self, change: Change) {
        self.0.view.apply(Time::ZERO, [change]);
    }

    pub(super) fn add_member(&self, n: u8) {
        self.put_member(member(n));
    }

    pub(super) fn put_member(&self, member: Member) {
        self.apply(Change::Member(Box::new(member)));
    }

    pub(super) fn add(&self, node: u8, id: &str, instance: Instance) {
        self.apply(Change::Instance {
            node: node_id(node),
            id: id.into(),
            instance: Some(Arc::new(instance)),
        });
    }

    /// The response to a request of these bytes, if there is one.
    #[cfg_attr(not(test), allow(dead_code, reason = "fuzzing responds by itself"))]
    pub(super) fn respond(&self, request: &[u8], client: &str, transport: Transport) -> Option<Response> {
        let ip: IpAddr = client.parse().ok()?;
        respond(&self.0, request, Client { ip, transport, may_read: true })
    }
}

/// A member with this number.
pub(super) fn member(n: u8) -> Member {
    Member {
        id: node_id(n),
        name: format!("n{n}"),
        state: MemberState::Alive,
        roles: vec![],
        addresses: vec![format!("/ip4/10.77.0.{n}/tcp/7600"), format!("/ip6/fd77::{n}/tcp/7600")],
        http: Some(format!("10.77.0.{n}:7500")),
        zone: None,
        software: String::new(),
        protocol: 3,
        ephemeral: false,
        grpc: None,
        incarnation: Incarnation(1),
        version: Version(1),
        since: Time::ZERO,
        rtt: None,
        rank: 0,
        namesake: false,
    }
}

/// An instance of the service `web`.
pub(super) fn web(n: u8) -> Instance {
    Instance {
        service: "web".into(),
        address: format!("10.77.1.{n}"),
        port: 8000 + u16::from(n),
        url: format!("http://10.77.1.{n}:{}", 8000 + u16::from(n)),
        tags: vec![format!("v{n}")],
        weight: Some(10 * u16::from(n)),
        origin: Origin::Program,
        ..Instance::default()
    }
}
