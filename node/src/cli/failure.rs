//! [`Failure`]: error of a command, with message, advice and exit code.

use std::{io, process::ExitCode};

use hearsay_protocol::Fatal;

use crate::{config::ConfigError, escape::escaped, key_check::KeyInUse, storage::StorageError};

/// Exit code of a node whose key another process uses. A restart does not help, so the systemd unit lists
/// this code in `RestartPreventExitStatus=`.
const KEY_IN_USE: u8 = 4;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The command line is invalid.
    #[error("{0}")]
    Usage(String),
    /// The options of the node are invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Nothing matches the given name.
    #[error("{0}")]
    NoMatch(String),
    /// No node answers.
    #[error("no node answers at {url}: {problem}")]
    Unreachable {
        /// The URL of the node.
        url: String,
        /// Why no usable answer came.
        problem: String,
    },
    /// A node answered with an error.
    #[error("{0}")]
    Refused(String),
    /// Any other error.
    #[error("{}", with_causes(.0))]
    Failed(anyhow::Error),
    /// Standard output is closed or full.
    #[error("cannot write the answer: {0}")]
    Output(#[from] io::Error),
}

/// Formats an error with its causes. A cause whose text is already in the message is left out: some crates
/// include the cause in their message.
fn with_causes(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

impl Failure {
    /// Returns the exit code. Scripts rely on it; `node --help` lists the codes.
    fn code(&self) -> u8 {
        match self {
            Self::Failed(error) if is_key_in_use(error) => KEY_IN_USE,
            Self::Refused(_) | Self::Failed(_) | Self::Output(_) => 1,
            Self::Usage(_) | Self::Config(_) | Self::NoMatch(_) => 2,
            Self::Unreachable { .. } => 3,
        }
    }

    fn advice(&self) -> Option<String> {
        match self {
            Self::Usage(_) => Some("`node help` lists all commands and options".into()),
            Self::Config(error) => Some(error.advice().into()),
            Self::Unreachable { .. } => {
                Some("start one with `node`, or give the URL of another with --node (or HEARSAY_NODE)".into())
            }
            Self::Failed(error) => {
                error.chain().find_map(|cause| cause.downcast_ref()).map(StorageError::advice)
            }
            Self::NoMatch(_) | Self::Refused(_) | Self::Output(_) => None,
        }
    }

    /// Prints the failure to standard error and returns the exit code.
    pub(super) fn report(&self) -> ExitCode {
        // The reader closed the pipe (`node members | head -1`), which is no error.
        if matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe) {
            return ExitCode::SUCCESS;
        }
        // Each line is escaped separately: errors of a configuration file have several lines.
        for (number, line) in self.to_string().lines().enumerate() {
            notice!("{}{}", if number == 0 { "error: " } else { "" }, escaped(line));
        }
        if let Some(advice) = self.advice() {
            notice!("what to do: {}", escaped(&advice));
        }
        ExitCode::from(self.code())
    }
}

/// Whether a node stopped because another process uses its key, as found by the key check or a clash.
fn is_key_in_use(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| cause.is::<KeyInUse>() || matches!(cause.downcast_ref(), Some(Fatal::KeyTaken(_))))
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;
    use hearsay_protocol::Incarnation;

    use super::*;

    #[test]
    fn a_key_in_use_has_an_exit_code_of_its_own_which_the_unit_does_not_restart() {
        let address = "/ip4/10.77.0.1/tcp/7600".parse().unwrap();
        let code = |error: anyhow::Error| Failure::Failed(error.context("the node stopped")).code();
        assert_eq!(code(KeyInUse { address }.into()), KEY_IN_USE);
        assert_eq!(code(Fatal::KeyTaken(Incarnation(1)).into()), KEY_IN_USE);
        assert_eq!(code(anyhow::anyhow!("a disk is full")), 1);
        let unit = include_str!("../../../deploy/systemd/hearsay@.service");
        assert!(unit.lines().any(|line| line == format!("RestartPreventExitStatus={KEY_IN_USE}")));
    }

    #[test]
    fn the_systems_error_is_printed_once() {
        let denied = || io::Error::from_raw_os_error(13);
        let unwritable = StorageError::Unwritable { path: "/data/node.key".into(), source: denied() };
        let failed = |error: anyhow::Error| Failure::Failed(error).to_string();
        let once = "cannot write /data/node.key: Permission denied (os error 13)";
        assert_eq!(failed(unwritable.into()), once);
        let unwritable = StorageError::Unwritable { path: "/data/node.key".into(), source: denied() };
        assert_eq!(failed(anyhow::Error::from(unwritable).context("no node")), format!("no node: {once}"));
        let silent = Err::<(), _>(denied()).context("cannot begin").unwrap_err();
        assert_eq!(failed(silent), "cannot begin: Permission denied (os error 13)");
    }
}
