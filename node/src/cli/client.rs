//! Asking a node over HTTP, by TCP or by its Unix socket.
//!
//! Plain HTTP/1.1, one connection a question: these are commands that a person types. Time and size are bounded, since what listens at
//! that port may be no node at all.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use hearsay_services::writing::IDEMPOTENCY_KEY;
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
    socket,
    storage::Secret,
};

/// The node to ask where none was named and none has a Unix socket here.
const DEFAULT_NODE: &str = "http://127.0.0.1:7500";
/// For each address of a node. A host that is there accepts at once; this leaves room for one lost packet and
/// its repetition (1 s).
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// A node answers from memory. Above what a blocked event loop should ever take.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// A write of many entries waits for disks, here and elsewhere.
const WRITTEN_MAX: Duration = Duration::from_secs(60);
/// The largest answer: ten thousand instances on each of ten nodes, at half a kilobyte apiece.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Addresses of one node that are tried. They come in the asked node's order: one that answers is among the
/// first, or nowhere.
const ADDRESSES_MAX: usize = 4;
/// How much of a refusal is shown.
const PROBLEM_CHARS_MAX: usize = 500;

/// What a Unix socket is named with.
const SOCKET_SCHEME: &str = "unix:";
/// What `Host` says over a Unix socket: a name that every node goes by.
const SOCKET_AUTHORITY: &str = "localhost";

/// Where a node is reached.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Place {
    Tcp(String, u16),
    Unix(PathBuf),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(host, _) => f.write_str(host),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

/// A connection that is open.
#[derive(Debug)]
enum Opened {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A node to ask.
#[derive(Clone, Debug)]
pub(super) struct Client {
    url: String,
    authority: String,
    /// Where it is reached: at least one place, best first.
    places: Vec<Place>,
    /// Where else a node was looked for.
    searched: Option<String>,
    /// Which of them took the last connection. Clones share it.
    preferred: Arc<AtomicUsize>,
    token: Option<Secret<String>>,
    /// Its name, where another node has told it.
    name: Option<String>,
}

/// What a node answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

impl Client {
    /// The node of this machine to ask where none was named. Its socket is preferred: that of the node at the default port, or the only
    /// one. Without such a socket, it is the node at the default port.
    pub(super) fn of_this_machine(
        environment: &Environment,
        token: Option<Secret<String>>,
    ) -> Result<Self, Failure> {
        let mut found = socket::find(environment);
        if let Some(first) = found.iter().find(|found| found.port == HTTP_PORT) {
            let mut client = Self::new(DEFAULT_NODE, token)?;
            client.places.insert(0, Place::Unix(first.path.clone()));
            return Ok(client);
        }
        match (found.pop(), found.len()) {
            (Some(only), 0) => Ok(Self::at_socket(only.path, token)),
            (others, _) => {
                let searched = socket::searched(environment);
                let why = match others {
                    Some(_) => "several nodes have a Unix socket here, none of them at port 7500",
                    None => "no node that this user may reach has a Unix socket",
                };
                let searched = Some(format!("{why} in {searched}"));
                Ok(Self { searched, ..Self::new(DEFAULT_NODE, token)? })
            }
        }
    }

    fn at_socket(path: PathBuf, token: Option<Secret<String>>) -> Self {
        Self {
            url: format!("{SOCKET_SCHEME}{}", path.display()),
            authority: SOCKET_AUTHORITY.into(),
            places: vec![Place::Unix(path)],
            searched: None,
            preferred: Arc::default(),
            token,
            name: None,
        }
    }

