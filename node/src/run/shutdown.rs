//! Shuts a node down: sends the farewell, lets requests under way end, and ships the last log records.

use std::time::Duration;

use tokio::sync::oneshot;

use super::{spawn::RunningParts, until_stopped::Node};
use crate::{driver_command::DriverCommand, http::Readiness, system::systemd};

/// How long requests under way may take when the node leaves.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// How long shipping or spooling the last log records may take.
const SHIP_MAX: Duration = Duration::from_secs(2);

/// Shuts a node down. `ended` is the result of its main task.
///
/// # Errors
/// The error of the main task; the driver has ended then, so the node does not drain.
pub(super) async fn shut_down(
    node: &Node,
    parts: RunningParts,
    ended: anyhow::Result<()>,
) -> anyhow::Result<()> {
    let RunningParts { driver, readiness, plugins, http_stop, mut http, socket_file, log_shipper, .. } =
        parts;
    readiness.send_replace(Readiness::Leaving);
    systemd::notify_stopping();
    ended?;
    let (done, left) = oneshot::channel();
    if driver.send(DriverCommand::Leave(done)).await.is_ok() {
        _ = left.await;
    }
    http_stop.send_replace(true);
    let draining: Vec<_> = plugins.iter().filter_map(|plugin| plugin.drain()).map(tokio::spawn).collect();
    node.remember_members();
    let drained = async {
        _ = (&mut http).await;
        for plugin in draining {
            // An error: the plug-in's task panicked, so it has ended.
            _ = plugin.await;
        }
    };
    if tokio::time::timeout(DRAIN_MAX, drained).await.is_err() {
        tracing::warn!("requests were still being answered; not waiting for them any longer");
    }
    drop(socket_file);
    tracing::info!("left");
    // The last records go to the log, or to the spool for the next start.
    log_shipper.stop.send_replace(true);
    _ = tokio::time::timeout(SHIP_MAX, log_shipper.stopped).await;
    Ok(())
}
