//! How long a client's connection may take for the head of its next request. hyper sets a timer for each head and takes it back when the head has come,
//! which is nearly always at once. That cost more than parsing the head, so here the timer of the runtime stays, and is set anew when it
//! goes off too early: once in as long as a head may take.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use hyper::rt::{self, Timer};
use tokio::time::sleep;

type Running = Arc<Mutex<Pin<Box<tokio::time::Sleep>>>>;

/// The timer of one connection, which waits for one head at a time, each for equally long.
#[derive(Clone, Debug)]
pub struct HeadTimer(Running);

impl HeadTimer {
    /// For heads that may take so long.
    pub fn new(limit: Duration) -> Self {
        Self(Arc::new(Mutex::new(Box::pin(sleep(limit)))))
    }
}

impl Timer for HeadTimer {
    fn sleep(&self, duration: Duration) -> Pin<Box<dyn rt::Sleep>> {
        self.sleep_until(Instant::now() + duration)
    }

    fn sleep_until(&self, deadline: Instant) -> Pin<Box<dyn rt::Sleep>> {
        Box::pin(Waiting { deadline, running: Arc::clone(&self.0) })
    }
}

/// One wait.
#[derive(Debug)]
struct Waiting {
    deadline: Instant,
    running: Running,
}

impl rt::Sleep for Waiting {}

impl Future for Waiting {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            // It never goes off too late: it was set for an earlier head, or for this one.
            ready!(running.as_mut().poll(cx));
            if Instant::now() >= self.deadline {
                return Poll::Ready(());
            }
            running.as_mut().reset(self.deadline.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn each_head_has_its_whole_time_whatever_those_before_it_took() {
        let limit = Duration::from_millis(40);
        let timer = HeadTimer::new(limit);
        for used in [0, 1, 3, 4] {
            // One that comes in time, unless this machine is late.
            let deadline = Instant::now() + limit;
            let ended = timeout(limit * used / 8, timer.sleep_until(deadline)).await.is_ok();
            assert!(!ended || Instant::now() >= deadline, "{used}");
            // And one that does not.
            let deadline = Instant::now() + limit;
            timer.sleep_until(deadline).await;
            assert!(Instant::now() >= deadline, "{used}");
        }
    }
}
