//! Benchmark agent (see `agent.rs`) around the library foca: SWIM over UDP. A change of a member's state is
//! sent as a custom broadcast.
//!
//! `lan` is foca's preset for the number of nodes. `fast` probes five times as often, with a fifth of the
//! timeout and of the suspicion time. All other settings are foca's defaults.

use std::{
    collections::{BTreeMap, BinaryHeap},
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroU32,
    time::Duration,
};

use anyhow::{Context as _, Result};
use foca::{
    AccumulatingRuntime, BroadcastHandler, Config, Foca, Identity, Invalidates, OwnedNotification,
    PostcardCodec, Timer,
};
use rand::{SeedableRng as _, rngs::SmallRng};
use serde::{Deserialize, Serialize};
use tokio::{
    net::UdpSocket,
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::{AgentCommand, tell};
use crate::{
    clock::Moment,
    sighting::What,
    system::{Start, swarm_port},
};

/// Factor by which `fast` is faster.
const FASTER: u32 = 5;
/// Interval of announcements. An announcement to a seed that has not started yet is lost, so it is repeated
/// until a seed answers.
const ANNOUNCE_EVERY: Duration = Duration::from_millis(500);
/// Time for which a leaving agent continues to run, so that its messages are sent.
const LINGER: Duration = Duration::from_millis(200);
/// Largest datagram: 1,400 bytes by foca's configuration.
const DATAGRAM_BYTES_MAX: usize = 2048;

/// Process as foca identifies it. Of two incarnations the later one wins.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Id {
    index: u32,
    life: u16,
}

impl Id {
    fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, swarm_port(self.index as usize)).into()
    }
}

impl Identity for Id {
    type Addr = u32;

    fn renew(&self) -> Option<Self> {
        Some(Self { index: self.index, life: self.life.wrapping_add(1) })
    }

    fn addr(&self) -> u32 {
        self.index
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.life > adversary.life
    }
}

/// Latest known change of each process.
#[derive(Default)]
struct Changes(BTreeMap<u32, u32>);

/// Process and the number of its latest change.
struct Change {
    index: u32,
    version: u32,
}

impl Change {
    fn to_bytes(&self) -> [u8; 8] {
        ((u64::from(self.index) << 32) | u64::from(self.version)).to_be_bytes()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let number = u64::from_be_bytes(bytes.try_into().ok()?);
        Some(Self { index: (number >> 32) as u32, version: number as u32 })
    }
}

impl Invalidates for Change {
    fn invalidates(&self, other: &Self) -> bool {
        self.index == other.index && self.version >= other.version
    }
}

impl BroadcastHandler<Id> for Changes {
    type Key = Change;
    type Error = Infallible;

    fn receive_item(&mut self, data: &[u8], sender: Option<&Id>) -> Result<Option<Change>, Infallible> {
        let Some(change) = Change::from_bytes(data) else { return Ok(None) };
        let known = self.0.entry(change.index).or_default();
        if change.version <= *known {
            return Ok(None);
        }
        *known = change.version;
        if sender.is_some() {
            tell(What::Changed, change.index as usize);
        }
        Ok(Some(change))
    }
}

/// Timer that foca requested. The order is reversed, so that a heap returns the earliest timer first.
struct Due(Instant, Timer<Id>);

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.0, &other.1).cmp(&(self.0, &self.1))
    }
}

struct Agent {
    foca: Foca<Id, PostcardCodec, SmallRng, Changes>,
    runtime: AccumulatingRuntime<Id>,
    timers: BinaryHeap<Due>,
    socket: UdpSocket,
    has_joined: bool,
}

