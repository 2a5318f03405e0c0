//! Asking a node over HTTP.
//!
//! Plain HTTP/1.1, one connection a question: these are commands that a person types. Time and size are bounded, since what listens at
//! that port may be no node at all.

use std::time::Duration;

use bytes::Bytes;
use hearsay_services::writing::IDEMPOTENCY_KEY;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
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
/// A host that is there accepts at once; this leaves room for one lost packet and its repetition (1 s).
const CONNECT_MAX: Duration = Duration::from_secs(3);
/// A node answers from memory. Above what a blocked event loop should ever take.
const ANSWER_MAX: Duration = Duration::from_secs(10);
/// A write of many entries waits for disks, here and elsewhere.
const WRITTEN_MAX: Duration = Duration::from_secs(60);
/// The largest answer: ten thousand instances on each of ten nodes, at half a kilobyte apiece.
const ANSWER_BYTES_MAX: usize = 64 * 1024 * 1024;
/// How much of a refusal is shown.
const PROBLEM_CHARS_MAX: usize = 500;

/// A node to ask.
#[derive(Clone, Debug)]
pub(super) struct Client {
    url: String,
    authority: String,
    host: String,
    port: u16,
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
            // The brackets of an IPv6 address belong to the URL, not to the address.
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(80),
            token,
        })
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
        let connect = timeout(CONNECT_MAX, TcpStream::connect((self.host.as_str(), self.port)));
        let stream = match connect.await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(self.unreachable(error)),
            Err(_) => return Err(self.unreachable("the connection takes too long")),
        };
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
            assert_eq!((client.url(), client.host.as_str(), client.port), (url, host, port));
        }
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
