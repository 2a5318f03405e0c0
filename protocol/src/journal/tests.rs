//! Tests of a journal's replicas, and their simulator with in-memory disks and a network that loses, delays
//! and reorders messages: whichever replicas are killed and restarted, no acknowledged entry is lost.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroUsize,
    sync::Arc,
    time::Duration,
};

use super::{message::*, *};
use crate::{Identity, NodeId, RequestId, Time, Version, VersionSet, wire};

mod clocks;
mod counting;
mod disk;
mod dropping;
mod storing;
mod strangers;

use disk::Disk;

const TOPIC: &str = "grading";

struct Node {
    journal: Option<Journal>,
    disk: Disk,
    /// Writes that the disk has not finished yet.
    storing: Vec<(Time, WriteId, Arc<Run>, Vec<ChainHash>)>,
    wall: Wall,
}

enum Packet {
    Request(RequestId, JournalRequest),
    Response(RequestId, JournalResponse),
}

/// Format of epochs in the tests: bodies carry the epoch after the last `@`.
const EPOCHS: EpochFormat = EpochFormat {
    read: |body| {
        let digits = body.rsplit(|byte| *byte == b'@').next().filter(|digits| digits.len() < body.len());
        digits.and_then(|digits| str::from_utf8(digits).ok()?.parse().ok()).unwrap_or(0)
    },
    write: |body, epoch| [body, format!("@{epoch}").as_bytes()].concat(),
};

fn moment(entry: &JournalEntry) -> Moment {
    Moment { epoch: (EPOCHS.read)(&entry.body), time: entry.time }
}

/// Wall clock of a node: the true time plus an offset, or a time at which the clock stands still.
#[derive(Clone, Copy, Default)]
struct Wall {
    off_ms: i64,
    frozen_at_ms: Option<u64>,
}

/// Simulated nodes, network and clock.
struct Net {
    now: Time,
    nodes: Vec<Node>,
    rng: fastrand::Rng,
    /// Messages in flight: arrival, sender, receiver and message.
    packets: Vec<(Time, usize, usize, Packet)>,
    cut: BTreeSet<(usize, usize)>,
    loss: f64,
    /// Longest sync of a simulated disk.
    sync_us_max: u64,
    lives: u64,
    answers: BTreeMap<AppendId, Result<Appended, AppendError>>,
    next_append: u64,
    misbehaved: usize,
    /// Whether entries of the topic may be dropped.
    drops: bool,
    /// Configured number of replicas.
    replicas_expected: Option<NonZeroUsize>,
    /// Nodes whose disks end with their processes.
    ephemeral: BTreeSet<usize>,
}

fn identity(node: usize) -> Identity {
    Identity::from_seed(&[u8::try_from(node).unwrap() + 1; 32])
}

impl Net {
    fn new(nodes: usize, seed: u64) -> Self {
        let node =
            |_| Node { journal: None, disk: Disk::default(), storing: Vec::new(), wall: Wall::default() };
        let mut net = Self {
            now: Time::ZERO,
            nodes: (0..nodes).map(node).collect(),
            rng: fastrand::Rng::with_seed(seed),
            packets: Vec::new(),
            cut: BTreeSet::new(),
            loss: 0.0,
            sync_us_max: 3_000,
            lives: seed << 32,
            answers: BTreeMap::new(),
            next_append: 0,
            misbehaved: 0,
            drops: false,
            replicas_expected: None,
            ephemeral: BTreeSet::new(),
        };
        (0..nodes).for_each(|node| net.start(node));
        net
    }

    fn node_of(&self, id: NodeId) -> usize {
        (0..self.nodes.len()).find(|n| identity(*n).id() == id).unwrap()
    }

    fn is_up(&self, node: usize) -> bool {
        self.nodes[node].journal.is_some()
    }

    fn start(&mut self, node: usize) {
        self.lives += 1;
        let config = JournalConfig {
            replicas_expected: self.replicas_expected,
            drops: self.drops,
            epochs: Some(EPOCHS),
            ephemeral: self.ephemeral.contains(&node),
            ..JournalConfig::new("test", TOPIC)
        };
        let restored = self.nodes[node].disk.restored();
        self.nodes[node].journal = Some(Journal::new(identity(node), config, restored, self.lives));
        self.tell_replicas();
    }

