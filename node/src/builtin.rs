//! List of the built-in plug-ins, from which `--role` selects by name.

use std::sync::Arc;

use hearsay_gateway::Gateway;
use hearsay_services::{
    Service,
    plugins::{Grading, Kv, Log, Portal, Visits},
};

/// Returns the built-in plug-ins, from which `--role` selects by name. This is the only list of them.
pub fn builtin() -> Vec<Arc<dyn Service>> {
    vec![
        Arc::new(Log::default()),
        Arc::new(Grading),
        Arc::new(Portal),
        Arc::new(Gateway::default()),
        Arc::new(Visits),
        Arc::new(Kv::default()),
    ]
}

#[cfg(test)]
mod tests {
    use hearsay_services::{
        http::{BUILT_IN, check_prefixes},
        testing,
    };

    use super::*;

    #[test]
    fn the_built_in_plugins_claim_each_prefix_once() {
        assert_eq!(check_prefixes(&builtin()), Ok(()));
        let names: Vec<_> = builtin().iter().map(|s| s.name().to_owned()).collect();
        assert_eq!(names, ["log", "grading", "portal", "gateway", "visits", "kv"]);
        for plugin in builtin() {
            let listed = BUILT_IN.iter().find(|(name, _)| *name == plugin.name());
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
