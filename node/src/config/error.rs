//! Why a configuration is refused.

use std::path::PathBuf;

use hearsay_protocol::record::Invalid;

use crate::admission::AdmissionError;

/// Why a node was not started with what it was told. Nothing has happened yet.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The configuration file cannot be read, or holds a key or value that does not exist.
    #[error("configuration file {}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the line.
        problem: String,
    },
    /// A variable of the environment has a value that its option does not take.
    #[error("environment variable {variable}: {problem}")]
    Environment {
        /// The variable.
        variable: String,
        /// What is wrong.
        problem: String,
    },
    /// An option has a value that it does not take.
    #[error("{option}: {problem}")]
    Option {
        /// The option, as it is written behind `--` and in the file.
        option: &'static str,
        /// What is wrong, and what is allowed.
        problem: String,
    },
    /// Two options that exclude each other.
    #[error(
        "--ephemeral keeps nothing on disk, --data-dir says where to keep it: choose one (or --ephemeral=false)"
    )]
    EphemeralDataDir,
    /// There is no telling where a user keeps state.
    #[error(
        "neither XDG_STATE_HOME nor HOME says where to keep state: name a directory with --data-dir, or run with --ephemeral"
    )]
    Homeless,
    /// A file that says who may join cannot be used.
    #[error(transparent)]
    Admission(#[from] AdmissionError),
}

impl ConfigError {
    pub(super) fn option(option: &'static str, problem: impl Into<String>) -> Self {
        Self::Option { option, problem: problem.into() }
    }

    /// What a person can do about it.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Admission(error) => error.advice(),
            _ => "`node --help` lists every option; docs/node.example.toml shows them as a file",
        }
    }
}

impl From<Invalid> for ConfigError {
    fn from(invalid: Invalid) -> Self {
        Self::option(invalid.field, invalid.problem)
    }
}
