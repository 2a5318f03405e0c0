//! `h2ping` check: passes if the server acknowledges an HTTP/2 PING frame (RFC 9113, section 6.7).
//!
//! It tests that a process answers at the level of HTTP/2, without a request that a handler would serve.

use std::pin::pin;

use bytes::Bytes;
use futures::FutureExt as _;
use h2::{Ping, client};
use hearsay_protocol::Invalid;

use super::{
    connect::{Connector, Socket},
    http::cause,
    outcome::Outcome,
    spec::CheckTls,
    tls::{Protocol, TlsOptions},
};
use crate::registry::address::Target;

/// Maximum number of bytes of headers; the check makes no request.
const HEADER_BYTES_MAX: u32 = 4096;

/// A check that sends a PING frame.
#[derive(Debug)]
pub(super) struct H2pingProbe {
    target: Target,
    tls: Option<TlsOptions>,
}

impl H2pingProbe {
    /// Returns a check of `host:port`. Without TLS the server must take HTTP/2 with prior knowledge.
    pub(super) fn new(address: &str, tls: &CheckTls) -> Result<Self, Invalid> {
        Ok(Self { target: Target::parse("h2ping", address)?, tls: TlsOptions::parse(tls, Protocol::Http2)? })
    }

    /// Runs the check once. The caller enforces the timeout.
    pub(super) async fn run(&self, connector: &Connector) -> Outcome {
        let socket = match connector.open(&self.target, self.tls.as_ref()).await {
            Ok(socket) => socket,
            Err(error) => return error.into(),
        };
        match ping(socket).await {
            Ok(()) => Outcome::passing(format!("{} acknowledged an HTTP/2 PING", self.target)),
            Err(problem) => {
                Outcome::critical(format!("{} acknowledged no HTTP/2 PING: {problem}", self.target))
            }
        }
    }
}

/// Sends a PING frame and waits for its acknowledgement.
async fn ping(socket: Box<dyn Socket>) -> Result<(), String> {
    let mut builder = client::Builder::new();
    builder.enable_push(false).max_header_list_size(HEADER_BYTES_MAX);
    // The connection would end if the sender of requests were dropped.
    let (_requests, mut connection) =
        builder.handshake::<_, Bytes>(socket).await.map_err(|error| cause(&error))?;
    let mut ping_pong = connection.ping_pong().ok_or("the connection sends no PING")?;
    let mut connection = pin!(connection);
    let mut acknowledged = pin!(ping_pong.ping(Ping::opaque()));
    let ended = tokio::select! {
        biased;
        pong = &mut acknowledged => return pong.map(drop).map_err(|error| cause(&error)),
        ended = &mut connection => ended,
    };
    // The acknowledgement may have come with the end of the connection.
    match (acknowledged.as_mut().now_or_never(), ended) {
        (Some(Ok(_)), _) => Ok(()),
        (_, Err(error)) => Err(cause(&error)),
        _ => Err("the server closed the connection".into()),
    }
}
