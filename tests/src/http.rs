//! HTTP client that distinguishes three outcomes: an answer, a refused connection, and an unknown outcome.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use serde_json::Value;

/// Answer to a request.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// Lines of the head.
    pub head: String,
    /// Body.
    pub body: String,
}

impl Reply {
    /// Parses the body as JSON; null if the body is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }

    /// Returns the value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.head.lines().filter_map(|line| line.split_once(": "));
        headers.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

/// Reason for which a request has no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SendError {
    /// The connection failed, so the request was not sent.
    NotSent,
    /// The outcome is unknown: the server may have handled the request.
    Unknown,
}

/// Sends a request on a new connection.
///
/// # Errors
/// See [`SendError`].
pub fn send(
    to: SocketAddr,
    request: &str,
    headers: &[(&str, &str)],
    body: &str,
    limit: Duration,
) -> Result<Reply, SendError> {
    send_under(&to.to_string(), to, request, headers, body, limit)
}

/// Sends a request on a new connection, with this `Host` header.
///
/// # Errors
/// See [`SendError`].
#[allow(clippy::too_many_arguments, reason = "the parts of an HTTP request")]
pub fn send_under(
    host: &str,
    to: SocketAddr,
    request: &str,
    headers: &[(&str, &str)],
    body: &str,
    limit: Duration,
) -> Result<Reply, SendError> {
    let stream = TcpStream::connect_timeout(&to, limit).map_err(|_| SendError::NotSent)?;
    stream.set_read_timeout(Some(limit)).map_err(|_| SendError::NotSent)?;
    exchange(stream, request, host, headers, body).ok_or(SendError::Unknown)
}

/// Sends a request over a node's Unix socket. A non-empty body is sent as JSON.
///
/// # Errors
/// See [`SendError`].
pub fn send_over_socket(
    socket: &Path,
    request: &str,
    body: &str,
    limit: Duration,
) -> Result<Reply, SendError> {
    let stream = UnixStream::connect(socket).map_err(|_| SendError::NotSent)?;
    stream.set_read_timeout(Some(limit)).map_err(|_| SendError::NotSent)?;
    let headers: &[(&str, &str)] =
        if body.is_empty() { &[] } else { &[("content-type", "application/json")] };
    exchange(stream, request, "localhost", headers, body).ok_or(SendError::Unknown)
}

fn exchange(
    mut stream: impl Read + Write,
    request: &str,
    host: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Option<Reply> {
    let head: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let length = body.len();
    let bytes = format!(
        "{request} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-length: {length}\r\n{head}\r\n{body}"
    );
    stream.write_all(bytes.as_bytes()).ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = if chunked { unchunked(body)? } else { body.to_owned() };
    Some(Reply { status, head: head.to_owned(), body })
}

fn unchunked(mut body: &str) -> Option<String> {
    let mut whole = String::new();
    loop {
        let (length, rest) = body.split_once("\r\n")?;
        let length = usize::from_str_radix(length, 16).ok()?;
        if length == 0 {
            return Some(whole);
        }
        whole.push_str(rest.get(..length)?);
        body = rest.get(length + 2..)?;
    }
}
