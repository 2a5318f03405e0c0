//! Tests of peers that are no replicas and of writers that no replica ever was: their runs are not stored,
//! entries are not sent to them, and what an ended ephemeral replica wrote still reaches a newcomer.

use super::*;

/// A journal with one live replica, `identity(1)`.
struct Replica {
    journal: Journal,
    requests: u64,
}

impl Replica {
    fn new() -> Self {
        let config = JournalConfig::new("test", TOPIC);
        let journal = Journal::new(identity(0), config, RestoredJournal::default(), 7);
        let mut replica = Self { journal, requests: 0 };
        let alive = BTreeMap::from([(identity(1).id(), Durability::Durable)]);
        replica.feed(JournalInput::Replicas(alive));
        replica
    }

    fn feed(&mut self, input: JournalInput) -> Vec<JournalOutput> {
        self.journal.handle(Time::ZERO, SIMULATED_START_MS, input);
        std::iter::from_fn(|| self.journal.poll_output()).collect()
    }

    fn ask(&mut self, from: &Identity, request: JournalRequest) -> Vec<JournalOutput> {
        self.requests += 1;
        let request_id = RequestId(self.requests);
        self.feed(JournalInput::Request { from: from.id(), request_id, request })
    }

    fn is_refused(&mut self, from: &Identity, request: JournalRequest) -> bool {
        let outputs = self.ask(from, request);
        let refused = JournalOutput::Respond(from.id(), RequestId(self.requests), JournalResponse::Unable);
        outputs == [refused]
    }
}

/// A run of one entry, the first one of a writer's life.
fn run(writer: &Identity, boot: u64) -> Run {
    let feed = FeedId { writer: writer.id(), boot };
    let at = (EntryId { feed, seq: Version(1) }, ChainHash::root("test", TOPIC, feed));
    let entry = JournalEntry { time: HybridTime::default(), key: None, body: b"x".to_vec() };
    Run::sign(writer, "test", TOPIC, at, vec![entry]).0
}

#[test]
fn entries_are_taken_from_replicas_and_sent_to_them_only() {
    let mut replica = Replica::new();
    let (member, stranger) = (identity(1), identity(2));
    let feed = FeedId { writer: member.id(), boot: 1 };
    let pull = || JournalRequest::Pull(Extent { feed, seen: VersionSet::default() });
    assert!(replica.is_refused(&stranger, JournalRequest::Push(run(&stranger, 1))));
    assert!(replica.is_refused(&stranger, JournalRequest::Push(run(&member, 1))));
    assert!(replica.is_refused(&stranger, pull()));
    assert!(replica.is_refused(&member, JournalRequest::Push(run(&stranger, 1))), "an invented writer");
    assert_eq!(replica.journal.counters().strangers, 4);
    let stored = replica.ask(&member, JournalRequest::Push(run(&member, 1)));
    assert!(matches!(stored[..], [JournalOutput::Store(..)]), "{stored:?}");
    let loads = replica.ask(&member, pull());
    assert!(matches!(loads[..], [JournalOutput::Load(..)]), "{loads:?}");
    // A replica that is not alive for the moment remains one.
    replica.feed(JournalInput::Replicas(BTreeMap::new()));
    let stored = replica.ask(&member, JournalRequest::Push(run(&member, 2)));
    assert!(matches!(stored[..], [JournalOutput::Store(..)]), "{stored:?}");
    assert_eq!(replica.journal.counters().strangers, 4);
}

#[test]
fn entries_of_an_ephemeral_replica_that_ended_reach_a_newcomer() {
    let mut net = Net::new(3, 1);
    net.ephemeral.insert(2);
    // The replica sets of the first start end with the disks.
    for node in 0..3 {
        net.crash(node);
        net.nodes[node].disk = Disk::default();
    }
    net.start(2);
    net.start(0);
    net.run(SECOND);
    let id = net.append(2, "kept", None, Some(Level::Replicated));
    net.run(SECOND);
    assert!(net.answer(id).is_ok());
    net.crash(2);
    net.start(1);
    net.run(SECOND);
    assert_eq!(net.has(1, "kept"), 1);
    let writer = net.nodes[1].journal.as_ref().unwrap();
    assert!(!writer.counted().contains(&identity(2).id()), "not known as a replica");
}

#[test]
fn a_replica_whose_role_is_not_known_yet_waits_for_a_moment_only() {
    let mut net = Net::new(2, 1);
    for node in 0..2 {
        net.crash(node);
        net.nodes[node].disk = Disk::default();
    }
    net.start(0);
    net.append(0, "before", None, None);
    net.run(SECOND);
    net.start(1);
    // The table of the first node does not list the newcomer.
    net.feed(0, JournalInput::Replicas(BTreeMap::new()));
    let newcomer = identity(1).id();
    net.feed(0, JournalInput::ForgetReplica(newcomer));
    net.feed(0, JournalInput::Disconnected(newcomer));
    net.feed(0, JournalInput::Connected(newcomer));
    let id = net.append(1, "new", None, Some(Level::Replicated));
    net.run(SECOND / 5);
    assert_eq!((net.has(0, "new"), net.has(1, "before")), (0, 0));
    assert!(net.nodes[0].journal.as_ref().unwrap().counters().strangers > 0);
    net.tell_replicas();
    net.run(SECOND);
    assert!(net.answer(id).is_ok());
    assert_eq!((net.has(0, "new"), net.has(1, "before")), (1, 1));
}
