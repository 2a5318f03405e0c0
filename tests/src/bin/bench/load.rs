//! Load in a closed loop: so many connections, each of which asks again as soon as it is answered. One thread serves them all, so that the
//! client takes little of the processors that it shares with what is measured.

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
    dialect::{Dialect, Heard},
    statistics::Times,
};

/// Who does not answer within this is as good as gone.
pub(crate) const ANSWER_BOUND: Duration = Duration::from_secs(10);

/// A connection that is kept.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    dialect: Dialect,
    buffer: Vec<u8>,
    /// The answer at the beginning of the buffer, and how much of it is body.
    answer: (usize, usize),
    /// Requests sent so far.
    sent: u32,
}

impl Connection {
    /// Connects, and says what is said first.
    ///
    /// # Errors
    /// Nobody listens there.
    pub(crate) async fn open(to: SocketAddr, dialect: Dialect, number: usize) -> io::Result<Self> {
        let mut stream = TcpStream::connect(to).await?;
        stream.set_nodelay(true)?;
        stream.write_all(&dialect.hello(number)).await?;
        Ok(Self { stream, dialect, buffer: Vec::with_capacity(16 * 1024), answer: (0, 0), sent: 0 })
    }

    /// Sends a request and waits for its answer; whether that is good.
    ///
    /// # Errors
    /// The connection broke, or the answer did not come in time.
    pub(crate) async fn ask(&mut self, request: &[u8]) -> io::Result<bool> {
        timeout(ANSWER_BOUND, self.exchange(request)).await?
    }

    /// Sends a request and waits for its answer, which must be good; how long that is.
    ///
    /// # Errors
    /// The connection broke, or the answer did not come in time or is not good.
    pub(crate) async fn ask_length(&mut self, request: &[u8]) -> Result<usize> {
        ensure!(self.ask(request).await?, "not a good answer");
        Ok(self.answer.0)
    }

    /// What the last answer says.
    pub(crate) fn body(&self) -> &[u8] {
        let (length, body) = self.answer;
        &self.buffer[length - body..length]
    }

    /// A line of the last answer's head.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        let (length, body) = self.answer;
        let head = std::str::from_utf8(&self.buffer[..length - body]).ok()?;
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
    }

    async fn exchange(&mut self, request: &[u8]) -> io::Result<bool> {
        self.buffer.drain(..self.answer.0);
        self.answer = (0, 0);
        self.stream.write_all(&self.dialect.number(request, self.sent)).await?;
        self.sent += 1;
        loop {
            match self.dialect.hear(&self.buffer) {
                Heard::Answer { length, body, is_good } => {
                    self.answer = (length, body);
                    return Ok(is_good);
                }
                Heard::Aside { length, say } => {
                    self.buffer.drain(..length);
                    self.stream.write_all(&say).await?;
                }
                Heard::Part => {
                    if self.stream.read_buf(&mut self.buffer).await? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
            }
        }
    }
}

/// Runs on this thread alone.
///
/// # Errors
/// The system refuses.
pub(crate) fn alone<T>(what: impl Future<Output = Result<T>>) -> Result<T> {
    runtime()?.block_on(what)
}

/// A runtime of one thread, the caller's.
///
/// # Errors
/// The system refuses.
pub(crate) fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// What is asked for.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) to: SocketAddr,
    pub(crate) dialect: Dialect,
    /// For each connection, the requests that it sends in turn, again and again.
    pub(crate) requests: Vec<Vec<Vec<u8>>>,
    /// Answers before this do not count.
    pub(crate) warm_up: Duration,
    pub(crate) time: Duration,
}

/// What came of it.
#[derive(Clone, Default, Debug)]
pub(crate) struct Answered {
    /// Of each good answer, in microseconds.
    pub(crate) times_us: Vec<u64>,
    /// Answers that were none, or not good.
    pub(crate) bad: u64,
    /// In all.
    pub(crate) seconds: f64,
}

impl Answered {
    pub(crate) fn per_second(&self) -> f64 {
        self.times_us.len() as f64 / self.seconds.max(1e-9)
    }

    pub(crate) fn times(&self) -> Times {
        Times::new(self.times_us.iter().copied().map(Some), ANSWER_BOUND.as_secs())
    }

    /// Together with that of another round.
    pub(crate) fn and(&mut self, other: Self) {
        self.times_us.extend(other.times_us);
        self.bad += other.bad;
        self.seconds += other.seconds;
    }
}

impl Load {
    /// Runs it. `look` is called when the time begins and when it ends, for what is to be read of those who serve.
    ///
    /// # Errors
    /// No connection, or a look failed. Bad answers are counted; a connection that breaks is opened again.
    pub(crate) fn run<L>(&self, look: impl Fn() -> Result<L>) -> Result<(Answered, L, L)> {
        alone(async {
            let begin = Instant::now() + self.warm_up;
            let end = begin + self.time;
            let mut clients = Vec::new();
            for (number, requests) in self.requests.iter().enumerate() {
                let open = Connection::open(self.to, self.dialect, number).await;
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

/// Sends requests over so many connections, each of which is to be answered well, and returns how long that took.
///
/// # Errors
/// There is no connection, or an answer is not good.
pub(crate) fn send_all(to: SocketAddr, requests: &[Vec<u8>], connections: usize) -> Result<Duration> {
    let begun = Instant::now();
    alone(async {
        let send = |number: usize| async move {
            let mut connection = Connection::open(to, Dialect::Http, number).await?;
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
                // Without haste: whoever is gone would be asked a million times.
                tokio::time::sleep(Duration::from_millis(10)).await;
                if let Ok(anew) = Connection::open(to, connection.dialect, number).await {
                    connection = anew;
                }
            }
        }
    }
    answered
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dialect::get;

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
        let load = Load { to, dialect: Dialect::Http, requests, warm_up: time / 4, time };
        let (answered, ..) = load.run(|| Ok(())).unwrap();
        assert!(answered.times_us.len() > 10, "{answered:?}");
        assert_eq!(answered.bad, 0);
    }
}
