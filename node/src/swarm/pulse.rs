//! [`Pulse`]: the ping protocol. The core decides when to ping.
//!
//! libp2p's ping runs in both directions of every connection at a fixed interval. Here only watchers ping,
//! which halves the idle traffic.
//!
//! Each direction in use has one long-lived stream. A ping is one byte, and the answer is the same byte,
//! because a stream has at most one ping under way. Since version 2 the answering node's wall clock follows:
//! milliseconds since 1970 as 8 bytes, big-endian. Since version 3 one byte with the length of the remaining
//! answer follows, then, unless the answering node has no root hash yet, the first 8 bytes of the root hash,
//! and the milliseconds since the previous ping that the node received, as 4 bytes, big-endian. A receiver
//! ignores what follows the parts that it knows, so a newer node can append parts.

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    io,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use futures::{
    AsyncReadExt as _, AsyncWriteExt as _, FutureExt as _,
    future::{BoxFuture, Ready, ready},
};
use hearsay_protocol::RootPrefix;
use libp2p::{
    Multiaddr, PeerId, Stream, StreamProtocol,
    core::{
        Endpoint, UpgradeInfo,
        transport::PortUse,
        upgrade::{InboundUpgrade, OutboundUpgrade},
    },
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm,
        NetworkBehaviour, NotifyHandler, SubstreamProtocol, THandler, THandlerInEvent, THandlerOutEvent,
        ToSwarm,
        handler::{ConnectionEvent, FullyNegotiatedInbound, FullyNegotiatedOutbound},
    },
};

/// Protocol name of version 1, whose answers do not carry the clock.
const VERSION_1: StreamProtocol = StreamProtocol::new("/hearsay/1/pulse");
/// Protocol name of version 2, whose answers carry the clock.
const VERSION_2: StreamProtocol = StreamProtocol::new("/hearsay/2/pulse");
/// Protocol name of version 3, whose answers also carry the root hash.
const VERSION_3: StreamProtocol = StreamProtocol::new("/hearsay/3/pulse");

/// An answered ping.
#[derive(Debug)]
pub struct Pong {
    /// The peer that answered.
    pub peer: PeerId,
    /// The measurements.
    pub round_trip: RoundTrip,
}

/// Measurements of a ping and its answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RoundTrip {
    /// The time between ping and answer.
    pub rtt: Duration,
    /// How far the peer's wall clock is ahead of this node's, in milliseconds. `None`: a peer of version 1.
    pub offset_ms: Option<i64>,
    /// The peer's root hash. `None`: a peer of version 1 or 2, or one without entries.
    pub root: Option<RootPrefix>,
    /// The time between this ping and the previous one that the peer received from any node. `None`: a peer
    /// that does not state it.
    pub since_ping: Option<Duration>,
}

/// Parts of an answer. A part that the answer does not carry is `None`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct AnswerParts {
    root: Option<RootPrefix>,
    since_ping: Option<Duration>,
}

/// State of a node from which it answers pings.
#[derive(Debug, Default)]
struct AnswerState {
    root: Option<RootPrefix>,
    last_ping: Option<Instant>,
}

impl AnswerParts {
    /// Bytes of the parts: none while the node has no root.
    fn encode(self) -> Vec<u8> {
        let Some(root) = self.root else { return Vec::new() };
        let since_ms = self.since_ping.and_then(|since| u32::try_from(since.as_millis()).ok());
        [&root.0[..], &since_ms.unwrap_or(u32::MAX).to_be_bytes()].concat()
    }

    /// Decodes the parts that this build knows, and ignores what follows. A part that is cut off is missing.
    fn decode(parts: &[u8]) -> Self {
        let Some((root, rest)) = parts.split_first_chunk() else { return Self::default() };
        let since_ms = rest.first_chunk().map(|since| u32::from_be_bytes(*since));
        Self {
            root: Some(RootPrefix(*root)),
            since_ping: since_ms.map(|ms| Duration::from_millis(ms.into())),
        }
    }
}

