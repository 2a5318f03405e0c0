//! Closed-loop load: each connection sends its next request when the previous one is answered. One thread
//! serves all connections, so that the client takes little time of the shared processors.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    runtime::Runtime,
    time::timeout,
};

use crate::{
    protocol::{Parsed, WireProtocol},
    statistics::Times,
};

/// Limit of an answer. A slower server counts as failed.
pub(crate) const ANSWER_BOUND: Duration = Duration::from_secs(10);

/// Connection that is kept between requests.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    protocol: WireProtocol,
    buffer: Vec<u8>,
    /// Lengths of the answer at the beginning of the buffer, and of its body.
    answer: (usize, usize),
    /// Number of requests sent so far.
    sent: u32,
}

impl Connection {
    /// Connects, and sends the protocol's first bytes.
    ///
    /// # Errors
    /// The connection is refused.
    pub(crate) async fn open(to: SocketAddr, protocol: WireProtocol, number: usize) -> io::Result<Self> {
        let mut stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        stream.write_all(&protocol.hello(number)).await?;
        Ok(Self { stream, protocol, buffer: Vec::with_capacity(16 * 1024), answer: (0, 0), sent: 0 })
    }

    /// Sends a request and waits for the answer. Returns whether the answer is a success.
    ///
    /// # Errors
    /// The connection broke, or no answer arrived in time.
    pub(crate) async fn ask(&mut self, request: &[u8]) -> io::Result<bool> {
        timeout(ANSWER_BOUND, self.exchange(request)).await?
    }

    /// Sends a request and waits for a successful answer. Returns the length of the answer.
    ///
    /// # Errors
    /// The connection broke, no answer arrived in time, or the answer is a failure.
    pub(crate) async fn ask_length(&mut self, request: &[u8]) -> Result<usize> {
        ensure!(self.ask(request).await?, "not a good answer");
        Ok(self.answer.0)
    }

    /// Returns the body of the last answer.
    pub(crate) fn body(&self) -> &[u8] {
        let (length, body) = self.answer;
        &self.buffer[length - body..length]
    }

    /// Returns a header line of the last answer.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let (length, body) = self.answer;
        let head = std::str::from_utf8(&self.buffer[..length - body]).ok()?;
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
    }

    async fn exchange(&mut self, request: &[u8]) -> io::Result<bool> {
        self.buffer.drain(..self.answer.0);
        self.answer = (0, 0);
        self.stream.write_all(&self.protocol.number(request, self.sent)).await?;
        self.sent += 1;
        loop {
            match self.protocol.parse(&self.buffer) {
                Parsed::Answer { length, body, is_good } => {
                    self.answer = (length, body);
                    return Ok(is_good);
                }
                Parsed::Aside { length, say } => {
                    self.buffer.drain(..length);
                    self.stream.write_all(&say).await?;
                }
                Parsed::Part => {
                    if self.stream.read_buf(&mut self.buffer).await? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
            }
        }
    }
}

/// Runs a future to its end on the calling thread.
///
/// # Errors
/// The system refuses.
pub(crate) fn alone<T>(what: impl Future<Output = Result<T>>) -> Result<T> {
    runtime()?.block_on(what)
}

/// Creates a runtime that uses the calling thread only.
///
/// # Errors
/// The system refuses.
pub(crate) fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// Load to run.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) to: SocketAddr,
    pub(crate) protocol: WireProtocol,
    /// For each connection, the requests that it sends in turn. The connection repeats them.
    pub(crate) requests: Vec<Vec<Vec<u8>>>,
    /// Time of load before measuring. Its answers do not count.
    pub(crate) warm_up: Duration,
    pub(crate) time: Duration,
}

/// Figures of a load.
#[derive(Clone, Default, Debug)]
pub(crate) struct Answered {
    /// Latency of each successful answer, in microseconds.
    pub(crate) times_us: Vec<u64>,
    /// Number of missing answers and failures.
    pub(crate) bad: u64,
    /// Total time in seconds.
    pub(crate) seconds: f64,
}

impl Answered {
    pub(crate) fn per_second(&self) -> f64 {
        self.times_us.len() as f64 / self.seconds.max(1e-9)
    }