    /// The node at `http://host:port` (the scheme may be left out) or `unix:PATH`.
    pub(super) fn new(url: &str, token: Option<Secret<String>>) -> Result<Self, Failure> {
        if let Some(path) = url.strip_prefix(SOCKET_SCHEME) {
            // `unix:///run/x.sock` is the same as a URL.
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() {
                return Err(Failure::Usage(format!("{url:?} names no socket; write unix:PATH")));
            }
            return Ok(Self::at_socket(path.into(), token));
        }
        let wrong = |why: &str| Failure::Usage(format!("{url:?} is no node: {why}"));
        if url.starts_with("https://") {
            return Err(wrong("a node speaks plain HTTP; write http://host:port"));
        }
        let bare = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/');
        let uri: Uri = bare.parse().map_err(|_| wrong("write http://host:port"))?;
        let authority = uri.authority().ok_or_else(|| wrong("write http://host:port"))?;
        if uri.path().len() > 1
            || uri.query().is_some()
            || authority.as_str().contains('@')
            || bare.contains("://")
        {
            return Err(wrong("write http://host:port and nothing else"));
        }
        // What follows the host and is no port would quietly become port 80.
        if authority.port_u16().is_none() && authority.as_str() != authority.host() {
            return Err(wrong("its port is none; write http://host:port"));
        }
        Ok(Self {
            url: format!("http://{authority}"),
            authority: authority.to_string(),
            places: vec![target(authority)],
            searched: None,
            preferred: Arc::default(),
            token,
            name: None,
        })
    }

    /// A node that the asked one names, at whichever of these addresses (`host:port`) takes a connection. Its
    /// token is its own: none goes along.
    pub(super) fn at_any_of(url: &str, addresses: &[String]) -> Result<Self, Failure> {
        let mut client = Self::new(url, None)?;
        let others = addresses.iter().filter_map(|address| address.parse().ok()).map(|at| target(&at));
        let first = client.places.remove(0);
        client.places.extend(others);
        if client.places.is_empty() {
            client.places.push(first);
        }
        client.places.truncate(ADDRESSES_MAX);
        Ok(client)
    }

    /// Opens a connection to the first place that takes one, beginning with the one that took the last.
    async fn connect(&self) -> Result<Opened, Failure> {
        let preferred = self.preferred.load(Relaxed);
        let others = (0..self.places.len()).filter(|at| *at != preferred);
        let mut problems = Vec::new();
        for at in std::iter::once(preferred).chain(others) {
            let Some(place) = self.places.get(at) else { continue };
            let opening = async {
                match place {
                    Place::Tcp(host, port) => {
                        TcpStream::connect((host.as_str(), *port)).await.map(Opened::Tcp)
                    }
                    Place::Unix(path) => UnixStream::connect(path).await.map(Opened::Unix),
                }
            };
            match timeout(CONNECT_MAX, opening).await {
                Ok(Ok(stream)) => {
                    self.preferred.store(at, Relaxed);
                    return Ok(stream);
                }
                Ok(Err(error)) => problems.push((place, error.to_string())),
                Err(_) => problems.push((place, "the connection takes too long".to_owned())),
            }
        }
        let told = match problems.as_slice() {
            [(_, problem)] => problem.clone(),
            several => {
                let told = several.iter().map(|(place, problem)| format!("{place}: {problem}"));
                told.collect::<Vec<_>>().join("; ")
            }
        };
        Err(self.unreachable(match &self.searched {
            Some(searched) => format!("{told}; {searched}"),
            None => told,
        }))
    }

    /// The same, of this name.
    pub(super) fn named(self, name: &str) -> Self {
        Self { name: Some(name.to_owned()), ..self }
    }

    /// The node as `--node` names it: an origin, or `unix:PATH`.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// The node's origin for programs of this machine, where it follows from its name.
    pub(super) fn origin(&self) -> Option<String> {
        match self.places.as_slice() {
            [Place::Unix(path)] => socket::port_of(path).map(|port| format!("http://127.0.0.1:{port}")),
            _ => Some(self.url.clone()),
        }
    }

    /// The node by its Unix socket alone, if that takes a connection. And whether both mean the same process by a pid: the node's own is seen
    /// from here.
    pub(super) async fn by_socket_alone(&self) -> Option<(Self, bool)> {
        let is_socket = |place: &&Place| matches!(place, Place::Unix(_));
        let places = self.places.iter().filter(is_socket).cloned().collect();
        let client = Self { places, preferred: Arc::default(), ..self.clone() };
        match client.connect().await {
            Ok(Opened::Unix(stream)) => {
                let pid = stream.peer_cred().ok().and_then(|node| node.pid());
                Some((client, pid.is_some_and(|pid| pid > 0)))
            }
            _ => None,
        }
    }

