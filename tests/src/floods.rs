//! Floods: connections of one host to one port, as many as are wanted, for as long as they are wanted.

use std::{
    fs::File,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use rustix::{
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use super::Host;

/// How long a connection may take. The system repeats a lost SYN after a second.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// Connections that are opened between two pauses.
const BURST: usize = 16;
/// The pause: a flood leaves the processor to others, which have as few cores as it.
const PAUSE: Duration = Duration::from_millis(2);

impl Host {
    /// Runs something on a thread whose sockets are this host's.
    pub fn inside<T: Send + 'static>(&self, run: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let namespace = File::open(format!("/run/netns/{}", self.name)).expect("a namespace");
        std::thread::spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("the namespace of a host");
            run()
        })
    }
}

/// Lets this process have as many connections as the system allows.
pub fn raise_file_limit() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("up to the maximum");
}

/// Connections from one host, until it is dropped.
#[derive(Debug)]
pub struct Flood {
    stop: Arc<AtomicBool>,
    opened: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Flood {
    /// Holds so many connections from a host to an address, each with these first bytes. Those that the other end closes are opened again.
    pub fn start(from: &Host, to: SocketAddr, first: Vec<u8>, holding: usize) -> Self {
        let (stop, opened) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (stopped, counted) = (Arc::clone(&stop), Arc::clone(&opened));
        let thread = from.inside(move || {
            let mut held: Vec<TcpStream> = Vec::new();
            while !stopped.load(Relaxed) {
                for _ in 0..BURST.min(holding - held.len()) {
                    // One that fails is tried again.
                    held.extend(open(to, &first).ok());
                    counted.fetch_add(1, Relaxed);
                }
                if held.len() == holding {
                    held.retain_mut(is_open);
                }
                std::thread::sleep(PAUSE);
            }
        });
        Self { stop, opened, thread: Some(thread) }
    }

    /// How many connections it has opened or tried to.
    pub fn opened(&self) -> usize {
        self.opened.load(Relaxed)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            // One that panicked has said why.
            _ = thread.join();
        }
    }
}

fn open(to: SocketAddr, first: &[u8]) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&to, CONNECT_MAX)?;
    stream.set_nonblocking(true)?;
    // A fresh socket has room for so little.
    _ = stream.write(first)?;
    Ok(stream)
}

/// Whether the other end has not closed it. What it sends is read and forgotten.
fn is_open(stream: &mut TcpStream) -> bool {
    loop {
        match stream.read(&mut [0; 1024]) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
    }
}

/// The status of the answer to a GET, whose body may go on for ever.
pub fn status_of(to: SocketAddr, path: &str, limit: Duration) -> Option<u16> {
    let mut stream = TcpStream::connect_timeout(&to, limit).ok()?;
    stream.set_read_timeout(Some(limit)).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {to}\r\n\r\n").ok()?;
    let mut line = [0; 12];
    stream.read_exact(&mut line).ok()?;
    String::from_utf8_lossy(&line).split(' ').nth(1)?.parse().ok()
}
