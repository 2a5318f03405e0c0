//! Asking a node over HTTP.
//!
//! Plain HTTP/1.1, one connection a question: these are commands that a person types. Time and size are bounded, since what listens at
//! that port may be no node at all.

use std::{
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
use tokio::{net::TcpStream, time::timeout};

use super::failure::Failure;
use crate::storage::Secret;

/// Whom to ask where nobody was named.
pub(super) const DEFAULT_NODE: &str = "http://127.0.0.1:7500";
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

/// A node to ask.
#[derive(Clone, Debug)]
pub(super) struct Client {
    url: String,
    authority: String,
    /// Where it is reached: at least one host and port, best first.
    addresses: Vec<(String, u16)>,
    /// Which of them took the last connection. Clones share it.
    preferred: Arc<AtomicUsize>,
    token: Option<Secret<String>>,
}

/// What a node answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
}

impl Client {
    /// The node at `http://host:port`; the scheme may be left out.
    pub(super) fn new(url: &str, token: Option<Secret<String>>) -> Result<Self, Failure> {
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
            addresses: vec![target(authority)],
            preferred: Arc::default(),
            token,
        })
    }

    /// A node that the asked one names, at whichever of these addresses (`host:port`) takes a connection. Its
    /// token is its own: none goes along.
    pub(super) fn at_any_of(url: &str, addresses: &[String]) -> Result<Self, Failure> {
        let mut client = Self::new(url, None)?;
        let others = addresses.iter().filter_map(|address| address.parse().ok()).map(|at| target(&at));
        let first = client.addresses.remove(0);
        client.addresses.extend(others);
        if client.addresses.is_empty() {
            client.addresses.push(first);
        }
        client.addresses.truncate(ADDRESSES_MAX);
        Ok(client)
    }

    /// Opens a connection to the first address that takes one, beginning with the one that took the last.
    async fn connect(&self) -> Result<TcpStream, Failure> {
        let preferred = self.preferred.load(Relaxed);
        let others = (0..self.addresses.len()).filter(|at| *at != preferred);
        let mut problems = Vec::new();
        for at in std::iter::once(preferred).chain(others) {
            let Some((host, port)) = self.addresses.get(at) else { continue };
            match timeout(CONNECT_MAX, TcpStream::connect((host.as_str(), *port))).await {
                Ok(Ok(stream)) => {
                    self.preferred.store(at, Relaxed);
                    return Ok(stream);
                }
                Ok(Err(error)) => problems.push((host, error.to_string())),
                Err(_) => problems.push((host, "the connection takes too long".to_owned())),
            }
        }
        Err(self.unreachable(match problems.as_slice() {
            [(_, problem)] => problem.clone(),
            several => {
                let told = several.iter().map(|(host, problem)| format!("{host}: {problem}"));
                told.collect::<Vec<_>>().join("; ")
            }
        }))
    }

    /// The node's origin.
    pub(super) fn url(&self) -> &str {
        &self.url
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
        let stream = self.connect().await?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.unreachable(error))?;
        // Ends by itself with the body or with the sender. What goes wrong shows there.
        tokio::spawn(connection);
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

    fn unreachable(&self, problem: impl ToString) -> Failure {
        Failure::Unreachable { url: self.url.clone(), problem: problem.to_string() }
    }
}

/// The host and port to connect to. The brackets of an IPv6 address belong to the URL, not to the address.
fn target(authority: &Authority) -> (String, u16) {
    (authority.host().trim_matches(['[', ']']).to_owned(), authority.port_u16().unwrap_or(80))
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
                (client.url(), client.addresses.as_slice()),
                (url, [(host.to_owned(), port)].as_slice())
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
        let stream = client.connect().await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), open.local_addr().unwrap());
        assert_eq!(client.clone().preferred.load(Relaxed), 1, "which is the first to be tried the next time");
        drop(open);
        let error = client.connect().await.unwrap_err().to_string();
        assert_eq!(error.matches("refused").count(), 2, "{error}");
        let stated = Client::at_any_of("http://db:7500", &[]).unwrap();
        assert_eq!(stated.addresses, [("db".to_owned(), 7500)], "an older node lists none");
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
