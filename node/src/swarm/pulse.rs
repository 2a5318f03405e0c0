//! Pings, sent when the core says so.
//!
//! libp2p's own ping goes both ways over every connection, at an interval of its own. Here only watchers ping, so that the idle traffic is
//! halved, and the core decides when. One long-lived stream per direction that is used; a ping is one byte there and the same
//! byte back, because only one is ever on its way.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use futures::{AsyncReadExt as _, AsyncWriteExt as _, FutureExt as _, future::BoxFuture};
use libp2p::{
    Multiaddr, PeerId, Stream, StreamProtocol,
    core::{Endpoint, transport::PortUse, upgrade::ReadyUpgrade},
    swarm::{
        ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId, FromSwarm,
        NetworkBehaviour, NotifyHandler, SubstreamProtocol, THandler, THandlerInEvent, THandlerOutEvent,
        ToSwarm,
        handler::{ConnectionEvent, FullyNegotiatedInbound, FullyNegotiatedOutbound},
    },
};

const PROTOCOL: StreamProtocol = StreamProtocol::new("/hearsay/1/pulse");

/// A ping was answered.
#[derive(Debug)]
pub struct Pong {
    /// By whom.
    pub peer: PeerId,
    /// After how long.
    pub rtt: Duration,
}

/// Sends pings and answers them.
#[derive(Debug, Default)]
pub struct Behaviour {
    connections: BTreeMap<PeerId, Vec<ConnectionId>>,
    /// Over which connection a ping is on its way, or its answer.
    underway: BTreeMap<PeerId, ConnectionId>,
    pings: VecDeque<PeerId>,
    pongs: VecDeque<Pong>,
    waker: Option<Waker>,
}

/// Pings queued for the swarm. The core has one on its way to each subject; more than this never wait unless the swarm is stuck.
const PINGS_MAX: usize = 1024;

impl Behaviour {
    /// Pings a connected peer. One that is not connected is passed over.
    pub fn ping(&mut self, peer: PeerId) {
        if self.pings.len() < PINGS_MAX {
            self.pings.push_back(peer);
        }
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Pong;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::default())
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(Handler::default())
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
                // Of two connections that crossed one is closed, and a ping lost with it would look like silence.
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

    fn on_connection_handler_event(&mut self, peer: PeerId, _: ConnectionId, rtt: THandlerOutEvent<Self>) {
        self.underway.remove(&peer);
        self.pongs.push_back(Pong { peer, rtt });
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

/// Tells a handler to ping.
#[derive(Debug, Clone, Copy)]
pub struct Ping;

/// One connection's pings, both ways.
#[derive(Default)]
pub struct Handler {
    ping_wanted: bool,
    outbound: Outbound,
    /// The peer's stream: each byte goes back as it comes.
    inbound: Option<BoxFuture<'static, io::Result<Stream>>>,
}

#[derive(Default)]
enum Outbound {
    #[default]
    Closed,
    Opening,
    Idle(Stream),
    Waiting(BoxFuture<'static, io::Result<(Stream, Duration)>>),
}

async fn ping(mut stream: Stream) -> io::Result<(Stream, Duration)> {
    let sent = Instant::now();
    stream.write_all(&[0]).await?;
    stream.flush().await?;
    stream.read_exact(&mut [0]).await?;
    Ok((stream, sent.elapsed()))
}

async fn echo(mut stream: Stream) -> io::Result<Stream> {
    let mut byte = [0];
    stream.read_exact(&mut byte).await?;
    stream.write_all(&byte).await?;
    stream.flush().await?;
    Ok(stream)
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Ping;
    type ToBehaviour = Duration;
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), ())
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
                Poll::Ready(Ok(stream)) => self.inbound = Some(echo(stream).boxed()),
                Poll::Ready(Err(_)) => self.inbound = None,
            }
        }
        loop {
            match std::mem::take(&mut self.outbound) {
                Outbound::Closed if self.ping_wanted => {
                    self.outbound = Outbound::Opening;
                    let protocol = SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), ());
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
                    Poll::Ready(Ok((stream, rtt))) => {
                        self.outbound = Outbound::Idle(stream);
                        return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(rtt));
                    }
                    // The next ping opens a new stream; this one stays unanswered, which is what the core watches for and repeats.
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
                self.inbound = Some(echo(stream).boxed());
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

// Streams and futures have nothing to show.
impl std::fmt::Debug for Handler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handler").field("ping_wanted", &self.ping_wanted).finish_non_exhaustive()
    }
}
