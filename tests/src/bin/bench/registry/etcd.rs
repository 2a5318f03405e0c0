//! Starts etcd for the comparison (one member, which syncs before it answers), and builds gRPC requests to
//! it: puts, ranges and leases.

use std::path::Path;

use anyhow::Result;

use crate::{
    grpc::{self, Field, message},
    machine::first_line,
    server::Server,
};

const PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;

/// Returns the installed version; `None` if etcd is not installed.
pub(crate) fn version() -> Option<String> {
    first_line("etcd", &["--version"])
}

/// Starts etcd with an empty store.
///
/// # Errors
/// etcd does not start.
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

/// Returns the key of an instance.
pub(super) fn key(service: &str, id: &str) -> String {
    format!("/services/{service}/{id}")
}

/// Builds a request to put a value.
pub(super) fn put(key: &str, value: &str) -> Vec<u8> {
    grpc::put(key.as_bytes(), value.as_bytes())
}

/// Builds a request to put a value that ends with a lease.
pub(super) fn put_leased(key: &str, value: &str, lease: u64) -> Vec<u8> {
    let fields =
        [(1, Field::Bytes(key.as_bytes())), (2, Field::Bytes(value.as_bytes())), (3, Field::Number(lease))];
    grpc::call("/etcdserverpb.KV/Put", &message(&fields))
}

/// Builds a request to grant a lease with an id.
pub(super) fn grant(lease: u64, seconds: u64) -> Vec<u8> {
    let fields = [(1, Field::Number(seconds)), (2, Field::Number(lease))];
    grpc::call("/etcdserverpb.Lease/LeaseGrant", &message(&fields))
}

/// Builds a request to read all instances of a service. Serializable reads use the state of this member, as
/// all lookups of a Hearsay node do.
pub(super) fn range(service: &str, is_serializable: bool) -> Vec<u8> {
    // The range ends before the first key without the prefix: the character 0 follows the slash.
    let (from, to) = (format!("/services/{service}/"), format!("/services/{service}0"));
    let fields = [
        (1, Field::Bytes(from.as_bytes())),
        (2, Field::Bytes(to.as_bytes())),
        (7, Field::Number(u64::from(is_serializable))),
    ];
    grpc::call("/etcdserverpb.KV/Range", &message(&fields))
}
