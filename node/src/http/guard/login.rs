//! [`Login`]: pages for the sign-in of browsers, `/login` and `/logout`. The token begins a
//! [session](crate::sessions).
//!
//! The pages are served on the node and on its gateway. A session is accepted in place of the token on the
//! paths of the registry and of plug-ins. A write also needs `Origin`: browsers send the cookie to every port
//! of a host, so without that check a page served on another port could write with it.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use askama::Template;
use axum::{
    body::{Body, to_bytes},
    http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header, request::Parts},
    response::{IntoResponse, Response},
};
use hearsay_services::{
    LogLimit, Problem,
    http::{self as pages, PageFrame, Parameters, SIGN_IN_PATHS, Visible, render_page},
};

use crate::{
    escape::percent_encoded,
    http::guard::{
        access::Access,
        browser::{RequestHead, check_own_form},
    },
    metrics::Metrics,
    sessions::Session,
};

/// Path for sign-in.
pub(crate) const LOGIN: &str = SIGN_IN_PATHS[0];
/// Path for sign-out.
pub(crate) const LOGOUT: &str = SIGN_IN_PATHS[1];
const STYLE: &str = "/login/style.css";
const ICON: &str = "/login/icon.svg";
/// Limits the log line for wrong tokens, because every client can cause it. `hearsay_http_refused_total`
/// counts each wrong token.
static WRONG_TOKENS: LogLimit = LogLimit::each(Duration::from_secs(60));
/// Bound on the form: a token and a path.
const FORM_BYTES_MAX: usize = 8 * 1024;
/// Header with the signature of the member that forwards a request.
const SIGNATURE: &str = hearsay_protocol::SIGNATURE_HEADER;
/// Bound on the path to return to.
const NEXT_BYTES_MAX: usize = 2048;

/// The sign-in pages of one node.
pub(crate) struct Login<'a> {
    pub(crate) access: &'a Access,
    pub(crate) metrics: &'a Metrics,
    pub(crate) cluster: &'a str,
    pub(crate) node: &'a str,
}

#[derive(Template)]
#[template(path = "login.html")]
struct Content<'a> {
    node: &'a str,
    next: &'a str,
    has_token: bool,
    wrong: Option<&'static str>,
    session: Option<Current<'a>>,
}

struct Current<'a> {
    hours: u64,
    minutes: u64,
    field: &'a str,
}

