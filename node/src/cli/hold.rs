//! [`Holder`]: client side of a held registration, whose instance exists as long as the connection. Reads the
//! updates, and registers again after a lost connection.
//!
//! The answer to `POST /services?hold` is a stream of events: `registered`, then `update` for each change of
//! the required services. A node that restarts loses held registrations, so the registration is sent again,
//! with backoff, until a node accepts it.

use std::{cell::RefCell, time::Duration};

use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::{sleep, timeout};

use super::{
    client::Client,
    failure::Failure,
    responses::Registered,
    sse::{Event, Parser},
};
use crate::escape::{escaped, percent_encoded};

/// The name of the first event.
const REGISTERED: &str = "registered";
/// Names of events by which the node ends the registration on purpose.
const ENDED: [&str; 2] = ["deregistered", "replaced"];
/// Timeout of the first event.
const FIRST_EVENT_MAX: Duration = Duration::from_secs(10);
/// Silence after which a stream counts as dead. Nodes send a comment every five seconds.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// First pause after a lost connection. A node restarts within a second.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Timeout of the deregistration at the end.
const DEREGISTER_MAX: Duration = Duration::from_secs(2);

/// Holds one registration over successive connections.
pub(super) struct Holder {
    client: Client,
    path: String,
    body: Bytes,
    /// The last notice, so that it is printed once.
    last_notice: RefCell<String>,
}

/// A registration with its open connection.
pub(super) struct Held {
    pub(super) registered: Registered,
    /// The first event.
    pub(super) first: Event,
    events: Events,
}

impl Holder {
    /// Returns a holder of this registration (JSON). `grace`: time for which the instance stays after the
    /// connection is lost.
    pub(super) fn new(client: Client, body: Bytes, grace: Option<&str>) -> Self {
        let grace = grace.map(|grace| format!("&grace={}", percent_encoded(grace))).unwrap_or_default();
        Self { client, path: format!("/services?hold{grace}"), body, last_notice: RefCell::default() }
    }

    /// Registers.
    ///
    /// # Errors
    /// [`Failure::Unreachable`] if a retry may help: no node answers, or only with a temporary error.
    pub(super) async fn open(&self) -> Result<Held, Failure> {
        let response = self.client.open_stream(&self.path, self.body.clone()).await?;
        if !response.status().is_success() {
            let status = response.status();
            let answer = self.client.read(response).await?;
            let is_temporary = status.is_server_error() && status != http::StatusCode::INSUFFICIENT_STORAGE;
            if is_temporary || status == http::StatusCode::TOO_MANY_REQUESTS {
                return Err(self.client.unreachable(answer.problem()));
            }
            return Err(answer
                .expect_success()
                .err()
                .unwrap_or_else(|| self.client.unreachable("the node sent no event stream")));
        }
        let mut events =
            Events { body: response.into_body(), parser: Parser::default(), read: Vec::new().into_iter() };
        let first = timeout(FIRST_EVENT_MAX, events.next()).await;
        match first.unwrap_or_else(|_| Err("no data within the timeout".into())) {
            Ok(first) if first.name == REGISTERED => {
                let registered: Registered = serde_json::from_str(&first.data).map_err(|error| {
                    Failure::Refused(format!("the event is not one of a Hearsay node: {error}"))
                })?;
                Ok(Held { registered, first, events })
            }
            Ok(other) => {
                Err(Failure::Refused(format!("the event is not one of a Hearsay node: {:?}", other.name)))
            }
            Err(broken) => Err(self.client.unreachable(broken)),
        }
    }

    /// Registers, with retries as long as no node answers.
    pub(super) async fn open_with_retries(&self, mut pause: Duration) -> Result<Held, Failure> {
        loop {
            match self.open().await {
                Err(failure @ Failure::Unreachable { .. }) => self.notify_once(&failure.to_string()),
                opened => return opened,
            }
            sleep(pause).await;
            pause = (pause * 2).min(BACKOFF_MAX);
        }
    }

    /// Keeps the registration, with reconnects, and passes events to `show`. Returns why it ended.
    pub(super) async fn keep(
        &self,
        mut held: Held,
        mut show: impl FnMut(&Event) -> Result<(), Failure>,
    ) -> Failure {
        loop {
            let broken = loop {
                match held.events.next().await {
                    Ok(event) if ENDED.contains(&event.name.as_str()) => {
                        let id = &held.registered.id;
                        return Failure::Refused(format!(
                            "the node ended the registration of {id} ({})",
                            event.name
                        ));
                    }
                    Ok(event) => {
                        if let Err(failure) = show(&event) {
                            return failure;
                        }
                    }
                    Err(broken) => break broken,
                }
            };
            self.notify_once(&format!(
                "the connection to {} is lost ({broken}); registering again",
                self.client.url()
            ));
            // A node has accepted this registration, so it is valid, and even a refusal is retried.
            let mut pause = BACKOFF_MIN;
            held = loop {
                sleep(pause).await;
                pause = (pause * 2).min(BACKOFF_MAX);
                match self.open_with_retries(pause).await {
                    Ok(held) => break held,
                    Err(failure) => self.notify_once(&failure.to_string()),
                }
            };
            self.notify_once(&format!("{} is registered again", held.registered.id));
            if let Err(failure) = show(&held.first) {
                return failure;
            }
        }
    }

    /// Prints a notice unless it is the same as the last one.
    fn notify_once(&self, text: &str) {
        if *self.last_notice.borrow() != text {
            notice!("{}", escaped(text));
            text.clone_into(&mut self.last_notice.borrow_mut());
        }
    }
}

/// Removes a held instance without its grace. Errors are ignored: the instance ends with the connection.
pub(super) async fn deregister(client: &Client, id: &str) {
    let path = format!("/services/{}", percent_encoded(id));
    _ = timeout(DEREGISTER_MAX, client.request(Method::DELETE, &path)).await;
}

/// Reader of the events of a stream.
struct Events {
    body: Incoming,
    parser: Parser,
    read: std::vec::IntoIter<Event>,
}

impl Events {
    /// Returns the next event, or why the stream ended.
    async fn next(&mut self) -> Result<Event, String> {
        loop {
            if let Some(event) = self.read.next() {
                return Ok(event);
            }
            let piece = match timeout(SILENCE_MAX, self.body.frame()).await {
                Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
                Ok(Some(Err(error))) => return Err(error.to_string()),
                Ok(None) => return Err("the node closed the stream".into()),
                Err(_) => return Err("no data within the timeout".into()),
            };
            self.read = self.parser.push(&piece).map_err(|error| error.to_string())?.into_iter();
        }
    }
}
