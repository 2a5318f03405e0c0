//! The step between `node run` and its command: a process that ends with `node run`, whichever way that ends.
//!
//! `PR_SET_PDEATHSIG` (prctl(2)) has to be set in the child, and survives execve(2). Between fork and exec there is no safe code in Rust; so
//! the child runs this program first, which asks for the signal, looks whether its parent is still there, and becomes the command.

use std::{ffi::OsString, io, os::unix::process::CommandExt as _, process::Command};

use clap::Args;
use rustix::process::{Signal, getppid, set_parent_process_death_signal};

use crate::escape::escaped;

/// The exit code where a command was found and cannot be run, and where there is none: POSIX, Shell Command Language, 2.8.2.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// The options of this step.
#[derive(Args, Clone, Debug)]
pub(super) struct ExecChildOptions {
    /// The process that is to be the parent
    #[arg(long)]
    parent: i32,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Becomes the command. Returns the exit code where it cannot.
pub(super) fn exec(options: &ExecChildOptions) -> u8 {
    let Some((program, arguments)) = options.command.split_first() else { return NOT_FOUND };
    if let Err(error) = set_parent_process_death_signal(Some(Signal::KILL)) {
        notice!("error: this command would outlive `node run`: {error}");
        return NOT_EXECUTABLE;
    }
    if getppid().map(|parent| parent.as_raw_nonzero().get()) != Some(options.parent) {
        // It ended before the signal was asked for.
        return NOT_EXECUTABLE;
    }
    let error = Command::new(program).args(arguments).exec();
    notice!("error: cannot run {}: {error}", escaped(&program.to_string_lossy()));
    match error.kind() {
        io::ErrorKind::NotFound => NOT_FOUND,
        _ => NOT_EXECUTABLE,
    }
}
