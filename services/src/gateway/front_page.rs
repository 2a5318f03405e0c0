//! What the gateway answers at `/`, where no service announces it: the way to the portal, or else its routes.

use std::fmt::Write as _;

use http::{HeaderValue, Method, Response, StatusCode, header};

use super::{
    body::Answer,
    routes::{Key, Routes},
};

/// The role that people come for, and where its pages are.
const PORTAL: (&str, HeaderValue) = ("portal", HeaderValue::from_static("/portal"));
/// Routes that are listed.
const LISTED_MAX: usize = 200;

/// The answer to a request for `/`; `None` for any other.
pub fn front_page(method: &Method, path: &str, routes: &Routes) -> Option<Response<Answer>> {
    if path != "/" || !matches!(*method, Method::GET | Method::HEAD) {
        return None;
    }
    if routes.has_healthy(PORTAL.0) {
        let mut response = Response::new(Answer::Words(Default::default()));
        *response.status_mut() = StatusCode::SEE_OTHER;
        response.headers_mut().insert(header::LOCATION, PORTAL.1);
        return Some(response);
    }
    let mut response = Response::new(Answer::Words(list(routes).into()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    Some(response)
}

fn list(routes: &Routes) -> String {
    let mut text = String::from("This is a Hearsay gateway. No portal is alive; these are its routes:\n\n");
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
