//! What one instance is sent: its target, who asks, and the signature.

use std::net::SocketAddr;

use bytes::Bytes;
use hearsay_protocol::{providers::Provider, record::WebOrigin};
use http::{
    HeaderName, HeaderValue, Request, Uri, header,
    uri::{Authority, PathAndQuery, Scheme},
};
use http_body_util::Full;

use super::call::Call;
use crate::{
    Host,
    address_policy::{AddressPolicy, Forbidden, InstanceAddress},
    prefixes::is_of_role,
    signing::Unsigned,
};

/// The signature of a node.
const SIGNATURE: HeaderName = HeaderName::from_static(hearsay_protocol::signed_request::HEADER);

/// A request to one origin of an instance. Its target is put together from parts, so that nothing of the URL but the origin
/// counts, and no path but one of the role is asked for.
pub(super) fn request(
    provider: &Provider,
    url: &str,
    call: &Call,
    via: &HeaderValue,
) -> Result<Request<Full<Bytes>>, String> {
    let no_address = || format!("{url:?} is no http:// address");
    let origin = WebOrigin::parse(url).filter(|origin| origin.scheme == "http").ok_or_else(no_address)?;
    let authority: Authority = origin.authority().parse().map_err(|_| no_address())?;
    let path = call.path.parse::<PathAndQuery>().ok();
    let is_asked =
        |path: &PathAndQuery| !call.is_for_role || is_of_role(&provider.instance.service, path.path());
    let path = path
        .filter(is_asked)
        .ok_or_else(|| format!("{:?} is no path of the role {}", call.path, provider.instance.service))?;
    let mut parts = http::uri::Parts::default();
    (parts.scheme, parts.authority, parts.path_and_query) = (Some(Scheme::HTTP), Some(authority), Some(path));
    let mut request = Request::new(Full::new(call.body.clone()));
    *request.method_mut() = call.method.clone();
    *request.uri_mut() = Uri::from_parts(parts).map_err(|_| no_address())?;
    *request.headers_mut() = call.headers.clone();
    request.headers_mut().insert(header::VIA, via.clone());
    Ok(request)
}

/// Signs a request to a role that changes something.
pub(super) fn sign(host: &dyn Host, provider: &Provider, request: &mut Request<Full<Bytes>>, body: &[u8]) {
    let Some(authority) = request.uri().authority().cloned().filter(|_| provider.is_role()) else { return };
    if request.method().is_safe() {
        return;
    }
    // As it is signed, whatever the client would make of the port.
    if let Ok(value) = HeaderValue::from_str(authority.as_str()) {
        request.headers_mut().insert(header::HOST, value);
    }
    let unsigned = Unsigned {
        method: request.method(),
        authority: authority.as_str(),
        target: request.uri().path_and_query().map_or("/", |target| target.as_str()),
        headers: request.headers(),
    };
    if let Some(signature) = host.sign(provider.node_id, &unsigned, body) {
        request.headers_mut().insert(SIGNATURE, signature);
    }
}

/// Judges an origin of an instance. What a name resolves to is judged by the [`Resolver`], for each connection.
pub(super) fn check_address(policy: &AddressPolicy, provider: &Provider, url: &str) -> Result<(), Forbidden> {
    let Some(origin) = WebOrigin::parse(url) else { return Ok(()) };
    let (at, port) = (InstanceAddress::of(provider, origin.host), origin.port_or_default());
    match origin.host.parse() {
        Ok(ip) => policy.check_instance(at, SocketAddr::new(ip, port)),
        Err(_) => policy.check_role(at, port),
    }
}
