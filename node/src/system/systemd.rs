//! Notifies systemd about a `Type=notify` service: ready, alive, stopping.
//!
//! A node is alive while the driver's loop and a task of the main runtime both make progress; systemd
//! restarts a node that hangs. Without `NOTIFY_SOCKET` or `WATCHDOG_USEC` (sd_notify(3)) these functions do
//! nothing.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::{mpsc, oneshot};

use crate::driver_command::DriverCommand;

/// Number of watchdog notifications within the time after which systemd restarts the service.
const NOTIFICATIONS_PER_TIMEOUT: u32 = 3;

/// Reports that the node serves, under this name.
pub(crate) fn notify_ready(name: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(&format!("serves as {name}"))]);
}

/// Reports that the node leaves. This ends the watchdog.
pub(crate) fn notify_stopping() {
    notify(&[NotifyState::Stopping, NotifyState::Status("leaving")]);
}

/// Notifies the watchdog, if there is one, for as long as the driver answers.
pub(crate) async fn feed_watchdog(driver: mpsc::Sender<DriverCommand>) {
    let Some(timeout) = sd_notify::watchdog_enabled() else { return };
    let mut ticks = tokio::time::interval(notify_every(timeout));
    loop {
        ticks.tick().await;
        let (answer, answered) = oneshot::channel();
        if driver.send(DriverCommand::Alive(answer)).await.is_err() || answered.await.is_err() {
            // The driver has ended, and the node ends.
            return;
        }
        notify(&[NotifyState::Watchdog]);
    }
}

fn notify_every(timeout: Duration) -> Duration {
    // The runtime refuses an interval of zero.
    (timeout / NOTIFICATIONS_PER_TIMEOUT).max(Duration::from_millis(1))
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "cannot notify systemd");
    }
}
