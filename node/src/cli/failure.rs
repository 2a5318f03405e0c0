//! How a command ends when it does not end well: what it prints, and its exit code.

use std::{io, process::ExitCode};

use hearsay_protocol::io::Fatal;

use crate::{config::ConfigError, escape::escaped, key_check::KeyInUse, storage::StorageError};

/// The exit code of a node whose key another process holds. It stays so however often it is started: the systemd unit names this code in
/// `RestartPreventExitStatus=`.
const KEY_IN_USE: u8 = 4;

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The command line makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The options of a node make no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is nothing of the name that was asked for.
    #[error("{0}")]
    NoMatch(String),
    /// Nobody answers.
    #[error("no node answers at {url}: {problem}")]
    Unreachable {
        /// Whom was asked.
        url: String,
        /// What came instead of an answer.
        problem: String,
    },
    /// A node answered that it will not, or cannot.
    #[error("{0}")]
    Refused(String),
    /// Something else went wrong.
    #[error("{}", with_causes(.0))]
    Failed(anyhow::Error),
    /// Standard output is closed or full.
    #[error("cannot write the answer: {0}")]
    Output(#[from] io::Error),
}

/// An error and its causes, without those whose words stand in the one above already: whether an error tells its cause itself, each crate decides
/// in its own way.
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
    /// The exit codes that scripts rely on: design, section 11.
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
            Self::Usage(_) => Some("`node help` shows how it is meant".into()),
            Self::Config(error) => Some(error.advice().into()),
            Self::Unreachable { .. } => {
                Some("start one with `node`, or name another with --node URL (or HEARSAY_NODE)".into())
            }
            Self::Failed(error) => {
                error.chain().find_map(|cause| cause.downcast_ref()).map(StorageError::advice)
            }
            Self::NoMatch(_) | Self::Refused(_) | Self::Output(_) => None,
        }
    }

    /// Tells the person on standard error, and gives the code to exit with.
    pub(super) fn report(&self) -> ExitCode {
        // Whoever reads our output has seen enough (`node members | head -1`). That is no error of ours.
        if matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe) {
            return ExitCode::SUCCESS;
        }
        // Its lines are escaped one by one: what a configuration file's error quotes spans several.
        for (number, line) in self.to_string().lines().enumerate() {
            notice!("{}{}", if number == 0 { "error: " } else { "" }, escaped(line));
        }
        if let Some(advice) = self.advice() {
            notice!("what to do: {}", escaped(&advice));
        }
        ExitCode::from(self.code())
    }
}

/// Whether a node stopped because another process runs under its key: noticed before it stated anything, or told by that process.
fn is_key_in_use(error: &anyhow::Error) -> bool {
    error
        .chain()
        .any(|cause| cause.is::<KeyInUse>() || matches!(cause.downcast_ref(), Some(Fatal::KeyTaken(_))))
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;
    use hearsay_protocol::{Identity, Incarnation};

    use super::*;

    #[test]
    fn a_key_in_use_has_an_exit_code_of_its_own_which_the_unit_does_not_restart() {
        let address = "/ip4/10.77.0.1/tcp/7600".parse().unwrap();
        let by = Identity::from_seed(&[1; 32]).id();
        let name_taken = Fatal::NameTaken { name: "a".into(), by };
        let code = |error: anyhow::Error| Failure::Failed(error.context("the node stopped")).code();
        assert_eq!(code(KeyInUse { address }.into()), KEY_IN_USE);
        assert_eq!(code(Fatal::KeyTaken(Incarnation(1)).into()), KEY_IN_USE);
        assert_eq!(code(name_taken.into()), 1);
        let unit = include_str!("../../../deploy/systemd/hearsay@.service");
        assert!(unit.lines().any(|line| line == format!("RestartPreventExitStatus={KEY_IN_USE}")));
    }

    #[test]
    fn the_systems_words_are_told_once() {
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
