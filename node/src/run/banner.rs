//! Fills in the [`Banner`], the lines that a node prints when it has started, from the node's options and
//! parts. [`Banner::render`] formats it.

use std::net::TcpListener;

use super::assemble::Assembled;
use crate::{banner::Banner, config::Config};

/// Returns the lines that a node prints when it has started.
///
/// # Errors
/// The system does not tell the address of the HTTP listener.
pub(super) fn render(config: &Config, assembled: &Assembled) -> std::io::Result<String> {
    let prepared = &assembled.prepared;
    let banner = Banner {
        name: assembled.name.clone(),
        id: assembled.id,
        cluster: config.cluster.clone(),
        roles: config.roles.clone(),
        http: prepared.http_address()?,
        advertised: assembled.advertised.clone(),
        gateway: assembled.gateway,
        dns: prepared.dns.as_ref().map(|sockets| sockets.tcp.local_addr()).transpose()?,
        grpc: prepared.grpc.as_ref().map(TcpListener::local_addr).transpose()?,
        jsonrpc: prepared.jsonrpc.as_ref().map(TcpListener::local_addr).transpose()?,
        socket: prepared.socket.as_ref().map(|(file, _)| file.path().to_owned()),
        swarm: prepared.swarm_port.address,
        data_dir: prepared.storage.dir().map(Into::into),
        mdns: config.mdns,
        join: config.join.iter().map(ToString::to_string).collect(),
        remembered: assembled.remembered.len(),
        keyed: config.cluster_key.is_some(),
    };
    Ok(banner.render())
}
