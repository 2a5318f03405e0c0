//! Tests of the pages against fake grading and log nodes on real sockets.

mod book;
mod fake;
mod hostile;
mod log;

use std::sync::{Arc, Mutex};

use axum::{Router, body::Body};
use http::{Method, Request};

use super::*;
use crate::{
    http::html,
    testing::{Answer, MemoryHost, markup_breaches, markup_tags, request, send},
};
use fake::{Fake, Shared, record, student};

/// A portal and its provider table.
struct Setup {
    host: MemoryHost,
    router: Router,
    shared: Arc<Mutex<Shared>>,
}

impl Setup {
    fn new() -> Self {
        Self::on(MemoryHost::new("p1"))
    }

    fn on(host: MemoryHost) -> Self {
        let router = Portal.router(Arc::new(host.clone()));
        Self { host, router, shared: Arc::default() }
    }

    /// Starts a portal with one node of both roles and these students.
    async fn with(students: impl IntoIterator<Item = serde_json::Value>) -> (Self, Fake) {
        let setup = Self::new();
        for student in students {
            let id = student["id"].as_u64().unwrap();
            setup.shared.lock().unwrap().students.insert(id, student);
        }
        let fake = setup.start("g1").await;
        (setup, fake)
    }

    /// Starts another node of both roles.
    async fn start(&self, name: &str) -> Fake {
        let fake = Fake::start(&self.shared).await;
        self.offer(name, &fake);
        fake
    }

    fn offer(&self, name: &str, fake: &Fake) {
        for service in ["grading", "log"] {
            self.host.offer(service, name, &fake.url, hearsay_protocol::Health::Passing);
        }
    }

    async fn get(&self, path: &str) -> Answer {
        self.get_with(path, "").await
    }

    async fn get_with(&self, path: &str, cookie: &str) -> Answer {
        let request = Request::get(path).header("cookie", cookie).body(Body::empty()).unwrap();
        let answer = send(self.router.clone(), request).await;
        if answer.content_type().starts_with("text/html") {
            assert_eq!(answer.headers["content-security-policy"], html::CONTENT_SECURITY_POLICY);
            assert_eq!(answer.headers["x-content-type-options"], "nosniff");
            assert_eq!(markup_breaches(&answer.text()), Vec::<String>::new(), "{path}");
        }
        answer
    }

    /// Sends a form as a browser does.
    async fn post(&self, path: &str, fields: &[(&str, &str)]) -> Answer {
        self.post_with(path, fields, &[("sec-fetch-site", "same-origin")]).await
    }

    async fn post_with(&self, path: &str, fields: &[(&str, &str)], headers: &[(&str, &str)]) -> Answer {
        let mut body = form_urlencoded::Serializer::new(String::new());
        fields.iter().for_each(|(name, value)| _ = body.append_pair(name, value));
        let mut request = Request::post(path).header("content-type", "application/x-www-form-urlencoded");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        send(self.router.clone(), request.body(Body::from(body.finish())).unwrap()).await
    }
}

/// Returns the hidden key of the first form with this action.
fn key_of(page: &str, action: &str) -> String {
    let form = page
        .split(&format!("action=\"{action}\" method=\"post\""))
        .nth(1)
        .unwrap_or_else(|| panic!("no form for {action} in {page}"));
    form.split("name=\"key\" value=\"").nth(1).unwrap().split('"').next().unwrap().to_owned()
}

/// Returns the cookies that a browser sends after an answer.
fn cookies(answer: &Answer) -> String {
    let set = answer.headers.get_all("set-cookie").into_iter().map(|line| line.to_str().unwrap());
    set.map(|line| line.split(';').next().unwrap()).collect::<Vec<_>>().join("; ")
}

#[tokio::test]
async fn without_any_node_the_pages_say_so_and_what_to_start() {
    let setup = Setup::new();
    for (path, service) in [("/portal", "grading"), ("/portal/log", "log")] {
        let answer = setup.get(path).await;
        let page = answer.text();
        assert_eq!(answer.status, 200, "{path}");
        assert!(page.contains(&format!("No {service} node is alive")), "{page}");
        assert!(page.contains(&format!("node --role {service}")));
    }
    assert_eq!(setup.get("/portal/students/1").await.status, 503);
}

#[tokio::test]
async fn a_node_that_cannot_answer_is_named_with_its_reason() {
    let (setup, fake) = Setup::with([]).await;
    *fake.state.fails.lock().unwrap() = Some((503, "the disk has failed".into()));
    let answer = setup.get("/portal").await;
    let page = answer.text();
    assert_eq!(answer.status, 503);
    assert!(
        page.contains("No grading node could answer")
            && page.contains("the disk has failed")
            && page.contains("<b>g1</b>"),
        "{page}"
    );
    fake.kill();
    let page = setup.get("/portal/log").await.text();
    assert!(page.contains("No log node could answer"), "{page}");
}

#[tokio::test]
async fn something_else_than_the_contract_is_no_page() {
    let (setup, fake) = Setup::with([]).await;
    *fake.state.fails.lock().unwrap() = Some((200, "an object where a list was expected".into()));
    for path in ["/portal", "/portal/students/1", "/portal/log"] {
        let answer = setup.get(path).await;
        assert_eq!(answer.status, 502);
        assert!(answer.text().contains("The answer cannot be shown"), "{path}");
    }
}

#[tokio::test]
async fn files_are_there_under_the_addresses_that_pages_name() {
    let setup = Setup::new();
    let page = setup.get("/portal/log").await.text();
    for tag in markup_tags(&page).unwrap() {
        for (name, value) in tag.attributes {
            let is_file = name == "src" || name == "href" && tag.name == "link";
            if is_file {
                let answer = request(setup.router.clone(), Method::GET, &value).await;
                assert_eq!(answer.status, 200, "{value}");
                assert!(answer.headers["cache-control"].to_str().unwrap().contains("immutable"));
            }
        }
    }
}
