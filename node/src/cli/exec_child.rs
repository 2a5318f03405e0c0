//! Child process of `node run`: sets its parent-death signal and executes the command.
//!
//! The command must end when `node run` ends, even by SIGKILL. `PR_SET_PDEATHSIG` (prctl(2)) must be set in
//! the child and survives execve(2). Rust has no safe way to run code between fork and exec. So the child
//! runs this program, which requests the signal, checks that its parent is alive, and executes the command.

use std::{ffi::OsString, io, os::unix::process::CommandExt as _, process::Command};

use clap::Args;
use rustix::process::{Signal, getppid, set_parent_process_death_signal};

use crate::escape::escaped;

/// Exit codes for a command that cannot be executed or is not found (POSIX, Shell Command Language, 2.8.2).
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Options of `node exec-child`.
#[derive(Args, Clone, Debug)]
pub(super) struct ExecChildOptions {
    /// Pid of the expected parent
    #[arg(long)]
    parent: i32,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Executes the command. Returns only on failure, with the exit code.
pub(super) fn exec(options: &ExecChildOptions) -> u8 {
    let Some((program, arguments)) = options.command.split_first() else { return NOT_FOUND };
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        notice!("error: cannot make the command end with `node run`: {error}");
        return NOT_EXECUTABLE;
    }
    if getppid().map(|parent| parent.as_raw_nonzero().get()) != Some(options.parent) {
        // The parent ended before the signal was requested.
        return NOT_EXECUTABLE;
    }
    let error = Command::new(program).args(arguments).exec();
    notice!("error: cannot run {}: {error}", escaped(&program.to_string_lossy()));
    match error.kind() {
        io::ErrorKind::NotFound => NOT_FOUND,
        _ => NOT_EXECUTABLE,
    }
}
