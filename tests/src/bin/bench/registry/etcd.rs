//! etcd as it is measured: one member, which syncs before it answers, spoken to by gRPC.

use std::path::Path;

use anyhow::Result;

use crate::{
    grpc::{self, Field, message},
    machine::first_line,
    server::Server,
};

const PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;

/// As it names itself; `None` where it is not installed.
pub(super) fn version() -> Option<String> {
    first_line("etcd", &["--version"])
}

/// Starts it with an empty store.
///
/// # Errors
/// It does not start.
pub(super) fn start(folder: &Path) -> Result<Server> {
    let (clients, peers) = (format!("http://127.0.0.1:{PORT}"), format!("http://127.0.0.1:{PEER_PORT}"));
    let arguments = [
        ["--listen-client-urls", &clients],
        ["--advertise-client-urls", &clients],
        ["--listen-peer-urls", &peers],
        ["--initial-advertise-peer-urls", &peers],
        ["--initial-cluster", &format!("default={peers}")],
        ["--data-dir", "etcd"],
        ["--logger", "zap"],
    ];
    Server::start("etcd", &arguments.concat(), PORT, folder, None)
}

/// The key of an instance.
pub(super) fn key(service: &str, id: &str) -> String {
    format!("/services/{service}/{id}")
}

/// Puts a value.
pub(super) fn put(key: &str, value: &str) -> Vec<u8> {
    grpc::put(key.as_bytes(), value.as_bytes())
}

/// Puts a value that goes when a lease ends.
pub(super) fn put_leased(key: &str, value: &str, lease: u64) -> Vec<u8> {
    let fields =
        [(1, Field::Bytes(key.as_bytes())), (2, Field::Bytes(value.as_bytes())), (3, Field::Number(lease))];
    grpc::call("/etcdserverpb.KV/Put", &message(&fields))
}

/// Grants a lease with an id.
pub(super) fn grant(lease: u64, seconds: u64) -> Vec<u8> {
    let fields = [(1, Field::Number(seconds)), (2, Field::Number(lease))];
    grpc::call("/etcdserverpb.Lease/LeaseGrant", &message(&fields))
}

/// Reads all instances of a service; serializable: what this member knows, as all lookups of a node are.
pub(super) fn range(service: &str, is_serializable: bool) -> Vec<u8> {
    // Up to, and without, the first key that does not begin so: 0 comes after the slash.
    let (from, to) = (format!("/services/{service}/"), format!("/services/{service}0"));
    let fields = [
        (1, Field::Bytes(from.as_bytes())),
        (2, Field::Bytes(to.as_bytes())),
        (7, Field::Number(u64::from(is_serializable))),
    ];
    grpc::call("/etcdserverpb.KV/Range", &message(&fields))
}
