//! `Register`: a stream whose end ends the registration.
//!
//! A task of its own follows the registration and reads the reports of the client. It never waits for the
//! client to read responses: events of a client that does not read are coalesced into its next one, and
//! refusals beyond [`REFUSALS_MAX`] are dropped and counted. hyper drops the stream of responses when the
//! client resets the call or its connection ends. The task ends then, and with it the registration, as for
//! `POST /services?hold`.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use futures::stream;
use hearsay_protocol::ID_CHARS_MAX;
use prost::Message as _;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tonic::{Response, Status, Streaming};

use super::{
    calls::{Messages, SMALL_BYTES, charge, leaving},
    guard::status_of,
    messages::pb,
    registration_json,
};
use crate::{
    http::{
        AppState,
        api::registrations::{
            Requester,
            hold::{HeldRegistration, HoldEvent},
            parse_grace, parse_status,
        },
        server::{connection::spawn_charged, http2::MayStayUnread},
    },
    registry::{RegistryError, input},
};

/// Refusals of reports that wait until the client reads them.
const REFUSALS_MAX: usize = 16;

/// Records a report for a `ttl` check.
pub(super) fn record_report(
    state: &AppState,
    requester: &Requester,
    request: pb::ReportCheckRequest,
) -> Result<(), Status> {
    let word = registration_json::status_word(request.status());
    let status = parse_status("status", word).map_err(|problem| status_of(&problem))?;
    // The check bounds the output.
    let reported = state.registry.report(&request.check_id, status, request.output, requester.scope());
    reported.map_err(|error| status_of(&error.into()))
}

/// Returns the response to a call, whose stream begins at once.
pub(super) fn serve(
    state: Arc<AppState>,
    requester: Requester,
    requests: Streaming<pb::RegisterRequest>,
) -> Response<Messages<pb::RegisterResponse>> {
    let (sender, receiver) = mpsc::channel(1);
    let call = Call { state, requester, requests, sender: sender.clone(), unsent: VecDeque::new() };
    spawn_charged(async move {
        tokio::select! {
            // The client has reset the call, or its connection has ended.
            () = sender.closed() => (),
            () = call.run() => (),
        }
    });
    // The memory of a response is returned when the next one is taken, because the client has read it then.
    let responses = stream::unfold((receiver, None), async |(mut receiver, charge)| {
        drop(charge);
        let Outgoing { response, charge } = receiver.recv().await?;
        Some((response, (receiver, charge)))
    });
    let messages: Messages<pb::RegisterResponse> = Box::pin(responses);
    let mut response = Response::new(messages);
    // A program that only wants to be registered need not read.
    response.extensions_mut().insert(MayStayUnread(SMALL_BYTES));
    response
}

/// A response, with the memory that it is charged for if it is large.
struct Outgoing {
    response: Result<pb::RegisterResponse, Status>,
    charge: Option<OwnedSemaphorePermit>,
}

impl Outgoing {
    fn small(response: Result<pb::RegisterResponse, Status>) -> Self {
        Self { response, charge: None }
    }
}

/// Waits until a channel has room; false if its receiver is gone.
async fn has_room(sender: &mpsc::Sender<Outgoing>) -> bool {
    sender.reserve().await.is_ok()
}

/// A call and the messages of its client.
struct Call {
    state: Arc<AppState>,
    requester: Requester,
    requests: Streaming<pb::RegisterRequest>,
    /// Has room for one response, which the client has not read yet.
    sender: mpsc::Sender<Outgoing>,
    /// Responses that wait for this room: one event, or a few refusals.
    unsent: VecDeque<Outgoing>,
}

impl Call {
    /// Serves the call to its end.
    async fn run(mut self) {
        let ended = match self.begin().await {
            Ok(held) => self.follow(held).await,
            Err(status) => Err(status),
        };
        self.unsent.extend(ended.err().map(|status| Outgoing::small(Err(status))));
        for outgoing in self.unsent {
            if self.sender.send(outgoing).await.is_err() {
                return;
            }
        }
    }

