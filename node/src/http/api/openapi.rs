//! `GET /openapi.json`: the OpenAPI document of this node, assembled from its own paths and those of its
//! plug-ins.
//!
//! The node's own paths are in `openapi.json` beside this file; each plug-in of the node adds its own. A test
//! compares the file with the route table. Why the file is written by hand:
//! `docs/decisions/011-openapi-by-hand.md`.

use axum::{
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use hearsay_services::Service;
use serde_json::Value;
use std::sync::Arc;

const OWN: &str = include_str!("openapi.json");

/// Builds the document of a node with these plug-ins.
pub(crate) fn document(plugins: &[Arc<dyn Service>]) -> Vec<u8> {
    // The file is a constant, and a test parses it.
    let mut document: Value = serde_json::from_str(OWN).unwrap_or_default();
    if let Some(Value::Object(paths)) = document.get_mut("paths") {
        for plugin in plugins {
            if let Value::Object(more) = plugin.openapi() {
                paths.extend(more);
            }
        }
    }
    document.to_string().into_bytes()
}

/// Answers with the document.
pub(crate) fn answer(document: Bytes) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], document).into_response()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn paths(plugins: &[Arc<dyn Service>]) -> serde_json::Map<String, Value> {
        let document: Value = serde_json::from_slice(&document(plugins)).unwrap();
        document["paths"].as_object().unwrap().clone()
    }

    #[test]
    fn every_route_is_documented_and_every_documented_path_is_a_route() {
        let documented: BTreeSet<(String, String)> = paths(&[])
            .into_iter()
            .flat_map(|(path, item)| {
                let item = item.as_object().unwrap().clone();
                item.into_iter()
                    .filter(|(key, _)| key != "parameters")
                    .map(move |(method, _)| (method, path.clone()))
            })
            .collect();
        let routes = crate::http::routes::own_routes("/ui", vec![]);
        let served: BTreeSet<(String, String)> =
            routes.served().iter().map(|(method, path)| ((*method).to_owned(), (*path).to_owned())).collect();
        assert_eq!(served, documented);
    }

    #[test]
    fn only_plugins_that_run_are_documented() {
        assert!(!paths(&[]).contains_key("/students"));
        assert!(paths(&crate::builtin()).contains_key("/students/{id}"));
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
            match value {
                Value::Object(members) => {
                    found.extend(members.get("$ref").and_then(Value::as_str));
                    members.values().for_each(|value| references(value, found));
                }
                Value::Array(elements) => elements.iter().for_each(|value| references(value, found)),
                _ => (),
            }
        }
        let document: Value = serde_json::from_slice(&document(&crate::builtin())).unwrap();
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(!found.is_empty());
        for reference in found {
            assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference}");
        }
    }
}
