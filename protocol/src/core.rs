//! The node's mind: composes the machines, and is the only place where they meet.
//!
//! Pure: the same seed and the same inputs at the same times give the same outputs. The driver feeds it what happened and carries out
//! what it says.
//!
//! The contract, once:
//! - call [`Core::handle`] with everything that happens, in order, with times that never fall;
//! - after each call drain [`Core::poll_output`] to `None` and carry the outputs out in that order;
//! - feed [`Input::Tick`] when [`Core::poll_timeout`] says so. An early tick does nothing; a late one tells the core that its
//!   node is starved, and it becomes more patient with others;
//! - after [`Output::Fatal`] stop.
//!
//! `core/learn.rs` takes in what others state, `core/judge.rs` concludes who is alive, `core/own.rs` speaks for this node,
//! `core/clash.rs` defends its key, `core/forget.rs` removes members that are gone.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::{
    Identity, Incarnation, NodeId, Time,
    config::Config,
    health::Health,
    io::{Command, Counters, Event, GossipId, Input, Judgement, Output, Profile},
    limit::Limit,
    links::{self, Links},
    liveness::Liveness,
    overlay::Overlay,
    providers::{Change, MemberState},
    state::{Hash, State},
    sync::{self, Ask, Sync, Ticket},
    watch::{self, OVERSLEPT, Watch},
    wire::{self, Gossip, Received, Request, Response},
};

mod clash;
mod forget;
mod judge;
mod learn;
#[cfg(feature = "next")]
mod next;
mod own;
#[cfg(test)]
mod tests;

use clash::Dispute;
use forget::Forgets;
use own::Own;

/// How often what is only counted or remembered is tidied up.
const TIDY: std::time::Duration = std::time::Duration::from_secs(10);
/// Malformed or forged messages forgiven a neighbour: at once, and each second. Guess: a bug sends a few, an attack many.
const MISDEEDS: (u32, u32) = (1, 16);
/// Messages of unknown kinds relayed for one neighbour, each second and at once.
const UNKNOWN_RELAYED: (u32, u32) = (50, 200);

/// What a node brings along from its last life.
#[derive(Clone, Debug)]
pub struct Restored {
    /// The life that begins: above every earlier one.
    pub incarnation: Incarnation,
    /// Members known at the last stop, and one address of each: tried first.
    pub remembered: Vec<(NodeId, String)>,
}

/// Who did not answer for this long may have been given up: a ping's timeout and the time to refute.
const ABSENT: std::time::Duration = std::time::Duration::from_secs(1);

/// One node's protocol state.
#[derive(Debug)]
pub struct Core {
    id: NodeId,
    me: Identity,
    config: Config,
    started: Time,
    state: State,
    liveness: Liveness,
    watch: Watch,
    links: Links,
    overlay: Overlay,
    sync: Sync,
    health: Health,
    own: Own,
    dispute: Dispute,
    forgets: Forgets,
    /// What is concluded of each member, and since when.
    concluded: BTreeMap<NodeId, (MemberState, Time)>,
    /// Alive or suspect, this node included.
    present: BTreeSet<NodeId>,
    /// When somebody's case must be judged again.
    deadlines: BTreeSet<(Time, NodeId)>,
    /// Suspects whose case nobody can close; see [`Core::confront`].
    unresolved: BTreeSet<NodeId>,
    next_confrontation: Time,
    /// Confrontation rounds so far: selects the next neighbour.
    confrontations: usize,
    /// When it last overslept for so long that others may have given it up.
    absent_at: Option<Time>,
    /// Whom to stay connected to for another reason than the overlay's.
    kept: BTreeSet<NodeId>,
    /// Who is connected to whom may have to change.
    overlay_moved: bool,
    root_shown: Hash,
    entries_limit: Limit,
    evidence_limit: Limit,
    misdeeds: Limit,
    /// How often a forgotten member is asked to show itself.
    reminders: Limit,
    unknown_relayed: Limit,
    next_tidy: Time,
    counters: Counters,
    out: VecDeque<Output>,
}

