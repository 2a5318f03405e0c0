//! The way of a request: examined, routed, sent to an instance, to another one where that is allowed, and its answer passed back.
//!
//! May it be sent again?
//!
//! | what went wrong | any request | a safe one whose body is kept |
//! | --- | --- | --- |
//! | no connection could be opened; nothing was sent | elsewhere | elsewhere |
//! | a kept connection was closed before anything was sent on it | on a new one | on a new one |
//! | it was sent, and the connection broke, or no answer came in time | no: 502, 504 | elsewhere |
//! | the instance answered 502, 503 or 504 | no: that is the answer | elsewhere, while there is another one |
//!
//! "Elsewhere" costs budget ([`super::budget`]), "on a new one" does not: nobody had the request.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use hyper::{
    body::{Body as _, Incoming},
    client::conn::TrySendError,
    upgrade::OnUpgrade,
};
use tokio::time::{Instant, Sleep, sleep};

use super::{
    access::Access,
    body::{Answer, Held, Outgoing, Relay, Upload, UploadState, gather},
    choose::{blame, choose},
    counters::Reason,
    driven::Driven,
    forward::{self, Origin, Present, strip_hop_by_hop},
    front_page::front_page,
    passing::{Passing, uri_of},
    pool::{ConnectError, Lease, One, Pool, Two},
    request::{Admitted, Refusal, admit, no_path, rest_of},
    routes::{Manner, Route},
    shared::{Flight, Shared},
    stream::{Active, Connection},
    target::{BAD_ANSWER, BROKEN, Target},
    tunnel,
    vouch::{self, Proof, Whole},
    words::{bad_upload, nobody, not_of_role, not_opened, own_words, told, unknown},
};
use crate::{Problem, prefixes::is_writing_get};

/// The signature of a node.
const SIGNATURE: HeaderName = HeaderName::from_static(hearsay_protocol::signed_request::HEADER);
/// How often it is looked whether an instance that owes an answer is still listed, or has owed it for too long.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);

/// One thread's part of the gateway.
#[derive(Debug)]
pub struct Worker {
    /// What all threads share.
    pub shared: Arc<Shared>,
    /// This thread's connections to instances.
    pub pool: Arc<Pool>,
}

/// An instance's answer.
struct Answered {
    response: Response<Incoming>,
    /// The connection it came by, where that is to be used again.
    lease: Option<Lease>,
    /// When its head had come.
    at: Instant,
}

/// What became of an attempt.
enum Attempt {
    /// An answer.
    Answered(Answered),
    /// Nobody had the request.
    NotOpened(ConnectError),
    /// A kept connection was closed before, or while, it was used.
    Stale { was_sent: bool },
    /// The connection broke.
    Broken(String),
    /// No answer in time, or none to be expected.
    Silent,
    /// It was the client's fault.
    BadUpload(Upload),
}

enum Sender {
    One { one: Box<One>, is_kept: bool },
    Two(Two),
}

impl Worker {
    /// Answers a request.
    pub async fn serve(
        &self,
        connection: &Arc<Connection>,
        mut request: Request<Incoming>,
    ) -> Response<Answer> {
        let shared = &self.shared;
        shared.counters.requests.fetch_add(1, Relaxed);
        let active = connection.begin();
        let mut access = Access::begin(&request, &connection.client.address);
        let present = Present::of(request.headers());
        let upgrade = present.has(Present::UPGRADE).then(|| hyper::upgrade::on(&mut request));
        let response = match self.pass(connection, request, present, upgrade, active, &mut access).await {
            Ok(response) => response,
            Err((reason, problem)) => {
                shared.counters.refused(reason);
                let response = own_words(&problem);
                if let Some(access) = &mut access {
                    access.answer(response.status());
                }
                response
            }
        };
        shared.counters.answered(response.status());
        response
    }

