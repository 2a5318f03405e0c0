//! The environment of a wrapped command: where its node is, and where the services that it requires are.

use std::{collections::BTreeMap, time::Duration};

use http::{Method, StatusCode, header};
use serde::Deserialize;
use tokio::time::{Instant, sleep, timeout_at};

use super::super::{
    answers::{Members, Services},
    client::{Client, segment},
    failure::Failure,
};

/// The variable with the origin of the node.
pub(super) const NODE_VARIABLE: &str = "HEARSAY_NODE";
/// How long one blocking query waits. Below the time that a client gives an answer.
const QUERY_WAIT: &str = "5s";
/// Between two queries where the answer has no index, and after a failure.
const RETRY: Duration = Duration::from_millis(250);

/// The variable of a required service: `HEARSAY_<NAME>_URL`, in upper case, any other character as `_`.
pub(super) fn variable_of(service: &str) -> String {
    let upper = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    format!("HEARSAY_{}_URL", service.chars().map(upper).collect::<String>())
}

/// The node's origin, as programs of this machine reach it.
pub(super) async fn node_url(client: &Client) -> Result<String, Failure> {
    if let Some(origin) = client.origin() {
        return Ok(origin);
    }
    let members: Members = client.get("/members").await?.json()?;
    let own = members.members.iter().find(|member| member.name == members.node);
    let http = own.and_then(|own| own.http.as_ref()).map(|http| format!("http://{http}"));
    Ok(http.unwrap_or_else(|| client.url().to_owned()))
}

/// Waits until each required service has a passing instance, or the time is over. Returns the origins of those that have one.
pub(super) async fn await_services(
    client: &Client,
    required: &[String],
    until: Instant,
) -> BTreeMap<String, String> {
    let each = required.iter().map(|service| async move {
        let url = timeout_at(until, await_passing(client, service)).await.ok()?;
        Some((service.clone(), url))
    });
    futures::future::join_all(each).await.into_iter().flatten().collect()
}

/// The origin of a passing instance, as soon as there is one.
async fn await_passing(client: &Client, service: &str) -> String {
    let mut seen = None;
    loop {
        match query_passing(client, service, seen).await {
            Ok((Some(url), _)) => return url,
            Ok((None, index)) if index.is_some() && index != seen => seen = index,
            Ok((None, index)) => {
                seen = index;
                sleep(RETRY).await;
            }
            Err(_) => {
                seen = None;
                sleep(RETRY).await;
            }
        }
    }
}

/// The index of an answer.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Indexed {
    index: Option<u64>,
}

/// Queries the passing instances once; with an index, only once there is something newer. Returns the origin of the first, and the index.
async fn query_passing(
    client: &Client,
    service: &str,
    seen: Option<u64>,
) -> Result<(Option<String>, Option<u64>), Failure> {
    let seen = seen.map(|index| format!("&index={index}&wait={QUERY_WAIT}")).unwrap_or_default();
    let path = format!("/services/{}?health=passing&near=_self{seen}", segment(service));
    let response = client.send(Method::GET, &path, &[(header::ACCEPT, "application/json")]).await?;
    let index = response.headers().get("x-hearsay-index").and_then(|index| index.to_str().ok()?.parse().ok());
    let answer = client.read(response).await?;
    if answer.status == StatusCode::NOT_FOUND {
        return Ok((None, index));
    }
    let answer = answer.expect_success()?;
    let services: Services = answer.json()?;
    let first = services.services.into_values().flatten().next();
    let index = index.or(answer.json::<Indexed>()?.index);
    Ok((first.map(|instance| instance.url).filter(|url| !url.is_empty()), index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_becomes_a_variable() {
        for (service, variable) in [
            ("db", "HEARSAY_DB_URL"),
            ("grade-book.v2", "HEARSAY_GRADE_BOOK_V2_URL"),
            ("é x", "HEARSAY___X_URL"),
        ] {
            assert_eq!(variable_of(service), variable);
        }
    }
}
