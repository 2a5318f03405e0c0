//! What systemd is told of a `Type=notify` service: that the node is ready, that it is alive, that it stops.
//!
//! Alive means that the driver's loop and a task of the runtime both turn; so a node that only looks as if it ran is ended and started again.
//! Where nobody asked to be told (`NOTIFY_SOCKET`, `WATCHDOG_USEC`; sd_notify(3)), nothing of this does anything.

use std::time::Duration;

use sd_notify::NotifyState;
use tokio::sync::{mpsc, oneshot};

use crate::driver::Order;

/// Signs of life within the time after which systemd ends the service.
const SIGNS_PER_TIMEOUT: u32 = 3;

/// The node serves, under this name.
pub(crate) fn ready(name: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(&format!("serves as {name}"))]);
}

/// The node says goodbye. It stops being asked for signs of life.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("leaving")]);
}

/// Gives signs of life for as long as the driver does, if they are asked for.
pub(crate) async fn live(orders: mpsc::Sender<Order>) {
    let Some(timeout) = sd_notify::watchdog_enabled() else { return };
    let mut signs = tokio::time::interval(sign_every(timeout));
    loop {
        signs.tick().await;
        let (answer, answered) = oneshot::channel();
        if orders.send(Order::Alive(answer)).await.is_err() || answered.await.is_err() {
            // The driver is gone, and the node goes.
            return;
        }
        tell(&[NotifyState::Watchdog]);
    }
}

fn sign_every(timeout: Duration) -> Duration {
    // A timer that never waits is refused by the runtime.
    (timeout / SIGNS_PER_TIMEOUT).max(Duration::from_millis(1))
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "systemd could not be told how this node is");
    }
}
