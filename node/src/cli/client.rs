//! HTTP client of the commands: requests to a node over TCP or its Unix socket.
//!
//! Each request uses a new HTTP/1.1 connection. Time and size of answers are bounded, because another program
//! may listen at the port.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use hearsay_services::http::IDEMPOTENCY_KEY;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header, uri::Authority};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    time::timeout,
};

use super::failure::Failure;
use crate::{
    config::{Environment, HTTP_PORT},
    escape::percent_encoded,
    socket,
    storage::Secret,
};

/// The default node if no local Unix socket is usable.
const DEFAULT_NODE: &str = "http://127.0.0.1:7500";
/// Connect timeout per address. Leaves time for one lost packet and its retransmission (1 s).
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// Timeout of an answer's head, and again of its body. Nodes answer from memory; this covers a blocked event
/// loop.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// Timeout of a write of many entries, which waits for disks of several nodes.
const WRITE_MAX: Duration = Duration::from_secs(60);
/// The largest answer: 100,000 instances at half a kilobyte each.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Maximum number of addresses of one node that are tried. The node that lists them puts the best ones first.
const ADDRESSES_MAX: usize = 4;
/// Maximum number of characters of an error that are printed.
const PROBLEM_CHARS_MAX: usize = 500;

/// Prefix of the path of a Unix socket in `--node`.
const SOCKET_SCHEME: &str = "unix:";
/// `Host` header over a Unix socket: a name that every node accepts.
const SOCKET_AUTHORITY: &str = "localhost";

/// Address of a node.
#[derive(Clone, PartialEq, Eq, Debug)]
enum NodeAddress {
    Tcp(String, u16),
    Unix(PathBuf),
}

impl std::fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(host, _) => f.write_str(host),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// An open connection.
#[derive(Debug)]
enum Connection {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Client of one node.
#[derive(Clone, Debug)]
pub(super) struct Client {
    url: String,
    authority: String,
    /// Addresses to try: at least one, best first.
    addresses: Vec<NodeAddress>,
    /// Why no Unix socket is used, and where sockets were searched: part of the error message.
    searched: Option<String>,
    /// Index of the address of the last successful connection, shared by clones.
    preferred: Arc<AtomicUsize>,
    token: Option<Secret<String>>,
    /// The node's name, if another node listed it.
    name: Option<String>,
}

/// A POST request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Post<'a> {
    pub(super) path: &'a str,
    pub(super) content_type: &'a str,
    /// Idempotency key: the node stores repeated requests once.
    pub(super) key: Option<&'a str>,
    pub(super) body: &'a Bytes,
}

/// The whole answer of a node.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

impl Client {
    /// Returns a client of this machine's default node. It uses the Unix socket of the node at port 7500,
    /// else the only Unix socket found, else TCP at port 7500.
    pub(super) fn local(environment: &Environment, token: Option<Secret<String>>) -> Result<Self, Failure> {
        let mut found = socket::find(environment);
        if let Some(first) = found.iter().find(|found| found.port == HTTP_PORT) {
            let mut client = Self::new(DEFAULT_NODE, token)?;
            client.addresses.insert(0, NodeAddress::Unix(first.path.clone()));
            return Ok(client);
        }
        match (found.pop(), found.len()) {
            (Some(only), 0) => Ok(Self::at_socket(only.path, token)),
            (others, _) => {
                let searched = socket::searched(environment);
                let why = match others {
                    Some(_) => "several nodes have a Unix socket, but none is at port 7500",
                    None => "there is no Unix socket that this user can use",
                };
                let searched = Some(format!("{why} (searched {searched})"));
                Ok(Self { searched, ..Self::new(DEFAULT_NODE, token)? })
            }
        }
    }

    fn at_socket(path: PathBuf, token: Option<Secret<String>>) -> Self {
        Self {
            url: format!("{SOCKET_SCHEME}{}", path.display()),
            authority: SOCKET_AUTHORITY.into(),
            addresses: vec![NodeAddress::Unix(path)],
            searched: None,
            preferred: Arc::default(),
            token,
            name: None,
        }
    }

