//! [`RegistryContext`]: the parts of the node that the registry uses (provider table, driver, listeners and
//! settings).

use std::{net::SocketAddr, sync::Arc};

use hearsay_protocol::NodeId;
use tokio::sync::mpsc;

use crate::{driver_command::DriverCommand, view};

/// The parts of the node that the registry uses.
#[derive(Clone, Debug)]
pub struct RegistryContext {
    /// This node's id.
    pub node_id: NodeId,
    /// The provider table.
    pub view: Arc<view::View>,
    /// Commands to the driver.
    pub driver: mpsc::Sender<DriverCommand>,
    /// Number of instances that the node states for its roles.
    pub role_instances: usize,
    /// The node's own listeners. Checks and notifications must not connect to them.
    pub listeners: Vec<SocketAddr>,
    /// Whether checks may run commands.
    pub allow_exec: bool,
}
