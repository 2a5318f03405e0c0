//! `exec` check: passes if a command exits with 0.
//!
//! The command runs in its own process group, which is killed at the timeout, when the command has ended and
//! when the check is removed. So no process is left behind unless it changes its group. Only `PATH` is
//! inherited, because a node's environment may contain secrets.

use std::{
    ffi::OsString,
    os::fd::OwnedFd,
    pin::pin,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use futures::{FutureExt as _, future::FusedFuture as _};
use hearsay_protocol::{Health, Invalid};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, unix::AsyncFd},
    process::{Child, Command},
    time::timeout,
};

use super::{
    outcome::{OUTPUT_BYTES_MAX, Outcome},
    process::open_pidfd,
};

/// `PATH` of commands if the node has none.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Time limit for reading the rest of the output after the group was killed. Guess.
const OUTPUT_GRACE: Duration = Duration::from_millis(200);

/// A check that runs a command.
#[derive(Debug)]
pub(super) struct ExecProbe {
    program: String,
    arguments: Vec<String>,
    path: OsString,
}

impl ExecProbe {
    /// Returns a check with this program and arguments.
    pub(super) fn new(argv: &[String]) -> Result<Self, Invalid> {
        let invalid = |reason: &str| Invalid::new("exec", reason);
        let (program, arguments) = argv
            .split_first()
            .ok_or_else(|| invalid("has no command; give the program and its arguments"))?;
        if program.is_empty() {
            return Err(invalid("the command is empty"));
        }
        if argv.iter().any(|argument| argument.contains('\0')) {
            return Err(invalid("an argument contains a NUL byte"));
        }
        let path = std::env::var_os("PATH").unwrap_or_else(|| PATH_DEFAULT.into());
        Ok(Self { program: program.clone(), arguments: arguments.to_vec(), path })
    }

    /// Runs the command once, for at most `limit`.
    pub(super) async fn run(&self, limit: Duration) -> Outcome {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).env_clear().env("PATH", &self.path).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0).kill_on_drop(true);
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => return Outcome::critical(format!("cannot run {}: {error}", self.program)),
        };
        let mut group = ProcessGroup::of(&child);
        let mut output = Vec::new();
        let pipes = (child.stdout.take(), child.stderr.take());
        let ended = {
            let mut reading = pin!(read_output(pipes, &mut output).fuse());
            let waiting = async {
                let mut waiting = pin!(group.await_end(&mut child));
                tokio::select! {
                    ended = &mut waiting => ended,
                    () = &mut reading => waiting.await,
                }
            };
            let ended = timeout(limit, waiting).await;
            group.kill();
            // The pipe may still have output of the command.
            if !reading.is_terminated() {
                let _ = timeout(OUTPUT_GRACE, reading).await;
            }
            ended
        };
        let text = String::from_utf8_lossy(&output);
        if ended.is_err() {
            // tokio reaps the child when it is dropped.
            return Outcome::critical(format!("killed: the command ran for longer than {limit:?}\n{text}"));
        }
        match child.wait().await {
            Ok(status) => outcome_of(status, &text),
            Err(error) => Outcome::critical(format!("the command was lost: {error}")),
        }
    }
}

fn outcome_of(status: ExitStatus, text: &str) -> Outcome {
    match status.code() {
        Some(0) => Outcome::passing(text),
        Some(1) => Outcome::new(Health::Warning, text),
        _ => Outcome::critical(format!("{status}\n{text}")),
    }
}

/// Reads both pipes to the end and keeps the first [`OUTPUT_BYTES_MAX`] bytes. It reads the rest, too, so
/// that the command never blocks on a full pipe.
async fn read_output(
    (stdout, stderr): (Option<impl AsyncRead + Unpin>, Option<impl AsyncRead + Unpin>),
    output: &mut Vec<u8>,
) {
    let (mut stdout, mut stderr) = (stdout, stderr);
    while stdout.is_some() || stderr.is_some() {
        let (mut from_stdout, mut from_stderr) = ([0; 1024], [0; 1024]);
        let read = tokio::select! {
            read = read_some(&mut stdout, &mut from_stdout), if stdout.is_some() => &from_stdout[..read],
            read = read_some(&mut stderr, &mut from_stderr), if stderr.is_some() => &from_stderr[..read],
        };
        let room = OUTPUT_BYTES_MAX.saturating_sub(output.len());
        output.extend_from_slice(&read[..read.len().min(room)]);
    }
}

/// Reads once. At the end of the pipe, or after an error, the pipe becomes `None`.
async fn read_some(pipe: &mut Option<impl AsyncRead + Unpin>, buffer: &mut [u8]) -> usize {
    let read = match pipe {
        Some(pipe) => pipe.read(buffer).await.unwrap_or(0),
        None => 0,
    };
    if read == 0 {
        *pipe = None;
    }
    read
}

/// The process group of a command. Until the command is reaped, its pid, which is the id of the group, cannot
/// be reused.
#[derive(Debug)]
struct ProcessGroup {
    leader: Option<Pid>,
    pidfd: Option<AsyncFd<OwnedFd>>,
}

impl ProcessGroup {
    fn of(child: &Child) -> Self {
        let leader = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        let pidfd = leader.and_then(|pid| open_pidfd(pid.as_raw_pid()).ok());
        Self { leader, pidfd }
    }

    /// Waits by a `pidfd` for the end of the command, without reaping it. Without a `pidfd` (before Linux
    /// 5.3) the command is reaped, and the group is not killed.
    async fn await_end(&mut self, child: &mut Child) {
        match &self.pidfd {
            Some(pidfd) => {
                let _ = pidfd.readable().await;
            }
            None => {
                let _ = child.wait().await;
                self.leader = None;
            }
        }
    }

    fn kill(&mut self) {
        if let Some(leader) = self.leader.take() {
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        self.kill();
    }
}