    /// Returns a client of the node at `http://host:port` (the scheme is optional) or `unix:PATH`.
    pub(super) fn new(url: &str, token: Option<Secret<String>>) -> Result<Self, Failure> {
        if let Some(path) = url.strip_prefix(SOCKET_SCHEME) {
            // The URL form, `unix:///run/x.sock`.
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() {
                return Err(Failure::Usage(format!("{url:?} has no path; give unix:PATH")));
            }
            return Ok(Self::at_socket(path.into(), token));
        }
        let invalid = |why: &str| Failure::Usage(format!("{url:?} is not the URL of a node: {why}"));
        if url.starts_with("https://") {
            return Err(invalid("nodes serve only HTTP without TLS; give http://host:port"));
        }
        let bare = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/');
        let uri: Uri = bare.parse().map_err(|_| invalid("give http://host:port"))?;
        let authority = uri.authority().ok_or_else(|| invalid("give http://host:port"))?;
        if uri.path().len() > 1
            || uri.query().is_some()
            || authority.as_str().contains('@')
            || bare.contains("://")
        {
            return Err(invalid("give http://host:port and nothing else"));
        }
        // Otherwise an invalid port would silently become port 80.
        if authority.port_u16().is_none() && authority.as_str() != authority.host() {
            return Err(invalid("the port is invalid; give http://host:port"));
        }
        Ok(Self {
            url: format!("http://{authority}"),
            authority: authority.to_string(),
            addresses: vec![tcp_address(authority)],
            searched: None,
            preferred: Arc::default(),
            token,
            name: None,
        })
    }

    /// Returns a client of another node. It connects to the first of these addresses (`host:port`) that
    /// accepts, or to the host of `url` if there are none. The token is not sent: each node has its own
    /// token.
    pub(super) fn with_addresses(url: &str, addresses: &[String]) -> Result<Self, Failure> {
        let mut client = Self::new(url, None)?;
        let others = addresses.iter().filter_map(|address| address.parse().ok()).map(|at| tcp_address(&at));
        let first = client.addresses.remove(0);
        client.addresses.extend(others);
        if client.addresses.is_empty() {
            client.addresses.push(first);
        }
        client.addresses.truncate(ADDRESSES_MAX);
        Ok(client)
    }

    /// Opens a connection to the first address that accepts one, starting with the last successful one.
    async fn connect(&self) -> Result<Connection, Failure> {
        let preferred = self.preferred.load(Relaxed);
        let others = (0..self.addresses.len()).filter(|at| *at != preferred);
        let mut problems = Vec::new();
        for at in std::iter::once(preferred).chain(others) {
            let Some(address) = self.addresses.get(at) else { continue };
            let opening = async {
                match address {
                    NodeAddress::Tcp(host, port) => {
                        TcpStream::connect((host.as_str(), *port)).await.map(Connection::Tcp)
                    }
                    NodeAddress::Unix(path) => UnixStream::connect(path).await.map(Connection::Unix),
                }
            };
            match timeout(CONNECT_MAX, opening).await {
                Ok(Ok(stream)) => {
                    self.preferred.store(at, Relaxed);
                    return Ok(stream);
                }
                Ok(Err(error)) => problems.push((address, error.to_string())),
                Err(_) => problems.push((address, "no answer to the connect".to_owned())),
            }
        }
        let reason = match problems.as_slice() {
            [(_, problem)] => problem.clone(),
            several => {
                let reasons = several.iter().map(|(address, problem)| format!("{address}: {problem}"));
                reasons.collect::<Vec<_>>().join("; ")
            }
        };
        Err(self.unreachable(match &self.searched {
            Some(searched) => format!("{reason}; {searched}"),
            None => reason,
        }))
    }

    /// Sets the name of the node.
    pub(super) fn with_name(self, name: &str) -> Self {
        Self { name: Some(name.to_owned()), ..self }
    }

    /// Returns the node's URL as for `--node`: an origin, or `unix:PATH`.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Returns the node's origin for programs of this machine, if it is known without a request.
    pub(super) fn origin(&self) -> Option<String> {
        match self.addresses.as_slice() {
            [NodeAddress::Unix(path)] => socket::port_of(path).map(|port| format!("http://127.0.0.1:{port}")),
            _ => Some(self.url.clone()),
        }
    }

    /// Returns a client that uses only the Unix socket, if it accepts a connection, and whether the node is
    /// in the same pid namespace (its pid is visible here).
    pub(super) async fn over_socket_only(&self) -> Option<(Self, bool)> {
        let is_socket = |address: &&NodeAddress| matches!(address, NodeAddress::Unix(_));
        let addresses = self.addresses.iter().filter(is_socket).cloned().collect();
        let client = Self { addresses, preferred: Arc::default(), ..self.clone() };
        match client.connect().await {
            Ok(Connection::Unix(stream)) => {
                let pid = stream.peer_cred().ok().and_then(|node| node.pid());
                Some((client, pid.is_some_and(|pid| pid > 0)))
            }
            _ => None,
        }
    }

