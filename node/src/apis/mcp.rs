//! The Model Context Protocol, by which agents query a node: `/mcp` of its HTTP server, and `node mcp`.
//!
//! The tools are implemented once, over the paths of the node's HTTP API ([`Backend`]). Most of them read.
//! The others are for clients that an operator has trusted with writes: an agent runs tools on behalf of
//! texts that it has read, so that it runs on this machine proves nothing.
//!
//! | file | content |
//! | --- | --- |
//! | `backend` | the requests of tools to a node |
//! | `parameter` | parameters of tools: schema, and check of the arguments |
//! | `tool` | the list of tools, as an agent reads it |
//! | `reads`, `writes` | what each tool requests and answers |
//! | `page` | parts of long lists |
//! | `server` | the protocol, by the crate rmcp |
//! | `envelope` | the id of a message over HTTP |
//! | `endpoint` | the path `/mcp` of the node |

mod backend;
mod endpoint;
mod envelope;
mod page;
mod parameter;
mod reads;
mod server;
#[cfg(test)]
mod tests;
mod tool;
mod writes;

pub(crate) use backend::{Backend, ToolAnswer, ToolError, ToolRequest};
pub(crate) use endpoint::answer;
pub(crate) use server::McpServer;