    /// Asks and reads the whole answer, whatever its status.
    pub(super) async fn ask(&self, method: Method, path: &str) -> Result<Answer, Failure> {
        let response = self.send(method, path, &[(header::ACCEPT, "application/json")]).await?;
        self.read(response).await
    }

    /// Reads the whole of an answer that has begun.
    pub(super) async fn read(&self, response: Response<Incoming>) -> Result<Answer, Failure> {
        let status = response.status();
        let body = timeout(ANSWER_MAX, Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect());
        match body.await {
            Ok(Ok(body)) => Ok(Answer { status, body: body.to_bytes() }),
            Ok(Err(error)) => Err(self.unreachable(format!("its answer broke off: {error}"))),
            Err(_) => Err(self.unreachable("its answer does not end")),
        }
    }

    /// Asks for something that must be there.
    pub(super) async fn get(&self, path: &str) -> Result<Answer, Failure> {
        self.ask(Method::GET, path).await?.expect_success()
    }

    /// Sends something to be written, and reads the whole answer, whatever its status.
    pub(super) async fn post(&self, path: &str, content_type: &str, body: Bytes) -> Result<Answer, Failure> {
        self.post_keyed(path, content_type, None, body).await
    }

    /// The same under an idempotency key, by which the node knows a write that comes again.
    pub(super) async fn post_keyed(
        &self,
        path: &str,
        content_type: &str,
        key: Option<&str>,
        body: Bytes,
    ) -> Result<Answer, Failure> {
        let mut headers = vec![(header::ACCEPT, "application/json"), (header::CONTENT_TYPE, content_type)];
        headers.extend(key.map(|key| (IDEMPOTENCY_KEY, key)));
        let request = self.request(Method::POST, path, &headers, body);
        let response = self.exchange(request, WRITTEN_MAX).await?;
        self.read(response).await
    }

    /// The same; where a node that `asked` has named takes no word of a stranger, as in a cluster with a key, `asked` passes it on.
    pub(super) async fn post_through(
        &self,
        asked: &Self,
        path: &str,
        content_type: &str,
        key: Option<&str>,
        body: Bytes,
    ) -> Result<Answer, Failure> {
        let answer = self.post_keyed(path, content_type, key, body.clone()).await?;
        let is_refused = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&answer.status);
        match self.name.as_deref().filter(|_| is_refused) {
            Some(name) => asked.post_keyed(&at_node(path, name), content_type, key, body).await,
            None => Ok(answer),
        }
    }

    /// The same, at whichever node holds what is written: the asked node passes it on.
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

    /// Sends JSON to be written, and reads the whole answer, whatever its status.
    pub(super) async fn write(&self, method: Method, path: &str, body: Bytes) -> Result<Answer, Failure> {
        let headers = [(header::ACCEPT, "application/json"), (header::CONTENT_TYPE, "application/json")];
        let response = self.exchange(self.request(method, path, &headers, body), ANSWER_MAX).await?;
        self.read(response).await
    }

    /// Sends JSON to be written, and leaves the body of the answer, a stream of events, to the caller.
    pub(super) async fn open_stream(&self, path: &str, body: Bytes) -> Result<Response<Incoming>, Failure> {
        let headers = [(header::ACCEPT, "text/event-stream"), (header::CONTENT_TYPE, "application/json")];
        self.exchange(self.request(Method::POST, path, &headers, body), ANSWER_MAX).await
    }

