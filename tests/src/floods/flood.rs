//! [`Flood`]: starts the flooding process on a host, limits its processor time, and kills it when dropped.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use super::cpu_limit::CpuLimit;
use crate::Host;

/// Processor time of a flooder, in percent of one processor. It is limited, because a flooder in a real
/// network would not use the node's processors.
const FLOODER_CPU_PERCENT: u32 = 25;

/// Connections held from one host, until this is dropped.
#[derive(Debug)]
pub struct Flood {
    flooder: Child,
    is_open: Arc<AtomicBool>,
    /// Dropped after the flooder's process has ended, so that the group is empty when it is removed.
    limit: Option<CpuLimit>,
}

impl Flood {
    /// Holds this many connections from a host to an address, and sends these first bytes over each.
    /// Connections that the other end closes are opened again.
    ///
    /// `program` is the command that calls [`run_flooder`](crate::run_flooder). In a control group it floods
    /// as fast as its share of a processor allows; without one, it pauses.
    pub fn start(program: &[&str], from: &Host, to: SocketAddr, first: &[u8], holding: usize) -> Self {
        let limit = CpuLimit::create(FLOODER_CPU_PERCENT);
        if let Err(why) = &limit {
            println!("skipped: the flooder has no limit of its processor time: {why}");
            assert!(
                std::env::var("LAB").as_deref() != Ok("full"),
                "LAB=full, and there are no control groups"
            );
        }
        let limit = limit.ok();
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &from.name]).args(program).args([to.to_string(), holding.to_string()]);
        if limit.is_none() {
            command.arg("pause");
        }
        let mut flooder =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the flooder starts");
        if let Some(limit) = &limit {
            limit.add(flooder.id());
        }
        // The flooder starts to connect at the end of its input, when it is already in its group.
        let mut input = flooder.stdin.take().expect("a pipe");
        input.write_all(first).expect("the flooder reads");
        drop(input);
        let output = flooder.stdout.take().expect("a pipe");
        let is_open = Arc::<AtomicBool>::default();
        let opened = Arc::clone(&is_open);
        std::thread::spawn(move || {
            let is_said = BufReader::new(output).lines().next().is_some_and(|line| line.is_ok());
            opened.store(is_said, Relaxed);
        });
        Self { flooder, is_open, limit }
    }

    /// Returns whether the flooder has tried to open all its connections.
    pub fn is_open(&self) -> bool {
        self.is_open.load(Relaxed)
    }

    /// Returns the number of periods in which the flooder used up its share; `None` without a limit.
    pub fn throttled(&self) -> Option<u64> {
        self.limit.as_ref().map(CpuLimit::throttled)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        // The process may already have ended, with its reason on standard error.
        _ = self.flooder.kill();
        _ = self.flooder.wait();
    }
}
