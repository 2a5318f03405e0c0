//! A program as users have them, for scenarios: a small HTTP server that can be told to fail, and that remembers what it is sent.
//!
//! `program PORT`: `GET /received` answers with the requests so far, one a line (method, path, body); `POST /fail` and `POST /pass` decide what
//! `GET /health` answers; everything else is answered with 200.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
};

#[derive(Default)]
struct State {
    is_failing: bool,
    received: Vec<String>,
}

fn main() {
    let port: u16 = std::env::args().nth(1).and_then(|port| port.parse().ok()).expect("usage: program PORT");
    let listener = TcpListener::bind(("::", port)).expect("the port is free");
    let state = Arc::<Mutex<State>>::default();
    println!("listening");
    for stream in listener.incoming().flatten() {
        let state = Arc::clone(&state);
        std::thread::spawn(move || serve(stream, &state));
    }
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
        let (mut length, mut close) = (0, false);
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
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let body = String::from_utf8_lossy(&body).into_owned();
        let (status, answer) = answer(&method, &path, body, state);
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n",
            answer.len()
        );
        stream.write_all(head.as_bytes()).ok()?;
        stream.write_all(answer.as_bytes()).ok()?;
        if close {
            return None;
        }
    }
}

fn answer(method: &str, path: &str, body: String, state: &Mutex<State>) -> (&'static str, String) {
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    match (method, path) {
        ("GET", "/received") => ("200 OK", state.received.join("\n")),
        ("POST", "/fail") | ("POST", "/pass") => {
            state.is_failing = path == "/fail";
            ("200 OK", String::new())
        }
        ("GET", "/health") if state.is_failing => ("503 Service Unavailable", "told to fail".into()),
        ("GET", _) => ("200 OK", "fine".into()),
        _ => {
            state.received.push(format!("{method} {path} {body}"));
            ("200 OK", String::new())
        }
    }
}