    fn crash(&mut self, node: usize) {
        self.nodes[node].journal = None;
        // Pending writes are stored up to a random point.
        let storing = std::mem::take(&mut self.nodes[node].storing);
        let arrived = self.rng.usize(..=storing.len());
        for (_, _, run, hashes) in &storing[..arrived] {
            self.nodes[node].disk.store(run, hashes);
        }
        self.packets.retain(|(_, from, to, _)| *from != node && *to != node);
        self.tell_replicas();
    }

    /// Passes the live replicas to each journal, as the provider table would.
    fn tell_replicas(&mut self) {
        let up: Vec<usize> = (0..self.nodes.len()).filter(|n| self.is_up(*n)).collect();
        for node in up.clone() {
            let durability = |n| match self.ephemeral.contains(n) {
                true => Durability::Ephemeral,
                false => Durability::Durable,
            };
            let others =
                up.iter().filter(|n| **n != node).map(|n| (identity(*n).id(), durability(n))).collect();
            self.feed(node, JournalInput::Replicas(others));
            for other in 0..self.nodes.len() {
                let linked = up.contains(&other) && other != node && !self.is_cut(node, other);
                let id = identity(other).id();
                self.feed(
                    node,
                    if linked { JournalInput::Connected(id) } else { JournalInput::Disconnected(id) },
                );
            }
        }
    }

    fn is_cut(&self, a: usize, b: usize) -> bool {
        self.cut.contains(&(a.min(b), a.max(b)))
    }

    fn cut(&mut self, a: usize, b: usize) {
        self.cut.insert((a.min(b), a.max(b)));
        self.packets.retain(|(_, from, to, _)| (*from, *to) != (a, b) && (*from, *to) != (b, a));
        self.tell_replicas();
    }

    fn heal(&mut self) {
        self.cut.clear();
        self.loss = 0.0;
        self.tell_replicas();
    }

    fn append(&mut self, node: usize, body: &str, key: Option<&str>, level: Option<Level>) -> AppendId {
        self.next_append += 1;
        let id = AppendId(self.next_append);
        let deadline = self.now + Duration::from_secs(2);
        let append = Append { id, key: key.map(Into::into), body: body.into(), level, deadline };
        self.feed(node, JournalInput::Append(append));
        id
    }

    fn feed(&mut self, node: usize, input: JournalInput) {
        let (now, wall_ms) = (self.now, self.wall_ms(node));
        let Some(journal) = &mut self.nodes[node].journal else { return };
        journal.handle(now, wall_ms, input);
        let mut replies = Vec::new();
        while let Some(output) = self.nodes[node].journal.as_mut().and_then(Journal::poll_output) {
            match output {
                JournalOutput::LookUp(id, key) => {
                    replies.push(JournalInput::LookedUp(id, self.nodes[node].disk.with_key(&key)));
                }
                JournalOutput::Store(_, _, _) if self.nodes[node].disk.full => {
                    let JournalOutput::Store(write, ..) = output else { unreachable!() };
                    replies.push(JournalInput::NotStored(write, DiskError::Full));
                }
                JournalOutput::Store(write, run, hashes) => {
                    let at = now + Duration::from_micros(self.rng.u64(100..self.sync_us_max));
                    // A write never ends before an earlier one.
                    let at = self.nodes[node].storing.last().map_or(at, |(last, ..)| at.max(*last));
                    self.nodes[node].storing.push((at, write, run, hashes));
                }
                JournalOutput::Load(load, wanted) => {
                    let runs = self.nodes[node].disk.load(&wanted);
                    let dropped = self.nodes[node].disk.dropped.get(&wanted.feed).copied();
                    replies.push(JournalInput::Loaded { load, dropped: dropped.unwrap_or_default(), runs });
                }
                JournalOutput::Forgo(feed, up_to) => {
                    assert!(self.drops, "nothing is dropped here");
                    let mut seen = VersionSet::up_to(up_to);
                    let here = self.nodes[node].disk.entries.keys().filter(|id| id.feed == feed);
                    here.for_each(|id| seen.insert(id.seq));
                    replies.push(JournalInput::Forgone(Extent { feed, seen }));
                }
                JournalOutput::KeepReplica((id, generation)) => {
                    _ = self.nodes[node].disk.replicas.insert(id, generation);
                }
                JournalOutput::Request(to, request_id, request) => {
                    let bytes = wire::encode(&request);
                    assert!(bytes.len() <= wire::MESSAGE_BYTES_MAX);
                    assert_eq!(wire::decode(&bytes), Ok(wire::Received::Known(request.clone())));
                    self.send(node, to, Packet::Request(request_id, request));
                }
                JournalOutput::Respond(to, request_id, response) => {
                    self.send(node, to, Packet::Response(request_id, response))
                }
                JournalOutput::Answer(id, answer) => {
                    assert!(self.answers.insert(id, answer).is_none(), "answered twice");
                }
                JournalOutput::Misbehaved(..) => self.misbehaved += 1,
            }
        }
        replies.into_iter().for_each(|input| self.feed(node, input));
    }