impl Core {
    /// A node that begins a new life. The first outputs state its header.
    pub fn new(
        me: Identity,
        config: Config,
        profile: Profile,
        restored: Restored,
        seed: u64,
        now: Time,
    ) -> Self {
        let id = me.id();
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut core = Self {
            id,
            started: now,
            state: State::new(&config),
            liveness: Liveness::default(),
            watch: Watch::new(&config, rng.u64(..)),
            links: Links::new(id, &config, rng.u64(..)),
            overlay: Overlay::new(id, config.watchers, config.full_mesh_max),
            sync: Sync::new(&config, rng.u64(..), now),
            health: Health::new(now),
            dispute: Dispute::new(restored.incarnation),
            forgets: Forgets::default(),
            own: Own::new(restored.incarnation, profile, rng.u64(..), now),
            concluded: BTreeMap::new(),
            present: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            unresolved: BTreeSet::new(),
            next_confrontation: now,
            confrontations: 0,
            absent_at: None,
            kept: BTreeSet::new(),
            overlay_moved: false,
            root_shown: Hash::default(),
            entries_limit: Limit::new(config.entries_per_signer_per_s, config.entries_per_signer_burst),
            evidence_limit: Limit::new(
                config.evidence_per_observer_per_s,
                config.evidence_per_observer_burst,
            ),
            misdeeds: Limit::new(MISDEEDS.0, MISDEEDS.1),
            reminders: Limit::new(1, 1),
            unknown_relayed: Limit::new(UNKNOWN_RELAYED.0, UNKNOWN_RELAYED.1),
            next_tidy: now + TIDY,
            counters: Counters::default(),
            out: VecDeque::new(),
            me,
            config,
        };
        core.state.set_own(id);
        core.state_header(now);
        #[cfg(feature = "next")]
        if core.config.is_next {
            core.state_next(now);
        }
        for (peer, address) in restored.remembered {
            core.links.remember(peer, address);
        }
        core.settle(now);
        core
    }

    /// This node's id.
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// What was counted so far.
    pub fn counters(&self) -> Counters {
        Counters {
            sync_rounds: self.sync.rounds,
            sync_differences: self.sync.differences,
            sync_timeouts: self.sync.timeouts,
            hints_dropped: self.links.hints_dropped,
            ..self.counters
        }
    }

    /// The replicated state, for inspection.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// What is concluded of a member.
    pub fn concluded(&self, id: NodeId) -> Option<MemberState> {
        self.concluded.get(&id).map(|(state, _)| *state)
    }

    /// Whom this node is connected to.
    pub fn neighbours(&self) -> impl Iterator<Item = NodeId> {
        self.links.connected()
    }

    /// How many members are alive or suspect, this node included.
    pub fn present_len(&self) -> usize {
        self.present.len()
    }

    /// Whether this node should take part in mDNS: in a small cluster everybody, in a large one only the first few.
    pub fn speaks_mdns(&self) -> bool {
        /// Above this many members the answers, one from each to each query, would grow too many. Design, section 6.
        const EVERYBODY_MAX: usize = 50;
        const SPEAKERS: usize = 8;
        self.present.len() <= EVERYBODY_MAX || self.overlay.is_among_first(SPEAKERS)
    }

    /// The worst lateness lately seen, of this node's timers and of answers to it.
    pub fn lateness(&self, now: Time) -> std::time::Duration {
        self.health.worst(now)
    }

    /// Takes in what happened. Total: bad peers produce events and counters, never errors or panics.
    pub fn handle(&mut self, now: Time, input: Input) {
        self.notice_lateness(now);
        match input {
            Input::Tick => (),
            Input::Misbehaved(peer, what) => _ = self.malformed(now, peer, what),
            Input::Connected(peer) => self.on_connected(now, peer),
            Input::Disconnected(peer) => self.on_disconnected(now, peer),
            Input::DialFailed { peer, refused } => {
                self.links.dial_failed(now, peer);
                if let Some(act) = self.watch.dial_failed(peer, refused) {
                    self.observe(now, act);
                }
            }
            Input::Subscribed(peer) => self.on_subscribed(now, peer),
            Input::Pong(peer, rtt) => {
                if let Some(waited) = self.watch.pong(now, peer) {
                    self.health.answered(now, peer, waited.min(rtt));
                }
                self.change(Change::Rtt(peer, Some(rtt)));
            }
            Input::Gossip { id, from, bytes } => self.on_gossip(now, id, from, &bytes),
            Input::Request { from, ticket, bytes } => self.on_request(now, from, ticket, &bytes),
            Input::Response { from, ticket, bytes } => self.on_response(now, from, ticket, bytes),
            Input::Hint(peer, address) => self.links.hint(now, peer, address),
            Input::Command(command) => self.on_command(now, command),
        }
        self.run_due(now);
        self.settle(now);
    }

