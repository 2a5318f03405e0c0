//! [`Backend`]: the requests by which tools read and change a cluster, inside a node or from the command
//! line.

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::Value;

/// Characters of a problem that an agent gets.
const DETAIL_CHARS_MAX: usize = 1000;

/// A request of a tool to a path of the node's HTTP API.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct ToolRequest {
    /// Method.
    pub(crate) method: Method,
    /// Path and query.
    pub(crate) target: String,
    /// Body in JSON. Reads have none.
    pub(crate) body: Option<Value>,
}

impl ToolRequest {
    /// Returns a read of this path.
    pub(crate) fn read(target: String) -> Self {
        Self { method: Method::GET, target, body: None }
    }
}

/// The node's whole answer.
#[derive(Clone, Debug)]
pub(crate) struct ToolAnswer {
    /// Status.
    pub(crate) status: StatusCode,
    /// Body: JSON, and for an error mostly a problem (RFC 9457).
    pub(crate) body: Bytes,
}

impl ToolAnswer {
    /// Returns the body of a successful answer.
    ///
    /// # Errors
    /// The answer is an error, or no JSON.
    pub(super) fn json(&self) -> Result<Value, ToolError> {
        if !self.status.is_success() {
            return Err(self.error());
        }
        serde_json::from_slice(&self.body).map_err(|error| ToolError {
            status: None,
            detail: format!("the response is not one of a Hearsay node: {error}"),
        })
    }

    /// Returns the node that holds the registration that this answer does not find, if the answer names it.
    pub(super) fn holder(&self) -> Option<String> {
        let problem: Value =
            serde_json::from_slice(&self.body).ok().filter(|_| self.status == StatusCode::NOT_FOUND)?;
        problem.get("holder")?.as_str().map(str::to_owned)
    }

    fn error(&self) -> ToolError {
        let problem = serde_json::from_slice::<Value>(&self.body).unwrap_or_default();
        let detail = ["detail", "title"].iter().find_map(|key| problem.get(key)?.as_str());
        let text = detail.map_or_else(|| String::from_utf8_lossy(&self.body).into_owned(), str::to_owned);
        let text: String = text.trim().chars().take(DETAIL_CHARS_MAX).collect();
        let detail = if text.is_empty() { format!("the node answers {}", self.status) } else { text };
        ToolError { status: Some(self.status), detail }
    }
}

/// Error of a tool, which the agent reads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ToolError {
    /// Status of the node's answer, if the error is one.
    pub(crate) status: Option<StatusCode>,
    /// Cause, and the way to avoid it.
    pub(crate) detail: String,
}

impl ToolError {
    /// Returns an error that no node answered with.
    pub(crate) fn new(detail: impl Into<String>) -> Self {
        Self { status: None, detail: detail.into() }
    }
}

/// The node to which the tools of one client send their requests, with the client's credentials.
pub(crate) trait Backend: Clone + Send + Sync + 'static {
    /// Whether this client may use tools that change something.
    ///
    /// # Errors
    /// The reason why it may not, and how it could.
    fn may_write(&self) -> Result<(), &'static str>;

    /// Counts a tool that was refused because the client may not write.
    fn count_refusal(&self);

    /// Sends a request.
    ///
    /// # Errors
    /// There is no answer. An error status is an answer.
    fn send(&self, request: ToolRequest) -> impl Future<Output = Result<ToolAnswer, ToolError>> + Send;

    /// Reads the central log, at this node or at another one with the role `log`. `target` is a path of the
    /// role and its query.
    ///
    /// # Errors
    /// As [`send`](Self::send), or no node has the role.
    fn read_log(&self, target: String) -> impl Future<Output = Result<ToolAnswer, ToolError>> + Send;
}