impl AnswerState {
    /// Answers a ping that arrived now.
    fn answer(&mut self, now: Instant) -> AnswerParts {
        let last = self.last_ping.replace(now);
        AnswerParts { root: self.root, since_ping: last.map(|last| now.saturating_duration_since(last)) }
    }
}

/// State of this node, which the driver sets and the handlers of all connections read.
type SharedAnswerState = Arc<Mutex<AnswerState>>;

/// A stream for pings, and what its answers carry.
pub struct PulseStream {
    stream: Stream,
    has_clock: bool,
    has_state: bool,
}

/// Upgrade of a stream: negotiates the newest version that both peers speak.
#[derive(Clone, Copy, Debug)]
pub struct PulseUpgrade;

impl UpgradeInfo for PulseUpgrade {
    type Info = StreamProtocol;
    type InfoIter = [StreamProtocol; 3];

    fn protocol_info(&self) -> Self::InfoIter {
        [VERSION_3, VERSION_2, VERSION_1]
    }
}

impl InboundUpgrade<Stream> for PulseUpgrade {
    type Output = PulseStream;
    type Error = Infallible;
    type Future = Ready<Result<PulseStream, Infallible>>;

    fn upgrade_inbound(self, stream: Stream, version: StreamProtocol) -> Self::Future {
        let has_state = version == VERSION_3;
        ready(Ok(PulseStream { stream, has_clock: has_state || version == VERSION_2, has_state }))
    }
}

impl OutboundUpgrade<Stream> for PulseUpgrade {
    type Output = PulseStream;
    type Error = Infallible;
    type Future = Ready<Result<PulseStream, Infallible>>;

    fn upgrade_outbound(self, stream: Stream, version: StreamProtocol) -> Self::Future {
        self.upgrade_inbound(stream, version)
    }
}

/// The ping protocol of all connections.
#[derive(Debug, Default)]
pub struct Pulse {
    connections: BTreeMap<PeerId, Vec<ConnectionId>>,
    /// For each peer with a ping under way, the connection of that ping.
    underway: BTreeMap<PeerId, ConnectionId>,
    pings: VecDeque<PeerId>,
    pongs: VecDeque<Pong>,
    waker: Option<Waker>,
    answer_state: SharedAnswerState,
}

/// Maximum number of pings queued for the swarm. The core has one under way to each subject, so the queue is
/// full only if the swarm hangs.
const PINGS_MAX: usize = 1024;

