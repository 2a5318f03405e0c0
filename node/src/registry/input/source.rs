//! [`RegistrationSource`]: HTTP, the Unix socket or a file. The source determines which checks are allowed.

use std::net::IpAddr;

/// The source of a registration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RegistrationSource {
    /// The address of the caller; `None`: this machine.
    pub caller: Option<IpAddr>,
    /// The user id of the caller's process, over the Unix socket.
    pub socket_uid: Option<u32>,
    /// Whether `exec` checks are allowed: only in a local file, and only with `--allow-exec-checks`.
    pub allow_exec: bool,
    /// Whether the source is a file.
    pub is_file: bool,
}

impl RegistrationSource {
    /// A caller over TCP.
    pub fn caller(ip: IpAddr) -> Self {
        Self { caller: Some(ip), socket_uid: None, allow_exec: false, is_file: false }
    }

    /// A caller over the Unix socket.
    pub fn socket(uid: u32) -> Self {
        Self { caller: None, socket_uid: Some(uid), allow_exec: false, is_file: false }
    }

    /// A file of `--services-dir`.
    pub fn file(allow_exec: bool) -> Self {
        Self { caller: None, socket_uid: None, allow_exec, is_file: true }
    }
}