    /// Reads the registration and registers the program.
    async fn begin(&mut self) -> Result<HeldRegistration, Status> {
        let missing = || Status::invalid_argument("registration: is missing in the first message");
        // The request body bounds the time.
        let first = tokio::select! {
            first = self.requests.message() => first?,
            () = self.state.leaving() => return Err(leaving()),
        };
        let pb::RegisterRequest { message, grace } = first.ok_or_else(missing)?;
        let Some(pb::register_request::Message::Registration(registration)) = message else {
            return Err(missing());
        };
        let refused = |problem| status_of(&problem);
        let grace = match grace.as_str() {
            "" => Duration::ZERO,
            text => parse_grace(text).map_err(refused)?,
        };
        let value = registration_json::of_registration(registration);
        let registration = input::read_value(value, self.requester.source(), self.state.registry.suffix())
            .map_err(|invalid| status_of(&RegistryError::from(invalid).into()))?;
        let scope = self.requester.scope();
        HeldRegistration::begin(Arc::clone(&self.state), registration, grace, scope).await.map_err(refused)
    }

    /// Follows a registration, and reads the messages of its client, until one of them ends.
    async fn follow(&mut self, mut held: HeldRegistration) -> Result<(), Status> {
        loop {
            let has_unsent = !self.unsent.is_empty();
            tokio::select! {
                // An event comes first, so that a client that ends its side at once still learns its id.
                biased;
                has_room = has_room(&self.sender), if has_unsent => {
                    let Some(outgoing) = self.unsent.pop_front().filter(|_| has_room) else { return Ok(()) };
                    // An error means that the client is gone, which ends the task.
                    _ = self.sender.try_send(outgoing);
                }
                event = held.next(), if !has_unsent => {
                    let event = event.ok_or_else(leaving)?;
                    self.queue_event(&event, &held);
                    if matches!(event, HoldEvent::Deregistered | HoldEvent::Replaced) {
                        return Ok(());
                    }
                }
                () = self.state.leaving(), if has_unsent => return Err(leaving()),
                request = self.requests.message() => match request? {
                    Some(request) => self.record(request),
                    None => {
                        held.end_at_once();
                        return Ok(());
                    }
                },
            }
        }
    }

    fn queue_event(&mut self, event: &HoldEvent, held: &HeldRegistration) {
        use pb::register_response::Event;
        let event = match event {
            HoldEvent::Registered => Event::Registered(pb::Registered {
                id: held.id().to_owned(),
                node: self.state.name.clone(),
                requires: held.required().into(),
            }),
            HoldEvent::Updated => Event::Updated(pb::RequiresUpdated { requires: held.required().into() }),
            HoldEvent::Deregistered => Event::Deregistered(pb::Deregistered {}),
            HoldEvent::Replaced => Event::Replaced(pb::Replaced {}),
        };
        let response = pb::RegisterResponse { event: Some(event) };
        // Without memory it is sent uncharged: an error would end the registration of a program that is well,
        // because other clients do not read. One event waits for each stream.
        let charge = charge(&self.state, response.encoded_len()).ok().flatten();
        self.unsent.push_back(Outgoing { response: Ok(response), charge });
    }

    /// Records a report. A refusal is queued for the client.
    fn record(&mut self, request: pb::RegisterRequest) {
        let (check_id, refused) = match request.message {
            Some(pb::register_request::Message::Report(report)) => {
                // No check has a longer id.
                let check_id = report.check_id.chars().take(ID_CHARS_MAX).collect();
                (check_id, record_report(&self.state, &self.requester, report))
            }
            Some(pb::register_request::Message::Registration(_)) => {
                let detail = "registration: is for the first message only; open another stream";
                (String::new(), Err(Status::invalid_argument(detail)))
            }
            // A message of a newer version.
            None => {
                (String::new(), Err(Status::invalid_argument("message: is neither registration nor report")))
            }
        };
        let Err(status) = refused else { return };
        if self.unsent.len() >= REFUSALS_MAX {
            self.state.metrics.grpc.refusals_dropped.inc();
            return;
        }
        let refused =
            pb::ReportRefused { check_id, code: status.code().into(), detail: status.message().to_owned() };
        let event = Some(pb::register_response::Event::ReportRefused(refused));
        self.unsent.push_back(Outgoing::small(Ok(pb::RegisterResponse { event })));
    }
}