    async fn pass(
        &self,
        connection: &Arc<Connection>,
        request: Request<Incoming>,
        present: Present,
        on_upgrade: Option<OnUpgrade>,
        active: Active,
        access: &mut Option<Box<Access>>,
    ) -> Result<Response<Answer>, Refusal> {
        let shared = &self.shared;
        let (mut head, body) = request.into_parts();
        let has_body = !body.is_end_stream();
        let admitted = admit(&head, present, has_body, connection.said_both(), &shared.me.name)?;
        let mut flight = shared.begin(&connection.share)?;
        let routes = shared.routes();
        let path = head.uri.path();
        let Some(found) = routes.find(admitted.host(), path) else {
            let front = front_page(&head.method, path, &routes).ok_or_else(|| unknown(path))?;
            access.iter_mut().for_each(|access| access.answer(front.status()));
            return Ok(front);
        };
        let route = Arc::clone(found.route);
        let name = found.prefix(path);
        let client = connection.client.ip;
        let proof = || shared.vouching.prove(client, &head.method, &head.headers);
        let proof = route.group.has_roles.then(proof);
        shared.vouching.strip(&mut head.headers);
        forward::prepare(&mut head.headers, present, head.version);
        let whole = head.uri.path_and_query().ok_or_else(no_path)?;
        let whole = rest_of(whole, found.name_bytes)?;
        drop(routes);
        if let Some(proof) = proof.as_ref().filter(|_| route.group.is_of_roles()) {
            // Before anything is taken in for it.
            proof.check(&head.method, whole.path())?;
        }
        let is_safe = matches!(head.method, Method::GET | Method::HEAD | Method::OPTIONS)
            && !is_writing_get(whole.path());
        let (body, upload, is_kept, room) = if proof.is_some() && has_body {
            let whole = shared.vouching.take(body).await;
            connection.body_ended();
            let Whole { bytes, room } = whole?;
            (Outgoing::Kept(bytes), None, true, Some(room))
        } else {
            let (body, upload, is_kept) = self.prepare_body(connection, body, is_safe).await?;
            (body, upload, is_kept, None)
        };
        let Admitted { authority, upgrade, is_grpc } = admitted;
        let mut passing = Passing {
            method: head.method,
            path: whole.clone(),
            whole,
            stripped: 0,
            headers: head.headers,
            present,
            has_added: false,
            connection,
            version: head.version,
            authority,
            forwarded: None,
            name,
            upgrade,
            is_grpc,
            is_repeatable: is_safe && is_kept,
            body,
            upload,
            proof,
            _room: room,
            started: Instant::now(),
        };
        let (answered, target) = self.try_instances(&route, &mut passing, &mut flight, access).await?;
        if let Some(access) = access {
            access.answer(answered.response.status());
            access.instance = Some(target.id.clone());
        }
        let held = Held { flight, active, access: access.take() };
        self.answer(answered, on_upgrade.filter(|_| passing.upgrade.is_some()), held)
    }

    /// What is sent as the body, how it goes where it is passed on as it comes, and whether it can be sent twice.
    async fn prepare_body(
        &self,
        connection: &Arc<Connection>,
        body: Incoming,
        is_safe: bool,
    ) -> Result<(Outgoing, Option<Arc<UploadState>>, bool), Refusal> {
        let limits = &self.shared.limits;
        if body.is_end_stream() {
            return Ok((Outgoing::Nothing, None, true));
        }
        if is_safe && body.size_hint().upper().is_some_and(|bytes| bytes <= limits.replay_bytes) {
            let gathered = tokio::time::timeout(limits.stall, gather(body, limits.replay_bytes)).await;
            connection.body_ended();
            return match gathered {
                Ok(Ok(bytes)) => Ok((Outgoing::Kept(bytes), None, true)),
                Ok(Err(_)) => Err(bad_upload(Upload::Broken)),
                Err(_) => Err(bad_upload(Upload::Stalled)),
            };
        }
        let (body, state) = Outgoing::stream(body, connection, limits.stall);
        Ok((body, Some(state), false))
    }

