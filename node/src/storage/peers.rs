//! [`Remembered`] members: known at the last stop, and dialled first at the next start; and the file with
//! them.
//!
//! Remembered members are only hints. A damaged file causes a warning and a slower start, but never prevents
//! the start.

use std::path::Path;

use hearsay_protocol::{ADDRESSES_MAX, ID_CHARS_MAX, NodeId, check_service_name};
use serde::{Deserialize, Serialize};

use super::file;

/// Maximum number of members remembered over a restart. A guess: one member that still answers is enough, and
/// 64 are seldom all gone.
pub const REMEMBERED_MAX: usize = 64;
/// Largest file: twice the bytes of [`REMEMBERED_MAX`] members with 16 addresses of 256 characters each.
const FILE_BYTES_MAX: usize = REMEMBERED_MAX * ADDRESSES_MAX * ID_CHARS_MAX * 2;

/// A member to dial first at the next start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Remembered {
    /// The member's id.
    pub id: NodeId,
    /// The member's name, for people who read the file.
    pub name: String,
    /// The member's swarm addresses, as multiaddrs.
    pub addresses: Vec<String>,
    /// Position in the order in which this node came to know its members.
    pub rank: u64,
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
    /// Earlier versions wrote none; their members are taken as known in the order of the file.
    #[serde(default)]
    rank: u64,
}

/// Writes the first [`REMEMBERED_MAX`] members.
pub(super) fn write(path: &Path, cluster: &str, peers: &[Remembered]) -> std::io::Result<()> {
    let peers = peers.iter().take(REMEMBERED_MAX).map(|peer| Line {
        id: peer.id.to_string(),
        name: peer.name.clone(),
        addresses: peer.addresses.iter().take(ADDRESSES_MAX).cloned().collect(),
        rank: peer.rank,
    });
    let json = serde_json::to_vec_pretty(&File { cluster: cluster.to_owned(), peers: peers.collect() })?;
    file::write(path, &json, file::PRIVATE)
}

/// Reads the valid members of this cluster. The error says in words why the file is not used.
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
        Some(Remembered { id, name: self.name, addresses, rank: self.rank })
    }
}