    /// Sends a request and leaves the body of the answer to the caller.
    pub(super) async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(header::HeaderName, &str)],
    ) -> Result<Response<Incoming>, Failure> {
        self.exchange(self.request(method, path, headers, Bytes::new()), ANSWER_MAX).await
    }

    async fn exchange(
        &self,
        request: http::Result<Request<Full<Bytes>>>,
        answer_max: Duration,
    ) -> Result<Response<Incoming>, Failure> {
        let request = request.map_err(|error| Failure::Usage(error.to_string()))?;
        let sender = match self.connect().await? {
            Opened::Tcp(stream) => begin(stream).await,
            Opened::Unix(stream) => begin(stream).await,
        };
        let mut sender = sender.map_err(|error| self.unreachable(error))?;
        match timeout(answer_max, sender.send_request(request)).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(self.unreachable(format!("that is no HTTP: {error}"))),
            Err(_) => Err(self.unreachable("it accepts and does not answer")),
        }
    }

    fn request(
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

    /// The failure of a node that gives no answer that counts.
    pub(super) fn unreachable(&self, problem: impl ToString) -> Failure {
        Failure::Unreachable { url: self.url.clone(), problem: problem.to_string() }
    }
}

/// Begins HTTP on a connection.
async fn begin(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> hyper::Result<http1::SendRequest<Full<Bytes>>> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Ends by itself with the body or with the sender. What goes wrong shows there.
    tokio::spawn(connection);
    Ok(sender)
}

/// The host and port to connect to. The brackets of an IPv6 address belong to the URL, not to the address.
fn target(authority: &Authority) -> Place {
    let host = authority.host().trim_matches(['[', ']']).to_owned();
    Place::Tcp(host, authority.port_u16().unwrap_or(80))
}

impl Answer {
    /// Turns a refusal into the failure it means.
    pub(super) fn expect_success(self) -> Result<Self, Failure> {
        let why = self.problem();
        match self.status {
            status if status.is_success() => Ok(self),
            StatusCode::NOT_FOUND => Err(Failure::NoMatch(why)),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(Failure::Refused(format!(
                "{why} (a write from another machine needs the token in the node's data directory: --token or HEARSAY_TOKEN)"
            ))),
            _ => Err(Failure::Refused(why)),
        }
    }

    /// The node that holds what the asked one does not.
    fn holder(&self) -> Option<String> {
        let problem = serde_json::from_slice::<Value>(&self.body)
            .ok()
            .filter(|_| self.status == StatusCode::NOT_FOUND)?;
        problem.get("holder")?.as_str().map(str::to_owned)
    }

    /// The answer as JSON of the expected shape.
    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_slice(&self.body)
            .map_err(|error| Failure::Refused(format!("that answer is not a node's: {error}")))
    }

    /// What a refusal says: the `detail` of RFC 9457, or the text as it is.
    pub(super) fn problem(&self) -> String {
        let detail = serde_json::from_slice::<Value>(&self.body).ok().and_then(|problem| {
            ["detail", "title"].iter().find_map(|key| problem.get(key)?.as_str().map(str::to_owned))
        });
        let text = detail.unwrap_or_else(|| String::from_utf8_lossy(&self.body).trim().to_owned());
        let text: String = text.chars().take(PROBLEM_CHARS_MAX).collect();
        if text.is_empty() { format!("the node answers {}", self.status) } else { text }
    }
}

/// A path that has the asked node pass the write on to the node of this name.
fn at_node(path: &str, node: &str) -> String {
    let mark = if path.contains('?') { '&' } else { '?' };
    format!("{path}{mark}node={}", segment(node))
}