    /// Sends it to one instance after the other, until one has answered or it may not be sent again.
    async fn try_instances(
        &self,
        route: &Route,
        passing: &mut Passing<'_>,
        flight: &mut Flight,
        access: &mut Option<Box<Access>>,
    ) -> Result<(Answered, Arc<Target>), Refusal> {
        let (shared, group) = (&self.shared, &route.group);
        shared.budget.pay_in();
        let mut tried: Vec<Arc<Target>> = Vec::new();
        let mut failure: Option<Refusal> = None;
        let mut is_unserved = false;
        while tried.len() < shared.limits.attempts {
            // To look at the clock for each of these would cost more than what is decided by it.
            let now = if tried.is_empty() { passing.started } else { Instant::now() };
            let Some(member) = choose(group, &tried, shared.ms_at(now.into_std()), |n| fastrand::usize(..n))
            else {
                break;
            };
            let target = Arc::clone(&member.target);
            // The first attempt is free.
            let is_late = || passing.started.elapsed() >= shared.limits.answer;
            if let Some(failure) = failure.take_if(|_| is_late() || !shared.budget.withdraw(shared.now_ms()))
            {
                shared.counters.retries_refused.fetch_add(1, Relaxed);
                return Err(failure);
            }
            if failure.is_some() {
                shared.counters.retries.fetch_add(1, Relaxed);
                if let Some(access) = access {
                    access.retries += 1;
                }
            }
            flight.to(&target);
            let manner = &member.manner;
            passing.strip(manner)?;
            if !target.serves(passing.path.path()) {
                // Another instance of this name may be a program, which is asked for any path.
                is_unserved = true;
                tried.push(target);
                continue;
            }
            let Connection { published, client, .. } = passing.connection;
            let to_role = passing.authority.as_ref().filter(|_| target.is_role());
            let published = |authority| published.get(&shared.names, client, authority);
            passing.forwarded = to_role.map(published).transpose()?;
            let is_last = group.members.len() <= tried.len() + 1;
            let mut attempt = self.attempt(&target, passing, manner, Some(now), is_last).await?;
            if let Attempt::Stale { was_sent } = attempt {
                attempt = if was_sent && !passing.is_repeatable {
                    Attempt::Broken("it closed the connection".into())
                } else {
                    self.attempt(&target, passing, manner, None, is_last).await?
                };
            }
            let now_ms = || shared.now_ms();
            let is_over = match attempt {
                Attempt::Answered(answered) => {
                    let status = answered.response.status();
                    let is_bad = status.is_server_error() && status != StatusCode::NOT_IMPLEMENTED;
                    if is_bad {
                        blame(group, &target, BAD_ANSWER, now_ms(), &shared.counters);
                    } else {
                        target.succeeded();
                    }
                    if !passing.is_repeatable || !is_unavailable(status) {
                        return Ok((answered, target));
                    }
                    tried.push(Arc::clone(&target));
                    let elsewhere = tried.len() < shared.limits.attempts
                        && choose(group, &tried, now_ms(), |n| fastrand::usize(..n)).is_some();
                    if !elsewhere || !shared.budget.withdraw(now_ms()) {
                        return Ok((answered, target));
                    }
                    // Paid already; the next one is not the first.
                    shared.counters.retries.fetch_add(1, Relaxed);
                    continue;
                }
                Attempt::BadUpload(upload) => return Err(bad_upload(upload)),
                Attempt::NotOpened(why) => {
                    blame(group, &target, BROKEN, now_ms(), &shared.counters);
                    failure = Some(not_opened(&target, &why));
                    false
                }
                Attempt::Broken(why) => {
                    blame(group, &target, BROKEN, now_ms(), &shared.counters);
                    let detail = format!("the instance {} took the request and broke off: {why}", target.id);
                    failure = Some((Reason::Broken, Problem::new(StatusCode::BAD_GATEWAY, detail)));
                    !passing.is_repeatable
                }
                // Twice on two connections is no coincidence.
                Attempt::Stale { .. } => {
                    blame(group, &target, BROKEN, now_ms(), &shared.counters);
                    let detail = format!("the instance {} closes its connections", target.id);
                    failure = Some((Reason::Broken, Problem::new(StatusCode::BAD_GATEWAY, detail)));
                    !passing.is_repeatable
                }
                Attempt::Silent => {
                    blame(group, &target, BROKEN, now_ms(), &shared.counters);
                    let detail = format!(
                        "the instance {} took the request and did not answer within {} s",
                        target.id,
                        shared.limits.answer.as_secs()
                    );
                    failure = Some((Reason::AnswerTime, Problem::new(StatusCode::GATEWAY_TIMEOUT, detail)));
                    !passing.is_repeatable
                }
            };
            tried.push(target);
            if is_over {
                break;
            }
        }
        let unserved = || if is_unserved { not_of_role(passing.path.path()) } else { nobody(group) };
        Err(failure.unwrap_or_else(unserved))
    }

    /// Sends it to this instance. A role's node that does not know this one has not carried it out: another is asked, or after the last this one again.
    async fn attempt(
        &self,
        target: &Arc<Target>,
        passing: &mut Passing<'_>,
        manner: &Manner,
        reuse: Option<Instant>,
        is_last: bool,
    ) -> Result<Attempt, Refusal> {
        let Some(proof) = passing.proof.as_ref().filter(|_| target.is_role()) else {
            return Ok(self.send(target, passing, manner, reuse).await);
        };
        proof.check(&passing.method, passing.path.path())?;
        let ends = Instant::now() + vouch::RETRY_FOR;
        loop {
            let attempt = self.send(target, passing, manner, reuse).await;
            let is_unknown = |answered: &Answered| {
                let response = &answered.response;
                response.status() == StatusCode::UNAUTHORIZED
                    && response.headers().contains_key(header::RETRY_AFTER)
            };
            match attempt {
                Attempt::Answered(answered) if is_unknown(&answered) && !is_last => {
                    let why = "its node does not know this gateway yet".to_owned();
                    return Ok(Attempt::NotOpened(ConnectError::Refused(why)));
                }
                Attempt::Answered(answered) if is_unknown(&answered) && Instant::now() < ends => {
                    drop(answered);
                    sleep(vouch::RETRY_EVERY).await;
                }
                attempt => return Ok(attempt),
            }
        }
    }