impl Pulse {
    /// Pings a peer, if it is connected.
    pub fn ping(&mut self, peer: PeerId) {
        if self.pings.len() < PINGS_MAX {
            self.pings.push_back(peer);
        }
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Sets the root hash that answers carry from now on.
    pub fn set_root(&mut self, root: RootPrefix) {
        let mut state = self.answer_state.lock().unwrap_or_else(PoisonError::into_inner);
        state.root = Some(root);
    }

    fn handler(&self) -> Handler {
        Handler { answer_state: self.answer_state.clone(), ..Handler::default() }
    }
}

impl NetworkBehaviour for Pulse {
    type ConnectionHandler = Handler;
    type ToSwarm = Pong;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler())
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler())
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(new) => {
                self.connections.entry(new.peer_id).or_default().push(new.connection_id);
            }
            FromSwarm::ConnectionClosed(closed) => {
                let peer = closed.peer_id;
                let Some(left) = self.connections.get_mut(&peer) else { return };
                left.retain(|id| *id != closed.connection_id);
                let is_gone = left.is_empty();
                if is_gone {
                    self.connections.remove(&peer);
                }
                // When one of two crossing connections closes, a ping that is lost with it would look like
                // silence.
                if self.underway.get(&peer) == Some(&closed.connection_id) {
                    self.underway.remove(&peer);
                    if !is_gone {
                        self.ping(peer);
                    }
                }
            }
            _ => (),
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        _: ConnectionId,
        round_trip: THandlerOutEvent<Self>,
    ) {
        self.underway.remove(&peer);
        self.pongs.push_back(Pong { peer, round_trip });
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        if let Some(pong) = self.pongs.pop_front() {
            return Poll::Ready(ToSwarm::GenerateEvent(pong));
        }
        while let Some(peer_id) = self.pings.pop_front() {
            let Some(connection) = self.connections.get(&peer_id).and_then(|all| all.first()) else {
                continue;
            };
            self.underway.insert(peer_id, *connection);
            let handler = NotifyHandler::One(*connection);
            return Poll::Ready(ToSwarm::NotifyHandler { peer_id, handler, event: Ping });
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// Command to a connection's handler: ping the peer.
#[derive(Debug, Clone, Copy)]
pub struct Ping;

/// Handler of one connection: pings in both directions.
#[derive(Default)]
pub struct Handler {
    ping_wanted: bool,
    outbound: Outbound,
    answer_state: SharedAnswerState,
    /// The peer's stream, on which this node answers pings.
    inbound: Option<BoxFuture<'static, io::Result<PulseStream>>>,
}

#[derive(Default)]
enum Outbound {
    #[default]
    Closed,
    Opening,
    Idle(PulseStream),
    Waiting(BoxFuture<'static, io::Result<(PulseStream, RoundTrip)>>),
}

async fn ping(mut pulse: PulseStream) -> io::Result<(PulseStream, RoundTrip)> {
    let sent = Instant::now();
    pulse.stream.write_all(&[0]).await?;
    pulse.stream.flush().await?;
    pulse.stream.read_exact(&mut [0]).await?;
    let mut round_trip = RoundTrip { rtt: sent.elapsed(), offset_ms: None, root: None, since_ping: None };
    if pulse.has_clock {
        let mut theirs = [0; 8];
        pulse.stream.read_exact(&mut theirs).await?;
        let theirs_ms = u64::from_be_bytes(theirs);
        round_trip.offset_ms = Some(clock_offset_ms(theirs_ms, wall_ms(), round_trip.rtt));
    }
    if pulse.has_state {
        let mut len = [0];
        pulse.stream.read_exact(&mut len).await?;
        let mut parts = vec![0; len[0].into()];
        pulse.stream.read_exact(&mut parts).await?;
        let AnswerParts { root, since_ping } = AnswerParts::decode(&parts);
        (round_trip.root, round_trip.since_ping) = (root, since_ping);
    }
    Ok((pulse, round_trip))
}

async fn echo(mut pulse: PulseStream, state: SharedAnswerState) -> io::Result<PulseStream> {
    let mut byte = [0];
    pulse.stream.read_exact(&mut byte).await?;
    let mut answer = byte.to_vec();
    if pulse.has_clock {
        answer.extend(wall_ms().to_be_bytes());
    }
    let parts = state.lock().unwrap_or_else(PoisonError::into_inner).answer(Instant::now());
    if pulse.has_state {
        let parts = parts.encode();
        answer.push(u8::try_from(parts.len()).unwrap_or_default());
        answer.extend(parts);
    }
    pulse.stream.write_all(&answer).await?;
    pulse.stream.flush().await?;
    Ok(pulse)
}

/// Returns how far a peer's clock, read half a round trip ago, is ahead of this node's. Saturates.
fn clock_offset_ms(theirs_ms: u64, ours_ms: u64, rtt: Duration) -> i64 {
    let half_ms = u64::try_from(rtt.as_millis() / 2).unwrap_or(u64::MAX);
    let difference = i128::from(theirs_ms.saturating_add(half_ms)) - i128::from(ours_ms);
    i64::try_from(difference).unwrap_or(if difference > 0 { i64::MAX } else { i64::MIN })
}

/// Wall-clock time in milliseconds since 1970.
fn wall_ms() -> u64 {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(wall.as_millis()).unwrap_or(u64::MAX)
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Ping;
    type ToBehaviour = RoundTrip;
    type InboundProtocol = PulseUpgrade;
    type OutboundProtocol = PulseUpgrade;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(PulseUpgrade, ())
    }

    fn on_behaviour_event(&mut self, _: Ping) {
        self.ping_wanted = true;
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, (), Self::ToBehaviour>> {
        while let Some(inbound) = &mut self.inbound {
            match inbound.poll_unpin(cx) {
                Poll::Pending => break,
                Poll::Ready(Ok(stream)) => {
                    self.inbound = Some(echo(stream, self.answer_state.clone()).boxed())
                }
                Poll::Ready(Err(_)) => self.inbound = None,
            }
        }
        loop {
            match std::mem::take(&mut self.outbound) {
                Outbound::Closed if self.ping_wanted => {
                    self.outbound = Outbound::Opening;
                    let protocol = SubstreamProtocol::new(PulseUpgrade, ());
                    return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
                }
                Outbound::Idle(stream) if self.ping_wanted => {
                    self.ping_wanted = false;
                    self.outbound = Outbound::Waiting(ping(stream).boxed());
                }
                Outbound::Waiting(mut answer) => match answer.poll_unpin(cx) {
                    Poll::Pending => {
                        self.outbound = Outbound::Waiting(answer);
                        return Poll::Pending;
                    }
                    Poll::Ready(Ok((stream, round_trip))) => {
                        self.outbound = Outbound::Idle(stream);
                        return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(round_trip));
                    }
                    // The next ping opens a new stream. The core repeats unanswered pings.
                    Poll::Ready(Err(_)) => (),
                },
                waiting => {
                    self.outbound = waiting;
                    return Poll::Pending;
                }
            }
        }
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Self::InboundProtocol, Self::OutboundProtocol>,
    ) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol: stream, .. }) => {
                self.inbound = Some(echo(stream, self.answer_state.clone()).boxed());
            }
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: stream, ..
            }) => {
                self.outbound = Outbound::Idle(stream);
            }
            ConnectionEvent::DialUpgradeError(_) => {
                self.outbound = Outbound::Closed;
                self.ping_wanted = false;
            }
            _ => (),
        }
    }

    fn poll_close(&mut self, _: &mut Context<'_>) -> Poll<Option<Self::ToBehaviour>> {
        Poll::Ready(None)
    }
}

