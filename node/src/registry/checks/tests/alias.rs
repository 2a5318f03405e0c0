//! Tests of the `alias` check: it follows an instance of this node, or any passing instance of a service
//! except its own; after a restart it waits for the provider table to fill.

use std::collections::BTreeMap;

use hearsay_protocol::{Change, Incarnation, Instance, Member, MemberState, Version};

use super::*;

fn follow_instance(id: &str) -> CheckKind {
    CheckKind::Alias { instance: Some(id.into()), service: None }
}

fn follow_service(name: &str) -> CheckKind {
    CheckKind::Alias { instance: None, service: Some(name.into()) }
}

impl Node {
    fn add_member(&self, id: NodeId, state: MemberState) {
        let member = Member {
            id,
            name: format!("{id}"),
            state,
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
            since: self.view.clock().now(),
            rtt: None,
            rank: 0,
            namesake: false,
        };
        self.view.apply(self.view.clock().now(), [Change::Member(Box::new(member))]);
    }

    fn offer(&self, node: NodeId, id: &str, service: &str, health: Option<Health>) {
        let instance = health.map(|health| {
            Arc::new(Instance {
                service: service.into(),
                address: "10.0.0.1".into(),
                // A separate program for each id.
                port: id.bytes().map(u16::from).sum(),
                url: "http://10.0.0.1".into(),
                meta: BTreeMap::new(),
                health,
                ..Instance::default()
            })
        });
        self.view.apply(self.view.clock().now(), [Change::Instance { node, id: id.into(), instance }]);
    }
}

#[tokio::test]
async fn it_follows_an_instance_of_this_node() {
    let mut node = Node::new();
    let (me, other) = (node.me, NodeId::from_public_key([2; 32]));
    for id in [me, other] {
        node.add_member(id, MemberState::Alive);
    }
    let check = node.start(spec(follow_instance("db-1")));
    output(&check, "this node holds no other instance db-1").await;
    // The same id on another node is another instance.
    node.offer(other, "db-1", "db", Some(Health::Passing));
    node.offer(me, "db-1", "db", Some(Health::Warning));
    assert_eq!(node.change_to(Health::Warning).await.output, "instance db-1 is warning");
    node.offer(me, "db-1", "db", Some(Health::Passing));
    node.change_to(Health::Passing).await;
    node.offer(me, "db-1", "db", None);
    node.change_to(Health::Critical).await;
}

#[tokio::test]
async fn it_follows_any_passing_instance_of_a_service_but_its_own() {
    let mut node = Node::new();
    let (me, other) = (node.me, NodeId::from_public_key([2; 32]));
    for id in [me, other] {
        node.add_member(id, MemberState::Alive);
    }
    node.offer(me, &key().instance, "web", Some(Health::Passing));
    let check = node.start(spec(follow_service("web")));
    output(&check, "no other instance of web is known").await;
    // A duplicate registration with another node does not count.
    node.offer(other, &key().instance, "web", Some(Health::Passing));
    node.offer(other, "a", "web", Some(Health::Critical));
    output(&check, "0 of 1 instances of web pass").await;
    node.offer(other, "b", "web", Some(Health::Passing));
    assert_eq!(node.change_to(Health::Passing).await.output, "1 of 2 instances of web pass");
    node.add_member(other, MemberState::Failed);
    node.change_to(Health::Critical).await;
}

#[tokio::test]
async fn a_restored_check_waits_for_the_table_to_fill() {
    let mut node = Node::new();
    let other = NodeId::from_public_key([2; 32]);
    let check = node.begin(spec(follow_service("db")), Begin::Restored(state(Health::Passing), 3));
    node.add_member(other, MemberState::Alive);
    node.offer(other, "b", "web", Some(Health::Passing));
    node.offer(other, "a", "db", Some(Health::Passing));
    output(&check, "1 of 1 instances of db pass").await;
    node.offer(other, "a", "db", None);
    // The first event: the check was passing before.
    node.change_to(Health::Critical).await;
}