    /// Sends it to this instance. On a connection that has waited until `reuse`, which is now; on a new one where that is `None`.
    async fn send(
        &self,
        target: &Arc<Target>,
        passing: &mut Passing<'_>,
        manner: &Manner,
        reuse: Option<Instant>,
    ) -> Attempt {
        // A node speaks HTTP/1, whatever a client makes of the type of its body.
        let wants_http2 = passing.is_grpc && !target.is_role() || target.h2c || manner.http2;
        let http2 = passing.upgrade.is_none() && wants_http2;
        let sender = match self.sender(target, http2, reuse).await {
            Ok(sender) => sender,
            Err(why) => return Attempt::NotOpened(why),
        };
        // A role believes the name in `Forwarded`, which is signed.
        let has_own_host = manner.own_host || target.is_role();
        let asked_for = passing.authority.as_ref().filter(|_| !has_own_host);
        let host = asked_for.unwrap_or(&target.host);
        let Some(uri) = uri_of(passing, host, target, http2) else {
            return Attempt::Broken("the request cannot be written for it".into());
        };
        let host = host.clone();
        let mut headers = match passing.keeps_head() {
            true => forward::copy(&passing.headers),
            false => std::mem::take(&mut passing.headers),
        };
        let prefix = passing.name.as_ref().or(manner.prefix.as_ref());
        if passing.has_added {
            // By an attempt at another instance, from whose paths something else may be taken off.
            forward::set_prefix(&mut headers, prefix);
        } else {
            let authority = passing.authority.as_ref();
            let (client, version) = (&passing.connection.client, passing.version);
            let origin = Origin { client, version, authority, prefix };
            forward::add(&mut headers, passing.present, &origin, &self.shared.me);
        }
        if let Some(forwarded) = &passing.forwarded {
            headers.insert(header::FORWARDED, forwarded.clone());
        }
        let version = if http2 { Version::HTTP_2 } else { Version::HTTP_11 };
        forward::address(&mut headers, passing.present, version, &host);
        if let Some(upgrade) = &passing.upgrade {
            headers.insert(header::UPGRADE, upgrade.clone());
            headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        }
        let body = match &mut passing.body {
            Outgoing::Kept(bytes) => Outgoing::Kept(bytes.clone()),
            body => std::mem::replace(body, Outgoing::Nothing),
        };
        let mut request = Request::new(body);
        *request.method_mut() = passing.method.clone();
        *request.uri_mut() = uri;
        *request.version_mut() = version;
        *request.headers_mut() = headers;
        if target.is_role() && Proof::is_write(&passing.method, passing.path.path()) {
            let body = if let Outgoing::Kept(bytes) = &passing.body { bytes.as_ref() } else { &[] };
            if let Some(signature) = self.shared.vouching.sign(target.node_id, &request, body) {
                request.headers_mut().insert(SIGNATURE, signature);
            }
        }
        let sent = match (&sender, reuse) {
            (Sender::One { is_kept: true, .. }, Some(now)) => now,
            _ => Instant::now(),
        };
        let (result, is_kept, one) = match sender {
            Sender::One { mut one, is_kept } => {
                // What also takes from the client, or will be the client's, has to move on while the client takes nothing.
                if passing.upload.is_some() || passing.upgrade.is_some() {
                    one.let_go();
                }
                let sending = one.sender.try_send_request(request);
                let driven = one.driven.as_mut();
                (
                    self.wait(sending, driven, one.look.as_mut(), target, passing, sent).await,
                    is_kept,
                    Some(one),
                )
            }
            Sender::Two(mut sender) => {
                let sending = sender.try_send_request(request);
                // Shared, so it may have been closed for reasons of others.
                let look = pin!(sleep(LOOK_EVERY.min(self.shared.limits.answer)));
                (self.wait(sending, None, look, target, passing, sent).await, true, None)
            }
        };
        match result {
            Waited::Answered(response) => {
                let at = Instant::now();
                target.answered(at - sent, self.shared.ms_at(at.into_std()));
                let lease =
                    one.map(|one| Lease { one, target: Arc::clone(target), pool: Arc::clone(&self.pool) });
                Attempt::Answered(Answered { response, lease, at })
            }
            Waited::Silent => Attempt::Silent,
            Waited::Failed(mut failed) => {
                let unsent = failed.take_message();
                let was_sent = unsent.is_none();
                if let Some(unsent) = unsent {
                    let (head, body) = unsent.into_parts();
                    if !passing.keeps_head() {
                        (passing.headers, passing.has_added) = (head.headers, true);
                    }
                    passing.body = body;
                }
                match passing.upload.as_ref().map_or(Upload::Fine, |upload| upload.get()) {
                    Upload::Fine if is_kept && reuse.is_some() => Attempt::Stale { was_sent },
                    Upload::Fine if !was_sent => {
                        Attempt::NotOpened(ConnectError::Refused(told(failed.error())))
                    }
                    Upload::Fine => Attempt::Broken(told(failed.error())),
                    bad => Attempt::BadUpload(bad),
                }
            }
        }
    }