    /// What to do next, in order.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// When to feed [`Input::Tick`] next.
    pub fn poll_timeout(&self, now: Time) -> Time {
        let neighbours = [self.sync.next_due(), self.next_tidy];
        let deadline = self.deadlines.first().map(|(at, _)| *at);
        let watch = self.watch.next_due(now, &self.health);
        let links = self.links.next_due(now);
        let flush = self.own.flush_at();
        let clash = self.dispute.next_due().filter(|_| !self.own.has_left());
        let own = self.own.next_due(&self.config);
        let due = [deadline, watch, links, flush, clash, own, self.next_confrontation()];
        neighbours.into_iter().chain(due.into_iter().flatten()).min().unwrap_or(self.next_tidy)
    }

    /// The moment that was promised to the last caller of [`Core::poll_timeout`] has passed by how much?
    fn notice_lateness(&mut self, now: Time) {
        let late = now.since(self.poll_timeout(now));
        self.health.timer_late(now, late);
        if late >= OVERSLEPT {
            self.counters.overslept += 1;
            self.watch.forgive(now);
            self.liveness.forgive(now);
            // Whatever was concluded of this node meanwhile, its neighbours know. Who is late again and again asks them in its turn.
            if late >= ABSENT && self.absent_at.is_none_or(|at| now.since(at) >= self.config.sync_interval) {
                self.absent_at = Some(now);
                self.links.connected().for_each(|peer| self.sync.soon(now, peer));
            }
        }
    }

    fn run_due(&mut self, now: Time) {
        while let Some((at, id)) = self.deadlines.first().copied()
            && at <= now
        {
            self.deadlines.pop_first();
            self.judge(now, id);
        }
        self.confront(now);
        for act in self.watch.due(now, &self.health) {
            self.observe(now, act);
        }
        let present = &self.present;
        for act in self.links.due(now, |id| present.contains(&id)) {
            match act {
                links::Act::Dial(id) => self.dial(now, id),
                links::Act::DialStranger(id, address) => self.out.push_back(Output::DialAddress(id, address)),
                // Whoever is connected for so long and says nothing of itself is no member, and will not be asked whether it minds.
                links::Act::Offer(peer)
                    if !self.concluded.contains_key(&peer)
                        && self
                            .links
                            .age(now, peer)
                            .is_some_and(|age| age >= 2 * self.config.prune_after) =>
                {
                    self.out.push_back(Output::Disconnect(peer));
                }
                links::Act::Offer(peer) => {
                    // The answer closes the connection or says nothing; no session waits for it.
                    self.request(Ask { peer, ticket: Ticket(0), request: Request::Unneeded });
                }
            }
        }
        let neighbours = || self.links.connected().collect();
        for ask in self.sync.due(now, &self.state, neighbours) {
            self.request(ask);
        }
        self.own_due(now);
        if self.next_tidy <= now {
            self.next_tidy = now + TIDY;
            #[cfg(feature = "next")]
            if self.config.is_next {
                self.hail(now);
            }
            self.tidy(now);
        }
    }

    fn tidy(&mut self, now: Time) {
        self.liveness.tidy(now);
        self.health.tidy(now);
        for limit in [
            &mut self.entries_limit,
            &mut self.evidence_limit,
            &mut self.misdeeds,
            &mut self.reminders,
            &mut self.unknown_relayed,
        ] {
            limit.tidy(now);
        }
        self.forget_the_old(now);
    }

