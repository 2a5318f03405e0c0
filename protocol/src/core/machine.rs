//! [`Core`]: the struct with one node's protocol state, the dispatch of inputs, and the actions that are due.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{
    forget_orders::ForgetOrders, key_clash::KeyClash, namesakes::Namesakes, own::OwnState,
    rate_limit::RateLimit, user_event_state::UserEventState,
};
use crate::{
    Identity, Incarnation, NodeId, Time,
    config::Config,
    io::{Command, Counters, Event, Input, Output, Pong, Profile},
    membership::{
        connections::{ConnectionAction, Connections},
        liveness::Liveness,
        overlay::Overlay,
        patience::Patience,
        prober::{ProbeAction, Prober, SUSPENDED_MIN},
        state::{Hash, State},
    },
    providers::{Change, MemberState},
    sync::{NO_SESSION, Sync, SyncRequest},
    wire::Request,
};

/// Interval at which rate limits, caches and gone members are pruned.
const PRUNE_INTERVAL: std::time::Duration = std::time::Duration::from_secs(10);
/// Malformed or forged messages tolerated from one neighbour: each second, and at once. Guess: a bug sends a
/// few, an attack many.
const MISBEHAVIOUR_RATE: (u32, u32) = (1, 16);
/// Messages of unknown kinds relayed for one neighbour: each second, and at once.
const UNKNOWN_RELAY_RATE: (u32, u32) = (50, 200);

/// Data with which a node starts.
#[derive(Clone, Debug)]
pub struct Startup {
    /// Incarnation of the life that begins. Must be higher than every earlier one.
    pub incarnation: Incarnation,
    /// Members known at the last stop, each with one address. They are dialled first.
    pub remembered: Vec<(NodeId, String)>,
    /// The same members, in the order in which this node came to know them: the first one keeps a name that
    /// several state.
    pub known: Vec<NodeId>,
    /// Content of the first header.
    pub profile: Profile,
    /// Seed of all random choices.
    pub seed: u64,
}

/// Duration of a suspension after which other nodes may have declared this node failed: a ping's timeout plus
/// the time to refute.
const ABSENCE_MIN: std::time::Duration = std::time::Duration::from_secs(1);

/// One node's protocol state.
#[derive(Debug)]
pub struct Core {
    pub(super) id: NodeId,
    pub(super) identity: Identity,
    pub(super) config: Config,
    pub(super) started: Time,
    pub(super) state: State,
    pub(super) liveness: Liveness,
    pub(super) prober: Prober,
    pub(super) connections: Connections,
    pub(super) overlay: Overlay,
    pub(super) sync: Sync,
    pub(super) patience: Patience,
    pub(super) own: OwnState,
    pub(super) namesakes: Namesakes,
    pub(super) key_clash: KeyClash,
    pub(super) forget_orders: ForgetOrders,
    pub(super) user_events: UserEventState,
    /// State of each member, and since when.
    pub(super) member_states: BTreeMap<NodeId, (MemberState, Time)>,
    /// Members that are alive or suspect, this node included.
    pub(super) present: BTreeSet<NodeId>,
    /// When the verdict on a member must be drawn again.
    pub(super) deadlines: BTreeSet<(Time, NodeId)>,
    /// Suspects without a second report; see [`Core::notify_suspects`].
    pub(super) unresolved_suspects: BTreeSet<NodeId>,
    pub(super) next_notification: Time,
    /// Rounds of notifications so far; selects the next neighbour.
    pub(super) notifications: usize,
    /// When this node was last suspended for [`ABSENCE_MIN`] or longer.
    pub(super) last_absence: Option<Time>,
    /// Members to which this node stays connected, in addition to the overlay's.
    pub(super) kept_connections: BTreeSet<NodeId>,
    /// Whether the wanted connections may have changed.
    pub(super) overlay_changed: bool,
    pub(super) published_root: Hash,
    pub(super) entries_limit: RateLimit,
    pub(super) evidence_limit: RateLimit,
    pub(super) misbehaviour_limit: RateLimit,
    /// Limits how often a newer header of one forgotten member is requested.
    pub(super) reminder_limit: RateLimit,
    pub(super) unknown_relay_limit: RateLimit,
    pub(super) next_prune: Time,
    pub(super) counters: Counters,
    pub(super) outputs: VecDeque<Output>,
}

