//! Tools that change registrations.

use http::Method;
use serde_json::{Value, json};

use super::{
    backend::{Backend, ToolError, ToolRequest},
    parameter::Arguments,
};
use crate::escape::percent_encoded;

/// `drain`.
pub(super) async fn drain(backend: &impl Backend, arguments: &Arguments) -> Result<Value, ToolError> {
    let path = format!("/services/{}/maintenance", arguments.segment("id"));
    let reason = arguments.text("reason").unwrap_or_default();
    let body = json!({ "enable": !arguments.flag("undo"), "reason": reason });
    write_at_holder(backend, arguments, ToolRequest { method: Method::PUT, target: path, body: Some(body) })
        .await
}

/// `deregister`.
pub(super) async fn deregister(backend: &impl Backend, arguments: &Arguments) -> Result<Value, ToolError> {
    let path = format!("/services/{}", arguments.segment("id"));
    write_at_holder(backend, arguments, ToolRequest { method: Method::DELETE, target: path, body: None })
        .await
}

/// Sends a write to the node of the argument `node`. Without it, the write goes to the node itself, and if
/// that names another one as the holder of the registration, to the holder.
async fn write_at_holder(
    backend: &impl Backend,
    arguments: &Arguments,
    request: ToolRequest,
) -> Result<Value, ToolError> {
    let at_node = |node: &str| ToolRequest {
        target: format!("{}?node={}", request.target, percent_encoded(node)),
        ..request.clone()
    };
    if let Some(node) = arguments.text("node") {
        return backend.send(at_node(node)).await?.json();
    }
    let answer = backend.send(request.clone()).await?;
    match answer.holder() {
        Some(holder) => backend.send(at_node(&holder)).await?.json(),
        None => answer.json(),
    }
}