impl Login<'_> {
    /// Answers a request that has passed the browser rules.
    pub(crate) async fn answer(&self, client: Option<IpAddr>, head: &Parts, body: Body) -> Response {
        let path = head.uri.path().strip_suffix('/').unwrap_or(head.uri.path());
        let is_read = matches!(head.method, Method::GET | Method::HEAD);
        match path {
            LOGIN if is_read => self.page(head, StatusCode::OK, None, None),
            STYLE if is_read => pages::STYLESHEET.answer(),
            ICON if is_read => pages::ICON.answer(),
            LOGIN | LOGOUT if head.method == Method::POST => match form(body).await {
                Ok(form) if path == LOGIN => self.sign_in(client, head, &form),
                Ok(form) => self.sign_out(head, &form),
                Err(problem) => problem.into_response(),
            },
            LOGIN | LOGOUT | STYLE | ICON => {
                let allowed = match path {
                    LOGIN => "GET, HEAD, POST",
                    LOGOUT => "POST",
                    _ => "GET, HEAD",
                };
                let detail = "this path does not support this method; the Allow header lists those it does";
                let mut response = Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail).into_response();
                response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
                response
            }
            _ => Problem::not_found("nothing is served here; browsers sign in at /login").into_response(),
        }
    }

    fn page(
        &self,
        head: &Parts,
        status: StatusCode,
        wrong: Option<&'static str>,
        next: Option<&str>,
    ) -> Response {
        let session = self.access.sessions.find(&head.headers, Instant::now());
        let query = Parameters::read(head.uri.query(), &["next"]).ok();
        let query_next =
            query.as_ref().and_then(|query| query.single("next").ok().flatten()).map(str::to_owned);
        let next = next
            .map(str::to_owned)
            .or(query_next)
            .or_else(|| own_referrer(&head.headers, &head.uri))
            .unwrap_or_default();
        let content = Content {
            node: self.node,
            next: safe(&next),
            has_token: self.access.token.is_some(),
            wrong,
            session: session.as_ref().map(Current::of),
        };
        let frame = PageFrame {
            title: "Sign in",
            cluster: self.cluster,
            node: self.node,
            links: Vec::new(),
            assets: LOGIN,
            script: None,
            refresh_secs: None,
        };
        render_page(status, &frame, &content)
    }

    fn sign_in(&self, client: Option<IpAddr>, head: &Parts, form: &str) -> Response {
        let form = match Parameters::read(Some(form), &["token", "next"]) {
            Ok(form) => form,
            Err(problem) => return problem.into_response(),
        };
        let field = |name: &str| form.single(name).ok().flatten().unwrap_or_default();
        let next = safe(field("next"));
        let is_valid = self.access.token.as_ref().is_some_and(|token| token.matches(field("token").trim()));
        if !is_valid {
            self.metrics.http.refused("login");
            if let Some(left_out) = WRONG_TOKENS.pass(Instant::now()) {
                let client = client.map(tracing::field::display);
                tracing::warn!(client, left_out, "sign-in refused: wrong token");
            }
            let wrong = "This is not the token of this node.";
            return self.page(head, StatusCode::UNAUTHORIZED, Some(wrong), Some(next));
        }
        let is_https =
            head.headers.get(header::ORIGIN).is_some_and(|o| o.as_bytes().starts_with(b"https://"));
        match self.access.sessions.begin(is_https, Instant::now()) {
            Ok(cookie) => {
                tracing::info!(client = client.map(tracing::field::display), "browser signed in");
                see_other(next, Some(cookie))
            }
            Err(error) => {
                let detail = format!("cannot begin a session: the system provides no random bits: {error}");
                Problem::new(StatusCode::SERVICE_UNAVAILABLE, detail).into_response()
            }
        }
    }

    fn sign_out(&self, head: &Parts, form: &str) -> Response {
        let form = match Parameters::read(Some(form), &["session"]) {
            Ok(form) => form,
            Err(problem) => return problem.into_response(),
        };
        let Some(session) = self.access.sessions.find(&head.headers, Instant::now()) else {
            return see_other(LOGIN, None);
        };
        if form.single("session").ok().flatten() != Some(session.form_field.as_str()) {
            let detail = "session: the form belongs to another session; reload /login";
            return Problem::new(StatusCode::FORBIDDEN, detail).with("parameter", "session").into_response();
        }
        see_other(LOGIN, Some(self.access.sessions.end(&session)))
    }
}

impl<'a> Current<'a> {
    fn of(session: &'a Session) -> Self {
        let minutes = session.left.as_secs() / 60;
        Self { hours: minutes / 60, minutes: minutes % 60, field: &session.form_field }
    }
}

async fn form(body: Body) -> Result<String, Problem> {
    let too_large = || {
        let detail = format!("the form is larger than {FORM_BYTES_MAX} bytes");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
    };
    let bytes = to_bytes(body, FORM_BYTES_MAX).await.map_err(|_| too_large())?;
    String::from_utf8(bytes.into())
        .map_err(|_| Problem::new(StatusCode::BAD_REQUEST, "the form is not UTF-8"))
}

fn see_other(path: &str, cookie: Option<HeaderValue>) -> Response {
    let location = HeaderValue::try_from(path).unwrap_or(HeaderValue::from_static("/"));
    let mut response = (StatusCode::SEE_OTHER, [(header::LOCATION, location)]).into_response();
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    cookie.map(|cookie| response.headers_mut().insert(header::SET_COOKIE, cookie));
    response
}

/// Returns the URL of the sign-in page, with the way back, for a refused request of a browser that opens a
/// page or sends a form. `None` for a program, even if it accepts HTML, and for a request that another node
/// forwards.
pub(crate) fn sign_in_url(head: &RequestHead<'_>, method: &Method) -> Option<HeaderValue> {
    let text = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
    let takes_pages = text("accept").is_some_and(|types| types.contains("text/html"));
    let opens_a_page = match text("sec-fetch-mode") {
        Some(mode) => mode == "navigate",
        // Every browser accepts XHTML, and asks for https.
        None => {
            text("accept").is_some_and(|types| types.contains("application/xhtml+xml"))
                || text("upgrade-insecure-requests") == Some("1")
        }
    };
    if !takes_pages || !opens_a_page || head.headers.contains_key(SIGNATURE) {
        return None;
    }
    let next = match *method {
        Method::GET => head.uri.path_and_query()?.as_str().to_owned(),
        // After sign-in, the browser returns to the page that contains the form.
        Method::POST if check_own_form(head.headers).is_ok() => page_of_form(head),
        _ => return None,
    };
    let next = percent_encoded(safe(&next));
    HeaderValue::try_from(format!("{LOGIN}?next={next}")).ok()
}

