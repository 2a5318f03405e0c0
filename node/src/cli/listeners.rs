//! Finds out whether a TCP port of this machine has a listener, and its process, from `/proc/net/tcp`
//! (proc(5)).

use std::{collections::BTreeSet, fs};

/// Socket state TCP_LISTEN, in hexadecimal.
const LISTEN: &str = "0A";

/// Whether a process listens at this port.
pub(super) fn is_listening(port: u16) -> bool {
    tables().iter().any(|table| !inodes(table, port).is_empty())
}

/// Returns the process that listens at this port. If several processes share the socket (a server with forked
/// workers), the result is the lowest pid. `None`: no process listens, or this user may not inspect it.
pub(super) fn pid_at(port: u16) -> Option<i32> {
    let sockets: BTreeSet<String> = tables()
        .iter()
        .flat_map(|table| inodes(table, port))
        .map(|inode| format!("socket:[{inode}]"))
        .collect();
    if sockets.is_empty() {
        return None;
    }
    let pids = fs::read_dir("/proc").ok()?.flatten();
    let mut pids: Vec<i32> = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    pids.sort_unstable();
    pids.into_iter().find(|pid| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let mut targets = files.filter_map(|file| fs::read_link(file.path()).ok());
        targets.any(|target| target.to_str().is_some_and(|target| sockets.contains(target)))
    })
}

/// Reads the tables of IPv4 and IPv6; empty if missing, as in a kernel without IPv6.
fn tables() -> [String; 2] {
    ["tcp", "tcp6"].map(|name| fs::read_to_string(format!("/proc/net/{name}")).unwrap_or_default())
}

/// Returns the inodes of sockets that listen at a port. A line is
/// `sl local_address rem_address st … inode`, with `ADDRESS:PORT` in hexadecimal.
fn inodes(table: &str, port: u16) -> Vec<u64> {
    let listening = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let (_, local) = fields.nth(1)?.rsplit_once(':')?;
        let is_listener = u16::from_str_radix(local, 16) == Ok(port) && fields.nth(1)? == LISTEN;
        if is_listener { fields.nth(5)?.parse().ok() } else { None }
    };
    table.lines().filter_map(listening).collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn the_listener_at_a_port_is_found_with_its_process() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(address) else { continue };
            let port = listener.local_addr().unwrap().port();
            assert!(is_listening(port), "{address}");
            assert_eq!(pid_at(port), i32::try_from(std::process::id()).ok(), "{address}");
            drop(listener);
            assert_eq!(pid_at(port), None);
        }
    }

    #[test]
    fn a_connection_from_a_port_is_no_listener_there() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            \x20  0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0\n\
            \x20  1: 0100007F:1F91 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 100 0 0 10 0\n";
        assert_eq!(inodes(table, 8080), [4711]);
        assert_eq!(inodes(table, 8081), [0u64; 0]);
    }
}
