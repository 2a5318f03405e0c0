//! Tests of notifications to programs: a service registered with two nodes is added once and removed with its
//! last registration, and changed requirements are notified in dialect 2 only.

use hearsay_protocol::{Change, Incarnation, Instance, Member, MemberState, NodeId, Version};

use super::*;
use crate::{
    registry::checks::runner::{CheckContext, CheckRunner},
    view::Clock,
};

fn node(seed: u8) -> NodeId {
    NodeId::from_public_key([seed; 32])
}

/// Returns a subscriber that requires `db` and has acknowledged nothing.
fn subscriber(dialect: Dialect) -> Subscriber {
    let view = Arc::new(View::new(Index(1), Clock::start()));
    for seed in [1, 2] {
        let member = Member {
            id: node(seed),
            name: format!("n{seed}"),
            state: MemberState::Alive,
            roles: Vec::new(),
            addresses: Vec::new(),
            http: None,
            zone: None,
            software: String::new(),
            protocol: 3,
            ephemeral: false,
            grpc: None,
            incarnation: Incarnation(1),
            version: Version(1),
            since: view.clock().now(),
            rtt: None,
            rank: 0,
            namesake: false,
        };
        view.apply(view.clock().now(), [Change::Member(Box::new(member))]);
    }
    let (runner, _) = CheckRunner::new(CheckContext::new(Arc::clone(&view), node(1)));
    Subscriber {
        id: "program".into(),
        removals_from: None,
        url: "http://127.0.0.1:1/updates".into(),
        dialect,
        services: BTreeSet::from(["db".to_owned()]),
        acknowledged: BTreeMap::new(),
        changes: view.subscribe(),
        context: Subscriptions {
            view,
            caller: runner.caller(),
            counters: Arc::default(),
            unstored: Arc::default(),
            acknowledged: Arc::default(),
        },
    }
}

impl Subscriber {
    /// Registers a program at port 80 of 10.0.0.9 with its requirements, or deregisters it.
    fn offer(&self, seed: u8, requires: Option<&str>) {
        let instance = requires.map(|requires| {
            Arc::new(Instance {
                service: "db".into(),
                address: "10.0.0.9".into(),
                port: 80,
                url: "http://10.0.0.9:80".into(),
                requires: vec![requires.to_owned()],
                ..Instance::default()
            })
        });
        let view = &self.context.view;
        view.apply(view.clock().now(), [Change::Instance { node: node(seed), id: "db-1".into(), instance }]);
    }

    /// Returns the numbers of added and removed instances in the next notification, and acknowledges it.
    fn learn(&mut self) -> (usize, usize) {
        let difference = self.find_difference();
        let told = (difference.added.len(), difference.removed.len());
        difference.removed.keys().for_each(|key| _ = self.acknowledged.remove(key));
        self.acknowledged.extend(difference.added);
        told
    }
}

#[tokio::test]
async fn a_program_of_two_nodes_is_added_once_and_removed_with_its_last_registration() {
    for dialect in [Dialect::ServiceUrl, Dialect::NameAddr] {
        let mut subscriber = subscriber(dialect);
        let mut told_by = |seed, requires: Option<&str>| {
            subscriber.offer(seed, requires);
            subscriber.learn()
        };
        assert_eq!(told_by(1, Some("disk")), (1, 0));
        assert_eq!(told_by(2, Some("disk")), (0, 0));
        assert_eq!(told_by(1, None), (0, 0), "the other registration stands");
        assert_eq!(told_by(2, None), (0, 1));
    }
}

#[tokio::test]
async fn dialect_2_has_the_requirements_of_instances_and_their_change_is_no_removal() {
    for (dialect, told) in
        [(Dialect::ServiceUrl, (0, 0)), (Dialect::Native, (0, 0)), (Dialect::NameAddr, (1, 0))]
    {
        let mut subscriber = subscriber(dialect);
        subscriber.offer(1, Some("disk"));
        assert_eq!(subscriber.learn(), (1, 0));
        subscriber.offer(1, Some("memory"));
        assert_eq!(subscriber.learn(), told, "{dialect:?}");
    }
}
