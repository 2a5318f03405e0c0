//! Handles a client's request from start to end ([`Worker`]): admits it, finds its route, prepares headers
//! and body, has endpoints tried, and relays the response or opens a tunnel.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use bytes::Bytes;
use hearsay_services::{Problem, http::Effect};
use http::{HeaderValue, Request, Response, StatusCode, Version, header, request::Parts, uri::PathAndQuery};
use hyper::{
    body::{Body as _, Incoming},
    upgrade::OnUpgrade,
};
use tokio::time::Instant;

use super::{
    admission::{Admitted, admit, not_a_path, strip_prefix},
    attempts::{EndpointResponse, Worker},
    headers::{self, HeaderSet, strip_hop_by_hop},
    in_flight::InFlightRequest,
    request_body::RequestBody,
    response_body::{RelayedBody, RequestGuards, ResponseBody},
    role_auth::BufferedBody,
    tunnel,
};
use crate::{
    observe::access::AccessRecord,
    refusal::{Reason, Refusal},
    respond::{
        error_response::{error_response, unknown_service},
        front_page::front_page,
        sign_in,
    },
    routing::routes::Route,
    server::connection::{ActiveRequest, Connection},
    upstream::pool::Lease,
};

/// A request of a client, as it enters the gateway.
struct ClientRequest {
    head: Parts,
    body: Incoming,
    present: HeaderSet,
    on_upgrade: Option<OnUpgrade>,
    active: ActiveRequest,
}

/// A request for which a route was found.
struct RoutedRequest {
    head: Parts,
    body: Incoming,
    present: HeaderSet,
    /// The path and query without `prefix`.
    full_path: PathAndQuery,
    /// `/{service}` as the request spells it, if the route was found by the name of a service.
    prefix: Option<HeaderValue>,
    admitted: Admitted,
}

impl Worker {
    /// Returns the response to a request.
    pub(crate) async fn serve(
        &self,
        connection: &Arc<Connection>,
        mut request: Request<Incoming>,
    ) -> Response<ResponseBody> {
        let counters = &self.shared.counters;
        counters.requests.fetch_add(1, Relaxed);
        let active = connection.start_request();
        let mut access = AccessRecord::start(&request, &connection.client.address);
        let present = HeaderSet::of(request.headers());
        let on_upgrade = present.has(HeaderSet::UPGRADE).then(|| hyper::upgrade::on(&mut request));
        let (head, body) = request.into_parts();
        let request = ClientRequest { head, body, present, on_upgrade, active };
        let response = self.respond(connection, request, &mut access).await.unwrap_or_else(|refusal| {
            let (reason, problem) = refusal;
            counters.count_refusal(reason);
            error_response(&problem)
        });
        // A relayed response has taken the record with it.
        access.iter_mut().for_each(|access| access.set_status(response.status()));
        counters.count_response(response.status());
        response
    }

    async fn respond(
        &self,
        connection: &Arc<Connection>,
        request: ClientRequest,
        access: &mut Option<Box<AccessRecord>>,
    ) -> Result<Response<ResponseBody>, Refusal> {
        let shared = &self.shared;
        let (head, present) = (&request.head, request.present);
        let has_body = !request.body.is_end_stream();
        let admitted = admit(head, present, has_body, connection.has_both_lengths(), &shared.via.name)?;
        let mut in_flight = shared.start_request(&connection.share)?;
        let (routes, path) = (shared.routes(), head.uri.path());
        if sign_in::is_for(shared.role_auth.host(), &routes, admitted.host(), path) {
            let ClientRequest { head, body, .. } = request;
            return sign_in::respond(shared, connection, head, admitted.authority.as_ref(), body).await;
        }
        let Some(found) = routes.find(admitted.host(), path) else {
            let page = front_page(&head.method, path, &routes).ok_or_else(|| unknown_service(path))?;
            // The front page lists services, which a private node shows only to a client with proof.
            shared.role_auth.prove(connection.client.ip, head, path).check(&head.method, path)?;
            return Ok(page);
        };
        let (route, prefix) = (Arc::clone(found.route), found.prefix(path));
        let full_path = head.uri.path_and_query().ok_or_else(not_a_path)?;
        let full_path = strip_prefix(full_path, found.name_bytes)?;
        drop(routes);
        let ClientRequest { head, body, on_upgrade, active, .. } = request;
        let routed = RoutedRequest { head, body, present, full_path, prefix, admitted };
        let mut request = self.prepare(connection, &route, routed).await?;
        let response = self.try_endpoints(&route, &mut request, &mut in_flight, access).await?;
        if let Some(access) = access {
            access.set_status(response.response.status());
            access.instance = Some(response.endpoint.id.clone());
        }
        let guards = RequestGuards { _in_flight: in_flight, _active: active, access: access.take() };
        self.relay(response, on_upgrade.filter(|_| request.upgrade.is_some()), guards)
    }

