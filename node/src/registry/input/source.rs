//! Where a registration comes from.

use std::net::IpAddr;

/// The source of a registration, which decides what the registration may contain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Source {
    /// The address of the caller; `None`: this machine.
    pub caller: Option<IpAddr>,
    /// The user of the process that sent it, if it came over the Unix socket.
    pub socket_uid: Option<u32>,
    /// Whether it may have `exec` checks: only a local file may, and only where the node allows it.
    pub allow_exec: bool,
    /// Whether it comes from a file.
    pub is_file: bool,
}

impl Source {
    /// A caller of HTTP.
    pub fn caller(ip: IpAddr) -> Self {
        Self { caller: Some(ip), socket_uid: None, allow_exec: false, is_file: false }
    }

    /// A caller of the Unix socket.
    pub fn socket(uid: u32) -> Self {
        Self { caller: None, socket_uid: Some(uid), allow_exec: false, is_file: false }
    }

    /// A file of `--services-dir`.
    pub fn file(allow_exec: bool) -> Self {
        Self { caller: None, socket_uid: None, allow_exec, is_file: true }
    }
}