    async fn sender(
        &self,
        target: &Arc<Target>,
        http2: bool,
        reuse: Option<Instant>,
    ) -> Result<Sender, ConnectError> {
        if http2 {
            return self.pool.two(target).await.map(Sender::Two);
        }
        if let Some(one) = reuse.and_then(|now| self.pool.take(target, now)) {
            return Ok(Sender::One { one, is_kept: true });
        }
        self.shared.counters.connects.fetch_add(1, Relaxed);
        Ok(Sender::One { one: self.pool.open_one(target).await?, is_kept: false })
    }

    /// Waits for the head of the answer. The time counts from when the last piece of the body went.
    async fn wait(
        &self,
        sending: impl Future<Output = Result<Response<Incoming>, TrySendError<Request<Outgoing>>>>,
        mut driven: Option<&mut Driven>,
        mut look: Pin<&mut Sleep>,
        target: &Target,
        passing: &Passing<'_>,
        sent: Instant,
    ) -> Waited {
        let mut sending = pin!(sending);
        let mut answer = poll_fn(|cx| match &mut driven {
            None => sending.as_mut().poll(cx),
            Some(driven) => {
                driven.drive(cx);
                driven.quietly(|cx| sending.as_mut().poll(cx))
            }
        });
        loop {
            tokio::select! {
                biased;
                result = &mut answer => return match result {
                    Ok(response) => Waited::Answered(response),
                    Err(failed) => Waited::Failed(failed),
                },
                () = &mut look => {
                    let since = passing.upload.as_ref().map_or(sent, |upload| upload.moved().max(sent));
                    // What the cluster believes dead will not answer; a request that must not be repeated may still hope.
                    if since.elapsed() >= self.shared.limits.answer || target.is_gone() && passing.is_repeatable {
                        return Waited::Silent;
                    }
                    look.as_mut().reset((Instant::now() + LOOK_EVERY).min(since + self.shared.limits.answer));
                }
            }
        }
    }

    /// Makes of an instance's answer the client's.
    fn answer(
        &self,
        answered: Answered,
        on_upgrade: Option<OnUpgrade>,
        held: Held,
    ) -> Result<Response<Answer>, Refusal> {
        let Answered { mut response, lease, at } = answered;
        let present = Present::of(response.headers());
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let Some(client) = on_upgrade else {
                let detail = "the instance changed to a protocol that nobody asked for";
                return Err((Reason::Broken, Problem::new(StatusCode::BAD_GATEWAY, detail)));
            };
            let instance = hyper::upgrade::on(&mut response);
            let protocol = response.headers().get(header::UPGRADE).cloned();
            self.shared.counters.tunnels.fetch_add(1, Relaxed);
            let idle = self.shared.limits.tunnel;
            tokio::spawn(async move {
                tunnel::run(client, instance, idle).await;
                drop(held);
            });
            let mut switched = response.map(|_| Answer::Words(Bytes::new()));
            strip_hop_by_hop(switched.headers_mut(), present);
            switched.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            if let Some(protocol) = protocol {
                switched.headers_mut().insert(header::UPGRADE, protocol);
            }
            return Ok(switched);
        }
        let headers = response.headers_mut();
        // RFC 9112, section 6.3: where both are said, the length means nothing.
        if present.has(Present::TRANSFER_ENCODING) {
            headers.remove(header::CONTENT_LENGTH);
        }
        strip_hop_by_hop(headers, present);
        *response.version_mut() = Version::HTTP_11;
        let stall = self.shared.limits.stall;
        Ok(response.map(|body| Answer::Relay(Box::new(Relay::new(body, stall, at, lease, held)))))
    }
}

enum Waited {
    Answered(Response<Incoming>),
    Failed(TrySendError<Request<Outgoing>>),
    Silent,
}

/// Whether another instance may do better.
fn is_unavailable(status: StatusCode) -> bool {
    matches!(status, StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT)
}
