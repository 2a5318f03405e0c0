//! A connection to an instance, driven by whoever uses it and not by a task of its own: the answer is then read by the task that passes it
//! on, and nobody has to be woken for it. Of all that a request costs, a second task was the largest part that could be spared.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    task::{Context, Poll, Wake, Waker},
};

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::task::unconstrained;

use super::{batch::Socket, body::Outgoing};

type Connection = http1::Connection<TokioIo<Socket>, Outgoing>;

/// A connection, and whom to wake when something can be done on it.
#[derive(Debug)]
pub struct Driven {
    /// `None` when it has ended. Whoever waits for an answer is told by the sender.
    connection: Option<Connection>,
    nudged: Arc<Nudged>,
    /// The same, made once.
    waker: Waker,
}

impl Driven {
    /// A connection that nobody drives yet.
    pub fn new(connection: Connection) -> Self {
        let nudged = Arc::new(Nudged::default());
        Self { connection: Some(connection), waker: Waker::from(Arc::clone(&nudged)), nudged }
    }

    /// Does what can be done, and has the task woken when there is more. What is polled after this and moved on by this alone (the answer,
    /// its body) needs no waker.
    pub fn drive(&mut self, cx: &mut Context<'_>) {
        self.nudged.set(QUIET);
        if let Some(connection) = &mut self.connection
            && Pin::new(connection).poll(&mut Context::from_waker(&self.waker)).is_ready()
        {
            self.connection = None;
        }
        self.nudged.wait(cx.waker());
    }

    /// From now until it is driven again, nobody is woken.
    pub fn rest(&self) {
        self.nudged.rest();
    }

    /// Polls what only this connection moves on: the answer, or its body. The connection notices what is taken, or asked for, when it is driven
    /// next, which whoever gets "not yet" has to do. Nobody is woken for it, so this is for runtimes of one thread: a wake from elsewhere would
    /// be lost.
    pub fn quietly<T>(&self, poll: impl FnMut(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        let before = self.nudged.state();
        self.nudged.set(QUIET);
        // tokio's channels say "not yet", and wake, when a task has done much in one turn. Here nobody would be woken.
        let polled = pin!(unconstrained(poll_fn(poll))).poll(&mut Context::from_waker(Waker::noop()));
        self.nudged.set(before);
        polled
    }

    /// Forgets whom to wake, which keeps the memory of a task that may have ended.
    pub fn forget(&self) {
        if self.nudged.state() != WAITED {
            *self.nudged.task() = None;
        }
    }

    /// Has a task of its own drive it to its end, which may be a change of protocol.
    pub fn let_go(self) {
        if let Some(connection) = self.connection {
            tokio::spawn(async move {
                // Whoever waits for an answer is told by the sender.
                let _ = connection.with_upgrades().await;
            });
        }
    }

    /// Looks whether it has ended, where nobody has been driving it.
    pub fn look(&mut self) {
        if self.nudged.state() == NUDGED {
            self.drive(&mut Context::from_waker(Waker::noop()));
            self.rest();
        }
    }
}

/// What the connection wakes. It stays the same from one request to the next, whichever tasks they are of.
#[derive(Debug, Default)]
struct Nudged {
    /// One of those below.
    state: AtomicU8,
    /// Whom to wake. Kept when it is not to be woken, since it is often the same one again.
    task: Mutex<Option<Waker>>,
}

/// There is nothing to do, and nobody waits for it.
const QUIET: u8 = 0;
/// There is nothing to do, and the task waits for it.
const WAITED: u8 = 1;
/// There is something to do.
const NUDGED: u8 = 2;

impl Nudged {
    fn state(&self) -> u8 {
        self.state.load(Relaxed)
    }

    fn set(&self, state: u8) {
        self.state.store(state, Relaxed);
    }

    fn task(&self) -> MutexGuard<'_, Option<Waker>> {
        self.task.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, task: &Waker) {
        match &mut *self.task() {
            Some(before) => before.clone_from(task),
            none => *none = Some(task.clone()),
        }
        // It may have more to do than it may at once.
        if self.state.compare_exchange(QUIET, WAITED, Relaxed, Relaxed) == Err(NUDGED) {
            task.wake_by_ref();
        }
    }

    fn rest(&self) {
        if self.state() == WAITED {
            self.set(QUIET);
        }
    }
}

impl Wake for Nudged {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(NUDGED, Relaxed) == WAITED
            && let Some(task) = &*self.task()
        {
            task.wake_by_ref();
        }
    }
}
