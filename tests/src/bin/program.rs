//! A user's program for scenarios: a small HTTP server that fails on command and records its requests.
//!
//! `program PORT [NODE REGISTRATION]` answers
//!
//! - `GET /received`: the recorded requests with a method other than GET, one in each line (method, path,
//!   body);
//! - `GET /count`: the number of all other requests;
//! - `GET /headers`: the headers of that `GET /headers` request, in lower case;
//! - `POST /fail`, `POST /pass`: set the status of `GET /health` and `GET /changing`; the output of the
//!   latter changes with each request;
//! - paths below `/slow`: 200 after a pause; all other paths: 200.
//!
//! With `NODE` (`host:port`) the program holds a registration at that node.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// Delay of answers to paths below `/slow`.
const SLOW: Duration = Duration::from_millis(20);

#[derive(Default)]
struct State {
    is_failing: bool,
    received: Vec<String>,
    count: usize,
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let port = arguments.next().and_then(|port| port.parse::<u16>().ok());
    let port = port.expect("usage: program PORT [NODE REGISTRATION]");
    let listener = TcpListener::bind(("::", port)).expect("the port is free");
    let state = Arc::<Mutex<State>>::default();
    let held = arguments.next().zip(arguments.next());
    // The connection stays open until the process ends.
    let _held = held.map(|(node, registration)| hold(&node, &registration));
    println!("listening");
    for stream in listener.incoming().flatten() {
        let state = Arc::clone(&state);
        std::thread::spawn(move || serve(stream, &state));
    }
}

/// Registers the program for as long as the connection is open. Returns after the node has acknowledged the
/// registration.
fn hold(node: &str, registration: &str) -> TcpStream {
    let mut stream = TcpStream::connect(node).expect("the node listens");
    let length = registration.len();
    write!(
        stream,
        "POST /services?hold HTTP/1.1\r\nhost: {node}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{registration}"
    )
    .expect("the node reads");
    let mut lines = BufReader::new(stream.try_clone().expect("a second handle")).lines();
    let is_registered = lines.any(|line| line.is_ok_and(|line| line == "event: registered"));
    assert!(is_registered, "the node has refused the registration");
    stream
}

/// Serves a connection until the client closes it.
fn serve(mut stream: TcpStream, state: &Mutex<State>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let mut words = line.split_whitespace();
        let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
        let (mut length, mut close, mut headers) = (0, false, String::new());
        loop {
            let mut header = String::new();
            reader.read_line(&mut header).ok()?;
            let header = header.trim().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
            close |= header == "connection: close";
            headers.push_str(&header);
            headers.push('\n');
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let body = String::from_utf8_lossy(&body).into_owned();
        if path.starts_with("/slow") {
            std::thread::sleep(SLOW);
        }
        let (status, answer) = match path.as_str() {
            "/headers" => ("200 OK", headers),
            _ => answer(&method, &path, body, state),
        };
        // The answer is sent with one write. A second write would wait until the client acknowledges the
        // first (Nagle's algorithm).
        let length = answer.len();
        let answer = format!(
            "HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\n\r\n{answer}"
        );
        stream.write_all(answer.as_bytes()).ok()?;
        if close {
            return None;
        }
    }
}

fn answer(method: &str, path: &str, body: String, state: &Mutex<State>) -> (&'static str, String) {
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    match (method, path) {
        ("GET", "/received") => return ("200 OK", state.received.join("\n")),
        ("GET", "/count") => return ("200 OK", state.count.to_string()),
        ("POST", "/fail") | ("POST", "/pass") => {
            state.is_failing = path == "/fail";
            return ("200 OK", String::new());
        }
        _ => state.count += 1,
    }
    match (method, path) {
        ("GET", "/health" | "/changing") if state.is_failing => {
            ("503 Service Unavailable", "told to fail".into())
        }
        ("GET", "/changing") => ("200 OK", format!("request {}", state.count)),
        ("GET", _) => ("200 OK", "fine".into()),
        _ => {
            state.received.push(format!("{method} {path} {body}"));
            ("200 OK", String::new())
        }
    }
}
