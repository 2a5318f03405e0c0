//! Small messages leave together: what the tasks of a thread have to send is gathered, and sent when each of them has had its turn, or when
//! there is enough.
//!
//! To send a message wakes whoever waits for it, often on another core that has gone to sleep meanwhile, and that is the dearest part of passing it
//! on. Of messages that leave in one go, the first one wakes, and the others find it awake. It is also kinder to the caches than to take turns
//! between HTTP and the system's TCP. Nobody waits for it: whoever is ready to go on goes on first, and then it is sent.

use std::{
    future::poll_fn,
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker, ready},
};

use slab::Slab;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// Up to here a message is small. A larger one is worth a call of its own, and not worth copying.
const SMALL_BYTES: usize = 2048;
/// So many messages are enough: a batch should not keep whoever it is for waiting while the next one is made.
const MESSAGES_MAX: usize = 32;

/// What a thread has to send.
#[derive(Debug, Default)]
pub struct Batch {
    /// How many batches have been sent.
    sent: AtomicU64,
    // Of its own thread, but for whoever closes the connections that wait for an instance which has gone.
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    lines: Slab<Line>,
    messages: Vec<Message>,
    /// Of all messages, one behind the other.
    bytes: Vec<u8>,
    /// Lines with a rest, of which there are at most as many as connections.
    stuck: Vec<usize>,
    sender: Option<Waker>,
}

#[derive(Debug)]
struct Message {
    line: usize,
    len: usize,
}

/// The way out of a socket.
#[derive(Debug)]
struct Line {
    half: OwnedWriteHalf,
    /// What the system has not taken yet. While there is something, nothing else may be sent.
    rest: Vec<u8>,
    /// Waits until there is nothing.
    owner: Option<Waker>,
    error: Option<io::Error>,
}

impl Batch {
    /// Sends, for as long as it is polled.
    pub async fn run(&self) {
        poll_fn(|cx| {
            let mut waiting = self.lock();
            match &mut waiting.sender {
                Some(before) => before.clone_from(cx.waker()),
                none => *none = Some(cx.waker().clone()),
            }
            self.send(&mut waiting);
            let Waiting { lines, stuck, .. } = &mut *waiting;
            stuck.retain(|line| lines.get_mut(*line).is_some_and(|line| line.poll_rest(cx).is_pending()));
            Poll::<()>::Pending
        })
        .await;
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, waiting: &mut Waiting, line: usize, bufs: &[IoSlice<'_>], len: usize) {
        bufs.iter().for_each(|buf| waiting.bytes.extend_from_slice(buf));
        match waiting.messages.last_mut() {
            Some(last) if last.line == line => last.len += len,
            _ => waiting.messages.push(Message { line, len }),
        }
        let is_first = waiting.bytes.len() == len;
        if waiting.messages.len() >= MESSAGES_MAX || waiting.bytes.len() >= MESSAGES_MAX * SMALL_BYTES {
            self.send(waiting);
        } else if is_first {
            waiting.wake();
        }
    }

    fn send(&self, waiting: &mut Waiting) {
        self.sent.fetch_add(1, Relaxed);
        let Waiting { lines, messages, bytes, stuck, .. } = waiting;
        let (mut left, before) = (bytes.as_slice(), stuck.len());
        for message in messages.drain(..) {
            let (part, behind) = left.split_at(message.len.min(left.len()));
            left = behind;
            if let Some(line) = lines.get_mut(message.line)
                && line.send(part)
            {
                stuck.push(message.line);
            }
        }
        bytes.clear();
        if stuck.len() > before {
            waiting.wake();
        }
    }
}

impl Waiting {
    fn wake(&self) {
        // Before it runs for the first time there is nobody to wake, and then it sends.
        if let Some(sender) = &self.sender {
            sender.wake_by_ref();
        }
    }
}

impl Line {
    /// Whether it has got stuck.
    fn send(&mut self, bytes: &[u8]) -> bool {
        if self.error.is_some() {
            return false;
        }
        let was_stuck = !self.rest.is_empty();
        let sent = match was_stuck {
            true => Ok(0),
            false => self.half.try_write(bytes),
        };
        match sent {
            Ok(sent) => self.rest.extend_from_slice(&bytes[sent..]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.rest.extend_from_slice(bytes),
            Err(error) => self.error = Some(error),
        }
        !was_stuck && !self.rest.is_empty()
    }

    /// For the sender: sends what is left.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.rest.is_empty() {
            match ready!(Pin::new(&mut self.half).poll_write(cx, &self.rest)) {
                Ok(sent) => drop(self.rest.drain(..sent)),
                Err(error) => {
                    self.error = Some(error);
                    self.rest.clear();
                }
            }
        }
        self.rest = Vec::new();
        if let Some(owner) = self.owner.take() {
            owner.wake();
        }
        Poll::Ready(())
    }

