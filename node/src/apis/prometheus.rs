//! Prometheus HTTP service discovery, `GET /sd/prometheus`: lists the instances in the provider table as
//! scrape targets with labels.
//!
//! The format is that of Prometheus' `http_sd_config`: an array of target groups. Without instances the
//! answer is 200 with `[]`, because Prometheus goes on with its last targets after an error. While the node
//! starts, requests wait. Each instance is a group of its own; what the table knows of it are labels that
//! begin with `__meta_hearsay_`.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::Arc,
};

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode, Uri, header::ETAG},
    response::{IntoResponse as _, Response},
};
use hearsay_protocol::Provider;
use hearsay_services::{Problem, http::Parameters};
use serde::Serialize;

use super::entity_tag::is_known;
use crate::http::state::AppState;

/// What the names of all labels begin with.
const LABEL_PREFIX: &str = "__meta_hearsay_";

/// One target and its labels.
#[derive(Serialize, Hash, Debug)]
struct TargetGroup {
    targets: [String; 1],
    labels: BTreeMap<String, String>,
}

/// Answers with the instances of all services, of one service, of those with all of these tags, or of one
/// health.
///
/// # Errors
/// 400 for an unknown parameter or health.
pub async fn targets(
    State(state): State<Arc<AppState>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let parameters = Parameters::read(uri.query(), &["service", "tag", "health"])?;
    let service = parameters.single("service")?;
    let health = parameters.single("health")?;
    if let Some(other) = health.filter(|word| !HEALTH_WORDS.contains(word)) {
        return Err(Parameters::refuse("health", other, "one of passing, warning, critical, unverified"));
    }
    let tags: Vec<&str> = parameters.all("tag").collect();
    state.started().await;
    let providers: Vec<Arc<Provider>> = state.view.read(|table| match service {
        Some(service) => table.providers_distinct(service).cloned().collect(),
        None => table.services().flat_map(|service| table.providers_distinct(service)).cloned().collect(),
    });
    let is_wanted = |provider: &&Arc<Provider>| {
        health.is_none_or(|word| provider.health_word() == word)
            && tags.iter().all(|tag| provider.instance.tags.iter().any(|own| own == tag))
    };
    let groups: Vec<TargetGroup> =
        providers.iter().filter(is_wanted).map(|provider| TargetGroup::of(provider)).collect();
    let mut hasher = DefaultHasher::new();
    groups.hash(&mut hasher);
    let etag = format!("\"{:016x}\"", hasher.finish());
    if is_known(&headers, &etag) {
        return Ok((StatusCode::NOT_MODIFIED, [(ETAG, etag)]).into_response());
    }
    Ok(([(ETAG, etag)], Json(groups)).into_response())
}

/// The values of `health`, as [`Provider::health_word`] has them.
const HEALTH_WORDS: [&str; 4] = ["passing", "warning", "critical", "unverified"];

impl TargetGroup {
    fn of(provider: &Provider) -> Self {
        let instance = &provider.instance;
        let stated = || match instance.port {
            0 => instance.address.clone(),
            port => format!("{}:{port}", instance.address),
        };
        let target = provider.addresses.first().cloned().unwrap_or_else(stated);
        let tags = match instance.tags.is_empty() {
            true => String::new(),
            // With a separator at both ends, so that a relabelling rule can match a whole tag.
            false => format!(",{},", instance.tags.join(",")),
        };
        let of_instance = [
            ("service", instance.service.clone()),
            ("node", provider.node.clone()),
            ("id", provider.id.clone()),
            ("zone", provider.zone().unwrap_or_default().to_owned()),
            ("health", provider.health_word().to_owned()),
            ("tags", tags),
        ];
        let of_instance = of_instance.map(|(name, value)| (format!("{LABEL_PREFIX}{name}"), value));
        let of_meta = instance
            .meta
            .iter()
            .map(|(key, value)| (format!("{LABEL_PREFIX}meta_{}", label_name(key)), value.clone()));
        Self { targets: [target], labels: of_meta.chain(of_instance).collect() }
    }
}

/// A key with `_` in place of what a label's name cannot have.
fn label_name(key: &str) -> String {
    key.chars().map(|character| if character.is_ascii_alphanumeric() { character } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use hearsay_protocol::{Instance, NodeId};

    use super::*;

    #[test]
    fn an_instance_is_a_target_with_its_labels() {
        let provider = Provider {
            id: "web-1".into(),
            node_id: NodeId::from_public_key([1; 32]),
            node: "n1".into(),
            zone: Some("a".into()),
            instance: Arc::new(Instance {
                service: "web".into(),
                address: "10.77.0.1".into(),
                port: 8080,
                tags: vec!["blue".into(), "v1".into()],
                meta: BTreeMap::from([("metrics-path".to_owned(), "/m".to_owned())]),
                ..Instance::default()
            }),
            addresses: vec!["10.77.0.1:8080".into()],
            role: false,
            unverified: false,
        };
        let json = serde_json::to_value(TargetGroup::of(&provider)).unwrap();
        let expected = serde_json::json!({
            "targets": ["10.77.0.1:8080"],
            "labels": {
                "__meta_hearsay_service": "web",
                "__meta_hearsay_node": "n1",
                "__meta_hearsay_id": "web-1",
                "__meta_hearsay_zone": "a",
                "__meta_hearsay_health": "passing",
                "__meta_hearsay_tags": ",blue,v1,",
                "__meta_hearsay_meta_metrics_path": "/m",
            },
        });
        assert_eq!(json, expected);
    }
}