    /// Checks the client's proof, and prepares headers and body for the attempts.
    async fn prepare<'a>(
        &self,
        connection: &'a Arc<Connection>,
        route: &Route,
        routed: RoutedRequest,
    ) -> Result<InFlightRequest<'a>, Refusal> {
        let shared = &self.shared;
        let RoutedRequest { mut head, body, present, full_path, prefix, admitted } = routed;
        let Admitted { authority, upgrade, is_grpc } = admitted;
        let prove = || shared.role_auth.prove(connection.client.ip, &head, full_path.path());
        let proof = route.group.has_roles.then(prove);
        shared.role_auth.strip_credentials(&mut head.headers);
        headers::prepare(&mut head.headers, present, head.version);
        if let Some(proof) = proof.as_ref().filter(|_| route.group.is_of_roles()) {
            // These checks precede the buffering of the body. The name is checked first: a page under a
            // foreign name must not learn whether its visitor has proof.
            if let Some(authority) = &authority {
                connection.forwarded.get(shared.role_auth.host(), &connection.client, authority)?;
            }
            proof.check(&head.method, full_path.path())?;
        }
        let is_safe = !Effect::of(&head.method, full_path.path()).is_write();
        let (body, upload, memory) = if proof.is_some() && !body.is_end_stream() {
            let buffered = shared.role_auth.buffer(body).await;
            connection.end_body();
            let BufferedBody { bytes, memory } = buffered?;
            (RequestBody::Buffered(bytes), None, Some(memory))
        } else {
            let (body, upload) = RequestBody::prepare(&shared.limits, connection, body, is_safe).await?;
            (body, upload, None)
        };
        Ok(InFlightRequest {
            method: head.method,
            path: full_path.clone(),
            full_path,
            stripped: 0,
            headers: head.headers,
            present,
            has_added: false,
            connection: connection.as_ref(),
            version: head.version,
            authority,
            forwarded: None,
            service_prefix: prefix,
            upgrade,
            is_grpc,
            is_repeatable: is_safe && upload.is_none(),
            body,
            upload,
            proof,
            _memory: memory,
            started: Instant::now(),
        })
    }

    /// Turns the response of an endpoint into the response to the client.
    fn relay(
        &self,
        EndpointResponse { mut response, lease, .. }: EndpointResponse,
        on_upgrade: Option<OnUpgrade>,
        guards: RequestGuards,
    ) -> Result<Response<ResponseBody>, Refusal> {
        let present = HeaderSet::of(response.headers());
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let Some(client) = on_upgrade else {
                let detail = "the instance switched to a protocol that the client did not ask for";
                return Err((Reason::Broken, Problem::new(StatusCode::BAD_GATEWAY, detail)));
            };
            lease.into_iter().for_each(Lease::upgrade);
            return Ok(self.open_tunnel(response, client, guards));
        }
        let headers = response.headers_mut();
        // `Transfer-Encoding` overrides the length (RFC 9112, section 6.3).
        if present.has(HeaderSet::TRANSFER_ENCODING) {
            headers.remove(header::CONTENT_LENGTH);
        }
        strip_hop_by_hop(headers, present);
        // A service worker of one program must not control the pages of others at this origin.
        headers.remove("service-worker-allowed");
        *response.version_mut() = Version::HTTP_11;
        let stall = self.shared.limits.stall;
        Ok(response.map(|body| ResponseBody::Relayed(Box::new(RelayedBody::new(body, stall, lease, guards)))))
    }

    fn open_tunnel(
        &self,
        mut response: Response<Incoming>,
        client: OnUpgrade,
        guards: RequestGuards,
    ) -> Response<ResponseBody> {
        let present = HeaderSet::of(response.headers());
        let instance = hyper::upgrade::on(&mut response);
        let protocol = response.headers().get(header::UPGRADE).cloned();
        self.shared.counters.tunnels.fetch_add(1, Relaxed);
        let idle = self.shared.limits.tunnel;
        tokio::spawn(async move {
            tunnel::run(client, instance, idle).await;
            drop(guards);
        });
        let mut response = response.map(|_| ResponseBody::Own(Bytes::new()));
        strip_hop_by_hop(response.headers_mut(), present);
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        if let Some(protocol) = protocol {
            response.headers_mut().insert(header::UPGRADE, protocol);
        }
        response
    }
}
