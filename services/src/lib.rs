//! The plug-ins, and the two traits between a plug-in and its node.
//!
//! A [`Service`] is what a plug-in is to a node: a role, the path prefixes it owns, a router, a background task and what it
//! announces. A [`Host`] is what a node is to a plug-in. Neither knows more of the other: this crate never names the node's, so a
//! plug-in runs just as well on the in-memory host of [`testing`], and a plug-in of somebody else's crate is not worse off than
//! those here.
//!
//! To add a plug-in: write one module, and add one line to [`builtin`].

pub mod address_policy;
pub mod cidr;
pub mod client;
pub mod forwarded;
pub mod gateway;
pub mod grading;
pub mod host;
pub mod html;
pub mod journal;
pub mod log;
pub mod parameters;
pub mod plan;
pub mod portal;
pub mod prefixes;
pub mod problem;
pub mod refusal;
pub mod restore;
pub mod service;
pub mod shares;
pub mod shipping;
pub mod signing;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod timestamp;
pub mod visits;
pub mod writing;

use std::sync::Arc;

pub use client::Client;
pub use host::Host;
pub use prefixes::PrefixClash;
pub use problem::Problem;
pub use service::Service;

/// The plug-ins that come with every node; `--role` chooses among them by name. This is the one list.
pub fn builtin() -> Vec<Arc<dyn Service>> {
    vec![
        Arc::new(log::Log::default()),
        Arc::new(grading::Grading),
        Arc::new(portal::Portal),
        Arc::new(gateway::Gateway::default()),
        Arc::new(visits::Visits),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_plugins_claim_each_prefix_once() {
        assert_eq!(prefixes::check(&builtin()), Ok(()));
        let names: Vec<_> = builtin().iter().map(|s| s.name().to_owned()).collect();
        assert_eq!(names, ["log", "grading", "portal", "gateway", "visits"]);
        for plugin in builtin() {
            let listed = prefixes::BUILT_IN.iter().find(|(name, _)| *name == plugin.name());
            assert_eq!(listed.map(|(_, prefixes)| *prefixes), Some(plugin.prefixes()), "{}", plugin.name());
        }
    }

    #[tokio::test]
    async fn every_built_in_plugin_conforms_with_and_without_demo() {
        for service in builtin() {
            for demo in [false, true] {
                let host = Arc::new(testing::MemoryHost::new("n1").with_demo(demo).keeping(service.as_ref()));
                let breaches = testing::breaches(service.as_ref(), host).await;
                assert!(breaches.is_empty(), "{} (demo: {demo}): {breaches:#?}", service.name());
            }
        }
    }
}
