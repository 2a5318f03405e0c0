//! [`Process`] of a measured system: its start, output and signals. It never outlives the benchmark.

use std::{
    ffi::OsStr,
    fs::File,
    io::{BufRead as _, BufReader, PipeReader, Write as _},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::Sender,
    thread,
};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::{
    clock::Moment,
    sighting::{self, Sighting},
    system::{Start, System},
};

/// Builds the command line of a program that dies with the thread that starts it. If a processor is given,
/// the program runs on this processor alone.
pub(crate) fn bound(program: impl AsRef<OsStr>, processor: Option<usize>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]);
    if let Some(processor) = processor {
        command.args(["taskset", "-c", &processor.to_string()]);
    }
    command.arg(program);
    command
}

/// Sighting and the process that reported it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Observed {
    pub(crate) observer: usize,
    pub(crate) sighting: Sighting,
}

/// Process of a measured system, running or ended.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    /// Set when the process is reaped, because another process may then have the same id.
    has_ended: bool,
}

impl Process {
    /// Starts a process, and sends its sightings. If a folder for logs is given, its output is written there,
    /// too.
    ///
    /// # Errors
    /// The program cannot be run, or the log cannot be written.
    pub(crate) fn start(
        system: System,
        start: &Start,
        to: Sender<Observed>,
        logs: Option<&Path>,
    ) -> Result<Self> {
        let name = sighting::name(start.index);
        let log = match logs {
            Some(folder) => {
                let file = folder.join(format!("{}-{}-{name}.log", system.name(), start.size));
                Some(File::create(&file).with_context(|| file.display().to_string())?)
            }
            None => None,
        };
        let (output, input) = std::io::pipe()?;
        let mut command = system.command(start);
        command.stdin(Stdio::piped()).stdout(input.try_clone()?).stderr(input);
        let child = command.spawn().with_context(|| format!("starting {name}: {command:?}"))?;
        // The command holds the other end of the pipe. It is dropped so that the reader below sees the end of
        // the process.
        drop(command);
        let observer = start.index;
        thread::spawn(move || {
            listen(output, log, |line| {
                let arrived = Moment::now();
                // The receiver is gone when measuring is over.
                system
                    .read(line, arrived)
                    .is_none_or(|sighting| to.send(Observed { observer, sighting }).is_ok())
            });
        });
        Ok(Self { child, has_ended: false })
    }

    /// Starts a process whose output is appended to a file.
    ///
    /// # Errors
    /// The program cannot be run, or the file cannot be written.
    pub(crate) fn spawn(mut command: Command, output: &Path) -> Result<Self> {
        let file = File::options().create(true).append(true).open(output);
        let file = file.with_context(|| output.display().to_string())?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        Ok(Self { child, has_ended: false })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a command to an agent's standard input.
    ///
    /// # Errors
    /// The process has ended.
    pub(crate) fn say(&mut self, word: &str) -> Result<()> {
        let input = self.child.stdin.as_mut().context("no standard input")?;
        Ok(writeln!(input, "{word}")?)
    }

    /// # Errors
    /// The process has ended.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid())?).context("a process id")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Returns whether the process has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.has_ended |= matches!(self.child.try_wait(), Ok(Some(_)));
        self.has_ended
    }

    /// Kills the process and waits until it ends.
    pub(crate) fn end(&mut self) {
        if !self.has_ended {
            // The process may already have ended.
            _ = self.child.kill();
            _ = self.child.wait();
            self.has_ended = true;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// Reads lines until the end of the output, or until the receiver is gone.
fn listen(output: PipeReader, mut log: Option<File>, mut wants_more: impl FnMut(&str) -> bool) {
    let mut output = BufReader::new(output);
    let mut line = Vec::new();
    loop {
        line.clear();
        if output.read_until(b'\n', &mut line).unwrap_or(0) == 0 {
            return;
        }
        let text = String::from_utf8_lossy(&line);
        let goes_on = wants_more(text.trim_end());
        if let Some(log) = &mut log {
            // If the disk is full, the log is incomplete, but the figures are right.
            _ = log.write_all(&line);
        }
        if !goes_on {
            return;
        }
    }
}