    /// Wall clock of a node.
    fn wall_ms(&self, node: usize) -> u64 {
        let Wall { off_ms, frozen_at_ms } = self.nodes[node].wall;
        let true_ms = SIMULATED_START_MS + u64::try_from(self.now.since_start().as_millis()).unwrap();
        frozen_at_ms.unwrap_or(true_ms.saturating_add_signed(off_ms))
    }

    fn send(&mut self, from: usize, to: NodeId, packet: Packet) {
        let to = self.node_of(to);
        if !self.is_up(to) || self.is_cut(from, to) {
            return;
        }
        let at = self.now + Duration::from_micros(self.rng.u64(200..20_000));
        if self.rng.f64() < self.loss {
            // A lost request ends without a response, a while later.
            if let Packet::Request(request_id, _) = packet {
                let late = self.now + Duration::from_secs(1);
                self.packets.push((late, to, from, Packet::Response(request_id, JournalResponse::Unable)));
            }
            return;
        }
        self.packets.push((at, from, to, packet));
    }

    /// Runs the simulation for this time.
    fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while self.now < until {
            self.now = self.now + Duration::from_millis(1);
            for node in 0..self.nodes.len() {
                let now = self.now;
                let (done, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.nodes[node].storing)
                    .into_iter()
                    .partition(|(at, ..)| *at <= now);
                self.nodes[node].storing = rest;
                for (_, write, run, hashes) in done {
                    self.nodes[node].disk.store(&run, &hashes);
                    self.feed(node, JournalInput::Stored(write));
                }
                let due = self.nodes[node].journal.as_ref().and_then(Journal::poll_timeout);
                if due.is_some_and(|at| at <= now) {
                    self.feed(node, JournalInput::Tick);
                    let next = self.nodes[node].journal.as_ref().and_then(Journal::poll_timeout);
                    assert!(next.is_none_or(|at| at > now), "due in the past: {next:?} at {now:?}");
                }
            }
            let now = self.now;
            let (due, rest): (Vec<_>, Vec<_>) =
                std::mem::take(&mut self.packets).into_iter().partition(|(at, ..)| *at <= now);
            self.packets = rest;
            for (_, from, to, packet) in due {
                let from = identity(from).id();
                match packet {
                    Packet::Request(request_id, request) => {
                        self.feed(to, JournalInput::Request { from, request_id, request })
                    }
                    Packet::Response(request_id, response) => {
                        self.feed(to, JournalInput::Response { from, request_id, response: Some(response) });
                    }
                }
            }
        }
    }

    fn agree(&self) -> bool {
        let up = self.nodes.iter().filter_map(|node| Some((node.journal.as_ref()?, &node.disk)));
        let states: Vec<_> = up
            .map(|(journal, disk)| (journal.extents().root(), disk.entries.keys().collect::<Vec<_>>()))
            .collect();
        states.windows(2).all(|pair| pair[0] == pair[1])
    }

    fn answer(&self, id: AppendId) -> &Result<Appended, AppendError> {
        self.answers.get(&id).expect("answered by now")
    }

    fn has(&self, node: usize, body: &str) -> usize {
        let written = |entry: &JournalEntry| match moment(entry).epoch {
            0 => entry.body == body.as_bytes(),
            epoch => entry.body == (EPOCHS.write)(body.as_bytes(), epoch),
        };
        self.nodes[node].disk.entries.values().filter(|(_, entry)| written(entry)).count()
    }
}

