//! [`Config`]: options of the core, each with its meaning, bound and trade-off.

use std::time::Duration;

/// Options of the core. Nodes use the defaults; tests and simulations change them.
#[derive(Clone, Debug)]
pub struct Config {
    /// Name of the cluster. Every signature covers the name, so nodes of other clusters are ignored.
    pub cluster: String,
    /// Whether this node poses as a node of the next protocol version. Only upgrade tests set it; every
    /// release has `false`.
    pub is_next: bool,
    /// Interval of a sole watcher's pings to its subject. Of two watchers that take turns, each pings after
    /// one and a half intervals, of three after two: then the subject is never without a ping for longer than
    /// two thirds of the interval. Also the interval at which an unanswered ping is repeated, and at which a
    /// watcher pings a subject of a version without turns. A longer interval causes less traffic (a ping and
    /// its answer take about 220 bytes on the wire), but delays the detection of a freeze by as much.
    pub ping_interval: Duration,
    /// Timeout of a ping or probe in a calm network; [`patience`](crate::membership::patience) adds to it
    /// when answers are late. A shorter timeout detects a freeze sooner, but the machine must schedule
    /// processes faster. 400 ms is ten times the worst round trip among 100 processes on two busy cores.
    pub ping_timeout: Duration,
    /// Time in which a suspect can refute before two weak reports fail it, in a calm network. Must cover a
    /// flood in each direction; a flood takes 0.2 s among 100 processes on two busy cores.
    pub suspicion: Duration,
    /// Time after which a watcher reports a subject to which it has no connection, even if it never had one.
    pub unreached: Duration,
    /// Live members that watch each member. Two reports decide on a verdict, so three watchers tolerate the
    /// loss of one. Rapid (ATC 2018) shows why a random graph of this degree expands.
    pub watchers: usize,
    /// Largest number of members at which every two of them are connected.
    pub full_mesh_max: usize,
    /// Time after which an unneeded connection is closed. It suffices for a new node to fill its table.
    pub prune_after: Duration,
    /// Mean interval of comparisons with a random neighbour among those whose pongs carry no root hash, and
    /// among all while this node holds user events. A comparison without a difference transfers one hash.
    pub sync_interval: Duration,
    /// Mean interval of comparisons with a random neighbour, if pongs do not show a difference although there
    /// is one: the peer states a wrong root hash, or two hashes collide.
    pub sync_fallback_interval: Duration,
    /// Time after which a session without response ends; the next session starts over. If a peer's process is
    /// gone, its connection closes sooner. A short timeout would waste the work of a peer that is slow
    /// because it is overloaded.
    pub sync_timeout: Duration,
    /// Time for which a node collects its changes into one message. The first change is sent at once.
    pub coalesce: Duration,
    /// Age at which a node removes its own tombstones. A node that was disconnected for longer fetches all
    /// entries.
    pub tombstone_age: Duration,
    /// Time for which failed and left members are remembered and redialled.
    pub forget_after: Duration,
    /// Time for which a failed ephemeral member is remembered. Its key ended with its process, so it cannot
    /// return later. A partition should heal within this time.
    pub forget_ephemeral_after: Duration,
    /// Members in the table, at most. Bounds the members that an attacker can invent. If the table is full,
    /// members that are gone for longest are dropped first.
    pub members_max: usize,
    /// Entries of one node, at most: 10,000 instances, 20,000 parts, and 10,000 others. Few instances have
    /// parts, and most of those have one.
    pub entries_per_node_max: usize,
    /// Instances of one node, at most.
    pub instances_per_node_max: usize,
    /// Instances of all other nodes, at most. If there are more, those of the newest nodes are displaced.
    /// Parts do not count; `entries_per_node_max` bounds them.
    pub instances_max: usize,
    /// Gossiped entries of one signer per second, on average. Entries beyond that arrive later, by
    /// anti-entropy.
    pub entries_per_signer_per_s: u32,
    /// Gossiped entries of one signer at once: enough to register 10,000 instances together.
    pub entries_per_signer_burst: u32,
    /// Reports of one observer per second, on average.
    pub evidence_per_observer_per_s: u32,
    /// Reports of one observer at once. If a switch fails, one observer reports many members.
    pub evidence_per_observer_burst: u32,
    /// User events of one origin per second, on average, that a receiver takes. The origin itself fires at
    /// half this rate. Events beyond that arrive later, when neighbours compare theirs.
    pub user_events_per_origin_per_s: u32,
    /// User events of one origin at once that a receiver takes; the origin itself fires half as many.
    pub user_events_per_origin_burst: u32,
    /// Age up to which a node gives user events to neighbours that missed them.
    pub user_event_age: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cluster: "default".into(),
            is_next: false,
            ping_interval: Duration::from_secs(1),
            ping_timeout: Duration::from_millis(400),
            suspicion: Duration::from_millis(600),
            unreached: Duration::from_secs(5),
            watchers: 3,
            full_mesh_max: 6,
            prune_after: Duration::from_secs(20),
            sync_interval: Duration::from_secs(15),
            sync_fallback_interval: Duration::from_secs(200),
            sync_timeout: Duration::from_secs(15),
            coalesce: Duration::from_millis(3),
            tombstone_age: Duration::from_secs(3600),
            forget_after: Duration::from_secs(72 * 3600),
            forget_ephemeral_after: Duration::from_secs(600),
            members_max: 10_000,
            entries_per_node_max: 40_000,
            instances_per_node_max: 10_000,
            instances_max: 100_000,
            entries_per_signer_per_s: 500,
            entries_per_signer_burst: 12_000,
            evidence_per_observer_per_s: 20,
            evidence_per_observer_burst: 200,
            user_events_per_origin_per_s: 20,
            user_events_per_origin_burst: 200,
            user_event_age: Duration::from_secs(3600),
        }
    }
}
