//! Fixture for the tests of malformed input and for the fuzz targets: a running core, the properties checked
//! after each message that it receives, and the valid messages that the tests alter.

use std::time::Duration;

use hearsay_protocol::{
    Claim, Command, Config, Core, Entry, Fact, GossipId, Header, Identity, Incarnation, Input, Instance, Key,
    NodeId, Output, Presence, Profile, RequestId, Startup, Strength, Time, Version, VersionSet,
    wire::{
        self, AgedUserEvent, Digest, Forget, ForgetClaim, Gossip, MESSAGE_BYTES_MAX, Page, Request, Response,
        UserEvent, UserEventClaim, UserEventContent,
    },
};

/// Kind of the input in which a message arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Gossip,
    Request,
    Response,
}

/// Running core that knows two other nodes and is connected to one of them.
pub(crate) struct Live {
    pub(crate) core: Core,
    now: Time,
    asked: Option<RequestId>,
    fed: u64,
}

pub(crate) fn who(seed: u8) -> Identity {
    Identity::from_seed(&[seed; 32])
}

fn id(seed: u8) -> NodeId {
    who(seed).id()
}

fn header(seed: u8) -> Vec<u8> {
    let header = Header {
        name: format!("n{seed}"),
        addresses: vec!["/ip4/10.77.0.1/tcp/7600".into()],
        http: Some("10.77.0.1:7500".into()),
        roles: vec!["grading".into()],
        zone: Some("a".into()),
        software: "1".into(),
        protocol: 1,
        floor: Version(0),
        presence: Presence::Running,
        boot: 7,
        ephemeral: false,
        grpc: None,
    };
    header.encode()
}

fn instance() -> Instance {
    Instance {
        service: "grading".into(),
        address: "10.77.0.1".into(),
        port: 7500,
        url: "http://10.77.0.1:7500".into(),
        tags: vec!["a".into()],
        meta: [("k".to_owned(), "v".to_owned())].into(),
        health: Default::default(),
        since_ms: 1,
        ..Instance::default()
    }
}

fn entry(seed: u8, version: u64, key: Key, value: Option<Vec<u8>>) -> Entry {
    let (node, incarnation, version) = (id(seed), Incarnation(1000), Version(version));
    Fact { node, incarnation, version, key, value }.sign(&who(seed), "default").unwrap()
}

fn page(seed: u8) -> Page {
    let accused = |observer| Claim {
        observer: id(observer),
        subject: id(seed),
        incarnation: Incarnation(1000),
        version: Version(1),
        strength: Strength::Strong,
    };
    let mut covers = VersionSet::up_to(Version(2));
    covers.insert_range(Version(7), Version(9));
    Page {
        node: id(seed),
        incarnation: Incarnation(1000),
        covers,
        entries: vec![
            entry(seed, 1, Key::Header, Some(header(seed))),
            entry(seed, 2, Key::Instance("i".into()), Some(instance().encode())),
            entry(seed, 8, Key::Kv("a/b".into()), None),
            entry(seed, 9, Key::Other(77, "x".into()), Some(vec![1, 2, 3])),
            entry(seed, 7, Key::Part("i".into(), 0), Some(vec![1, 2, 3])),
        ],
        evidence: vec![accused(2).sign(&who(2), "default"), accused(3).sign(&who(3), "default")],
    }
}

fn forget(seed: u8) -> Forget {
    let claim =
        ForgetClaim { by: id(2), subject: id(seed), incarnation: Incarnation(1000), version: Version(1) };
    claim.sign(&who(2), "default")
}

fn user_event(seed: u8, number: u64) -> UserEvent {
    let content =
        UserEventContent { name: "deploy".into(), payload: vec![1, 2], ..UserEventContent::default() };
    let (by, incarnation) = (id(seed), Incarnation(1000));
    UserEventClaim { by, incarnation, number, lamport: 7, content }.sign(&who(seed), "default")
}