/// True time at the start of each simulation, in milliseconds since 1970: 2027.
const SIMULATED_START_MS: u64 = 1_800_000_000_000;
const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_write_is_acknowledged_at_the_level_it_reached() {
    let mut net = Net::new(3, 1);
    net.run(SECOND);
    let ids = [Some(Level::Local), Some(Level::Replicated), Some(Level::Majority), None]
        .map(|level| net.append(0, "x", None, level));
    net.run(SECOND);
    let levels = ids.map(|id| net.answer(id).as_ref().unwrap().level);
    assert_eq!(levels[0], Level::Local);
    assert!(levels[1..].iter().all(|level| *level >= Level::Replicated), "{levels:?}");
    assert_eq!(levels[2], Level::Majority);
    assert!(net.agree() && net.has(2, "x") == 4);
}

#[test]
fn alone_a_write_is_local_by_default_and_indeterminate_where_more_was_asked_for() {
    let mut net = Net::new(2, 1);
    net.crash(1);
    net.run(SECOND);
    let plain = net.append(0, "a", None, None);
    let replicated = net.append(0, "b", None, Some(Level::Replicated));
    net.run(3 * SECOND);
    assert_eq!(net.answer(plain).as_ref().unwrap().level, Level::Local);
    assert!(matches!(net.answer(replicated), Err(AppendError::Indeterminate(..))));
    net.start(1);
    net.run(SECOND);
    assert!(net.agree() && net.has(1, "b") == 1, "it was only not known in time");
}

#[test]
fn a_replica_that_dies_while_it_is_waited_for_is_waited_for_no_longer() {
    let mut net = Net::new(2, 1);
    net.run(SECOND);
    net.cut(0, 1);
    let id = net.append(0, "a", None, None);
    net.run(SECOND / 2);
    assert!(!net.answers.contains_key(&id), "the other replica counts as alive");
    net.crash(1);
    net.run(SECOND / 2);
    assert_eq!(net.answer(id).as_ref().unwrap().level, Level::Local);
}

#[test]
fn a_retry_is_the_same_write_and_another_body_is_refused() {
    let mut net = Net::new(2, 1);
    net.run(SECOND);
    let (first, at_once) = (net.append(0, "a", Some("k"), None), net.append(0, "a", Some("k"), None));
    let other = net.append(0, "b", Some("k"), None);
    net.run(SECOND);
    let elsewhere = net.append(1, "a", Some("k"), None);
    net.run(SECOND);
    net.crash(0);
    net.start(0);
    net.run(SECOND);
    let later = net.append(0, "a", Some("k"), Some(Level::Replicated));
    net.run(SECOND);
    let written = net.answer(first).as_ref().unwrap();
    assert!(!written.repeated);
    for id in [at_once, elsewhere, later] {
        let again = net.answer(id).as_ref().unwrap();
        assert!(again.id == written.id && again.repeated, "{again:?}");
    }
    assert_eq!(*net.answer(other), Err(AppendError::KeyTaken(written.id)));
    assert_eq!(net.has(1, "a"), 1);
}

#[test]
fn a_full_disk_refuses_loses_nothing_and_recovers() {
    let mut net = Net::new(2, 1);
    net.run(SECOND);
    let before = net.append(0, "before", None, None);
    net.run(SECOND);
    net.nodes[0].disk.full = true;
    let refused = net.append(0, "refused", None, None);
    let elsewhere = net.append(1, "elsewhere", None, None);
    net.run(3 * SECOND);
    assert_eq!(*net.answer(refused), Err(AppendError::DiskFull));
    assert!(matches!(net.answer(elsewhere), Err(AppendError::Indeterminate(..))));
    net.nodes[0].disk.full = false;
    let after = net.append(0, "after", None, None);
    net.run(10 * SECOND);
    assert!(net.answer(before).is_ok() && net.answer(after).is_ok());
    assert!(net.agree());
    assert_eq!((net.has(0, "refused"), net.has(1, "refused"), net.has(0, "elsewhere")), (0, 0, 1));
}

