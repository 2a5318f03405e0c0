//! [`RequestBody`]: bounds the memory and the time of messages until they have arrived.
//!
//! A message may have megabytes, and tonic keeps its parts until the last one arrives. Without a bound a
//! client could begin a message on each of many streams, and never end one. What has arrived of a message is
//! charged to the memory for request bodies until it is complete, and a message has as much time as a body.
//! Its prefix is 5 bytes, a flag and the length (gRPC over HTTP/2, section "Length-Prefixed-Message").
//!
//! The same time applies from the head of a call to the end of its first message, and to the end of the whole
//! request if the method takes one message. So a client cannot hold calls that never begin.

use std::{
    pin::Pin,
    sync::{Arc, OnceLock},
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

/// Status with which a request body has ended its call. An extension of requests.
///
/// The handler of reflection, which is tonic's, ends its responses with OK when the request breaks off.
#[derive(Clone, Default, Debug)]
pub(super) struct EarlyEnd(Arc<OnceLock<Status>>);

impl EarlyEnd {
    /// Returns the status, if the body has ended the call.
    pub(super) fn status(&self) -> Option<&Status> {
        self.0.get()
    }
}

/// Number of messages that a method takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Requests {
    /// One, after which the client ends its side.
    One,
    /// Any number, with pauses of any length between them.
    Stream,
}

/// A request body whose messages are bounded until they are complete.
pub(super) struct RequestBody {
    body: Body,
    memory: Arc<Semaphore>,
    time: Duration,
    metrics: Arc<Metrics>,
    requests: Requests,
    early_end: EarlyEnd,
    position: Position,
    permit: BodyPermit,
    /// When the message that is due must be complete.
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

impl RequestBody {
    /// Bounds a body by the limits of its connection.
    pub(super) fn bound(
        body: Body,
        requests: Requests,
        connection: &Connection,
        (metrics, early_end): (Arc<Metrics>, EarlyEnd),
    ) -> Body {
        let time = connection.limits.body;
        Body::new(Self {
            body,
            memory: Arc::clone(&connection.body_memory),
            time,
            metrics,
            requests,
            early_end,
            position: START,
            permit: None,
            deadline: Some(Box::pin(sleep_until(Instant::now() + time))),
        })
    }

    /// Follows the data, and charges what has arrived of each message.
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
                        self.position = Position::Message(length);
                    }
                }
                Position::Message(missing) => {
                    // What has arrived, and not what the prefix states, which costs a client nothing.
                    let more = data.len().min(missing);
                    charge(&mut self.permit, more, &self.memory).map_err(|_| Refusal::NoMemory)?;
                    data = &data[more..];
                    self.position = Position::Message(missing - more);
                }
            }
            if self.position == Position::Message(0) {
                self.position = START;
                self.permit = None;
                if self.requests == Requests::Stream {
                    self.deadline = None;
                }
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
            Refusal::TooSlow => {
                let time = self.time;
                let detail = format!(
                    "a message, or the end of the request, did not come within {time:?}; send messages without pauses"
                );
                ("body_time", Status::deadline_exceeded(detail))
            }
        };
        self.metrics.http.refused(label);
        // An error means that an earlier refusal is set.
        _ = self.early_end.0.set(status.clone());
        axum::Error::new(status)
    }
}

/// Reason to end a call before its messages have arrived.
#[derive(Clone, Copy, Debug)]
enum Refusal {
    NoMemory,
    TooSlow,
}

impl HttpBody for RequestBody {
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
            // tonic takes the status of a reset, CANCELLED, for the end of the client's side.
            Poll::Ready(Some(Err(_))) => {
                let broken = Status::aborted("the call was reset, or its connection has ended");
                Poll::Ready(Some(Err(axum::Error::new(broken))))
            }
            Poll::Ready(None) => Poll::Ready(None),
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
    fn body(requests: Requests, parts: Vec<Vec<u8>>, is_open: bool, connection: &Connection) -> Body {
        let parts = futures::stream::iter(parts.into_iter().map(Ok::<_, std::io::Error>));
        let rest = futures::stream::pending().take(usize::from(is_open));
        let context = (metrics(), EarlyEnd::default());
        RequestBody::bound(Body::from_stream(parts.chain(rest)), requests, connection, context)
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
            let read = body(Requests::Stream, parts, false, &connection).collect().await.unwrap().to_bytes();
            assert_eq!(read, whole);
        }
        assert_eq!(connection.body_memory.available_permits(), 100);
        let refused =
            body(Requests::One, vec![message(101, 101)], true, &connection).collect().await.unwrap_err();
        assert_refused(refused, Code::ResourceExhausted);
        // A length that is stated and never sent takes nothing from others.
        let mut begun = body(Requests::One, vec![message(101, 1)], true, &connection);
        begun.frame().await.unwrap().unwrap();
        assert_eq!(connection.body_memory.available_permits(), 99);
    }

    #[tokio::test]
    async fn a_message_that_does_not_come_or_end_is_refused_and_a_pause_between_messages_is_not() {
        let limits = Limits { body: Duration::from_millis(20), ..Limits::default() };
        let connection = Connection::new(limits);
        for requests in [Requests::One, Requests::Stream] {
            for parts in [vec![message(60, 59)], vec![vec![0, 0]], vec![vec![]], vec![]] {
                let refused = body(requests, parts, true, &connection).collect().await.unwrap_err();
                assert_refused(refused, Code::DeadlineExceeded);
            }
        }
        let unended = body(Requests::One, vec![message(3, 3)], true, &connection).collect().await;
        assert_refused(unended.unwrap_err(), Code::DeadlineExceeded);
        let second = vec![message(3, 3), message(60, 59)];
        let second = body(Requests::Stream, second, true, &connection).collect().await;
        assert_refused(second.unwrap_err(), Code::DeadlineExceeded);
        let open = body(Requests::Stream, vec![message(3, 3)], true, &connection).collect();
        let waited = tokio::time::timeout(connection.limits.body * 10, open).await;
        assert!(waited.is_err(), "a stream between messages may last");
    }
}
