//! Connections to instances. By HTTP/1 each serves one request at a time and waits for the next one, the one used last first; by HTTP/2
//! one is shared. Each thread has its own, because a connection is driven by the thread that opened it.

use std::{
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::{
    batch::{Batch, Socket},
    body::Outgoing,
    connect::connect,
    driven::Driven,
    limits::Limits,
    policy::GatewayPolicy,
    proxy::LOOK_EVERY,
    target::Target,
};

/// A connection that is not done with its last request when the answer has ended gets this long: the client's body was not read whole.
const READY: Duration = Duration::from_secs(1);
/// How often an HTTP/2 connection in use is asked whether it is still there.
const PING_EVERY: Duration = Duration::from_secs(20);
/// And how long it has to say so.
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// By HTTP/1.
#[derive(Debug)]
pub struct One {
    /// The connection.
    pub sender: http1::SendRequest<Outgoing>,
    /// What has to be driven for that to get anywhere; `None` where a task does it.
    pub driven: Option<Driven>,
    /// When to look next whether the instance still owes an answer. It goes with the connection and runs on between requests, because to set a timer
    /// and take it back costs each request more than to be woken by an old one now and then.
    pub look: Pin<Box<Sleep>>,
}

impl One {
    /// Has a task drive it to its end.
    pub fn let_go(&mut self) {
        if let Some(driven) = self.driven.take() {
            driven.let_go();
        }
    }

    /// Whether the instance has closed it, which it may while it waits.
    fn is_closed(&mut self) -> bool {
        self.driven.iter_mut().for_each(Driven::look);
        self.sender.is_closed()
    }
}

/// By HTTP/2.
pub type Two = http2::SendRequest<Outgoing>;

/// Why there is no connection.
#[derive(Debug)]
pub enum ConnectError {
    /// Refused, or no way there.
    Refused(String),
    /// No answer.
    TimedOut,
}

/// Connections of one thread to one instance.
#[derive(Debug, Default)]
pub struct Kept {
    one: Mutex<Vec<Idle>>,
    /// Held while it is opened, so that all who wait get the same one.
    two: tokio::sync::Mutex<Option<Shared>>,
}

#[derive(Debug)]
struct Idle {
    one: Box<One>,
    since: Instant,
    _seat: Seat,
}

#[derive(Debug)]
struct Shared {
    sender: Two,
    used: Instant,
}

impl Kept {
    /// Closes those that wait.
    pub fn clear(&self) {
        self.lock().clear();
        if let Ok(mut two) = self.two.try_lock() {
            *two = None;
        }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Idle>> {
        self.one.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among the waiting connections of a thread.
#[derive(Debug)]
struct Seat(Arc<AtomicUsize>);

impl Seat {
    fn take(taken: &Arc<AtomicUsize>, max: usize) -> Option<Self> {
        // Only one thread takes, so nobody can come between.
        if taken.load(Relaxed) >= max {
            return None;
        }
        taken.fetch_add(1, Relaxed);
        Some(Self(Arc::clone(taken)))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// The connections of one thread.
#[derive(Debug)]
pub struct Pool {
    thread: usize,
    limits: Limits,
    policy: GatewayPolicy,
    taken: Arc<AtomicUsize>,
    /// What the thread has to send.
    pub batch: Arc<Batch>,
}

impl Pool {
    /// None yet, for this thread.
    pub fn new(thread: usize, limits: Limits, policy: GatewayPolicy) -> Self {
        Self { thread, limits, policy, taken: Arc::default(), batch: Arc::default() }
    }

    /// A connection that waits until now.
    pub fn take(&self, target: &Target, now: Instant) -> Option<Box<One>> {
        let mut kept = target.kept.get(self.thread)?.lock();
        while let Some(mut idle) = kept.pop() {
            if now.saturating_duration_since(idle.since) < self.limits.keep && !idle.one.is_closed() {
                return Some(idle.one);
            }
        }
        None
    }

    fn put(&self, target: &Target, one: Box<One>, since: Instant) {
        let Some(kept) = target.kept.get(self.thread) else { return };
        let mut kept = kept.lock();
        // Asked under the lock: who has gone has that set before it takes the lock to clear these.
        if !target.is_gone()
            && kept.len() < self.limits.kept_per_instance
            && let Some(seat) = Seat::take(&self.taken, self.limits.kept)
        {
            kept.push(Idle { one, since, _seat: seat });
        }
    }

    /// Closes what has waited for too long.
    pub fn sweep(&self, target: &Target) {
        let Some(kept) = target.kept.get(self.thread) else { return };
        kept.lock().retain_mut(|idle| {
            idle.one.driven.iter().for_each(Driven::forget);
            idle.since.elapsed() < self.limits.keep && !idle.one.is_closed()
        });
        if let Ok(mut two) = kept.two.try_lock()
            && two
                .as_ref()
                .is_some_and(|two| two.used.elapsed() >= self.limits.http2_idle || two.sender.is_closed())
        {
            *two = None;
        }
    }

    /// Opens a connection for HTTP/1.
    ///
    /// # Errors
    /// There is none.
    pub async fn open_one(&self, target: &Target) -> Result<Box<One>, ConnectError> {
        let stream = connect(target, &self.policy, self.limits.connect).await?;
        let handshake = http1::Builder::new()
            .max_headers(self.limits.headers)
            .handshake::<_, Outgoing>(TokioIo::new(Socket::new(stream, &self.batch)))
            .await;
        let (sender, connection) = handshake.map_err(|error| ConnectError::Refused(error.to_string()))?;
        let driven = Some(Driven::new(connection));
        Ok(Box::new(One { sender, driven, look: Box::pin(sleep(LOOK_EVERY.min(self.limits.answer))) }))
    }

    /// The connection for HTTP/2, opened where there is none.
    ///
    /// # Errors
    /// There is none.
    pub async fn two(&self, target: &Target) -> Result<Two, ConnectError> {
        let Some(kept) = target.kept.get(self.thread) else {
            return Err(ConnectError::Refused("no such thread".into()));
        };
        let mut kept = kept.two.lock().await;
        if let Some(two) = kept.as_mut().filter(|two| !two.sender.is_closed()) {
            two.used = Instant::now();
            return Ok(two.sender.clone());
        }
        let stream = connect(target, &self.policy, self.limits.connect).await?;
        let handshake = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(PING_EVERY)
            .keep_alive_timeout(PING_TIMEOUT)
            .initial_stream_window_size(self.limits.window_bytes)
            .initial_connection_window_size(self.limits.window_bytes)
            .max_header_list_size(u32::try_from(self.limits.head_bytes).unwrap_or(u32::MAX))
            .handshake::<_, Outgoing>(TokioIo::new(stream));
        let (sender, connection) = match timeout(self.limits.connect, handshake).await {
            Ok(done) => done.map_err(|error| ConnectError::Refused(error.to_string()))?,
            Err(_) => return Err(ConnectError::TimedOut),
        };
        tokio::spawn(async move {
            let _ = connection.await;
        });
        *kept = Some(Shared { sender: sender.clone(), used: Instant::now() });
        Ok(sender)
    }
}

/// A connection that is to be used again.
#[derive(Debug)]
pub struct Lease {
    /// The connection.
    pub one: Box<One>,
    /// Where it leads.
    pub target: Arc<Target>,
    /// Where it waits.
    pub pool: Arc<Pool>,
}

impl Lease {
    /// The answer has ended. `since` is when the clock was last looked at, which is early enough.
    pub fn give_back(self, since: Instant) {
        let Self { mut one, target, pool } = self;
        if let Some(driven) = &one.driven {
            driven.rest();
        }
        if one.is_closed() {
            return;
        }
        if one.sender.is_ready() {
            pool.put(&target, one, since);
        } else {
            one.let_go();
            tokio::spawn(async move {
                if let Ok(Ok(())) = timeout(READY, one.sender.ready()).await {
                    pool.put(&target, one, Instant::now());
                }
            });
        }
    }
}
