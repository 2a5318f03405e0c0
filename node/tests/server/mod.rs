//! Fake node for tests of the command line: an HTTP server that gives prepared replies and records requests.

#![allow(dead_code, reason = "each test program uses its own part of it")]

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpListener,
    sync::{Arc, Mutex},
};

/// A prepared reply.
#[derive(Clone)]
pub(crate) struct Reply(String);

impl Reply {
    pub(crate) fn ok(body: &str) -> Self {
        Self::status(200, body)
    }

    pub(crate) fn status(status: u16, body: &str) -> Self {
        let length = body.len();
        Self(format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"))
    }

    /// Returns an event stream that ends after these events.
    pub(crate) fn stream(events: String) -> Self {
        Self(format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n{events}"
        ))
    }

    pub(crate) fn raw(bytes: &str) -> Self {
        Self(bytes.to_owned())
    }
}

/// Prefix of a request line, with the reply.
type Expected = (String, Reply);

/// Fake node. It gives each prepared reply once, in order, and 404 otherwise. Its thread ends with the
/// process.
pub(crate) struct Server {
    pub(crate) url: String,
    expected: Arc<Mutex<Vec<Expected>>>,
    requests: Arc<Mutex<Vec<String>>>,
    bodies: Arc<Mutex<Vec<String>>>,
}

impl Server {
    pub(crate) fn start(replies: &[(&str, Reply)]) -> Self {
        Self::start_at("127.0.0.1:0", replies)
    }

    pub(crate) fn start_at(address: &str, replies: &[(&str, Reply)]) -> Self {
        let listener = TcpListener::bind(address).unwrap();
        let server = Self {
            url: format!("http://{}", listener.local_addr().unwrap()),
            expected: Arc::default(),
            requests: Arc::default(),
            bodies: Arc::default(),
        };
        for (request, reply) in replies {
            server.expect(request, reply.clone());
        }
        let (expected, requests) = (server.expected.clone(), server.requests.clone());
        let bodies = server.bodies.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut reader = BufReader::new(&stream);
                let head = reader.by_ref().lines().map_while(Result::ok).take_while(|line| !line.is_empty());
                let head = head.collect::<Vec<_>>().join("\n");
                let length = head.to_lowercase().lines().find_map(|line| {
                    line.strip_prefix("content-length: ").and_then(|length| length.parse().ok())
                });
                let mut body = String::new();
                // Errors are ignored: the client may close the connection within a body.
                _ = reader.take(length.unwrap_or(0)).read_to_string(&mut body);
                bodies.lock().unwrap().push(body);
                let mut expected = expected.lock().unwrap();
                let found = expected.iter().position(|(line, _)| head.starts_with(&format!("{line} ")));
                let reply =
                    found.map_or_else(|| Reply::status(404, "not laid down"), |at| expected.remove(at).1);
                requests.lock().unwrap().push(head);
                // Errors are ignored: the client may close the connection.
                _ = stream.write_all(reply.0.as_bytes());
            }
        });
        server
    }

    /// Adds a prepared reply.
    pub(crate) fn expect(&self, request: &str, reply: Reply) {
        self.expected.lock().unwrap().push((request.to_owned(), reply));
    }

    /// Returns the bodies of the requests so far; most are empty.
    pub(crate) fn bodies(&self) -> Vec<String> {
        self.bodies.lock().unwrap().clone()
    }

    /// Returns the heads of the requests so far.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}
