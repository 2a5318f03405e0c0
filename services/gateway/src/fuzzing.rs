//! Fuzzed properties of the gateway's routing: parses route tags and `--gateway-routes` rules, finds the
//! route of a request, and checks the result. Called by the fuzz target `routes` in `services/fuzz`.
//!
//! A fuzz target and the test below, which replays the target's corpus, call the same function. That function
//! panics if a property does not hold.

use std::sync::Arc;

use hearsay_protocol::{Instance, NodeId, Provider};
use hearsay_services::{http::covers, testing::lenient_policy};
use http::uri::PathAndQuery;

use crate::{
    forward::admission::strip_prefix,
    routing::{
        options::GatewayOptions,
        ownership::{RouteRule, owner_of},
        policy::GatewayPolicy,
        route_tags::{RouteTag, host_of},
        routes::{Found, Key, Routes},
    },
};

/// Maximum number of lines of an input that are tags and rules.
const LINES_MAX: usize = 32;

/// Routes: tags of programs, values of `--gateway-routes`, and the route of a request.
///
/// The first line of an input is the host and the target of a request, with a space between. In each other
/// line the first character says what follows: `o` a rule, `s` a tag of the service `shop`, any other a tag
/// of the service `web`.
pub fn routes(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let mut lines = text.split('\n');
    let (host, target) = lines.next().and_then(|line| line.split_once(' ')).unwrap_or(("h", "/students"));
    let (mut tags, mut others, mut rules) = (Vec::new(), Vec::new(), Vec::new());
    for line in lines.take(LINES_MAX) {
        let mut rest = line.chars();
        match rest.next() {
            Some('o') => rules.extend(rule(rest.as_str())),
            Some('s') => others.push(tag(rest.as_str())),
            _ => tags.push(tag(rest.as_str())),
        }
    }
    let has_rules = !rules.is_empty();
    let policy = GatewayPolicy::new(lenient_policy(), GatewayOptions { routes: rules, ..Default::default() });
    let providers = [
        provider("grading", true, vec!["urlprefix-/students".to_owned()]),
        provider("shop", false, others),
        provider("web", false, tags),
    ];
    let routes = Routes::default().updated(&providers, &policy, 0);
    for (key, _) in routes.iter() {
        if let Key::Prefix(host, prefix) = key {
            well_formed(host.as_deref(), prefix);
        }
    }
    let Some(path) = target.parse::<PathAndQuery>().ok().filter(|target| target.path().starts_with('/'))
    else {
        return;
    };
    let Some(found) = routes.find(host_of(host), path.path()) else { return };
    check_stripped(&found, &path);
    if !has_rules && owner_of(path.path()) == Some("grading") {
        let has_program = found.route.group.members.iter().any(|member| !member.endpoint.is_role());
        assert!(!has_program, "a program gets {path}, which belongs to a role: {text:?}");
    }
    let key = routes.iter().find(|(_, route)| Arc::ptr_eq(route, found.route)).map(|(key, _)| key);
    if let Some(Key::Prefix(named, prefix)) = key {
        assert!(covers(prefix, path.path()), "{prefix:?} does not cover {path}");
        let asked = host_of(host).to_ascii_lowercase();
        assert!(named.as_ref().is_none_or(|named| *named == asked), "{named:?} is not {asked:?}");
    }
}

/// Checks that a valid tag parses to the same route in its shortest spelling. Returns the tag.
fn tag(text: &str) -> String {
    if let Some(Ok(announced)) = RouteTag::parse(text) {
        well_formed(announced.host.as_deref(), &announced.prefix);
        let mut shortest =
            format!("urlprefix-{}{}/", announced.host.as_deref().unwrap_or_default(), announced.prefix);
        if let Some(strip) = &announced.strip {
            assert!(covers(strip, &announced.prefix) && !strip.is_empty(), "{text:?}");
            shortest += &format!(" strip={strip}");
        }
        let options = [(announced.own_host, " host=dst"), (announced.http2, " proto=h2c")];
        options.iter().filter(|(is_set, _)| *is_set).for_each(|(_, option)| shortest += option);
        assert_eq!(RouteTag::parse(&shortest), Some(Ok(announced)), "{text:?} in short {shortest:?}");
    }
    text.to_owned()
}

fn rule(text: &str) -> Option<RouteRule> {
    let rule = text.parse::<RouteRule>();
    if let Err(error) = &rule {
        assert!(error.contains("SERVICE=HOST/PREFIX"), "{error}");
    }
    rule.ok()
}

fn well_formed(host: Option<&str>, prefix: &str) {
    assert!(prefix.is_empty() || prefix.starts_with('/') && !prefix.ends_with('/'), "{prefix:?}");
    assert!(prefix.split('/').skip(1).all(|segment| !["", ".", ".."].contains(&segment)), "{prefix:?}");
    assert!(!prefix.contains(['?', '#', ' ']), "{prefix:?}");
    if let Some(host) = host {
        assert!(!host.is_empty() && host == host.to_ascii_lowercase(), "{host:?}");
        assert_eq!(host_of(host), host, "a host without a port");
    }
}

/// Checks that a path from which a prefix is stripped is still a path.
fn check_stripped(found: &Found<'_>, path: &PathAndQuery) {
    let taken = found.route.group.members.iter().map(|member| member.options.stripped(path.path()));
    for bytes in taken.chain([found.name_bytes]) {
        assert!(bytes <= path.path().len(), "{path}");
        let Ok(rest) = strip_prefix(path, bytes) else { panic!("{bytes} bytes off {path} leave no path") };
        assert!(rest.path().starts_with('/'), "{path}");
    }
    _ = found.prefix(path.path());
}

fn provider(service: &str, role: bool, tags: Vec<String>) -> Arc<Provider> {
    let url = "http://10.0.0.1:80".to_owned();
    let instance = Instance {
        service: service.to_owned(),
        address: "10.0.0.1".to_owned(),
        port: 80,
        url,
        tags,
        ..Instance::default()
    };
    Arc::new(Provider {
        id: service.to_owned(),
        node_id: NodeId::from_public_key([7; 32]),
        node: "n1".to_owned(),
        zone: None,
        instance: Arc::new(instance),
        addresses: Vec::new(),
        role,
        unverified: false,
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    #[test]
    fn the_corpus_of_routes_keeps_its_properties() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/routes");
        let files: Vec<_> = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
        assert!(files.len() > 9, "{} files", files.len());
        for file in files {
            // The test runner shows this output only for a failure.
            println!("{}", file.display());
            super::routes(&fs::read(&file).unwrap());
        }
    }
}