    /// Sends a request without a body and reads the whole answer, whatever its status.
    pub(super) async fn request(&self, method: Method, path: &str) -> Result<Answer, Failure> {
        let response = self.send(method, path, &[(header::ACCEPT, "application/json")]).await?;
        self.read(response).await
    }

    /// Reads the body of a response.
    pub(super) async fn read(&self, response: Response<Incoming>) -> Result<Answer, Failure> {
        let status = response.status();
        let body = timeout(ANSWER_MAX, Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect());
        match body.await {
            Ok(Ok(body)) => Ok(Answer { status, body: body.to_bytes() }),
            Ok(Err(error)) => Err(self.unreachable(format!("the answer broke off: {error}"))),
            Err(_) => Err(self.unreachable("the answer is incomplete after the timeout")),
        }
    }

    /// Sends a GET; any status but success is a failure.
    pub(super) async fn get(&self, path: &str) -> Result<Answer, Failure> {
        self.request(Method::GET, path).await?.expect_success()
    }

    /// Sends a POST and reads the whole answer, whatever its status.
    pub(super) async fn post(&self, post: Post<'_>) -> Result<Answer, Failure> {
        let mut headers =
            vec![(header::ACCEPT, "application/json"), (header::CONTENT_TYPE, post.content_type)];
        headers.extend(post.key.map(|key| (IDEMPOTENCY_KEY, key)));
        let request = self.build_request(Method::POST, post.path, &headers, post.body.clone());
        let response = self.exchange(request, WRITE_MAX).await?;
        self.read(response).await
    }

    /// Same as [`post`](Self::post). In a cluster with a key, this node may refuse the write for lack of
    /// proof. Then `relay` signs the write and forwards it to this node.
    pub(super) async fn post_through(&self, relay: &Self, post: Post<'_>) -> Result<Answer, Failure> {
        let answer = self.post(post).await?;
        let is_refused = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&answer.status);
        match self.name.as_deref().filter(|_| is_refused) {
            Some(name) => relay.post(Post { path: &at_node(post.path, name), ..post }).await,
            None => Ok(answer),
        }
    }

    /// Same as [`write`](Self::write). If another node holds the registration, this node forwards the write
    /// to the holder.
    pub(super) async fn write_at_holder(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Answer, Failure> {
        let answer = self.write(method.clone(), path, body.clone()).await?;
        match answer.holder() {
            Some(node) => self.write(method, &at_node(path, &node), body).await,
            None => Ok(answer),
        }
    }

    /// Sends a request with a JSON body and reads the whole answer, whatever its status.
    pub(super) async fn write(&self, method: Method, path: &str, body: Bytes) -> Result<Answer, Failure> {
        let headers = [(header::ACCEPT, "application/json"), (header::CONTENT_TYPE, "application/json")];
        let response = self.exchange(self.build_request(method, path, &headers, body), ANSWER_MAX).await?;
        self.read(response).await
    }

    /// POSTs JSON and returns the response with its unread body, a stream of events.
    pub(super) async fn open_stream(&self, path: &str, body: Bytes) -> Result<Response<Incoming>, Failure> {
        let headers = [(header::ACCEPT, "text/event-stream"), (header::CONTENT_TYPE, "application/json")];
        self.exchange(self.build_request(Method::POST, path, &headers, body), ANSWER_MAX).await
    }

    /// Sends a request and returns the response with its unread body.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(header::HeaderName, &str)],
    ) -> Result<Response<Incoming>, Failure> {
        self.exchange(self.build_request(method, path, headers, Bytes::new()), ANSWER_MAX).await
    }

    async fn exchange(
        &self,
        request: http::Result<Request<Full<Bytes>>>,
        answer_max: Duration,
    ) -> Result<Response<Incoming>, Failure> {
        let request = request.map_err(|error| Failure::Usage(error.to_string()))?;
        let sender = match self.connect().await? {
            Connection::Tcp(stream) => handshake(stream).await,
            Connection::Unix(stream) => handshake(stream).await,
        };
        let mut sender = sender.map_err(|error| self.unreachable(error))?;
        match timeout(answer_max, sender.send_request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(self.unreachable(format!("the answer is not HTTP: {error}"))),
            Err(_) => Err(self.unreachable("it accepts connections, but does not answer")),
        }
    }

    fn build_request(
        &self,
        method: Method,
        path: &str,
        headers: &[(header::HeaderName, &str)],
        body: Bytes,
    ) -> http::Result<Request<Full<Bytes>>> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, &self.authority)
            .header(header::USER_AGENT, concat!("hearsay-node/", env!("CARGO_PKG_VERSION")));
        for (name, value) in headers {
            request = request.header(name, *value);
        }
        if let Some(token) = &self.token {
            let mut bearer = HeaderValue::try_from(format!("Bearer {}", token.expose()))?;
            bearer.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, bearer);
        }
        request.body(Full::new(body))
    }

    /// Returns the failure for a node without a usable answer.
    pub(super) fn unreachable(&self, problem: impl ToString) -> Failure {
        Failure::Unreachable { url: self.url.clone(), problem: problem.to_string() }
    }
}