fn page_of_form(head: &RequestHead<'_>) -> String {
    let first = || format!("/{}", head.uri.path().split('/').nth(1).unwrap_or_default());
    own_referrer(head.headers, head.uri).unwrap_or_else(first)
}

/// Returns path and query of `Referer` if it has the host of the request. In HTTP/2 the target names the
/// host.
fn own_referrer(headers: &HeaderMap, target: &Uri) -> Option<String> {
    let referrer: Uri = headers.get(header::REFERER)?.to_str().ok()?.parse().ok()?;
    let host = match target.authority() {
        Some(authority) => authority.as_str(),
        None => headers.get(header::HOST)?.to_str().ok()?,
    };
    let is_own = referrer.authority()?.as_str().eq_ignore_ascii_case(host);
    is_own.then(|| referrer.path_and_query().map(|path| path.as_str().to_owned())).flatten()
}

/// Returns the path if a redirect to it stays at this origin and does not lead to a sign-in page, else `/`.
fn safe(path: &str) -> &str {
    let is_path = path.starts_with('/') && !path.starts_with("//") && !path.starts_with("/\\");
    let is_plain = path.len() <= NEXT_BYTES_MAX && path.bytes().all(|b| b.is_ascii_graphic() && b != b'\\');
    let is_own = [LOGIN, LOGOUT].iter().any(|own| path.starts_with(own));
    if is_path && is_plain && !is_own { path } else { "/" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_browser_is_redirected_only_within_this_origin() {
        for path in ["/", "/portal/students/1?x=y", "/ui#a"] {
            assert_eq!(safe(path), path);
        }
        for path in [
            "",
            "portal",
            "//evil.example",
            "/\\evil.example",
            "/a\\b",
            "http://evil.example",
            "/a\r\nb",
            "/ä",
            "/login",
            "/logout",
        ] {
            assert_eq!(safe(path), "/", "{path:?}");
        }
        assert_eq!(safe(&format!("/{}", "a".repeat(NEXT_BYTES_MAX))), "/");
    }

    #[test]
    fn only_browsers_are_redirected_to_the_sign_in_page() {
        let page = |method: Method, target: &'static str, pairs: &[(&'static str, &'static str)]| {
            let mut headers = HeaderMap::new();
            pairs.iter().for_each(|(name, value)| _ = headers.insert(*name, HeaderValue::from_static(value)));
            let uri = Uri::from_static(target);
            let head = RequestHead { uri: &uri, headers: &headers, version: axum::http::Version::HTTP_11 };
            sign_in_url(&head, &method).map(|page| page.to_str().unwrap().to_owned())
        };
        let html = ("accept", "text/html,application/xhtml+xml,*/*;q=0.8");
        assert_eq!(page(Method::GET, "/portal?a=b", &[html]).unwrap(), "/login?next=%2Fportal%3Fa%3Db");
        let form = ("content-type", "application/x-www-form-urlencoded");
        let origin = ("origin", "http://n1:7500");
        let referrer =
            [html, form, origin, ("host", "n1:7500"), ("referer", "http://n1:7500/portal/students/1")];
        assert_eq!(
            page(Method::POST, "/portal/students/1/grades", &referrer).unwrap(),
            "/login?next=%2Fportal%2Fstudents%2F1"
        );
        let foreign = [html, form, origin, ("host", "n1:7500"), ("referer", "http://evil.example/a")];
        assert_eq!(
            page(Method::POST, "/portal/students/1/grades", &foreign).unwrap(),
            "/login?next=%2Fportal"
        );
        // A library: java.net.HttpURLConnection.
        let java = ("accept", "text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2");
        for pairs in [
            &[][..],
            &[("accept", "application/json")],
            &[html, ("sec-fetch-mode", "cors")],
            &[java],
            &[java, form],
            &[html, ("hearsay-signature", "x")],
        ] {
            assert_eq!(page(Method::GET, "/portal", pairs), None, "{pairs:?}");
            assert_eq!(page(Method::POST, "/portal", pairs), None, "{pairs:?}");
        }
        assert_eq!(page(Method::POST, "/students", &[html, ("content-type", "application/json")]), None);
        assert!(page(Method::GET, "/portal", &[java, ("sec-fetch-mode", "navigate")]).is_some());
        assert_eq!(page(Method::DELETE, "/students/1", &[html]), None);
    }
}
