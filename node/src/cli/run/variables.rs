//! Determines the environment variables of a command that `node run` wraps: the URLs of its node and of
//! required services. Waits until these services have a passing instance.

use std::{collections::BTreeMap, time::Duration};

use http::{Method, StatusCode, header};
use serde::Deserialize;
use tokio::time::{Instant, sleep, timeout_at};

use super::super::{
    client::Client,
    failure::Failure,
    responses::{Members, Services},
};
use crate::escape::percent_encoded;

/// Variable with the origin of the node.
pub(super) const NODE_VARIABLE: &str = "HEARSAY_NODE";
/// The longest wait of a blocking query; shorter than the client's timeout.
const QUERY_WAIT: &str = "5s";
/// Interval of queries if the answer has no new index, or after a failure.
const RETRY: Duration = Duration::from_millis(250);

/// Returns the variable of a required service: `HEARSAY_<NAME>_URL`, in upper case, with `_` for other
/// characters.
pub(super) fn variable_of(service: &str) -> String {
    let upper = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    format!("HEARSAY_{}_URL", service.chars().map(upper).collect::<String>())
}

/// Returns the node's origin for programs of this machine.
pub(super) async fn node_url(client: &Client) -> Result<String, Failure> {
    if let Some(origin) = client.origin() {
        return Ok(origin);
    }
    let members: Members = client.get("/members").await?.json()?;
    let own = members.members.iter().find(|member| member.name == members.node);
    let http = own.and_then(|own| own.http.as_ref()).map(|http| format!("http://{http}"));
    Ok(http.unwrap_or_else(|| client.url().to_owned()))
}

/// Waits until each required service has a passing instance, or until a deadline. Returns the origins found.
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

/// Waits for a passing instance and returns its origin.
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

/// The index in an answer.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Indexed {
    index: Option<u64>,
}

/// Requests the passing instances of a service; with `seen`, waits for a newer index. Returns the origin of
/// the first instance, and the index.
async fn query_passing(
    client: &Client,
    service: &str,
    seen: Option<u64>,
) -> Result<(Option<String>, Option<u64>), Failure> {
    let seen = seen.map(|index| format!("&index={index}&wait={QUERY_WAIT}")).unwrap_or_default();
    let path = format!("/services/{}?health=passing&near=_self{seen}", percent_encoded(service));
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