impl Core {
    /// Starts a new life. The first outputs state its header.
    pub fn new(me: Identity, config: Config, startup: Startup, now: Time) -> Self {
        let id = me.id();
        let mut rng = fastrand::Rng::with_seed(startup.seed);
        let mut core = Self {
            id,
            started: now,
            state: State::new(&config),
            liveness: Liveness::default(),
            prober: Prober::new(&config, rng.u64(..)),
            connections: Connections::new(id, &config, rng.u64(..)),
            overlay: Overlay::new(id, config.watchers, config.full_mesh_max),
            sync: Sync::new(&config, rng.u64(..), now),
            patience: Patience::new(now),
            key_clash: KeyClash::new(startup.incarnation),
            forget_orders: ForgetOrders::default(),
            user_events: UserEventState::new(&config),
            own: OwnState::new(startup.incarnation, startup.profile, rng.u64(..), now),
            namesakes: Namesakes::default(),
            member_states: BTreeMap::new(),
            present: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            unresolved_suspects: BTreeSet::new(),
            next_notification: now,
            notifications: 0,
            last_absence: None,
            kept_connections: BTreeSet::new(),
            overlay_changed: false,
            published_root: Hash::default(),
            entries_limit: RateLimit::new(config.entries_per_signer_per_s, config.entries_per_signer_burst),
            evidence_limit: RateLimit::new(
                config.evidence_per_observer_per_s,
                config.evidence_per_observer_burst,
            ),
            misbehaviour_limit: RateLimit::new(MISBEHAVIOUR_RATE.0, MISBEHAVIOUR_RATE.1),
            reminder_limit: RateLimit::new(1, 1),
            unknown_relay_limit: RateLimit::new(UNKNOWN_RELAY_RATE.0, UNKNOWN_RELAY_RATE.1),
            next_prune: now + PRUNE_INTERVAL,
            counters: Counters::default(),
            outputs: VecDeque::new(),
            identity: me,
            config,
        };
        core.namesakes.know(id);
        startup.known.iter().for_each(|peer| core.namesakes.know(*peer));
        core.state.set_own(id);
        core.state_header(now);
        if core.config.is_next {
            core.state_unknown_entry(now);
        }
        for (peer, address) in startup.remembered {
            core.connections.add_remembered(peer, address);
        }
        core.publish_derived_state(now);
        core
    }

    /// Id of this node.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// Counters since the start of the process.
    pub fn counters(&self) -> Counters {
        Counters {
            sync_rounds: self.sync.rounds,
            sync_by_pong: self.sync.by_pong,
            sync_differences: self.sync.differences,
            sync_completed: self.sync.completed,
            sync_timeouts: self.sync.timeouts,
            hints_dropped: self.connections.hints_dropped,
            ..self.counters
        }
    }

    /// Replicated state, for inspection.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// State of a member; `None` if it is unknown.
    pub fn member_state(&self, id: NodeId) -> Option<MemberState> {
        self.member_states.get(&id).map(|(state, _)| *state)
    }

    /// Connected peers.
    pub fn neighbours(&self) -> impl Iterator<Item = NodeId> {
        self.connections.connected()
    }

    /// Number of members that are alive or suspect, this node included.
    pub fn present_len(&self) -> usize {
        self.present.len()
    }

    /// Whether this node should use mDNS. In a small cluster every node does, in a large cluster only the few
    /// with the highest ranks.
    pub fn uses_mdns(&self) -> bool {
        /// Above this many members, each query would get too many answers.
        const ALL_SPEAK_MAX: usize = 50;
        const SPEAKERS: usize = 8;
        self.present.len() <= ALL_SPEAK_MAX || self.overlay.is_among_first(SPEAKERS)
    }

    /// Worst recent lateness of this node's timers and of the answers to its pings.
    pub fn lateness(&self, now: Time) -> std::time::Duration {
        self.patience.worst(now)
    }

    /// Handles one input. Never fails: a peer's misbehaviour only causes events and counters.
    pub fn handle(&mut self, now: Time, input: Input) {
        self.record_lateness(now);
        match input {
            Input::Tick => (),
            Input::Misbehaved(peer, what) => _ = self.reject_malformed(now, peer, what),
            Input::Connected(peer) => self.handle_connected(now, peer),
            Input::Disconnected(peer) => self.handle_disconnected(now, peer),
            Input::DialFailed { peer, refused } => {
                self.connections.record_failed_dial(now, peer);
                if let Some(action) = self.prober.record_failed_dial(peer, refused) {
                    self.execute_probe_action(now, action);
                }
            }
            Input::Subscribed(peer) => self.handle_subscribed(now, peer),
            Input::Pong(peer, pong) => self.handle_pong(now, peer, pong),
            Input::Gossip { id, from, bytes } => self.handle_gossip(now, id, from, &bytes),
            Input::Request { from, request_id, bytes } => self.handle_request(now, from, request_id, &bytes),
            Input::Response { from, request_id, bytes } => self.handle_response(now, from, request_id, bytes),
            Input::Hint(peer, address) => self.connections.add_hint(now, peer, address),
            Input::Command(command) => self.handle_command(now, command),
        }
        self.run_due(now);
        self.publish_derived_state(now);
    }

