//! [`AddressCounter`]: HTTP server on every address of a host, which counts connections by destination
//! address.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, Shutdown, TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
};

use crate::Host;

/// Counting server. It answers every request with 200, and `/redirect/URL` with a redirect to URL.
#[derive(Debug, Default)]
pub struct AddressCounter {
    accepted: Arc<Mutex<BTreeMap<IpAddr, usize>>>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl AddressCounter {
    /// Starts a server on a port of a host. It listens when this returns, and until the scenario ends.
    pub fn start(host: &Host, port: u16) -> Self {
        let counter = Self::default();
        let listener = host.enter(|| TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).expect("a free port"));
        let (accepted, open) = (Arc::clone(&counter.accepted), Arc::clone(&counter.open));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let Ok(at) = stream.local_addr() else { continue };
                let ip = at.ip().to_canonical();
                *accepted.lock().unwrap_or_else(PoisonError::into_inner).entry(ip).or_default() += 1;
                let mut open = open.lock().unwrap_or_else(PoisonError::into_inner);
                open.extend(stream.try_clone());
                std::thread::spawn(move || serve(stream));
            }
        });
        counter
    }

    /// Returns the number of connections to each address.
    pub fn accepted(&self) -> BTreeMap<IpAddr, usize> {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Resets all counts.
    pub fn reset(&self) {
        self.accepted.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Closes all open connections.
    pub fn close_all(&self) {
        for stream in self.open.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // The client may have closed the connection first.
            _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// Answers requests until the client closes the connection.
fn serve(mut stream: TcpStream) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    loop {
        let mut line = || {
            let mut line = String::new();
            reader.read_line(&mut line).ok().filter(|read| *read > 0).map(|_| line.trim_end().to_owned())
        };
        let request = line()?;
        let mut length = 0;
        while let Some(header) = line().filter(|header| !header.is_empty()) {
            if let Some(value) = header.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
        }
        reader.read_exact(&mut vec![0; length]).ok()?;
        let redirect = request.split(' ').nth(1)?.strip_prefix("/redirect/");
        match redirect {
            Some(url) => {
                write!(stream, "HTTP/1.1 302 Found\r\nlocation: {url}\r\ncontent-length: 0\r\n\r\n").ok()?
            }
            None => stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").ok()?,
        }
    }
}
