//! Where a registration comes from.

use std::net::IpAddr;

/// Where a registration comes from: it decides what it may ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Source {
    /// The address of the caller; `None`: this machine.
    pub caller: Option<IpAddr>,
    /// Whether it came over the Unix socket, and from a process of which user.
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
