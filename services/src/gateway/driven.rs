//! A connection to an instance, driven by whoever uses it and not by a task of its own: the answer is then read by the task that passes it
//! on, and nobody has to be woken for it. Of all that a request costs, a second task was the largest part that could be spared.

use std::{
    future::poll_fn,
    mem,
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Wake, Waker},
};

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::task::unconstrained;

use super::{body::Outgoing, stream::InstanceStream};

type Connection = http1::Connection<TokioIo<InstanceStream>, Outgoing>;

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
        self.nudged.lock().state = State::Quiet;
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
        let before = mem::replace(&mut self.nudged.lock().state, State::Quiet);
        // tokio's channels say "not yet", and wake, when a task has done much in one turn. Here nobody would be woken.
        let polled = pin!(unconstrained(poll_fn(poll))).poll(&mut Context::from_waker(Waker::noop()));
        self.nudged.lock().state = before;
        polled
    }

    /// Forgets whom to wake, which keeps the memory of a task that may have ended.
    pub fn forget(&self) {
        let mut waiting = self.nudged.lock();
        if waiting.state != State::Waited {
            waiting.task = None;
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
        if self.nudged.lock().state == State::Nudged {
            self.drive(&mut Context::from_waker(Waker::noop()));
            self.rest();
        }
    }
}

/// What the connection wakes. It stays the same from one request to the next, whichever tasks they are of.
#[derive(Debug, Default)]
struct Nudged(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    state: State,
    /// Whom to wake. Kept when it is not to be woken, since it is often the same one again.
    task: Option<Waker>,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
enum State {
    /// There is nothing to do, and nobody waits for it.
    #[default]
    Quiet,
    /// There is nothing to do, and the task waits for it.
    Waited,
    /// There is something to do.
    Nudged,
}

impl Nudged {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, task: &Waker) {
        let mut waiting = self.lock();
        match waiting.state {
            // It has more to do than it may at once.
            State::Nudged => task.wake_by_ref(),
            State::Quiet | State::Waited => waiting.state = State::Waited,
        }
        match &mut waiting.task {
            Some(before) => before.clone_from(task),
            none => *none = Some(task.clone()),
        }
    }

    fn rest(&self) {
        let mut waiting = self.lock();
        if waiting.state == State::Waited {
            waiting.state = State::Quiet;
        }
    }
}

impl Wake for Nudged {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut waiting = self.lock();
        if mem::replace(&mut waiting.state, State::Nudged) == State::Waited
            && let Some(task) = &waiting.task
        {
            task.wake_by_ref();
        }
    }
}