#[test]
fn a_body_or_key_over_the_limit_and_too_much_at_once_are_refused() {
    let mut net = Net::new(1, 1);
    let limit = feed::BODY_BYTES_MAX - EPOCH_BYTES_MAX;
    let large = net.append(0, &"x".repeat(limit + 1), None, None);
    let key = net.append(0, "x", Some(""), None);
    assert_eq!(*net.answer(large), Err(AppendError::BodyTooLarge(limit + 1, limit)));
    assert_eq!(*net.answer(key), Err(AppendError::BadKey(0)));
    let body = "x".repeat(limit);
    let many: Vec<AppendId> = (0..300).map(|_| net.append(0, &body, None, None)).collect();
    net.run(3 * SECOND);
    let (stored, busy): (Vec<AppendId>, Vec<AppendId>) = many.iter().partition(|id| net.answer(**id).is_ok());
    assert!(stored.len() > 200 && !busy.is_empty(), "{} stored", stored.len());
    assert!(busy.iter().all(|id| *net.answer(*id) == Err(AppendError::Busy)));
    assert_eq!(net.has(0, &body), stored.len());
}

#[test]
fn both_sides_of_a_partition_keep_what_was_written() {
    let mut net = Net::new(4, 7);
    net.run(SECOND);
    for (a, b) in [(0, 2), (0, 3), (1, 2), (1, 3)] {
        net.cut(a, b);
    }
    let ids: Vec<AppendId> = (0..200).map(|i| net.append(i % 4, &format!("w{i}"), None, None)).collect();
    net.run(2 * SECOND);
    assert!(ids.iter().all(|id| net.answer(*id).is_ok()));
    net.heal();
    net.run(2 * SECOND);
    assert!(net.agree());
    assert!((0..200).all(|i| (0..4).all(|node| net.has(node, &format!("w{i}")) == 1)));
}

#[test]
fn what_is_pushed_goes_on_to_those_that_the_writer_cannot_reach() {
    let mut net = Net::new(5, 3);
    for (a, b) in [(0, 2), (0, 3), (0, 4), (1, 3), (1, 4)] {
        net.cut(a, b);
    }
    net.run(SECOND);
    let sent: usize = (0..20)
        .map(|i| {
            net.append(0, &format!("w{i}"), None, None);
            // This is far less than the interval of two comparisons.
            net.run(SECOND / 10);
            (0..5).filter(|node| net.has(*node, &format!("w{i}")) == 1).count()
        })
        .sum();
    assert_eq!(sent, 100);
}

#[test]
fn a_replica_with_an_empty_disk_gets_everything() {
    let mut net = Net::new(2, 3);
    net.crash(1);
    for i in 0..50 {
        (0..40).for_each(|j| _ = net.append(0, &format!("{i}-{j}"), None, None));
        net.run(Duration::from_millis(10));
        if i % 10 == 9 {
            // The node writes several feeds.
            net.run(SECOND);
            net.crash(0);
            net.start(0);
        }
    }
    net.run(SECOND);
    net.start(1);
    net.run(10 * SECOND);
    assert!(net.agree());
    assert_eq!(net.nodes[1].disk.entries.len(), 2_000);
}

#[test]
fn what_a_disk_lost_comes_back_from_the_others() {
    let mut net = Net::new(2, 3);
    net.run(SECOND);
    (0..20).for_each(|i| _ = net.append(0, &format!("{i}"), None, None));
    net.run(SECOND);
    let feed = net.nodes[0].journal.as_ref().unwrap().extents().iter().next().unwrap().0;
    net.nodes[0].disk = Disk::default();
    net.crash(0);
    net.start(0);
    net.run(SECOND);
    assert!(net.agree() && net.nodes[0].disk.entries.len() == 20);
    // Damage that is found while the node runs.
    net.nodes[1].disk = Disk::default();
    net.feed(1, JournalInput::Damaged(Extent { feed, seen: VersionSet::default() }));
    net.run(SECOND);
    assert!(net.agree() && net.nodes[1].disk.entries.len() == 20);
}

