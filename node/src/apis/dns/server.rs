//! The DNS server: sockets, connections and their bounds around [`respond`].
//!
//! Requests are answered where they are received: an answer needs no other machine, so no task has to be
//! made for it, and a flood cannot make tasks grow. hickory-server 0.26.3 starts a task for each datagram
//! and connection without a bound, and logs two lines for each request; of hickory, the messages are used.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use hearsay_services::network::{Activity, Exempt, Shares};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
    time::timeout,
};

use super::{
    answer::Source,
    clients::OwnAddresses,
    datagrams::Datagrams,
    message::{Client, Transport, respond},
    metrics::DnsMetrics,
    rate_limit::RateLimit,
};
use crate::system::ports::DnsSockets;

/// Connections over TCP.
const CONNECTIONS_MAX: usize = 512;
/// How long a connection may be idle, and a client may take to send a request or to read a response.
/// RFC 7766, section 6.2.3, wants a few seconds.
const IDLE_MAX: Duration = Duration::from_secs(10);
/// The largest request over UDP, in bytes. One question and EDNS need less than 600.
const REQUEST_BYTES_MAX: usize = 4096;
/// A pause after an error of a socket, such as having no file descriptor left.
const RETRY: Duration = Duration::from_millis(100);

/// What all tasks of the server share.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) source: Source,
    pub(super) metrics: Arc<DnsMetrics>,
    pub(super) limit: RateLimit,
    /// The addresses of the clients that a private node answers; `None`: the node answers all.
    pub(super) only: Option<OwnAddresses>,
}

impl Server {
    /// The bytes to answer a request with.
    fn respond(&self, request: &[u8], client: IpAddr, transport: Transport) -> Option<Vec<u8>> {
        let may_read = self.only.as_ref().is_none_or(|own| own.has(client, Instant::now()));
        let client = Client { ip: client.to_canonical(), transport, may_read };
        let response = respond(&self.source, request, client);
        self.metrics.count(client, response.as_ref());
        response.map(|response| response.bytes)
    }
}

/// Serves until `stop` is true or its sender is dropped.
///
/// # Errors
/// The sockets cannot be used.
pub(super) async fn serve(
    server: Arc<Server>,
    sockets: DnsSockets,
    exempt: Exempt,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let udp = Arc::new(Datagrams::new(sockets.udp)?);
    let tcp = TcpListener::from_std(sockets.tcp)?;
    let mut tasks = JoinSet::new();
    // One receiver for each thread of the runtime.
    for _ in 0..tokio::runtime::Handle::current().metrics().num_workers() {
        tasks.spawn(serve_datagrams(Arc::clone(&server), Arc::clone(&udp)));
    }
    tasks.spawn(serve_connections(server, tcp, exempt));
    // The tasks end with the set.
    _ = stop.wait_for(|stopped| *stopped).await;
    Ok(())
}

async fn serve_datagrams(server: Arc<Server>, socket: Arc<Datagrams>) {
    let mut buffer = vec![0; REQUEST_BYTES_MAX];
    loop {
        let request = match socket.receive(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // Among them are ICMP messages about earlier responses.
                tracing::debug!(%error, "a datagram cannot be received");
                if error.kind() != io::ErrorKind::ConnectionRefused {
                    tokio::time::sleep(RETRY).await;
                }
                continue;
            }
        };
        // Nothing can be sent to port 0.
        let client = request.client;
        if client.port() == 0 {
            continue;
        }
        let transport = match server.limit.admit(client.ip(), Instant::now()) {
            true => Transport::Udp,
            false => Transport::LimitedUdp,
        };
        let response = server.respond(&buffer[..request.length], client.ip(), transport);
        let Some(response) = response else { continue };
        // A client repeats a request whose response is lost.
        if let Err(error) = socket.send(&response, &request).await {
            tracing::debug!(%error, %client, "a response cannot be sent");
        }
    }
}

async fn serve_connections(server: Arc<Server>, listener: TcpListener, exempt: Exempt) {
    let shares = Shares::new(CONNECTIONS_MAX);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let (stream, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "a connection cannot be accepted");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        let activity = Arc::<Activity>::default();
        let Ok(share) = shares.take(exempt.holder(client.ip()), Some(&activity)) else {
            server.metrics.refused.inc();
            continue;
        };
        let server = Arc::clone(&server);
        connections.spawn(async move {
            let _share = share;
            let _open = server.metrics.open_connection();
            tokio::select! {
                _ = serve_connection(&server, stream, client, &activity) => (),
                () = activity.evicted() => {
                    server.metrics.refused.inc();
                }
            }
        });
    }
}

/// Answers one request after the other; a client may send the next one before it has read a response.
async fn serve_connection(
    server: &Server,
    mut stream: TcpStream,
    client: SocketAddr,
    activity: &Arc<Activity>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut request = Vec::new();
    loop {
        let length = timeout(IDLE_MAX, stream.read_u16()).await??;
        let _active = activity.begin();
        request.resize(length.into(), 0);
        timeout(IDLE_MAX, stream.read_exact(&mut request)).await??;
        let Some(response) = server.respond(&request, client.ip(), Transport::Tcp) else { return Ok(()) };
        let length = u16::try_from(response.len()).map_err(io::Error::other)?;
        let message = [&length.to_be_bytes(), response.as_slice()].concat();
        timeout(IDLE_MAX, stream.write_all(&message)).await??;
    }
}