/// Runs until it leaves or is stopped.
pub(super) async fn run(start: &Start, is_fast: bool, mut words: mpsc::Receiver<AgentCommand>) -> Result<()> {
    let me = Id { index: u32::try_from(start.index)?, life: 0 };
    let size = NonZeroU32::new(u32::try_from(start.size)?).context("a cluster of none")?;
    let config = if is_fast { faster(Config::new_lan(size)) } else { Config::new_lan(size) };
    let seeds: Vec<Id> = start
        .seeds
        .iter()
        .map(|seed| Ok(Id { index: u32::try_from(*seed)?, life: 0 }))
        .collect::<Result<_>>()?;
    let rng = SmallRng::seed_from_u64(Moment::now().0 ^ start.index as u64);
    let mut agent = Agent {
        socket: UdpSocket::bind(me.address()).await?,
        foca: Foca::with_custom_broadcast(me.clone(), config, rng, PostcardCodec, Changes::default()),
        runtime: AccumulatingRuntime::new(),
        timers: BinaryHeap::new(),
        has_joined: seeds.is_empty(),
    };
    let mut announce = tokio::time::interval(ANNOUNCE_EVERY);
    let mut buffer = [0; DATAGRAM_BYTES_MAX];
    let mut version = 0;
    loop {
        let next_timer = agent.timers.peek().map(|due| due.0);
        tokio::select! {
            received = agent.socket.recv_from(&mut buffer) => {
                // If a port is closed, receiving returns an error, which is ignored.
                if let Ok((count, _)) = received {
                    // Errors report datagrams for another incarnation, and change no state.
                    _ = agent.foca.handle_data(&buffer[..count], &mut agent.runtime);
                }
            }
            () = async { sleep_until(next_timer.unwrap_or_else(Instant::now)).await }, if next_timer.is_some() => {
                if let Some(Due(_, timer)) = agent.timers.pop() {
                    agent.foca.handle_timer(timer, &mut agent.runtime)?;
                }
            }
            _ = announce.tick(), if !agent.has_joined => {
                for seed in &seeds {
                    agent.foca.announce(seed.clone(), &mut agent.runtime)?;
                }
            }
            word = words.recv() => match word {
                Some(AgentCommand::Change) => {
                    version += 1;
                    agent.foca.add_broadcast(&Change { index: me.index, version }.to_bytes())?;
                    // The change is sent at once to a few peers, instead of with the next periodic gossip.
                    agent.foca.gossip(&mut agent.runtime)?;
                }
                Some(AgentCommand::Leave) => {
                    agent.foca.leave_cluster(&mut agent.runtime)?;
                    agent.carry_out().await;
                    tokio::time::sleep(LINGER).await;
                    return Ok(());
                }
                Some(AgentCommand::Stop) | None => return Ok(()),
            },
        }
        agent.carry_out().await;
    }
}

impl Agent {
    /// Sends the datagrams and starts the timers that foca requested.
    async fn carry_out(&mut self) {
        while let Some((to, data)) = self.runtime.to_send() {
            // A send error has the same effect as a lost datagram.
            _ = self.socket.send_to(&data, to.address()).await;
        }
        let now = Instant::now();
        while let Some((after, timer)) = self.runtime.to_schedule() {
            self.timers.push(Due(now + after, timer));
        }
        while let Some(notification) = self.runtime.to_notify() {
            match notification {
                OwnedNotification::MemberUp(id) => tell(What::Alive, id.index as usize),
                OwnedNotification::MemberDown(id) => tell(What::Failed, id.index as usize),
                OwnedNotification::Active => self.has_joined = true,
                _ => (),
            }
        }
    }
}

fn faster(lan: Config) -> Config {
    Config {
        probe_period: lan.probe_period / FASTER,
        probe_rtt: lan.probe_rtt / FASTER,
        suspect_to_down_after: lan.suspect_to_down_after / FASTER,
        ..lan
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_survives_its_bytes() {
        let change = Change::from_bytes(&Change { index: 7, version: 70_000 }.to_bytes()).unwrap();
        assert_eq!((change.index, change.version), (7, 70_000));
        assert!(Change::from_bytes(b"short").is_none());
    }

    #[test]
    fn a_change_is_news_once() {
        let mut changes = Changes::default();
        let mut hear =
            |version| changes.receive_item(&Change { index: 1, version }.to_bytes(), None).unwrap().is_some();
        assert_eq!([hear(1), hear(1), hear(3), hear(2)], [true, false, true, false]);
    }

    #[test]
    fn the_heap_gives_the_earliest_timer_first() {
        let now = Instant::now();
        let due = |ms| Due(now + Duration::from_millis(ms), Timer::PeriodicGossip(0));
        let mut heap = BinaryHeap::from([due(3), due(1), due(2)]);
        assert_eq!(heap.pop().unwrap().0, now + Duration::from_millis(1));
    }
}