    /// After everything else: who should be connected to whom, and what readers should see.
    fn settle(&mut self, now: Time) {
        if std::mem::take(&mut self.overlay_moved) {
            let watched = self.overlay.watched();
            let lost = watched.iter().filter_map(|id| {
                self.concluded
                    .get(id)
                    .filter(|(state, _)| !state.is_present())
                    .map(|(_, since)| (*id, *since))
            });
            let lost: BTreeMap<NodeId, Time> = lost.collect();
            let present =
                watched.iter().copied().filter(|id| *id != self.id && !lost.contains_key(id)).collect();
            let mut wanted = self.overlay.wanted();
            wanted.extend(self.kept.intersection(&self.present).filter(|id| **id != self.id));
            self.links.set_wanted(now, wanted, &lost);
            let liveness = &self.liveness;
            self.watch.set_watched(now, &present, |id| liveness.is_accused(id));
        }
        if self.root_shown != self.state.root() {
            self.root_shown = self.state.root();
            self.change(Change::RootHash(self.root_shown));
        }
    }

    fn change(&mut self, change: Change) {
        self.out.push_back(Output::Change(change));
    }

    fn event(&mut self, event: Event) {
        self.out.push_back(Output::Event(event));
    }

    fn dial(&mut self, now: Time, id: NodeId) {
        let addresses = self.state.node(id).map(|s| s.header().addresses.clone()).unwrap_or_default();
        if addresses.is_empty() {
            self.links.dial_failed(now, id);
        } else {
            self.links.dialling(now, id);
            self.out.push_back(Output::Dial(id, addresses));
        }
    }

    fn observe(&mut self, now: Time, act: watch::Act) {
        match act {
            watch::Act::Ping(id) => self.out.push_back(Output::Ping(id)),
            watch::Act::Dial(id) => self.dial(now, id),
            watch::Act::Report(id, strength) => self.report(now, id, strength),
        }
    }

    fn on_connected(&mut self, now: Time, peer: NodeId) {
        self.links.opened(now, peer);
        self.watch.connected(now, peer);
        self.pass_on_clash(now, peer);
        self.pass_on_forgets(peer);
        // One of the two begins; the other follows only if it did not.
        let yielding = std::time::Duration::from_millis(500);
        self.sync.soon(if self.id < peer { now } else { now + yielding }, peer);
    }

    fn on_disconnected(&mut self, now: Time, peer: NodeId) {
        // Links kept for another reason bring no witnesses: where they are many, a crash would be told by everybody.
        let neighbour = self.present.contains(&peer) && self.overlay.wanted().contains(&peer);
        self.links.closed(now, peer);
        self.sync.forget(peer);
        self.watch.disconnected(now, peer, neighbour);
        self.change(Change::Rtt(peer, None));
    }

    fn on_subscribed(&mut self, now: Time, peer: NodeId) {
        let alone = self.links.subscribed().next().is_none();
        if self.links.subscribe(peer) {
            #[cfg(feature = "next")]
            if self.config.is_next {
                self.hail(now);
            }
            // What was published before this moment, gossip did not bring it.
            if self.id < peer {
                self.sync.soon(now, peer);
            }
            if alone {
                self.introduce(now);
            }
        }
    }

    fn on_gossip(&mut self, now: Time, id: GossipId, from: NodeId, bytes: &[u8]) {
        self.counters.gossip_received += 1;
        let judgement = match wire::decode::<Gossip>(bytes) {
            Ok(Received::Known(Gossip::Entries(entries))) => self.learn_all(now, entries, from),
            Ok(Received::Known(Gossip::Evidence(evidence))) => self.hear_all(now, evidence, from),
            Ok(Received::Known(Gossip::Clash(clash))) => self.on_clash(now, &clash, from),
            Ok(Received::Known(Gossip::Forget(forget))) => self.on_forget(now, &forget, from),
            Ok(Received::Unknown) => {
                self.counters.unknown_kind += 1;
                let allowed = self.unknown_relayed.has_left(now, from);
                if allowed {
                    self.unknown_relayed.take(now, from);
                }
                if allowed { Judgement::Accept } else { Judgement::Ignore }
            }
            Err(_) => self.malformed(now, from, "gossip"),
        };
        self.out.push_back(Output::Judge(id, judgement));
    }

