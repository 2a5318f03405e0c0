//! HTTP server of another origin. It serves the attacking page, and redirects requests for certain paths. It
//! answers all other requests like a careless server, so that every page can read the answers. It records
//! requests, so that a scenario can check which attempts reach a server.

use std::{
    io::{BufRead, BufReader, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
};

use rustix::net::{Shutdown, shutdown};

use crate::Host;

/// Largest body that the server reads. All attempts send fewer bytes.
const BODY_MAX: usize = 64 * 1024;
/// The smallest image that browsers decode: GIF, one pixel.
const PIXEL: &[u8] = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff!\xf9\x04\x01\0\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;";

/// Request that the server recorded.
#[derive(Clone, Debug)]
pub struct SiteRequest {
    /// Method.
    pub method: String,
    /// Path with its query.
    pub target: String,
    /// Head, in lower case.
    pub head: String,
    /// Body.
    pub body: String,
}

/// Web site of another origin than that of the node.
#[derive(Debug)]
pub struct ForeignSite {
    listener: Arc<TcpListener>,
    asked: Arc<Mutex<Vec<SiteRequest>>>,
}

impl ForeignSite {
    /// Starts a site that listens on all IPv4 addresses of a host, or of the scenario itself. It serves
    /// `page` as `/`, and `script` as `/attack.js`.
    pub fn start(on: Option<&Host>, port: u16, page: &str, script: &'static str) -> Self {
        let bind = || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).expect("the port is free");
        let listener = Arc::new(on.map_or_else(bind, |host| host.enter(bind)));
        let asked = Arc::<Mutex<Vec<SiteRequest>>>::default();
        let (accepting, recorded) = (Arc::clone(&listener), Arc::clone(&asked));
        let page: Arc<str> = page.into();
        std::thread::spawn(move || {
            // `close` ends the loop, because accepting then fails.
            while let Ok((stream, _)) = accepting.accept() {
                let (recorded, page) = (Arc::clone(&recorded), Arc::clone(&page));
                std::thread::spawn(move || serve(stream, &page, script, &recorded));
            }
        });
        Self { listener, asked }
    }

    /// Returns the recorded requests.
    pub fn asked(&self) -> Vec<SiteRequest> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Refuses connections from now on.
    pub fn close(&self) {
        // The listener may already be closed.
        _ = shutdown(&*self.listener, Shutdown::Both);
    }
}

impl Drop for ForeignSite {
    fn drop(&mut self) {
        self.close();
    }
}

/// Handles one request per connection: a kept-alive connection would stop the browser from connecting again,
/// perhaps to another server.
fn serve(mut stream: TcpStream, page: &str, script: &str, recorded: &Mutex<Vec<SiteRequest>>) -> Option<()> {
    let asked = read(&mut BufReader::new(stream.try_clone().ok()?))?;
    recorded.lock().unwrap_or_else(PoisonError::into_inner).push(asked.clone());
    stream.write_all(&answer(&asked, page, script)).ok()?;
    stream.shutdown(std::net::Shutdown::Write).ok()
}

fn read(reader: &mut impl BufRead) -> Option<SiteRequest> {
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let line = line.trim().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        head.push_str(&line);
        head.push('\n');
    }
    let mut body = vec![0; BODY_MAX.min(length)];
    reader.read_exact(&mut body).ok()?;
    Some(SiteRequest { method, target, head, body: String::from_utf8_lossy(&body).into_owned() })
}

fn answer(asked: &SiteRequest, page: &str, script: &str) -> Vec<u8> {
    let html = "content-type: text/html\r\n";
    let (path, query) = asked.target.split_once('?').unwrap_or((&asked.target, ""));
    if let Some((status, to)) = asked.target.strip_prefix("/redirect/").and_then(|rest| rest.split_once('/'))
    {
        return response(status, &format!("location: {to}\r\n"), b"");
    }
    if let Some(to) = asked.target.strip_prefix("/report/") {
        let policy = format!("{html}content-security-policy: img-src 'none'; report-uri {to}\r\n");
        return response("200", &policy, b"<!doctype html><img src=/blocked.png>");
    }
    match path {
        "/" => response("200", html, page.as_bytes()),
        "/attack.js" => response("200", "content-type: text/javascript\r\n", script.as_bytes()),
        _ => careless(asked, query),
    }
}

/// Builds an answer that any page can read. The query `by=KIND-…` names the attempt; KIND is the type of
/// content that the page expects.
fn careless(asked: &SiteRequest, query: &str) -> Vec<u8> {
    let origin = asked.head.lines().find_map(|line| line.strip_prefix("origin: ")).unwrap_or("*");
    let (kind, body): (&str, &[u8]) = match query.strip_prefix("by=").and_then(|by| by.split('-').next()) {
        Some("script") => ("text/javascript", b"window.leaked = 'careless';"),
        Some("style") => ("text/css", b"#careless { color: red; }"),
        Some("image") => ("image/gif", PIXEL),
        Some("events") => ("text/event-stream", b"data: careless\n\n"),
        Some("module") => ("text/javascript", b"export default 'careless';"),
        Some("worker") => ("text/javascript", b"self.leaked = 'careless';"),
        _ => ("text/plain", b"careless"),
    };
    let headers = format!(
        "content-type: {kind}\r\naccess-control-allow-origin: {origin}\r\naccess-control-allow-credentials: true\r\n\
         access-control-allow-methods: GET, POST, PUT, DELETE\r\naccess-control-allow-headers: content-type\r\n"
    );
    response("200", &headers, body)
}

fn response(status: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status} x\r\nconnection: close\r\ncache-control: no-store\r\n{headers}content-length: {length}\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}
