//! [`ConfigError`]: why a configuration is invalid (file, environment variable or option), with advice to the
//! operator.

use std::path::PathBuf;

use hearsay_protocol::Invalid;

use crate::admission::AdmissionError;

/// Why a configuration is invalid. The node has not started.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The configuration file cannot be read, or has an unknown key or an invalid value.
    #[error("configuration file {}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The problem, with the line.
        problem: String,
    },
    /// An environment variable has an invalid value.
    #[error("environment variable {variable}: {problem}")]
    Environment {
        /// The variable.
        variable: String,
        /// The problem.
        problem: String,
    },
    /// An option has an invalid value.
    #[error("{option}: {problem}")]
    Option {
        /// The name of the option, as in the file.
        option: &'static str,
        /// The problem, and what is allowed.
        problem: String,
    },
    /// `--ephemeral` and `--data-dir` exclude each other.
    #[error(
        "--ephemeral and --data-dir are both given, but an ephemeral node stores nothing: choose one of them (or --ephemeral=false)"
    )]
    EphemeralDataDir,
    /// The state directory of the user is unknown.
    #[error(
        "neither XDG_STATE_HOME nor HOME is set, so the data directory is unknown: give one with --data-dir, or run with --ephemeral"
    )]
    Homeless,
    /// A file that restricts admission cannot be used.
    #[error(transparent)]
    Admission(#[from] AdmissionError),
}

impl ConfigError {
    pub(super) fn option(option: &'static str, problem: impl Into<String>) -> Self {
        Self::Option { option, problem: problem.into() }
    }

    /// Returns what the user can do.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Admission(error) => error.advice(),
            _ => "`node --help` lists all options; docs/node.example.toml is an example of a file",
        }
    }
}

impl From<Invalid> for ConfigError {
    fn from(invalid: Invalid) -> Self {
        Self::option(invalid.field, invalid.problem)
    }
}