/// A name as one segment of a path: everything but RFC 3986's unreserved characters becomes `%xx`.
pub(super) fn segment(name: &str) -> String {
    let encode = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    name.bytes().map(encode).collect()
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
                (client.url(), client.places.as_slice()),
                (url, [Place::Tcp(host.to_owned(), port)].as_slice())
            );
        }
    }

    #[tokio::test]
    async fn a_node_is_asked_at_the_first_of_its_addresses_that_takes_a_connection() {
        let listen = || std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let closed = listen().local_addr().unwrap().to_string();
        let open = listen();
        let addresses = [closed.clone(), "no address".into(), open.local_addr().unwrap().to_string()];
        let client = Client::at_any_of(&format!("http://{closed}"), &addresses).unwrap();
        let Opened::Tcp(stream) = client.connect().await.unwrap() else { panic!("no TCP") };
        assert_eq!(stream.peer_addr().unwrap(), open.local_addr().unwrap());
        assert_eq!(client.clone().preferred.load(Relaxed), 1, "which is the first to be tried the next time");
        drop(open);
        let error = client.connect().await.unwrap_err().to_string();
        assert_eq!(error.matches("refused").count(), 2, "{error}");
        let stated = Client::at_any_of("http://db:7500", &[]).unwrap();
        assert_eq!(stated.places, [Place::Tcp("db".to_owned(), 7500)], "an older node lists none");
    }

    #[tokio::test]
    async fn a_socket_is_preferred_and_what_was_tried_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let runtime = dir.path().join("hearsay");
        std::fs::create_dir(&runtime).unwrap();
        let path = dir.path().to_str().unwrap();
        let of_this_machine = || {
            let environment = [("XDG_RUNTIME_DIR", path), ("TMPDIR", path)].into_iter().collect();
            Client::of_this_machine(&environment, None).unwrap()
        };
        // A node of this machine may have a socket in the system's directory; then there is no telling what is preferred.
        if std::path::Path::new("/run/hearsay").exists() {
            return;
        }
        let none = of_this_machine();
        assert_eq!(none.places, [Place::Tcp("127.0.0.1".into(), 7500)]);
        assert!(none.searched.as_ref().is_some_and(|searched| searched.contains(path)));
        let socket = |name: &str| {
            let path = runtime.join(name);
            (std::os::unix::net::UnixListener::bind(&path).unwrap(), path)
        };
        let (_listener, only) = socket("shop-7501.sock");
        drop(socket("stale-7500.sock"));
        let client = of_this_machine();
        assert_eq!(client.places, [Place::Unix(only.clone())]);
        assert_eq!(client.url(), format!("unix:{}", only.display()));
        assert_eq!(client.origin().as_deref(), Some("http://127.0.0.1:7501"));
        assert!(matches!(client.connect().await, Ok(Opened::Unix(_))));
        assert!(client.by_socket_alone().await.is_some_and(|(_, sees_pids)| sees_pids));
        assert!(none.by_socket_alone().await.is_none());
        let (_another, _) = socket("shop-7502.sock");
        assert_eq!(of_this_machine().places, [Place::Tcp("127.0.0.1".into(), 7500)], "either could be meant");
        let (_first, path) = socket("default-7500.sock");
        let client = of_this_machine();
        assert_eq!(client.places, [Place::Unix(path), Place::Tcp("127.0.0.1".into(), 7500)]);
        assert_eq!(client.url(), "http://127.0.0.1:7500");
    }

    #[tokio::test]
    async fn a_socket_is_named_with_its_path() {
        for text in ["unix:/run/hearsay/a-7500.sock", "unix:///run/hearsay/a-7500.sock"] {
            let client = Client::new(text, None).unwrap();
            assert_eq!(client.places, [Place::Unix("/run/hearsay/a-7500.sock".into())]);
        }
        assert!(Client::new("unix:", None).is_err());
        let failure = Client::new("unix:/nowhere/n.sock", None).unwrap().connect().await.unwrap_err();
        assert!(failure.to_string().contains("no node answers at unix:/nowhere/n.sock"), "{failure}");
    }

    #[test]
    fn what_is_no_node_says_how_to_write_one() {
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
        assert_eq!(segment("grade book"), "grade%20book");
        assert_eq!(segment("../leave?x#y"), "..%2Fleave%3Fx%23y");
    }

    #[test]
    fn a_refusal_is_told_in_its_own_words() {
        let answer = |body: &'static str| Answer { status: StatusCode::NOT_FOUND, body: Bytes::from(body) };
        assert_eq!(answer(r#"{"title":"Not Found","detail":"no service x"}"#).problem(), "no service x");
        assert_eq!(answer("plain\n").problem(), "plain");
        assert_eq!(answer("").problem(), "the node answers 404 Not Found");
        assert!(matches!(answer("x").expect_success(), Err(Failure::NoMatch(_))));
    }
}
