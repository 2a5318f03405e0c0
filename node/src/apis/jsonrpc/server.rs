//! The listener of `--jsonrpc-tcp`: one JSON object on each line, answered by one line, in order.
//!
//! A line that is no JSON object ends the connection. So a web page cannot use it: the first line that a
//! browser sends is that of an HTTP request, and its body is never reached. The protocol carries no token;
//! a client has the rights that its address has over HTTP.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use axum::Router;
use hearsay_services::network::{Activity, Exempt, Shares};
use serde_json::value::RawValue;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, copy, sink},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
    time::timeout,
};

use super::{
    error::RpcError,
    message::{Version, response},
    receipts::Receipts,
    session::Session,
};
use crate::http::{
    reentry::InnerClient,
    server::{
        connection::{Connection, HOLDER},
        limits::Limits,
    },
    state::AppState,
};

/// Connections.
const CONNECTIONS_MAX: usize = 256;
/// Bytes of a line. All connections together take at most 64 MiB for their lines, and twice that while the
/// lines arrive.
const LINE_BYTES_MAX: usize = 256 * 1024;
/// How long a connection may be idle. Clients of Go keep one connection open.
const IDLE_MAX: Duration = Duration::from_secs(600);
/// Time for the rest of a line after its first byte, and for a client to read a response.
const LINE_TIME_MAX: Duration = Duration::from_secs(10);
/// Time in which a client whose line is refused can read why, and the bytes of it that are discarded
/// meanwhile. Guess: four lines of the longest kind.
const REFUSED_TIME_MAX: Duration = Duration::from_secs(1);
const REFUSED_BYTES_MAX: u64 = 4 * LINE_BYTES_MAX as u64;
/// Pause after a failed accept. The process is out of file descriptors; meanwhile some may be closed.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// The server of `--jsonrpc-tcp`.
#[derive(Debug)]
pub struct JsonRpcServer {
    state: Arc<AppState>,
    router: Router,
    /// Facts about a connection, without its peer.
    base: Connection,
}

/// The reason why the server ends a connection; the label of its counter.
type EndReason = &'static str;

impl JsonRpcServer {
    /// A server whose calls enter the router of the node. `limits` are those of HTTP.
    pub fn new(state: Arc<AppState>, router: Router, limits: Limits) -> Self {
        Self { state, router, base: Connection::new(limits) }
    }

    /// Serves until `stop` is true or its sender is dropped. Then calls have [`Limits::drain`] to finish.
    pub async fn serve(self, listener: TcpListener, mut stop: watch::Receiver<bool>) {
        let server = Arc::new(self);
        let exempt: &Exempt = &server.base.limits.exempt;
        let shares = Shares::new(CONNECTIONS_MAX);
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                biased;
                // An error means that the sender is gone, and the node with it.
                _ = stop.wait_for(|stop| *stop) => break,
                Some(_) = connections.join_next() => continue,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, peer)) = accepted else {
                server.state.metrics.jsonrpc.refused("accept_failed");
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            };
            let activity = Arc::<Activity>::default();
            let holder = exempt.holder(peer.ip());
            let Ok(share) = shares.take(holder, Some(&activity)) else {
                server.state.metrics.jsonrpc.refused("connections");
                continue;
            };
            let (serving, stop) = (Arc::clone(&server), stop.clone());
            connections.spawn(HOLDER.scope(holder, async move {
                let _share = share;
                serving.serve_connection(stream, peer, &activity, stop).await;
            }));
        }
        drop(listener);
        let drained = async { while connections.join_next().await.is_some() {} };
        if timeout(server.base.limits.drain, drained).await.is_err() {
            connections.shutdown().await;
        }
    }

    async fn serve_connection(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        activity: &Arc<Activity>,
        mut stop: watch::Receiver<bool>,
    ) {
        let metrics = &self.state.metrics.jsonrpc;
        let _open = metrics.open_connection();
        // Without it a response is only later.
        _ = stream.set_nodelay(true);
        let connection = Connection { peer: Some(peer), ..self.base.clone() };
        let client = InnerClient::of_connection(self.router.clone(), connection);
        let session = Session::new(Arc::clone(&self.state), client, Receipts::default());
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        loop {
            let waiting = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return,
                () = activity.evicted() => Err("evicted"),
                waiting = timeout(IDLE_MAX, reader.fill_buf()) => match waiting {
                    Ok(Ok(bytes)) if !bytes.is_empty() => Ok(()),
                    Ok(_) => return,
                    Err(_) => Err("idle"),
                },
            };
            let _active = activity.begin();
            let answered = match waiting {
                Ok(()) => answer_line(&session, &mut reader, &mut writer).await,
                Err(reason) => Err(reason),
            };
            if let Err(reason) = answered {
                metrics.refused(reason);
                return;
            }
        }
    }
}