    /// For the owner: whether nothing is left.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(error) = self.error.take() {
            return Poll::Ready(Err(error));
        }
        if self.rest.is_empty() {
            return Poll::Ready(Ok(()));
        }
        self.owner = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// A connection whose small messages leave in batches. It belongs to the thread of its batch.
#[derive(Debug)]
pub struct Socket {
    read: OwnedReadHalf,
    batch: Arc<Batch>,
    line: usize,
    /// How many batches had been sent when it last put something into one; `None` when all that it put there is known to have gone.
    put: Option<u64>,
    /// What is being written began with something large. The rest of it is not batched: whoever writes it has to notice when it is not taken.
    is_large: bool,
}

impl Socket {
    /// A connection, and the batch of its thread.
    pub fn new(stream: TcpStream, batch: &Arc<Batch>) -> Self {
        let (read, half) = stream.into_split();
        let line = Line { half, rest: Vec::new(), owner: None, error: None };
        let line = batch.lock().lines.insert(line);
        Self { read, batch: Arc::clone(batch), line, put: None, is_large: false }
    }

    /// Whether something of it waits in the batch.
    fn is_waiting(&self) -> bool {
        self.put.is_some_and(|put| put == self.batch.sent.load(Relaxed))
    }

    /// Resolves when nothing waits that has to go first, with the way out.
    fn poll_line<T>(
        &mut self,
        cx: &mut Context<'_>,
        then: impl FnOnce(Pin<&mut OwnedWriteHalf>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let mut waiting = self.batch.lock();
        if self.is_waiting() {
            self.batch.send(&mut waiting);
        }
        let line = waiting.lines.get_mut(self.line).ok_or(io::ErrorKind::NotConnected)?;
        ready!(line.poll_gone(cx))?;
        self.put = None;
        then(Pin::new(&mut line.half), cx)
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.read).poll_read(cx, buf))?;
        // Something new from there: what is written next answers, or follows, that.
        self.is_large &= buf.filled().len() == before;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let len = bufs.iter().map(|buf| buf.len()).sum::<usize>();
        self.is_large |= len > SMALL_BYTES;
        if self.is_large {
            return self.poll_line(cx, |half, cx| half.poll_write_vectored(cx, bufs));
        }
        let this = &mut *self;
        let mut waiting = this.batch.lock();
        let line = waiting.lines.get_mut(this.line).ok_or(io::ErrorKind::NotConnected)?;
        ready!(line.poll_gone(cx))?;
        this.put = Some(this.batch.sent.load(Relaxed));
        this.batch.put(&mut waiting, this.line, bufs, len);
        Poll::Ready(Ok(len))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// What waits in the batch counts as sent, as does what waits in the system.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.put.is_none() || self.is_waiting() {
            return Poll::Ready(Ok(()));
        }
        self.poll_line(cx, |_, _| Poll::Ready(Ok(())))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_line(cx, AsyncWrite::poll_shutdown)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let mut waiting = self.batch.lock();
        if self.is_waiting() {
            self.batch.send(&mut waiting);
        }
        let gone = self.line;
        waiting.stuck.retain(|line| *line != gone);
        let line = waiting.lines.try_remove(gone);
        drop(waiting);
        // To say first that nothing more is sent would be a call for nothing: it is closed.
        if let Some(line) = line {
            line.half.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::Shutdown,
        time::Duration,
    };

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        task::{JoinHandle, yield_now},
        time::timeout,
    };

    use super::*;

    /// A batch that is being sent.
    fn batch() -> (Arc<Batch>, JoinHandle<()>) {
        let batch = Arc::new(Batch::default());
        let runs = Arc::clone(&batch);
        (batch, tokio::spawn(async move { runs.run().await }))
    }

    /// A socket and its peer, which does not wait.
    async fn pair(batch: &Arc<Batch>) -> (Socket, std::net::TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (peer, accepted) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let ours = accepted.unwrap().0;
        ours.writable().await.unwrap();
        (Socket::new(ours, batch), peer.unwrap().into_std().unwrap())
    }

    /// What has come. On loopback what is sent has come when the call returns.
    fn come(peer: &mut std::net::TcpStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        // An error is that there is no more.
        _ = peer.read_to_end(&mut bytes);
        bytes
    }

    /// The peer says something, and the socket hears it.
    async fn hear(socket: &mut Socket, peer: &mut std::net::TcpStream) {
        peer.write_all(b"?").unwrap();
        socket.read_exact(&mut [0]).await.unwrap();
    }

    /// Fills a line until nothing more is taken. Gives back how many bytes that were.
    async fn fill(socket: &mut Socket) -> usize {
        let large = vec![b'f'; 64 * 1024];
        let mut filled = 0;
        poll_fn(|cx| {
            while let Poll::Ready(taken) = Pin::new(&mut *socket).poll_write(cx, &large) {
                filled += taken.unwrap();
            }
            Poll::Ready(())
        })
        .await;
        filled
    }

    #[tokio::test]
    async fn messages_leave_together_when_everybody_has_had_a_turn() {
        let (batch, _sending) = batch();
        let ((mut a, mut at_a), (mut b, mut at_b)) = (pair(&batch).await, pair(&batch).await);
        let before = batch.sent.load(Relaxed);
        for (socket, text) in [(&mut a, "one "), (&mut b, "other")] {
            socket.write_all(text.as_bytes()).await.unwrap();
            socket.flush().await.unwrap();
        }
        a.write_all(b"two").await.unwrap();
        assert_eq!((come(&mut at_a), come(&mut at_b)), (vec![], vec![]));
        yield_now().await;
        assert_eq!((come(&mut at_a), come(&mut at_b)), (b"one two".to_vec(), b"other".to_vec()));
        assert_eq!(batch.sent.load(Relaxed), before + 1);
    }

    #[tokio::test]
    async fn enough_messages_leave_at_once() {
        let (batch, _sending) = batch();
        let mut pairs = Vec::new();
        for _ in 0..MESSAGES_MAX {
            pairs.push(pair(&batch).await);
        }
        let (last, others) = pairs.split_last_mut().unwrap();
        for (socket, _) in others.iter_mut() {
            socket.write_all(b"x").await.unwrap();
        }
        assert!(others.iter_mut().all(|(_, peer)| come(peer).is_empty()));
        last.0.write_all(b"x").await.unwrap();
        assert!(pairs.iter_mut().all(|(_, peer)| come(peer) == b"x"));
    }

    #[tokio::test]
    async fn whatever_its_size_what_is_written_first_arrives_first() {
        let (batch, _sending) = batch();
        let (mut socket, mut peer) = pair(&batch).await;
        let reads = std::thread::spawn(move || {
            peer.set_nonblocking(false).unwrap();
            come(&mut peer)
        });
        let mut all = Vec::new();
        for len in [3, SMALL_BYTES, 5, SMALL_BYTES + 1, 7, 3_000_000, 11, 13] {
            let part = vec![u8::try_from(len % 251).unwrap(); len];
            socket.write_all(&part).await.unwrap();
            all.extend(part);
        }
        // To shut it down sends what waits.
        socket.shutdown().await.unwrap();
        assert!(reads.join().unwrap() == all);
    }

    #[tokio::test]
    async fn who_takes_nothing_keeps_nobody_else_waiting_and_gets_everything() {
        let (batch, _sending) = batch();
        let ((mut full, mut at_full), (mut other, mut at_other)) = (pair(&batch).await, pair(&batch).await);
        let filled = fill(&mut full).await;
        // What belongs to something large is not taken before it can be sent.
        poll_fn(|cx| {
            assert!(Pin::new(&mut full).poll_write(cx, b"x").is_pending());
            Poll::Ready(())
        })
        .await;
        hear(&mut full, &mut at_full).await;
        for (socket, text) in [(&mut full, "end"), (&mut other, "other")] {
            timeout(Duration::from_secs(10), socket.write_all(text.as_bytes())).await.unwrap().unwrap();
        }
        yield_now().await;
        assert_eq!(come(&mut at_other), b"other");
        // What has not gone is noticed: nothing more is taken.
        let is_pending = poll_fn(|cx| {
            let written = Pin::new(&mut full).poll_write(cx, b"x").is_pending();
            Poll::Ready(written && Pin::new(&mut full).poll_flush(cx).is_pending())
        });
        assert!(is_pending.await);
        // Nobody has to ask again for it to go on.
        let mut taken = Vec::new();
        let all = async {
            while taken.len() < filled + 3 {
                taken.extend(come(&mut at_full));
                yield_now().await;
            }
        };
        timeout(Duration::from_secs(10), all).await.unwrap();
        assert!(taken.ends_with(b"fend") && taken.len() == filled + 3);
        timeout(Duration::from_secs(10), full.flush()).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn what_waits_goes_when_its_socket_does() {
        let (batch, sending) = batch();
        let ((mut socket, mut peer), (mut stuck, mut at_stuck)) = (pair(&batch).await, pair(&batch).await);
        yield_now().await;
        sending.abort();
        socket.write_all(b"bye").await.unwrap();
        fill(&mut stuck).await;
        hear(&mut stuck, &mut at_stuck).await;
        stuck.write_all(b"lost").await.unwrap();
        drop((socket, stuck));
        assert_eq!(come(&mut peer), b"bye");
        let left = batch.lock();
        assert!(left.lines.is_empty() && left.stuck.is_empty() && left.messages.is_empty(), "{left:?}");
    }

    #[tokio::test]
    async fn what_cannot_be_sent_is_an_error_of_the_next_call() {
        let (batch, _sending) = batch();
        let (mut socket, peer) = pair(&batch).await;
        peer.shutdown(Shutdown::Both).unwrap();
        drop(peer);
        // The first one is answered with a reset.
        socket.write_all(b"one").await.unwrap();
        yield_now().await;
        socket.write_all(b"two").await.unwrap();
        yield_now().await;
        assert!(socket.flush().await.is_err());
    }
}
