//! Attacker for browser scenarios (cross-origin requests, DNS rebinding): a web site, and a name server that
//! controls the address of its name.

mod names;
mod site;

pub use names::NameServer;
pub use site::{ForeignSite, SiteRequest};