    pub(crate) fn times(&self) -> Times {
        Times::new(self.times_us.iter().copied().map(Some), ANSWER_BOUND.as_secs())
    }

    /// Adds the figures of another round.
    pub(crate) fn and(&mut self, other: Self) {
        self.times_us.extend(other.times_us);
        self.bad += other.bad;
        self.seconds += other.seconds;
    }
}

impl Load {
    /// Runs the load. Calls `look` at the beginning and at the end of the measured time; it reads the
    /// servers' usage.
    ///
    /// # Errors
    /// A connection fails, or `look` failed. Bad answers are only counted, and a broken connection is opened
    /// again.
    pub(crate) fn run<L>(&self, look: impl Fn() -> Result<L>) -> Result<(Answered, L, L)> {
        alone(async {
            let begin = Instant::now() + self.warm_up;
            let end = begin + self.time;
            let mut clients = Vec::new();
            for (number, requests) in self.requests.iter().enumerate() {
                let open = Connection::open(self.to, self.protocol, number).await;
                let connection = open.with_context(|| format!("connecting to {}", self.to))?;
                clients.push(tokio::spawn(ask_again(
                    connection,
                    (self.to, number),
                    requests.clone(),
                    begin,
                    end,
                )));
            }
            tokio::time::sleep_until(begin.into()).await;
            let (first, from) = (look()?, Instant::now());
            tokio::time::sleep_until(end.into()).await;
            let (last, seconds) = (look()?, from.elapsed().as_secs_f64());
            let mut all = Answered::default();
            for client in clients {
                all.and(client.await?);
            }
            all.seconds = seconds;
            Ok((all, first, last))
        })
    }
}

/// Sends requests over this many connections. Every answer must be a success. Returns the total time.
///
/// # Errors
/// A connection fails, or an answer is a failure.
pub(crate) fn send_all(to: SocketAddr, requests: &[Vec<u8>], connections: usize) -> Result<Duration> {
    let begun = Instant::now();
    alone(async {
        let send = |number: usize| async move {
            let mut connection = Connection::open(to, WireProtocol::Http, number).await?;
            for request in requests.iter().skip(number).step_by(connections) {
                let is_good = connection.ask(request).await?;
                ensure!(is_good, "refused: {}", String::from_utf8_lossy(connection.body()));
            }
            Ok(())
        };
        try_join_all((0..connections).map(send)).await
    })?;
    Ok(begun.elapsed())
}

async fn ask_again(
    mut connection: Connection,
    (to, number): (SocketAddr, usize),
    requests: Vec<Vec<u8>>,
    begin: Instant,
    end: Instant,
) -> Answered {
    let mut answered = Answered::default();
    for request in requests.iter().cycle() {
        let asked = Instant::now();
        if asked >= end {
            break;
        }
        let answer = connection.ask(request).await;
        let now = Instant::now();
        let counts = now >= begin && now < end;
        match answer {
            Ok(true) if counts => {
                let us = now.duration_since(asked).as_micros();
                answered.times_us.push(u64::try_from(us).unwrap_or(u64::MAX));
            }
            Ok(true) => (),
            Ok(false) => answered.bad += 1,
            Err(_) => {
                answered.bad += 1;
                // The client pauses, because otherwise a dead server would get a million connection attempts.
                tokio::time::sleep(Duration::from_millis(10)).await;
                if let Ok(opened) = Connection::open(to, connection.protocol, number).await {
                    connection = opened;
                }
            }
        }
    }
    answered
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::get;

    #[test]
    fn every_connection_asks_again_when_it_is_answered() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                std::thread::spawn(move || {
                    use std::io::{Read as _, Write as _};
                    let mut stream = stream.unwrap();
                    let mut request = [0; 512];
                    while stream.read(&mut request).is_ok_and(|length| length > 0) {
                        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").unwrap();
                    }
                });
            }
        });
        let time = Duration::from_millis(200);
        let requests = vec![vec![get("/")]; 3];
        let load = Load { to, protocol: WireProtocol::Http, requests, warm_up: time / 4, time };
        let (answered, ..) = load.run(|| Ok(())).unwrap();
        assert!(answered.times_us.len() > 10, "{answered:?}");
        assert_eq!(answered.bad, 0);
    }
}