// Streams and futures have no useful debug output.
impl std::fmt::Debug for Handler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handler").field("ping_wanted", &self.ping_wanted).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_carries_its_parts_and_a_newer_one_may_carry_more() {
        let root = Some(RootPrefix(*b"12345678"));
        let parts = AnswerParts { root, since_ping: Some(Duration::from_millis(0x0102)) };
        assert_eq!(parts.encode(), b"12345678\0\0\x01\x02");
        assert_eq!(AnswerParts::decode(b"12345678\0\0\x01\x02"), parts);
        assert_eq!(AnswerParts::decode(b"12345678\0\0\x01\x02 and more"), parts);
        for old in [&b"12345678"[..], b"12345678abc"] {
            assert_eq!(AnswerParts::decode(old), AnswerParts { root, since_ping: None });
        }
        for short in [&b""[..], b"1234567"] {
            assert_eq!(AnswerParts::decode(short), AnswerParts::default());
        }
        assert_eq!(AnswerParts::default().encode(), b"");
    }

    #[test]
    fn an_answer_states_the_time_since_the_ping_before_and_saturates() {
        let mut state = AnswerState { root: Some(RootPrefix::default()), last_ping: None };
        let start = Instant::now();
        let later = start + Duration::from_secs(86_400 * 60);
        let since = [start, start + Duration::from_millis(300), later].map(|at| {
            let bytes = state.answer(at).encode();
            AnswerParts::decode(&bytes).since_ping.unwrap().as_millis()
        });
        assert_eq!(since, [u128::from(u32::MAX), 300, u128::from(u32::MAX)]);
    }

    #[test]
    fn an_offset_takes_the_way_of_the_answer_into_account_and_saturates() {
        let rtt = Duration::from_millis(100);
        assert_eq!(clock_offset_ms(1_000, 1_050, rtt), 0);
        assert_eq!(clock_offset_ms(0, 172_800_050, rtt), -172_800_000);
        assert_eq!(clock_offset_ms(u64::MAX, 0, rtt), i64::MAX);
        assert_eq!(clock_offset_ms(0, u64::MAX, Duration::ZERO), i64::MIN);
    }
}