/// Reads a line and answers it.
///
/// # Errors
/// The connection is to be closed.
async fn answer_line(
    session: &Session,
    reader: &mut BufReader<OwnedReadHalf>,
    writer: &mut OwnedWriteHalf,
) -> Result<(), EndReason> {
    let line = timeout(LINE_TIME_MAX, read_line(reader)).await;
    let (line, reason) = match line {
        Ok(Ok(line)) => match object_of(&line) {
            Ok(object) => (Ok(object), ""),
            Err(error) => {
                let detail = format!("the line is not a JSON object: {error}; the connection ends");
                (Err(RpcError::parse(detail)), "not_object")
            }
        },
        Ok(Err(LineError::TooLong)) => {
            let detail = format!("the line is longer than {LINE_BYTES_MAX} bytes; the connection ends");
            (Err(RpcError::invalid_request(detail)), "line_bytes")
        }
        Ok(Err(LineError::Broken)) => return Err("broken"),
        Err(_) => {
            let detail = "the rest of the line took too long; send it at once; the connection ends";
            (Err(RpcError::invalid_request(detail)), "line_time")
        }
    };
    let object = match line {
        Ok(object) => object,
        Err(error) => {
            // A browser gets no more than this line, which contains nothing of the node.
            let text = response(Version::One, RawValue::NULL, Err(&error));
            _ = write_line(writer, text).await;
            discard_rest(reader, writer).await;
            return Err(reason);
        }
    };
    let mut answer = session.answer_one(&object, Some(Version::One)).await;
    match answer.text.take() {
        // The memory stays charged until the client has read the line.
        Some(text) => write_line(writer, text).await,
        None => Ok(()),
    }
}

/// Returns a line as a JSON object, unparsed.
pub(super) fn object_of(line: &[u8]) -> Result<Box<RawValue>, String> {
    let value: Box<RawValue> = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    if value.get().starts_with('{') { Ok(value) } else { Err("it is another value".to_owned()) }
}

/// Why no line was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum LineError {
    TooLong,
    /// The connection broke, or ended within the line.
    Broken,
}

/// Reads a line. Its end may be missing at the end of the connection.
async fn read_line(reader: &mut BufReader<OwnedReadHalf>) -> Result<Vec<u8>, LineError> {
    let mut line = Vec::new();
    let mut limited = reader.take(LINE_BYTES_MAX as u64 + 1);
    limited.read_until(b'\n', &mut line).await.map_err(|_| LineError::Broken)?;
    if LINE_BYTES_MAX < line.len() {
        return Err(LineError::TooLong);
    }
    Ok(line)
}

/// Ends the sending direction, and discards what the client still sends. A connection that is closed with
/// unread bytes is reset, and the client may lose the last line.
async fn discard_rest(reader: &mut BufReader<OwnedReadHalf>, writer: &mut OwnedWriteHalf) {
    _ = writer.shutdown().await;
    let mut rest = reader.take(REFUSED_BYTES_MAX);
    _ = timeout(REFUSED_TIME_MAX, copy(&mut rest, &mut sink())).await;
}

async fn write_line(writer: &mut OwnedWriteHalf, text: String) -> Result<(), EndReason> {
    let line = text + "\n";
    match timeout(LINE_TIME_MAX, writer.write_all(line.as_bytes())).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err("broken"),
        Err(_) => Err("write_stall"),
    }
}