#[test]
fn what_is_forged_is_refused_and_counted() {
    let mut net = Net::new(2, 3);
    net.run(SECOND);
    let me = identity(0);
    let feed = FeedId { writer: me.id(), boot: 77 };
    let entry = JournalEntry { time: HybridTime::default(), key: None, body: b"x".to_vec() };
    let at = (EntryId { feed, seq: Version(1) }, ChainHash::root("test", TOPIC, feed));
    let (mut run, _) = Run::sign(&me, "test", TOPIC, at, vec![entry]);
    run.entries[0].body = b"y".to_vec();
    let push = |run| JournalInput::Request {
        from: me.id(),
        request_id: RequestId(1),
        request: JournalRequest::Push(run),
    };
    net.feed(1, push(run));
    // The forged run is in the feed of the receiver.
    let own = net.nodes[1].journal.as_ref().unwrap().own_feed.0.feed;
    let entry = JournalEntry { time: HybridTime::default(), key: None, body: b"x".to_vec() };
    let at = (EntryId { feed: own, seq: Version(1) }, ChainHash::root("test", TOPIC, own));
    let (run, _) = Run::sign(&identity(1), "test", TOPIC, at, vec![entry]);
    net.feed(1, push(run));
    net.run(SECOND);
    assert_eq!(net.misbehaved, 2);
    assert!(net.nodes[1].disk.entries.is_empty());
}

/// Combines all faults, many times. No acknowledged entry is lost, no entry exists twice, and all replicas
/// agree in the end. Once, each cluster loses power and one of its disks: an entry that was acknowledged as
/// `replicated` is on another disk.
#[test]
fn nothing_acknowledged_is_lost_whatever_dies() {
    let seeds: u64 = std::env::var("SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(100);
    for seed in 0..seeds.div_ceil(2) {
        let mut net = Net::new(3, seed);
        let mut rng = fastrand::Rng::with_seed(seed);
        net.loss = rng.f64() * 0.2;
        net.sync_us_max = 30_000;
        let mut written: Vec<(AppendId, String, usize)> = Vec::new();
        let (power_cut, mut wiped) = (rng.i32(20..180), None);
        for step in 0..200 {
            let node = rng.usize(0..3);
            if step == power_cut {
                (0..3).for_each(|n| net.crash(n));
                net.nodes[node].disk = Disk::default();
                wiped = Some(node);
                (0..3).for_each(|n| net.start(n));
            }
            match rng.u32(0..20) {
                0 if (0..3).filter(|n| net.is_up(*n)).count() > 1 => net.crash(node),
                1 | 2 if !net.is_up(node) => net.start(node),
                3 => net.cut(node, (node + 1) % 3),
                4 => net.heal(),
                _ if net.is_up(node) => {
                    let body = format!("{seed}/{step}");
                    let key = rng.bool().then(|| format!("k{step}"));
                    let level = rng.choice([
                        None,
                        Some(Level::Local),
                        Some(Level::Replicated),
                        Some(Level::Majority),
                    ]);
                    let id = net.append(node, &body, key.as_deref(), level.unwrap());
                    written.push((id, body, node));
                }
                _ => (),
            }
            net.run(Duration::from_millis(rng.u64(1..60)));
        }
        (0..3).filter(|n| !net.is_up(*n)).collect::<Vec<_>>().into_iter().for_each(|n| net.start(n));
        net.heal();
        net.run(20 * SECOND);
        assert!(net.agree(), "seed {seed}: the replicas differ");
        for (id, body, node) in written {
            let there = net.has(0, &body);
            match net.answers.get(&id) {
                Some(Ok(done)) if done.level == Level::Local && wiped == Some(node) => {
                    assert!(there <= 1, "seed {seed}: {body} twice");
                }
                Some(Ok(_)) => assert_eq!(there, 1, "seed {seed}: {body} was acknowledged"),
                Some(Err(AppendError::Indeterminate(..))) | None => {
                    assert!(there <= 1, "seed {seed}: {body} twice")
                }
                Some(Err(_)) => assert_eq!(there, 0, "seed {seed}: {body} was refused"),
            }
        }
        assert_eq!(net.misbehaved, 0, "seed {seed}");
    }
}
