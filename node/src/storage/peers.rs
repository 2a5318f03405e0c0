//! Whom a node knew when it last stopped: whom to try first at the next start.
//!
//! A hint and nothing more. What is wrong with it costs a warning and a slower start, never the start itself.

use std::path::Path;

use hearsay_protocol::{
    NodeId,
    record::{ADDRESSES_MAX, ID_CHARS_MAX, check_service_name},
};
use serde::{Deserialize, Serialize};

use super::file;

/// Members remembered over a restart. Guess: one that still answers is enough, and 64 are seldom all gone at once.
pub const REMEMBERED_MAX: usize = 64;
/// No list of [`REMEMBERED_MAX`] is longer: 16 addresses of 256 characters each, and as much again.
const FILE_BYTES_MAX: usize = REMEMBERED_MAX * ADDRESSES_MAX * ID_CHARS_MAX * 2;

/// A member worth dialling at the next start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Remembered {
    /// Its key.
    pub id: NodeId,
    /// Its name, for people who read the file.
    pub name: String,
    /// Where its swarm listened: multiaddrs.
    pub addresses: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct File {
    cluster: String,
    peers: Vec<Line>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    id: String,
    name: String,
    addresses: Vec<String>,
}

/// Writes at most [`REMEMBERED_MAX`] of them.
pub(super) fn write(path: &Path, cluster: &str, peers: &[Remembered]) -> std::io::Result<()> {
    let peers = peers.iter().take(REMEMBERED_MAX).map(|peer| Line {
        id: peer.id.to_string(),
        name: peer.name.clone(),
        addresses: peer.addresses.iter().take(ADDRESSES_MAX).cloned().collect(),
    });
    let json = serde_json::to_vec_pretty(&File { cluster: cluster.to_owned(), peers: peers.collect() })?;
    file::write(path, &json, file::PRIVATE)
}

/// Reads those that are sound and of this cluster. `Err` says in words why there is nothing to read.
pub(super) fn read(path: &Path, cluster: &str) -> Result<Vec<Remembered>, String> {
    let Some(content) = file::read(path, FILE_BYTES_MAX).map_err(|error| error.to_string())? else {
        return Ok(Vec::new());
    };
    let file: File = serde_json::from_str(&content.text).map_err(|error| error.to_string())?;
    if file.cluster != cluster {
        return Err(format!("it is of the cluster {:?}", file.cluster));
    }
    Ok(file.peers.into_iter().take(REMEMBERED_MAX).filter_map(Line::check).collect())
}

impl Line {
    fn check(self) -> Option<Remembered> {
        let id = self.id.parse().ok()?;
        check_service_name("name", &self.name).ok()?;
        let mut addresses = self.addresses;
        addresses.truncate(ADDRESSES_MAX);
        addresses.retain(|address| address.len() <= ID_CHARS_MAX);
        Some(Remembered { id, name: self.name, addresses })
    }
}
