//! [`System`]: the measured systems and their settings, how a process of each starts, and how its output is
//! parsed.

use std::process::{Command, Stdio};

use crate::{agent, clock::Moment, hearsay, serf, sighting::Sighting};

/// First swarm port. Process i uses the i-th port.
const SWARM_PORTS: u16 = 20_000;
/// First port for HTTP or RPC.
const CONTROL_PORTS: u16 = 8_000;

/// Returns the port of a process for its peers.
pub(crate) fn swarm_port(index: usize) -> u16 {
    SWARM_PORTS + u16::try_from(index).unwrap_or(u16::MAX - SWARM_PORTS)
}

/// Returns the port of a process for commands.
pub(crate) fn control_port(index: usize) -> u16 {
    CONTROL_PORTS + u16::try_from(index).unwrap_or(u16::MAX - CONTROL_PORTS)
}

/// Measured system, with its settings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum System {
    Hearsay,
    SerfLan,
    SerfLocal,
    FocaLan,
    FocaFast,
    ChitchatSecond,
    ChitchatFast,
}

/// Parameters of a process's start.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) index: usize,
    /// Size of the cluster, which foca's presets need.
    pub(crate) size: usize,
    /// Processes through which the new one joins.
    pub(crate) seeds: Vec<usize>,
}

impl System {
    /// All systems, in the order of measuring and of the tables.
    pub(crate) const ALL: [Self; 7] = [
        Self::Hearsay,
        Self::SerfLan,
        Self::SerfLocal,
        Self::FocaLan,
        Self::FocaFast,
        Self::ChitchatSecond,
        Self::ChitchatFast,
    ];

    /// Returns the name on the command line and in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Hearsay => "hearsay",
            Self::SerfLan => "serf-lan",
            Self::SerfLocal => "serf-local",
            Self::FocaLan => "foca-lan",
            Self::FocaFast => "foca-fast",
            Self::ChitchatSecond => "chitchat-1s",
            Self::ChitchatFast => "chitchat-fast",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|system| system.name() == name)
    }

    /// Returns whether a member can leave gracefully.
    pub(crate) fn can_leave(self) -> bool {
        !matches!(self, Self::ChitchatSecond | Self::ChitchatFast)
    }

    /// Returns the reason if the system cannot be measured on this machine.
    pub(crate) fn missing(self) -> Option<String> {
        match self {
            Self::Hearsay => match hearsay::binary() {
                None => Some("NODE_BIN does not name the node to measure; tests/run does".into()),
                Some(file) if !std::path::Path::new(&file).is_file() => Some(format!("there is no {file}")),
                Some(_) => None,
            },
            Self::SerfLan | Self::SerfLocal => {
                let ran = Command::new("serf").arg("version").stdout(Stdio::null()).status();
                (!ran.is_ok_and(|status| status.success())).then(|| "serf is not installed".into())
            }
            _ => None,
        }
    }

    /// Builds the command line of a process.
    pub(crate) fn command(self, start: &Start) -> Command {
        match self {
            Self::Hearsay => hearsay::command(start),
            Self::SerfLan => serf::command(start, "lan"),
            Self::SerfLocal => serf::command(start, "local"),
            Self::FocaLan => agent::command(start, "foca", "lan"),
            Self::FocaFast => agent::command(start, "foca", "fast"),
            Self::ChitchatSecond => agent::command(start, "chitchat", "second"),
            Self::ChitchatFast => agent::command(start, "chitchat", "fast"),
        }
    }

    /// Parses a line of output; `None` if it is not a sighting.
    pub(crate) fn read(self, line: &str, arrived: Moment) -> Option<Sighting> {
        match self {
            Self::Hearsay => hearsay::read(line),
            Self::SerfLan | Self::SerfLocal => serf::read(line, arrived),
            _ => agent::read(line),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_system_is_found_by_its_name() {
        assert!(System::ALL.into_iter().all(|system| System::from_name(system.name()) == Some(system)));
        assert_eq!(System::from_name("consul"), None);
    }
}