/// Starts HTTP/1.1 on a connection.
async fn handshake(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> hyper::Result<http1::SendRequest<Full<Bytes>>> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // The task ends with the body or the sender. Both report the connection's errors.
    tokio::spawn(connection);
    Ok(sender)
}

/// Returns host and port of an authority, without the brackets of an IPv6 address.
fn tcp_address(authority: &Authority) -> NodeAddress {
    let host = authority.host().trim_matches(['[', ']']).to_owned();
    NodeAddress::Tcp(host, authority.port_u16().unwrap_or(80))
}

impl Answer {
    /// Returns the failure for a status other than success.
    pub(super) fn expect_success(self) -> Result<Self, Failure> {
        let why = self.problem();
        match self.status {
            status if status.is_success() => Ok(self),
            StatusCode::NOT_FOUND => Err(Failure::NoMatch(why)),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Failure::Refused(format!(
                "{why} (writes from another machine, and reads of a private node, need the token in that node's data directory: give it with --token or HEARSAY_TOKEN)"
            ))),
            _ => Err(Failure::Refused(why)),
        }
    }

    /// Returns the holder in a 404 answer, if it has one.
    fn holder(&self) -> Option<String> {
        let problem = serde_json::from_slice::<Value>(&self.body)
            .ok()
            .filter(|_| self.status == StatusCode::NOT_FOUND)?;
        problem.get("holder")?.as_str().map(str::to_owned)
    }

    /// Parses the answer as JSON.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_slice(&self.body)
            .map_err(|error| Failure::Refused(format!("the response is not one of a Hearsay node: {error}")))
    }

    /// Returns the error message of an answer: the `detail` of RFC 9457, or the text.
    pub(super) fn problem(&self) -> String {
        let detail = serde_json::from_slice::<Value>(&self.body).ok().and_then(|problem| {
            ["detail", "title"].iter().find_map(|key| problem.get(key)?.as_str().map(str::to_owned))
        });
        let text = detail.unwrap_or_else(|| String::from_utf8_lossy(&self.body).trim().to_owned());
        let text: String = text.chars().take(PROBLEM_CHARS_MAX).collect();
        if text.is_empty() { format!("the node answers {}", self.status) } else { text }
    }
}

