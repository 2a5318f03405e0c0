//! What can be tuned, with the meaning, the bound and the trade-off of each.

use std::time::Duration;

/// How the core behaves. The defaults are meant for everybody; a test or a simulation may turn them.
#[derive(Clone, Debug)]
pub struct Config {
    /// Nodes of different clusters ignore each other. Part of everything that is signed.
    pub cluster: String,
    /// Whether this node speaks a next version, to try whether two live together.
    #[cfg(feature = "next")]
    pub is_next: bool,
    /// How often a watcher pings its subject. Longer: less traffic (a ping and its answer are about 300 bytes on the wire), and a freeze
    /// is noticed that much later. Design: 1 s.
    pub ping_interval: Duration,
    /// How long a ping or a probe may stay unanswered in a calm network; see [`health`](crate::health) for what is added when it
    /// is not calm. Shorter finds a freeze sooner and asks more of the scheduler. 400 ms is ten times the worst
    /// round trip seen among 100 processes on two busy cores.
    pub ping_timeout: Duration,
    /// How long a suspect has to refute before two weak reports fail it, in a calm network. Must cover one flood there and one back,
    /// which take 0.2 s among 100 processes on two busy cores; design: 0.8 s.
    pub suspicion: Duration,
    /// A watcher that has not reached its subject for this long says so, even if nothing was ever heard of it. Design: 5 s.
    pub unreached: Duration,
    /// How many live members watch each member. Two of them suffice for a verdict; three bear one loss. Rapid (ATC 2018) shows why a
    /// random graph of this degree expands.
    pub watchers: usize,
    /// Up to this many members, everybody is everybody's neighbour.
    pub full_mesh_max: usize,
    /// A connection that nobody needs is closed after this long. Long enough for a table that is being filled to settle.
    pub prune_after: Duration,
    /// How often anti-entropy compares with one random neighbour. Costs one hash when nothing differs. Design: 15 s.
    pub sync_interval: Duration,
    /// How long a request may stay unanswered before the session is given up; the next one starts afresh. Where the peer is gone the
    /// connection says so sooner; where it is only slow, giving up early would waste its work just when there is too much of it.
    pub sync_timeout: Duration,
    /// Changes of one node within this time travel in one message. The first goes at once.
    pub coalesce: Duration,
    /// How long a node collects its tombstones after. Whoever was away for longer takes the whole. Design: 1 h.
    pub tombstone_age: Duration,
    /// How long failed and left members are remembered and redialled. Design: 72 h.
    pub forget_after: Duration,
    /// How long a failed member that keeps nothing on disk is remembered: its key ended with its process, so it cannot return once its
    /// network is back. Long enough for a partition to heal before. Design, section 5: 10 min.
    pub forget_ephemeral_after: Duration,
    /// The most members in the table. A stranger's invention of members ends here; those long dead make room first.
    pub members_max: usize,
    /// The most entries of one node: 10,000 instances, 20,000 parts of them, and 10,000 of everything else.
    /// Few instances have parts, and most of those have one.
    pub entries_per_node_max: usize,
    /// The most instances of one node. Design, section 3.
    pub instances_per_node_max: usize,
    /// The most instances of all other nodes together. Beyond it those of the newest nodes are left out.
    /// Counts instances and not their parts, which `entries_per_node_max` bounds. Design, section 3.
    pub instances_max: usize,
    /// Gossiped entries of one signer: how many a second, on average. Beyond it anti-entropy brings them, later.
    pub entries_per_signer_per_s: u32,
    /// Gossiped entries of one signer: how many at once, so that 10,000 instances may register in one go.
    pub entries_per_signer_burst: u32,
    /// Evidence of one observer: how much a second, on average.
    pub evidence_per_observer_per_s: u32,
    /// Evidence of one observer: how much at once; a switch that dies takes all its hosts along.
    pub evidence_per_observer_burst: u32,
    /// A node younger than this gives way if its name is taken; an older one only warns, because a partition that heals must
    /// stop nobody.
    pub newcomer: Duration,
    /// How long a name clash must last before the newcomer gives way: its own dead predecessor may not be known dead yet.
    pub name_clash: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            cluster: "default".into(),
            #[cfg(feature = "next")]
            is_next: false,
            ping_interval: Duration::from_secs(1),
            ping_timeout: Duration::from_millis(400),
            suspicion: Duration::from_millis(600),
            unreached: Duration::from_secs(5),
            watchers: 3,
            full_mesh_max: 6,
            prune_after: Duration::from_secs(20),
            sync_interval: Duration::from_secs(15),
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
            newcomer: Duration::from_secs(15),
            name_clash: Duration::from_secs(3),
        }
    }
}