    fn on_request(&mut self, now: Time, from: NodeId, ticket: Ticket, bytes: &[u8]) {
        let response = match wire::decode::<Request>(bytes) {
            Ok(Received::Known(Request::Push(pages))) => {
                if self.take_pages(now, pages, from) {
                    self.spread(now, from);
                }
                Response::Done
            }
            Ok(Received::Known(Request::Clash(clash))) => {
                self.on_clash(now, &clash, from);
                Response::Done
            }
            Ok(Received::Known(Request::Forget(orders))) => {
                for forget in orders {
                    let subject = forget.claim.subject;
                    let was_known = self.concluded.contains_key(&subject);
                    self.on_forget(now, &forget, from);
                    // News is passed on: this node's other neighbours may have missed it for the same reason.
                    if was_known && !self.concluded.contains_key(&subject) {
                        self.publish(&Gossip::Forget(forget));
                    }
                }
                Response::Done
            }
            Ok(Received::Known(Request::Unneeded)) => {
                self.respond(ticket, &Response::Done);
                if !self.links.is_wanted(from) {
                    self.out.push_back(Output::Disconnect(from));
                }
                return;
            }
            Ok(Received::Known(request)) => {
                let evidence = |id| self.liveness.reports(id).cloned().collect();
                sync::answer(&self.state, &request, &evidence).unwrap_or(Response::Done)
            }
            Ok(Received::Unknown) => {
                self.counters.unknown_kind += 1;
                Response::Done
            }
            Err(_) => {
                self.malformed(now, from, "request");
                Response::Done
            }
        };
        self.respond(ticket, &response);
    }

    /// Anti-entropy brought what gossip did not. Perhaps gossip is only late.
    fn spread(&mut self, now: Time, from: NodeId) {
        let at = now + self.health.stretch(now, sync::SETTLE);
        self.sync.spread(at, from, self.links.connected());
    }

    fn respond(&mut self, ticket: Ticket, response: &Response) {
        self.out.push_back(Output::Respond(ticket, wire::encode(response)));
    }

    fn request(&mut self, ask: Ask) {
        self.out.push_back(Output::Request(ask.peer, ask.ticket, wire::encode(&ask.request)));
    }

    fn on_response(&mut self, now: Time, from: NodeId, ticket: Ticket, bytes: Option<Vec<u8>>) {
        if !self.sync.expects(from, ticket) {
            return;
        }
        let response = match bytes.as_deref().map(wire::decode::<Response>) {
            Some(Ok(Received::Known(response))) => response,
            Some(Err(_)) => {
                self.malformed(now, from, "response");
                return self.sync.failed(from, ticket);
            }
            Some(Ok(Received::Unknown)) | None => return self.sync.failed(from, ticket),
        };
        if let Response::Pages { pages, .. } = &response
            && self.take_pages(now, pages.clone(), from)
        {
            self.spread(now, from);
        }
        let liveness = &self.liveness;
        let evidence = |id| liveness.reports(id).cloned().collect();
        if let Some(ask) = self.sync.answered(now, from, response, &self.state, &evidence) {
            self.request(ask);
        }
        for id in std::mem::take(&mut self.sync.forgotten) {
            self.forget(id);
        }
    }

    /// Counts what a neighbour should not have sent, and parts from one that keeps sending it.
    fn malformed(&mut self, now: Time, from: NodeId, what: &'static str) -> Judgement {
        self.counters.malformed += 1;
        self.blame(now, from, what);
        Judgement::Reject
    }

    fn blame(&mut self, now: Time, from: NodeId, what: &'static str) {
        self.event(Event::Misbehaved(from, what));
        if self.misdeeds.has_left(now, from) {
            self.misdeeds.take(now, from);
        } else {
            self.out.push_back(Output::Disconnect(from));
        }
    }

    fn on_command(&mut self, now: Time, command: Command) {
        match command {
            Command::SetProfile(profile) => self.set_profile(now, profile),
            Command::SetInstance(id, instance) => self.set_instance(now, id, Some(*instance)),
            Command::RemoveInstance(id) => self.set_instance(now, id, None),
            Command::KeepLinks(peers) => {
                self.overlay_moved |= self.kept != peers;
                self.kept = peers;
            }
            Command::Forget(id) => self.order_to_forget(now, id),
            Command::Leave => self.leave(now),
        }
    }
}