/// One valid message of every kind for a [`Live`] core.
pub(crate) fn messages() -> Vec<(Way, Vec<u8>)> {
    let digest = Digest {
        node: id(2),
        incarnation: Incarnation(1000),
        failed: true,
        seen: page(2).covers,
        hash: [1; 16],
    };
    let digests = vec![digest, Digest::of_nothing(id(9))];
    let events = vec![AgedUserEvent { age_ms: 1, event: user_event(3, 3) }];
    let mut all: Vec<(Way, Vec<u8>)> = vec![
        (Way::Gossip, wire::encode(&Gossip::Entries(page(4).entries))),
        (Way::Gossip, wire::encode(&Gossip::Entries(page(1).entries))),
        (Way::Gossip, wire::encode(&Gossip::Evidence(page(3).evidence))),
        (Way::Gossip, wire::encode(&Gossip::Evidence(page(1).evidence))),
        (Way::Request, wire::encode(&Request::Compare { root: [1; 16] })),
        (Way::Request, wire::encode(&Request::List { parts: u64::MAX, after: None })),
        (Way::Request, wire::encode(&Request::List { parts: 7, after: Some(id(2)) })),
        (Way::Request, wire::encode(&Request::Pull(digests.clone()))),
        (Way::Request, wire::encode(&Request::Push(vec![page(5), page(2)]))),
        (Way::Request, wire::encode(&Request::Unneeded)),
        (Way::Gossip, wire::encode(&Gossip::Forget(forget(2)))),
        (Way::Request, wire::encode(&Request::Forget(vec![forget(1), forget(3)]))),
        (Way::Gossip, wire::encode(&Gossip::UserEvent(user_event(2, 1)))),
        (Way::Gossip, wire::encode(&Gossip::UserEvent(user_event(3, 2)))),
        (
            Way::Request,
            wire::encode(&Request::UserEvents { within_ms: 9999, known: vec![1, 2], is_first: true }),
        ),
        (Way::Response, wire::encode(&Response::UserEvents { events, more: true })),
        (Way::Response, wire::encode(&Response::Same)),
        (Way::Response, wire::encode(&Response::Parts(vec![1; 64]))),
        (Way::Response, wire::encode(&Response::Parts(Vec::new()))),
        (Way::Response, wire::encode(&Response::Digests { digests, more: true })),
        (Way::Response, wire::encode(&Response::Pages { pages: vec![page(6), page(3)], more: true })),
        (Way::Response, wire::encode(&Response::Done)),
    ];
    // Only a core signs a clash, after it received a higher incarnation of its own key.
    let mut live = Live::new();
    let mut fact = entry(1, 1, Key::Header, Some(header(1))).fact;
    fact.incarnation = Incarnation(5000);
    let younger = wire::encode(&Gossip::Entries(vec![fact.sign(&who(1), "default").unwrap()]));
    let outputs = live.feed(Way::Gossip, younger);
    all.extend(outputs.into_iter().filter_map(|output| match output {
        Output::Publish(bytes) => Some((Way::Gossip, bytes)),
        _ => None,
    }));
    all
}

impl Live {
    pub(crate) fn new() -> Self {
        let profile = Profile {
            name: "n1".into(),
            addresses: vec!["/ip4/10.77.0.1/tcp/7600".into()],
            http: None,
            roles: vec![],
            zone: None,
            software: "1".into(),
            ephemeral: false,
            grpc: None,
        };
        let startup =
            Startup { incarnation: Incarnation(2000), remembered: vec![], known: vec![], profile, seed: 1 };
        let core = Core::new(who(1), Config::default(), startup, Time::ZERO);
        let mut live = Self { core, now: Time::ZERO, asked: None, fed: 0 };
        live.input(Input::Command(Command::SetInstance("mine".into(), Box::new(instance()))));
        live.connect();
        for known in [2, 3] {
            let entries = page(known).entries;
            live.feed(Way::Gossip, wire::encode(&Gossip::Entries(entries)));
        }
        live
    }

    fn connect(&mut self) {
        self.input(Input::Connected(id(2)));
        self.input(Input::Subscribed(id(2)));
    }

    fn input(&mut self, input: Input) -> Vec<Output> {
        self.now = self.now + Duration::from_millis(1);
        self.core.handle(self.now, input);
        let mut outputs = Vec::new();
        while let Some(output) = self.core.poll_output() {
            if let Output::Request(peer, request_id, _) = &output
                && *peer == id(2)
                && request_id.0 > 0
            {
                self.asked = Some(*request_id);
            }
            outputs.push(output);
        }
        outputs
    }

    /// Passes a message to the core, and checks the properties that hold for any bytes.
    pub(crate) fn feed(&mut self, way: Way, bytes: Vec<u8>) -> Vec<Output> {
        self.fed += 1;
        let (from, request_id) = (id(2), RequestId(self.fed));
        let outputs = match way {
            Way::Gossip => self.input(Input::Gossip { id: GossipId(self.fed), from, bytes }),
            Way::Request => self.input(Input::Request { from, request_id, bytes }),
            Way::Response => {
                if self.asked.is_none() {
                    self.input(Input::Disconnected(from));
                    self.connect();
                    // The node with the higher id sends its request 500 ms later.
                    self.now = self.now + Duration::from_secs(1);
                    self.input(Input::Tick);
                }
                let request_id = self.asked.take().expect("a new neighbour is asked");
                self.input(Input::Response { from, request_id, bytes: Some(bytes) })
            }
        };
        let judged = outputs.iter().filter(|o| matches!(o, Output::Judge(..))).count();
        assert_eq!(judged, usize::from(way == Way::Gossip), "every gossip is judged, once");
        let answered = outputs.iter().filter(|o| matches!(o, Output::Respond(..))).count();
        assert_eq!(answered, usize::from(way == Way::Request), "every request is answered, once");
        assert!(outputs.len() < 20_000, "{} outputs to one message", outputs.len());
        for output in &outputs {
            if let Output::Publish(bytes) | Output::Request(_, _, bytes) | Output::Respond(_, bytes) = output
            {
                assert!(bytes.len() <= MESSAGE_BYTES_MAX, "a message of {} bytes", bytes.len());
            }
        }
        assert!(self.core.state().len() <= Config::default().members_max);
        outputs
    }
}
