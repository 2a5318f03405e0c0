//! Open-loop load: requests become due at times that do not depend on answers, so that each proxy gets the
//! same load. Latency counts from the due time, including the time in which no connection was free
//! (<https://www.azul.com/files/HowNotToMeasureLatency_LLSummit_NYC_12Nov2013.pdf>).
//!
//! Times between requests are exponentially distributed, as from many independent clients, and the same for
//! each proxy.

use std::{
    collections::VecDeque,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    num::NonZeroU64,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use fastrand::Rng;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::setpriority_process,
    thread::{CpuSet, sched_setaffinity, set_current_timer_slack},
};

use crate::{
    load::{ANSWER_BOUND, Answered},
    protocol::{Parsed, WireProtocol},
};

/// Highest scheduling priority, as for `nice`.
const PRIORITY: i32 = -20;

/// Open-loop load to run.
#[derive(Debug)]
pub(super) struct Paced {
    pub(super) to: SocketAddr,
    pub(super) request: Vec<u8>,
    pub(super) connections: usize,
    pub(super) per_second: f64,
    pub(super) time: Duration,
}

struct Line {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// Due time of the request that is being answered.
    due: Option<Instant>,
}

impl Paced {
    /// Runs the load on this processor.
    ///
    /// # Errors
    /// A connection fails, or the system refuses.
    pub(super) fn run(self, processor: usize) -> Result<Answered> {
        let client = std::thread::spawn(move || {
            let mut only = CpuSet::new();
            only.set(processor);
            sched_setaffinity(None, &only).context("cannot choose a processor")?;
            // The measuring thread must not wait for the other programs on its processor. Without a process
            // id, `setpriority` sets the priority of the thread.
            setpriority_process(None, PRIORITY).context("cannot go first")?;
            // By default a sleeping thread may wake up 50 µs late, which is as long as a typical answer
            // takes.
            set_current_timer_slack(NonZeroU64::new(1)).context("cannot wake up in time")?;
            self.ask()
        });
        client.join().map_err(|_| anyhow::anyhow!("the client panicked"))?
    }

    fn ask(&self) -> Result<Answered> {
        let mut lines = Vec::new();
        for _ in 0..self.connections {
            let stream = TcpStream::connect(self.to).with_context(|| format!("connecting to {}", self.to))?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            lines.push(Line { stream, buffer: Vec::with_capacity(4096), due: None });
        }
        let mut rng = Rng::with_seed(1);
        let mut gap = || Duration::from_secs_f64(-(1.0 - rng.f64()).ln() / self.per_second);
        let begin = Instant::now();
        let end = begin + self.time;
        let mut next = begin + gap();
        let (mut due, mut idle) = (VecDeque::new(), (0..lines.len()).collect::<VecDeque<_>>());
        let mut answered = Answered { seconds: self.time.as_secs_f64(), ..Answered::default() };
        loop {
            let now = Instant::now();
            while next <= now && next < end {
                due.push_back(next);
                next += gap();
            }
            while let (Some(at), Some(line)) = (due.front().copied(), idle.front().copied()) {
                due.pop_front();
                idle.pop_front();
                lines[line].stream.write_all(&self.request)?;
                lines[line].due = Some(at);
            }
            let outstanding = lines.len() - idle.len() + due.len();
            if next >= end && (outstanding == 0 || now > end + ANSWER_BOUND) {
                answered.bad += outstanding as u64;
                return Ok(answered);
            }
            let more = if next < end { next.saturating_duration_since(now) } else { ANSWER_BOUND };
            let ready = ready(&lines, more)?;
            for (number, line) in lines.iter_mut().enumerate().filter(|(number, _)| ready[*number]) {
                if let Some(is_good) = line.parse()? {
                    let Some(at) = line.due.take() else { continue };
                    idle.push_back(number);
                    answered.bad += u64::from(!is_good);
                    if is_good {
                        answered.times_us.push(u64::try_from(at.elapsed().as_micros()).unwrap_or(u64::MAX));
                    }
                }
            }
        }
    }
}

/// Waits until some connections are readable or writable, for this long at most.
fn ready(lines: &[Line], time: Duration) -> Result<Vec<bool>> {
    let time = Timespec { tv_sec: time.as_secs().try_into()?, tv_nsec: time.subsec_nanos().into() };
    let mut asked: Vec<PollFd<'_>> = lines.iter().map(Line::asked).collect();
    poll(&mut asked, Some(&time)).context("poll")?;
    Ok(asked.iter().map(|line| !line.revents().is_empty()).collect())
}

impl Line {
    /// Events to wait for.
    fn asked(&self) -> PollFd<'_> {
        PollFd::new(&self.stream, if self.due.is_some() { PollFlags::IN } else { PollFlags::empty() })
    }

    /// Parses the received bytes. Returns whether the answer is a success, once it is complete.
    fn parse(&mut self) -> Result<Option<bool>> {
        let mut bytes = [0; 4096];
        match self.stream.read(&mut bytes) {
            Ok(0) => anyhow::bail!("a connection was closed"),
            Ok(length) => self.buffer.extend(&bytes[..length]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let Parsed::Answer { length, is_good, .. } = WireProtocol::Http.parse(&self.buffer) else {
            return Ok(None);
        };
        self.buffer.drain(..length);
        Ok(Some(is_good))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::get;

    #[test]
    fn requests_are_due_whether_or_not_the_ones_before_are_answered() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 512];
            // The server is slower than the load, so that requests queue.
            while stream.read(&mut request).is_ok_and(|length| length > 0) {
                std::thread::sleep(Duration::from_millis(2));
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").unwrap();
            }
        });
        let time = Duration::from_millis(200);
        let paced = Paced { to, request: get("/"), connections: 1, per_second: 1000.0, time };
        let answered = paced.ask().unwrap();
        let count = answered.times_us.len();
        assert!((100..400).contains(&count), "{count} of about 200");
        // The last request was due at the end of the load, and is answered after all earlier ones.
        assert!(answered.times_us.iter().max() > Some(&100_000), "{:?}", answered.times_us.last());
    }
}
