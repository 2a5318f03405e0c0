//! [`Messages`]: bounds the memory and the time of messages that have arrived in part.
//!
//! A message may have megabytes, and tonic keeps its parts until the last one arrives. Without a bound a
//! client could begin a message on each of many streams, and never end one. A message is charged to the
//! memory for request bodies from its prefix (5 bytes: a flag and the length; gRPC over HTTP/2, section
//! "Length-Prefixed-Message") until it is complete, and has as much time as a body.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::{
    sync::Semaphore,
    time::{Instant, Sleep, sleep_until},
};
use tonic::Status;

use crate::{
    http::server::{
        body_budget::{BodyPermit, charge},
        connection::Connection,
    },
    metrics::Metrics,
};

/// Bytes before each message.
const PREFIX_BYTES: usize = 5;
/// Bytes of a message that are charged. Longer messages are refused by their service.
const CHARGED_MAX: usize = 4 * 1024 * 1024;

/// A request body whose incomplete messages are bounded.
pub(super) struct Messages {
    body: Body,
    memory: Arc<Semaphore>,
    time: Duration,
    metrics: Arc<Metrics>,
    position: Position,
    permit: BodyPermit,
    /// When the message that is incomplete must be complete.
    deadline: Option<Pin<Box<Sleep>>>,
}

/// Position in the sequence of messages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Position {
    /// In a prefix, of which so many bytes have arrived.
    Prefix([u8; PREFIX_BYTES], usize),
    /// In a message, of which so many bytes are missing.
    Message(usize),
}

/// The prefix of the next message.
const START: Position = Position::Prefix([0; PREFIX_BYTES], 0);

impl Messages {
    /// Bounds a body by the limits of its connection.
    pub(super) fn bound(body: Body, connection: &Connection, metrics: Arc<Metrics>) -> Body {
        Body::new(Self {
            body,
            memory: Arc::clone(&connection.body_memory),
            time: connection.limits.body,
            metrics,
            position: START,
            permit: None,
            deadline: None,
        })
    }

    /// Follows the data, and charges each message that begins.
    fn follow(&mut self, mut data: &[u8]) -> Result<(), Refusal> {
        while !data.is_empty() {
            match self.position {
                Position::Prefix(mut prefix, filled) => {
                    let more = data.len().min(PREFIX_BYTES - filled);
                    prefix[filled..filled + more].copy_from_slice(&data[..more]);
                    data = &data[more..];
                    self.position = Position::Prefix(prefix, filled + more);
                    if filled + more == PREFIX_BYTES {
                        let [_, length @ ..] = prefix;
                        let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
                        charge(&mut self.permit, length.min(CHARGED_MAX), &self.memory)
                            .map_err(|_| Refusal::NoMemory)?;
                        self.position = Position::Message(length);
                    }
                }
                Position::Message(missing) => {
                    let more = data.len().min(missing);
                    data = &data[more..];
                    self.position = Position::Message(missing - more);
                }
            }
            if self.position == Position::Message(0) {
                self.position = START;
                self.permit = None;
                self.deadline = None;
            }
        }
        if self.position != START && self.deadline.is_none() {
            self.deadline = Some(Box::pin(sleep_until(Instant::now() + self.time)));
        }
        Ok(())
    }

    /// Counts a refusal. tonic passes its status on to the client.
    fn refuse(&self, refusal: Refusal) -> axum::Error {
        let (label, status) = match refusal {
            Refusal::NoMemory => (
                "body_room",
                Status::resource_exhausted("the node has no memory left for messages; try again in a second"),
            ),
            Refusal::TooSlow => (
                "body_time",
                Status::deadline_exceeded("the message took too long to arrive; send it without pauses"),
            ),
        };
        self.metrics.http.refused(label);
        axum::Error::new(status)
    }
}

/// Reason to end a stream in the middle of a message.
#[derive(Clone, Copy, Debug)]
enum Refusal {
    NoMemory,
    TooSlow,
}

impl HttpBody for Messages {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let followed = frame.data_ref().map_or(Ok(()), |data| self.follow(data));
                Poll::Ready(Some(followed.map(|()| frame).map_err(|refusal| self.refuse(refusal))))
            }
            Poll::Pending => {
                let is_over = self.deadline.as_mut().is_some_and(|at| at.as_mut().poll(cx).is_ready());
                if is_over { Poll::Ready(Some(Err(self.refuse(Refusal::TooSlow)))) } else { Poll::Pending }
            }
            ended => ended,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;
    use hearsay_protocol::Index;
    use http_body_util::BodyExt as _;

    use tonic::Code;

    use super::*;
    use crate::{
        http::server::limits::Limits,
        view::{Clock, View},
    };

    fn metrics() -> Arc<Metrics> {
        Arc::new(Metrics::new(Arc::new(View::new(Index(1), Clock::start()))))
    }

    fn message(length: u32, bytes: usize) -> Vec<u8> {
        [&[0][..], &length.to_be_bytes(), &vec![7; bytes]].concat()
    }

    /// A body of parts, which stays open after them if `is_open`.
    fn body(parts: Vec<Vec<u8>>, is_open: bool, connection: &Connection) -> Body {
        let parts = futures::stream::iter(parts.into_iter().map(Ok::<_, std::io::Error>));
        let rest = futures::stream::pending().take(usize::from(is_open));
        Messages::bound(Body::from_stream(parts.chain(rest)), connection, metrics())
    }

    /// The status that tonic makes of an error.
    fn assert_refused(error: axum::Error, code: Code) {
        let status = Status::from_error(Box::new(error));
        assert_eq!(status.code(), code, "{status}");
    }

    #[tokio::test]
    async fn complete_messages_pass_however_they_are_cut_and_are_charged_until_then() {
        let connection = Connection::new(Limits { bodies_bytes: 100, ..Limits::default() });
        let whole = [message(60, 60), message(0, 0), message(80, 80)].concat();
        for size in [1, 3, 7, whole.len()] {
            let parts = whole.chunks(size).map(<[u8]>::to_vec).collect();
            let read = body(parts, false, &connection).collect().await.unwrap().to_bytes();
            assert_eq!(read, whole);
        }
        assert_eq!(connection.body_memory.available_permits(), 100);
        let refused = body(vec![message(101, 1)], true, &connection).collect().await.unwrap_err();
        assert_refused(refused, Code::ResourceExhausted);
    }

    #[tokio::test]
    async fn a_message_that_does_not_end_is_refused_and_an_open_stream_without_one_is_not() {
        let limits = Limits { body: Duration::from_millis(20), ..Limits::default() };
        let connection = Connection::new(limits);
        for part in [message(60, 59), vec![0, 0]] {
            let refused = body(vec![part], true, &connection).collect().await.unwrap_err();
            assert_refused(refused, Code::DeadlineExceeded);
        }
        let open = body(vec![message(3, 3)], true, &connection).collect();
        let waited = tokio::time::timeout(connection.limits.body * 10, open).await;
        assert!(waited.is_err(), "a stream between messages may last");
    }
}
