//! Builds the request to one instance (target and headers), signs it, and checks the instance's address.

use std::net::SocketAddr;

use bytes::Bytes;
use hearsay_protocol::{Provider, WebOrigin};
use http::{
    HeaderName, HeaderValue, Request, Uri, header,
    uri::{Authority, PathAndQuery, Scheme},
};
use http_body_util::Full;

use super::call::Call;
use crate::{
    Host,
    http::{prefixes::is_of_role, signing::UnsignedRequest},
    network::address_policy::{AddressPolicy, Forbidden, InstanceAddress},
};

/// Header with the signature of a node.
const SIGNATURE: HeaderName = HeaderName::from_static(hearsay_protocol::SIGNATURE_HEADER);

/// Builds a request to one origin of an instance. Only the origin of the URL is used, and the path must
/// belong to the role.
pub(super) fn request(
    provider: &Provider,
    url: &str,
    call: &Call,
    via: &HeaderValue,
) -> Result<Request<Full<Bytes>>, String> {
    let no_address = || format!("{url:?} is not an http:// address");
    let origin = WebOrigin::parse(url).filter(|origin| origin.scheme == "http").ok_or_else(no_address)?;
    let authority: Authority = origin.authority().parse().map_err(|_| no_address())?;
    let path = call.path.parse::<PathAndQuery>().ok();
    let is_asked =
        |path: &PathAndQuery| !call.is_for_role || is_of_role(&provider.instance.service, path.path());
    let path = path
        .filter(is_asked)
        .ok_or_else(|| format!("{:?} is not a path of the role {}", call.path, provider.instance.service))?;
    let mut parts = http::uri::Parts::default();
    (parts.scheme, parts.authority, parts.path_and_query) = (Some(Scheme::HTTP), Some(authority), Some(path));
    let mut request = Request::new(Full::new(call.body.clone()));
    *request.method_mut() = call.method.clone();
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| no_address())?;
    *request.headers_mut() = call.headers.clone();
    request.headers_mut().insert(header::VIA, via.clone());
    Ok(request)
}

/// Signs a request to a role if it may have an effect, or if this node requires proof for reads.
pub(super) fn sign(host: &dyn Host, provider: &Provider, request: &mut Request<Full<Bytes>>, body: &[u8]) {
    let Some(authority) = request.uri().authority().cloned().filter(|_| provider.is_role()) else { return };
    if request.method().is_safe() && !host.reads_need_proof() {
        return;
    }
    // `Host` must be the signed authority. The HTTP client would leave out a default port.
    if let Ok(value) = HeaderValue::from_str(authority.as_str()) {
        request.headers_mut().insert(header::HOST, value);
    }
    let unsigned = UnsignedRequest {
        method: request.method(),
        authority: authority.as_str(),
        target: request.uri().path_and_query().map_or("/", |target| target.as_str()),
        headers: request.headers(),
    };
    if let Some(signature) = host.sign(provider.node_id, &unsigned, body) {
        request.headers_mut().insert(SIGNATURE, signature);
    }
}

/// Checks the origin of an instance against the address policy. The [`Resolver`](super::resolver::Resolver)
/// checks the addresses of a name at each connection.
pub(super) fn check_address(policy: &AddressPolicy, provider: &Provider, url: &str) -> Result<(), Forbidden> {
    let Some(origin) = WebOrigin::parse(url) else { return Ok(()) };
    let (at, port) = (InstanceAddress::of(provider, origin.host), origin.port_or_default());
    match origin.host.parse() {
        Ok(ip) => policy.check_instance(at, SocketAddr::new(ip, port)),
        Err(_) => policy.check_role(at, port),
    }
}
