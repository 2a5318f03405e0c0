//! Held registrations: the instance is there for as long as the connection is.
//!
//! `POST /services?hold` is answered with a stream of events: `registered`, then `update` for each change of the services that the instance
//! requires. A node that restarts has forgotten what was held; so the registration is sent again, with backoff, until a node takes it.

use std::{cell::RefCell, time::Duration};

use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::{sleep, timeout};

use super::{
    answers::Registered,
    client::{Client, segment},
    failure::Failure,
    sse::{Event, Parser},
};
use crate::escape::escaped;

/// The name of the first event.
const REGISTERED: &str = "registered";
/// A node that takes the registration away on purpose says so by one of these, and is obeyed.
const ENDED: [&str; 2] = ["deregistered", "replaced"];
/// How long the first event may take.
const FIRST_EVENT_MAX: Duration = Duration::from_secs(10);
/// A stream that is silent for so long is dead: nodes send a comment every five seconds.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// After the loss of a connection. A node that restarts is back within a second.
const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// How long the last word to a node may take.
const DEREGISTER_MAX: Duration = Duration::from_secs(2);

/// A registration that is to be held.
pub(super) struct Holder {
    client: Client,
    path: String,
    body: Bytes,
    /// What went wrong last, so that it is told once.
    told: RefCell<String>,
}

/// A registration that is held.
pub(super) struct Held {
    pub(super) registered: Registered,
    /// The first event as it came.
    pub(super) first: Event,
    events: Events,
}

impl Holder {
    /// A registration as JSON. `grace` is how long the instance outlives a lost connection.
    pub(super) fn new(client: Client, body: Bytes, grace: Option<&str>) -> Self {
        let grace = grace.map(|grace| format!("&grace={}", segment(grace))).unwrap_or_default();
        Self { client, path: format!("/services?hold{grace}"), body, told: RefCell::default() }
    }

    /// Registers.
    ///
    /// # Errors
    /// [`Failure::Unreachable`] where trying again may help: no node answers, or it answers that it cannot at present.
    pub(super) async fn open(&self) -> Result<Held, Failure> {
        let response = self.client.open_stream(&self.path, self.body.clone()).await?;
        if !response.status().is_success() {
            let status = response.status();
            let answer = self.client.read(response).await?;
            if status.is_server_error() && status != http::StatusCode::INSUFFICIENT_STORAGE {
                return Err(self.client.unreachable(answer.problem()));
            }
            return Err(answer
                .expect_success()
                .err()
                .unwrap_or_else(|| self.client.unreachable("no stream")));
        }
        let mut events =
            Events { body: response.into_body(), parser: Parser::default(), read: Vec::new().into_iter() };
        let first = timeout(FIRST_EVENT_MAX, events.next()).await;
        match first.unwrap_or_else(|_| Err("nothing comes".into())) {
            Ok(first) if first.name == REGISTERED => {
                let registered: Registered = serde_json::from_str(&first.data)
                    .map_err(|error| Failure::Refused(format!("that event is not a node's: {error}")))?;
                Ok(Held { registered, first, events })
            }
            Ok(other) => Err(Failure::Refused(format!("that event is not a node's: {:?}", other.name))),
            Err(broken) => Err(self.client.unreachable(broken)),
        }
    }

    /// Registers, and tries again for as long as no node answers.
    pub(super) async fn open_at_last(&self, mut pause: Duration) -> Result<Held, Failure> {
        loop {
            match self.open().await {
                Err(failure @ Failure::Unreachable { .. }) => self.tell(&failure.to_string()),
                opened => return opened,
            }
            sleep(pause).await;
            pause = (pause * 2).min(BACKOFF_MAX);
        }
    }

    /// Keeps the registration, over connections that come and go, and shows events. Returns why it is over.
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
                            "the node has ended the registration of {id}: {}",
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
            self.tell(&format!(
                "the connection to {} is lost ({broken}); registering again",
                self.client.url()
            ));
            // Whatever a node answers now, an earlier one took this registration: it is tried again.
            let mut pause = BACKOFF_MIN;
            held = loop {
                sleep(pause).await;
                pause = (pause * 2).min(BACKOFF_MAX);
                match self.open_at_last(pause).await {
                    Ok(held) => break held,
                    Err(failure) => self.tell(&failure.to_string()),
                }
            };
            self.tell(&format!("{} is registered again", held.registered.id));
            if let Err(failure) = show(&held.first) {
                return failure;
            }
        }
    }

    /// Tells the person, once.
    fn tell(&self, text: &str) {
        if *self.told.borrow() != text {
            notice!("{}", escaped(text));
            text.clone_into(&mut self.told.borrow_mut());
        }
    }
}

/// Removes an instance that is held, without its grace. The node may be gone, and the instance with it.
pub(super) async fn deregister(client: &Client, id: &str) {
    let path = format!("/services/{}", segment(id));
    _ = timeout(DEREGISTER_MAX, client.ask(Method::DELETE, &path)).await;
}

/// The events of a stream.
struct Events {
    body: Incoming,
    parser: Parser,
    read: std::vec::IntoIter<Event>,
}

impl Events {
    /// The next event, or why there is none, in words.
    async fn next(&mut self) -> Result<Event, String> {
        loop {
            if let Some(event) = self.read.next() {
                return Ok(event);
            }
            let piece = match timeout(SILENCE_MAX, self.body.frame()).await {
                Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
                Ok(Some(Err(error))) => return Err(error.to_string()),
                Ok(None) => return Err("the node closed it".into()),
                Err(_) => return Err("nothing comes".into()),
            };
            self.read = self.parser.feed(&piece).map_err(|error| error.to_string())?.into_iter();
        }
    }
}
