//! [`StallTimer`] and [`WriteTimeout`]: limit the time for which a transfer may make no progress.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};

/// A timer that restarts at each progress. It registers with the runtime only once a transfer has to wait.
#[derive(Debug)]
pub struct StallTimer {
    limit: Duration,
    progress: Instant,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl StallTimer {
    /// Returns a timer that starts now.
    pub fn new(limit: Duration) -> Self {
        Self { limit, progress: Instant::now(), sleep: None }
    }

    /// Restarts the timer.
    pub fn restart(&mut self) {
        self.progress = Instant::now();
    }

    /// Resolves when there was no progress for the limit. A pending call wakes the task at that time.
    pub fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let deadline = self.progress + self.limit;
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        loop {
            ready!(sleep.as_mut().poll(cx));
            if deadline <= Instant::now() {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
    }
}

/// Limits the time for which the writes of a stream may be pending without a break.
#[derive(Debug)]
pub struct WriteTimeout {
    timer: StallTimer,
    is_pending: bool,
}

impl WriteTimeout {
    /// Returns a timeout with this limit.
    pub fn new(limit: Duration) -> Self {
        Self { timer: StallTimer::new(limit), is_pending: false }
    }

    /// Passes on the result of a write.
    ///
    /// # Errors
    /// That of the write, or [`TimedOut`](io::ErrorKind::TimedOut) if writes have been pending for the limit.
    pub fn check<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.is_pending = false;
            return written;
        }
        if !self.is_pending {
            self.is_pending = true;
            self.timer.restart();
        }
        ready!(self.timer.poll_stalled(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read its response")))
    }
}
