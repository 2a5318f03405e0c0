//! `Register`: a stream whose end ends the registration.
//!
//! The registration is held by the stream of responses. hyper drops that stream when the client resets the
//! call or its connection ends, and thereby the registration, as for `POST /services?hold`.

use std::{sync::Arc, time::Duration};

use futures::stream;
use tonic::{Status, Streaming};

use super::{
    calls::{Messages, leaving},
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
    },
    registry::{RegistryError, input},
};

/// Time in which a client sends the registration.
const FIRST_MESSAGE_MAX: Duration = Duration::from_secs(10);

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

/// Returns the responses to a call.
pub(super) fn serve(
    state: Arc<AppState>,
    requester: Requester,
    requests: Streaming<pb::RegisterRequest>,
) -> Messages<pb::RegisterResponse> {
    let call = Call { state, requester, requests };
    // The registration is read in the stream, so that the client gets the head of the response at once.
    Box::pin(stream::unfold(Session::Opening(Box::new(call)), Session::next))
}

/// A call and the messages of its client.
struct Call {
    state: Arc<AppState>,
    requester: Requester,
    requests: Streaming<pb::RegisterRequest>,
}

/// State of a call.
enum Session {
    /// The registration has not come yet.
    Opening(Box<Call>),
    /// The program is registered.
    Held(Box<Call>, Box<HeldRegistration>),
    /// The last response is sent.
    Over,
}

type Response = Result<pb::RegisterResponse, Status>;

impl Session {
    /// Returns the next response; `None` at the end of the call.
    async fn next(self) -> Option<(Response, Self)> {
        match self {
            Self::Opening(mut call) => match call.begin().await {
                Ok(held) => call.follow(Box::new(held)).await,
                Err(status) => Some((Err(status), Self::Over)),
            },
            Self::Held(call, held) => call.follow(held).await,
            Self::Over => None,
        }
    }
}

impl Call {
    /// Reads the registration and registers the program.
    async fn begin(&mut self) -> Result<HeldRegistration, Status> {
        let first = tokio::time::timeout(FIRST_MESSAGE_MAX, self.requests.message()).await;
        let late = |_| Status::deadline_exceeded("the registration did not come within 10s of the call");
        let first = first.map_err(late)??;
        let missing = || Status::invalid_argument("registration: is missing in the first message");
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

    /// Waits for the next event of a registration, or the next message of its client.
    async fn follow(mut self: Box<Self>, mut held: Box<HeldRegistration>) -> Option<(Response, Session)> {
        loop {
            tokio::select! {
                // An event comes first, so that a client that ends its side at once still learns its id.
                biased;
                event = held.next() => {
                    let Some(event) = event else { return Some((Err(leaving()), Session::Over)) };
                    let is_last = matches!(event, HoldEvent::Deregistered | HoldEvent::Replaced);
                    let response = Ok(self.response_to(&event, &held));
                    let session = if is_last { Session::Over } else { Session::Held(self, held) };
                    return Some((response, session));
                }
                request = self.requests.message() => match request {
                    Ok(Some(request)) => {
                        if let Some(refused) = self.record(request) {
                            return Some((Ok(refused), Session::Held(self, held)));
                        }
                    }
                    Ok(None) => {
                        held.end_at_once();
                        return None;
                    }
                    Err(status) => return Some((Err(status), Session::Over)),
                },
            }
        }
    }

    fn response_to(&self, event: &HoldEvent, held: &HeldRegistration) -> pb::RegisterResponse {
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
        pb::RegisterResponse { event: Some(event) }
    }

    /// Records a report, and returns a response if it is refused.
    fn record(&self, request: pb::RegisterRequest) -> Option<pb::RegisterResponse> {
        let (check_id, refused) = match request.message {
            Some(pb::register_request::Message::Report(report)) => {
                let check_id = report.check_id.clone();
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
        let status = refused.err()?;
        let refused =
            pb::ReportRefused { check_id, code: status.code().into(), detail: status.message().to_owned() };
        Some(pb::RegisterResponse { event: Some(pb::register_response::Event::ReportRefused(refused)) })
    }
}