/// Adds the query parameter that makes a node forward the write to another node.
fn at_node(path: &str, node: &str) -> String {
    let mark = if path.contains('?') { '&' } else { '?' };
    format!("{path}{mark}node={}", percent_encoded(node))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_named_with_or_without_its_scheme() {
        for (text, url, host, port) in [
            ("http://127.0.0.1:7500", "http://127.0.0.1:7500", "127.0.0.1", 7500),
            ("http://db:7500/", "http://db:7500", "db", 7500),
            ("db:7501", "http://db:7501", "db", 7501),
            ("http://[::1]:7500", "http://[::1]:7500", "::1", 7500),
            ("http://db", "http://db", "db", 80),
        ] {
            let client = Client::new(text, None).unwrap();
            assert_eq!(
                (client.url(), client.addresses.as_slice()),
                (url, [NodeAddress::Tcp(host.to_owned(), port)].as_slice())
            );
        }
    }

    #[tokio::test]
    async fn a_node_is_asked_at_the_first_of_its_addresses_that_takes_a_connection() {
        let listen = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let closed = listen().local_addr().unwrap().to_string();
        let open = listen();
        let addresses = [closed.clone(), "no address".into(), open.local_addr().unwrap().to_string()];
        let client = Client::with_addresses(&format!("http://{closed}"), &addresses).unwrap();
        let Connection::Tcp(stream) = client.connect().await.unwrap() else { panic!("no TCP") };
        assert_eq!(stream.peer_addr().unwrap(), open.local_addr().unwrap());
        assert_eq!(client.clone().preferred.load(Relaxed), 1, "which is the first to be tried the next time");
        drop(open);
        let error = client.connect().await.unwrap_err().to_string();
        assert_eq!(error.matches("refused").count(), 2, "{error}");
        let stated = Client::with_addresses("http://db:7500", &[]).unwrap();
        assert_eq!(stated.addresses, [NodeAddress::Tcp("db".to_owned(), 7500)], "an older node lists none");
    }

    #[tokio::test]
    async fn a_socket_is_preferred_and_what_was_tried_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = dir.path().join("hearsay");
        std::fs::create_dir(&runtime).unwrap();
        let path = dir.path().to_str().unwrap();
        let local = || {
            let environment = [("XDG_RUNTIME_DIR", path), ("TMPDIR", path)].into_iter().collect();
            Client::local(&environment, None).unwrap()
        };
        // The test cannot run beside a node of this machine: its socket in the system's directory would be
        // preferred.
        if std::path::Path::new("/run/hearsay").exists() {
            return;
        }
        let none = local();
        assert_eq!(none.addresses, [NodeAddress::Tcp("127.0.0.1".into(), 7500)]);
        assert!(none.searched.as_ref().is_some_and(|searched| searched.contains(path)));
        let socket = |name: &str| {
            let path = runtime.join(name);
            (std::os::unix::net::UnixListener::bind(&path).unwrap(), path)
        };
        let (_listener, only) = socket("shop-7501.sock");
        drop(socket("stale-7500.sock"));
        let client = local();
        assert_eq!(client.addresses, [NodeAddress::Unix(only.clone())]);
        assert_eq!(client.url(), format!("unix:{}", only.display()));
        assert_eq!(client.origin().as_deref(), Some("http://127.0.0.1:7501"));
        assert!(matches!(client.connect().await, Ok(Connection::Unix(_))));
        assert!(client.over_socket_only().await.is_some_and(|(_, sees_pids)| sees_pids));
        assert!(none.over_socket_only().await.is_none());
        let (_another, _) = socket("shop-7502.sock");
        assert_eq!(local().addresses, [NodeAddress::Tcp("127.0.0.1".into(), 7500)], "either could be meant");
        let (_first, path) = socket("default-7500.sock");
        let client = local();
        assert_eq!(client.addresses, [NodeAddress::Unix(path), NodeAddress::Tcp("127.0.0.1".into(), 7500)]);
        assert_eq!(client.url(), "http://127.0.0.1:7500");
    }

    #[tokio::test]
    async fn a_socket_is_named_with_its_path() {
        for text in ["unix:/run/hearsay/a-7500.sock", "unix:///run/hearsay/a-7500.sock"] {
            let client = Client::new(text, None).unwrap();
            assert_eq!(client.addresses, [NodeAddress::Unix("/run/hearsay/a-7500.sock".into())]);
        }
        assert!(Client::new("unix:", None).is_err());
        let failure = Client::new("unix:/nowhere/n.sock", None).unwrap().connect().await.unwrap_err();
        assert!(failure.to_string().contains("no node answers at unix:/nowhere/n.sock"), "{failure}");
    }

    #[test]
    fn an_invalid_url_is_refused_with_an_example() {
        for wrong in
            ["https://db:7500", "ftp://db", "", "http://", "db:7500/services", "a b", "u@db:1", "db?x"]
        {
            let error = Client::new(wrong, None).unwrap_err();
            assert!(
                matches!(&error, Failure::Usage(text) if text.contains("http://host:port")),
                "{wrong}: {error}"
            );
        }
    }

    #[test]
    fn a_name_never_leaves_its_segment() {
        assert_eq!(percent_encoded("grade book"), "grade%20book");
        assert_eq!(percent_encoded("../leave?x#y"), "..%2Fleave%3Fx%23y");
    }

    #[test]
    fn a_refusal_is_reported_with_its_detail() {
        let answer = |body: &'static str| Answer { status: StatusCode::NOT_FOUND, body: Bytes::from(body) };
        assert_eq!(answer(r#"{"title":"Not Found","detail":"no service x"}"#).problem(), "no service x");
        assert_eq!(answer("plain\n").problem(), "plain");
        assert_eq!(answer("").problem(), "the node answers 404 Not Found");
        assert!(matches!(answer("x").expect_success(), Err(Failure::NoMatch(_))));
    }
}
