//! Runs a node from start to stop: prepare, assemble, spawn, run until stopped, shut down.

use std::sync::Arc;

use hearsay_services::Service;

use crate::config::Config;

mod assemble;
mod banner;
mod overrides;
mod prepare;
mod readiness;
mod servers;
mod shutdown;
mod spawn;
mod until_stopped;

use assemble::assemble;
pub use overrides::Overrides;
use prepare::prepare;
use shutdown::shut_down;
use spawn::spawn;

/// Runs a node until it has left.
///
/// # Errors
/// Why the node could not start or continue, in words for its user.
pub fn run(config: Config, services: Vec<Arc<dyn Service>>) -> anyhow::Result<()> {
    run_with(config, services, Overrides::default())
}

/// Like [`run`], with parts replaced for tests.
///
/// # Errors
/// As [`run`].
pub fn run_with(config: Config, services: Vec<Arc<dyn Service>>, overrides: Overrides) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(std::thread::available_parallelism().map_or(2, |n| n.get().clamp(1, 4)))
        .enable_all()
        .build()?;
    let ended = runtime.block_on(async {
        let prepared = prepare(&config, services).await?;
        let assembled = assemble(&config, prepared, &overrides)?;
        let (mut node, running) = spawn(config, assembled).await?;
        let ended = node.run_until_stopped(running.stop_requests).await;
        shut_down(&node, running.parts, ended).await
    });
    // A DNS resolver that does not answer blocks its thread; its result is no longer needed.
    runtime.shutdown_background();
    ended
}