    /// Next output; `None` when no output is left.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to pass [`Input::Tick`] next.
    pub fn poll_timeout(&self, now: Time) -> Time {
        let fixed = [self.sync.next_due(), self.next_prune];
        let deadline = self.deadlines.first().map(|(at, _)| *at);
        let prober = self.prober.next_due(now, &self.patience);
        let connections = self.connections.next_due(now);
        let flush = self.own.flush_at();
        let clash = self.key_clash.next_due().filter(|_| !self.own.has_left());
        let own = self.own.next_due();
        let due = [deadline, prober, connections, flush, clash, own, self.next_notification()];
        fixed.into_iter().chain(due.into_iter().flatten()).min().unwrap_or(self.next_prune)
    }

    /// Records by how much this call is later than the time that [`Core::poll_timeout`] gave.
    pub(super) fn record_lateness(&mut self, now: Time) {
        let late = now.since(self.poll_timeout(now));
        self.patience.record_late_timer(now, late);
        if late >= SUSPENDED_MIN {
            self.counters.overslept += 1;
            self.prober.restart_timeouts(now);
            self.liveness.restart_suspicions(now);
            // The neighbours know the verdicts on this node that were drawn meanwhile. If this node is late
            // repeatedly, it compares only at its usual interval.
            if late >= ABSENCE_MIN
                && self.last_absence.is_none_or(|at| now.since(at) >= self.config.sync_interval)
            {
                self.last_absence = Some(now);
                self.connections.connected().for_each(|peer| self.sync.schedule(now, peer));
            }
        }
    }

    pub(super) fn run_due(&mut self, now: Time) {
        while let Some((at, id)) = self.deadlines.first().copied()
            && at <= now
        {
            self.deadlines.pop_first();
            self.judge(now, id);
        }
        self.notify_suspects(now);
        for action in self.prober.due(now, &self.patience) {
            self.execute_probe_action(now, action);
        }
        let present = &self.present;
        for action in self.connections.due(now, |id| present.contains(&id)) {
            match action {
                ConnectionAction::Dial(id) => self.dial(now, id),
                ConnectionAction::DialHint(id, address) => {
                    self.outputs.push_back(Output::DialAddress(id, address))
                }
                // A peer that is connected for this long without stating a header is not a member. It is
                // disconnected without a request.
                ConnectionAction::OfferClose(peer)
                    if !self.member_states.contains_key(&peer)
                        && self
                            .connections
                            .age(now, peer)
                            .is_some_and(|age| age >= 2 * self.config.prune_after) =>
                {
                    self.outputs.push_back(Output::Disconnect(peer));
                }
                ConnectionAction::OfferClose(peer) => {
                    // The peer closes the connection or ignores the request. No session waits for the
                    // response.
                    self.send_request(SyncRequest {
                        peer,
                        request_id: NO_SESSION,
                        request: Request::Unneeded,
                    });
                }
            }
        }
        let neighbours = || self.connections.connected().collect();
        let has_user_events = self.user_events.holds_events();
        for request in self.sync.due(now, &self.state, has_user_events, neighbours) {
            self.send_request(request);
        }
        self.run_own_due(now);
        if self.next_prune <= now {
            self.next_prune = now + PRUNE_INTERVAL;
            if self.config.is_next {
                self.publish_unknown_kind(now);
            }
            self.prune(now);
        }
    }

    pub(super) fn prune(&mut self, now: Time) {
        self.liveness.prune(now);
        self.patience.prune(now);
        for limit in [
            &mut self.entries_limit,
            &mut self.evidence_limit,
            &mut self.misbehaviour_limit,
            &mut self.reminder_limit,
            &mut self.unknown_relay_limit,
        ] {
            limit.prune(now);
        }
        self.user_events.prune(now, self.config.user_event_age);
        self.forget_expired_members(now);
    }

