//! `node mcp`: the Model Context Protocol on standard input and output. An agent starts it as a child
//! process.

use bytes::Bytes;
use clap::Args;
use rmcp::{ServiceExt as _, service::ServerInitializeError, transport::stdio_pipes};

use super::{client::Client, failure::Failure, log::find_log_node};
use crate::apis::mcp::{Backend, McpServer, ToolAnswer, ToolError, ToolRequest};

/// Help of the command.
pub(super) const HELP: &str = "\
An agent starts it, and ends it by closing its standard input. Most agents take this in the file of their MCP servers,
with the path of this program:
  {\"mcpServers\": {\"hearsay\": {\"command\": \"/usr/bin/hearsay\", \"args\": [\"mcp\"]}}}

The tools read: list_services, get_service, list_members, why, search_log, dependencies. With --allow-writes there are
also drain and deregister. An agent runs tools on behalf of texts that it has read, so let your client ask before it
runs these two. The node may start later than the agent: a tool fails until it answers.

Examples:
  node mcp
  node mcp --node http://db1:7500 --allow-writes     # the token is in HEARSAY_TOKEN";

/// Why tools that change something are refused.
const READ_ONLY: &str = "`node mcp` was started without --allow-writes, so it changes nothing; ask the user to add it, or to run \
    `node drain` or `node deregister`";

/// `node mcp`.
#[derive(Args, Clone, Debug)]
pub(super) struct McpOptions {
    /// Offer the tools drain and deregister, too. Writes need what those of other commands need
    #[arg(long)]
    allow_writes: bool,
}

/// Serves until standard input ends.
pub(super) async fn serve(client: Client, options: &McpOptions) -> Result<(), Failure> {
    let server = McpServer::new(NodeClient { client, may_write: options.allow_writes });
    match server.serve(stdio_pipes()).await {
        Ok(running) => match running.waiting().await {
            Ok(_) => Ok(()),
            Err(error) => Err(Failure::Failed(error.into())),
        },
        // Standard input ended before a client began.
        Err(ServerInitializeError::ConnectionClosed(_)) => Ok(()),
        Err(error) => Err(Failure::Failed(error.into())),
    }
}

/// Backend of the tools: the node of `--node`, or a node of this machine.
#[derive(Clone, Debug)]
struct NodeClient {
    client: Client,
    may_write: bool,
}

impl Backend for NodeClient {
    fn may_write(&self) -> Result<(), &'static str> {
        if self.may_write { Ok(()) } else { Err(READ_ONLY) }
    }

    fn count_refusal(&self) {
        // The command has no metrics. The refusal is the answer.
    }

    async fn send(&self, request: ToolRequest) -> Result<ToolAnswer, ToolError> {
        send(&self.client, request).await
    }

    async fn read_log(&self, target: String) -> Result<ToolAnswer, ToolError> {
        let log_node =
            find_log_node(&self.client).await.map_err(|failure| ToolError::new(failure.to_string()))?;
        send(&log_node, ToolRequest::read(target)).await
    }
}

async fn send(client: &Client, request: ToolRequest) -> Result<ToolAnswer, ToolError> {
    let ToolRequest { method, target, body } = request;
    let answer = match body {
        Some(body) => client.write(method, &target, Bytes::from(body.to_string())).await,
        None => client.request(method, &target).await,
    };
    let answer = answer.map_err(|failure| ToolError::new(failure.to_string()))?;
    Ok(ToolAnswer { status: answer.status, body: answer.body })
}
