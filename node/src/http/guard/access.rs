//! [`Access`]: settings that decide which clients may write and read (API token, trusted proxies, options),
//! and the sessions of browsers. Data only: the guard applies them.

use hearsay_services::network::Cidr;

use crate::{sessions::Sessions, storage::Secret};

/// Access settings of one node.
#[derive(Default, Debug)]
pub struct Access {
    /// API token. Without one, no other machine can prove itself by a token.
    pub token: Option<Secret<String>>,
    /// Whether the cluster has a key. Then private addresses are not trusted.
    pub is_keyed: bool,
    /// Whether every client may write to the plug-ins' paths (`--open`).
    pub is_open: bool,
    /// Proxies whose statement of the client's address is trusted (`--trusted-proxy`).
    pub trusted_proxies: Vec<Cidr>,
    /// Whether loopback proves nothing (`--loopback-needs-token`). The Unix socket still does.
    pub loopback_needs_token: bool,
    /// Whether reads need the proof that writes need (`--private`).
    pub reads_need_proof: bool,
    /// Sessions of browsers. A session is accepted in place of the token.
    pub sessions: Sessions,
}