    /// Derives the wanted connections, the watched members and the root hash, after each input.
    pub(super) fn publish_derived_state(&mut self, now: Time) {
        if std::mem::take(&mut self.overlay_changed) {
            let watched = self.overlay.watched();
            let lost = watched.iter().filter_map(|id| {
                self.member_states
                    .get(id)
                    .filter(|(state, _)| !state.is_present())
                    .map(|(_, since)| (*id, *since))
            });
            let lost: BTreeMap<NodeId, Time> = lost.collect();
            let present = watched.iter().copied().filter(|id| *id != self.id && !lost.contains_key(id));
            let watchers = |id| u32::try_from(self.overlay.watchers_of(id).count()).unwrap_or(u32::MAX);
            let present = present.map(|id| (id, watchers(id))).collect();
            let mut wanted = self.overlay.wanted();
            wanted.extend(self.kept_connections.intersection(&self.present).filter(|id| **id != self.id));
            self.connections.set_wanted(now, wanted, &lost);
            let liveness = &self.liveness;
            self.prober.set_watched(now, &present, |id| liveness.is_accused(id));
        }
        if self.published_root != self.state.root() {
            self.published_root = self.state.root();
            self.sync.record_own_root(now, self.published_root);
            self.push_change(Change::RootHash(self.published_root));
        }
    }

    pub(super) fn push_change(&mut self, change: Change) {
        self.outputs.push_back(Output::Change(change));
    }

    pub(super) fn push_event(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    pub(super) fn dial(&mut self, now: Time, id: NodeId) {
        let addresses = self.state.node(id).map(|s| s.header().addresses.clone()).unwrap_or_default();
        if addresses.is_empty() {
            self.connections.record_failed_dial(now, id);
        } else {
            self.connections.record_dial(now, id);
            self.outputs.push_back(Output::Dial(id, addresses));
        }
    }

    pub(super) fn execute_probe_action(&mut self, now: Time, action: ProbeAction) {
        match action {
            ProbeAction::Ping(id) => self.outputs.push_back(Output::Ping(id)),
            ProbeAction::Dial(id) => self.dial(now, id),
            ProbeAction::Report(id, strength) => self.report_member(now, id, strength),
        }
    }

    fn handle_pong(&mut self, now: Time, peer: NodeId, pong: Pong) {
        if let Some(waited) = self.prober.record_pong(now, peer, pong.since_ping) {
            self.patience.record_answer(now, peer, waited.min(pong.rtt));
        }
        if self.connections.is_connected(peer) {
            self.sync.record_pong(now, peer, pong.root, &self.patience);
        }
        self.push_change(Change::Rtt(peer, Some(pong.rtt)));
    }

    pub(super) fn handle_connected(&mut self, now: Time, peer: NodeId) {
        self.connections.record_opened(now, peer);
        self.prober.record_connected(now, peer);
        self.forward_clash(now, peer);
        self.forward_forget_orders(peer);
        // One end starts a session at once, the other end after 500 ms.
        let delay = std::time::Duration::from_millis(500);
        self.sync.schedule(if self.id < peer { now } else { now + delay }, peer);
    }

    pub(super) fn handle_disconnected(&mut self, now: Time, peer: NodeId) {
        // A peer with a kept connection is not reported by this node: there may be many such connections, and
        // all their ends would report a crash.
        let neighbour = self.present.contains(&peer) && self.overlay.wanted().contains(&peer);
        self.connections.record_closed(now, peer);
        self.sync.remove_peer(peer);
        self.prober.record_disconnected(now, peer, neighbour);
        self.push_change(Change::Rtt(peer, None));
    }

    pub(super) fn handle_subscribed(&mut self, now: Time, peer: NodeId) {
        let alone = self.connections.subscribed().next().is_none();
        if self.connections.record_subscription(peer) {
            if self.config.is_next {
                self.publish_unknown_kind(now);
            }
            // Gossip published before the subscription did not reach the peer, so the two compare.
            if self.id < peer {
                self.sync.schedule(now, peer);
            }
            if alone {
                self.publish_own_entries(now);
            }
        }
    }
    pub(super) fn handle_command(&mut self, now: Time, command: Command) {
        match command {
            Command::SetProfile(profile) => self.set_profile(now, profile),
            Command::SetInstance(id, instance) => self.set_instance(now, id, Some(*instance)),
            Command::RemoveInstance(id) => self.set_instance(now, id, None),
            Command::KeepLinks(peers) => {
                self.overlay_changed |= self.kept_connections != peers;
                self.kept_connections = peers;
            }
            Command::Forget(id) => self.order_to_forget(now, id),
            Command::FireUserEvent(id, content) => self.fire_user_event(now, id, *content),
            Command::Leave => self.leave(now),
        }
    }
}
