//! [`KeyWrites`]: the latest two writes of a key as `/v1/kv/{key}?writes` answers them, with the names of the
//! nodes that accepted them. Consul has nothing like it.

use hearsay_protocol::NodeId;
use serde::{Deserialize, Serialize};

use crate::http::state::AppState;

/// The latest two writes of a key. Read from a replica's JSON, and written in Consul's form of names.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all(deserialize = "camelCase", serialize = "PascalCase"))]
pub(super) struct KeyWrites {
    latest: KeyWrite,
    superseded: Option<KeyWrite>,
}

/// A write of a key.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all(deserialize = "camelCase", serialize = "PascalCase"))]
struct KeyWrite {
    change: String,
    #[serde(rename(deserialize = "node", serialize = "NodeID"))]
    node_id: String,
    /// Name of the node, if this node remembers it; else empty.
    #[serde(default, skip_deserializing)]
    node: String,
    time: String,
    epoch: u64,
    entry: String,
}

impl KeyWrites {
    /// Adds the names of the writers.
    pub(super) fn named(mut self, state: &AppState) -> Self {
        let name = |id: &str| {
            let id: NodeId = id.parse().ok()?;
            state.read(|table| table.member(id).map(|member| member.name.clone()))
        };
        for write in std::iter::once(&mut self.latest).chain(&mut self.superseded) {
            write.node = name(&write.node_id).unwrap_or_default();
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_writes_of_a_replica_are_answered_in_consuls_form() {
        let write = |change: &str| serde_json::json!({ "change": change, "node": "12D3", "time": "2026-01-01T00:00:00.000Z", "epoch": 0, "entry": "e" });
        let of_replica = serde_json::json!({ "latest": write("put"), "superseded": write("delete") });
        let writes: KeyWrites = serde_json::from_value(of_replica).unwrap();
        let answered = serde_json::to_value(&writes).unwrap();
        assert_eq!(
            answered["Superseded"],
            serde_json::json!({ "Change": "delete", "NodeID": "12D3", "Node": "", "Time": "2026-01-01T00:00:00.000Z",
                "Epoch": 0, "Entry": "e" })
        );
        let once = serde_json::json!({ "latest": write("put"), "superseded": null });
        assert!(serde_json::from_value::<KeyWrites>(once).unwrap().superseded.is_none());
    }
}
