//! Front page: the response at `/` if no service announces that path. It redirects to the portal, or lists
//! the routes.

use std::fmt::Write as _;

use http::{HeaderValue, Method, Response, StatusCode, header};

use crate::{
    forward::response_body::ResponseBody,
    routing::routes::{Key, Routes},
};

/// The role with the pages for people, and their path.
const PORTAL: (&str, HeaderValue) = ("portal", HeaderValue::from_static("/portal"));
/// Maximum number of routes in the list.
const LISTED_MAX: usize = 200;

/// Returns the response to a request for `/`; `None` for any other.
pub(crate) fn front_page(method: &Method, path: &str, routes: &Routes) -> Option<Response<ResponseBody>> {
    if path != "/" || !matches!(*method, Method::GET | Method::HEAD) {
        return None;
    }
    if routes.has_healthy(PORTAL.0) {
        let mut response = Response::new(ResponseBody::Own(Default::default()));
        *response.status_mut() = StatusCode::SEE_OTHER;
        response.headers_mut().insert(header::LOCATION, PORTAL.1);
        return Some(response);
    }
    let mut response = Response::new(ResponseBody::Own(list(routes).into()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Some(response)
}

fn list(routes: &Routes) -> String {
    let mut text = String::from("This is a Hearsay gateway. No portal runs; these are its routes:\n\n");
    let count = routes.iter().count();
    for (key, route) in routes.iter().take(LISTED_MAX) {
        let healthy = route.group.healthy.len();
        // Writing to a string cannot fail.
        _ = match key {
            Key::Prefix(host, prefix) => {
                writeln!(text, "{}{prefix}/  ({healthy} healthy)", host.as_deref().unwrap_or_default())
            }
            Key::Service(name) => writeln!(text, "/{name}/  ({healthy} healthy)"),
        };
    }
    if count > LISTED_MAX {
        _ = writeln!(text, "... and {} more", count - LISTED_MAX);
    }
    text
}
