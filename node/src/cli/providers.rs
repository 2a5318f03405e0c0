//! [`Providers`]: finds the nodes with the role that a command needs, and sends a request to one after the
//! other until one answers.

use std::{borrow::Cow, time::Duration};

use bytes::Bytes;
use http::{Method, Response, StatusCode, header};
use hyper::body::Incoming;

use super::{
    client::{Answer, Client, Post},
    failure::Failure,
    responses::{Instance, Services},
};
use crate::escape::percent_encoded;

/// Rounds over all providers before a write fails. With the pauses, the rounds take longer than the cluster
/// takes to detect a failed node.
const ROUNDS_MAX: u32 = 4;
/// Pause after the first round; it doubles with each round.
const PAUSE: Duration = Duration::from_millis(500);
/// Maximum number of providers that are tried. Guess: a role has a few replicas, not hundreds.
const PROVIDERS_MAX: usize = 32;

/// A role that a command needs.
#[derive(Clone, Debug)]
pub(super) struct Role {
    /// The name of the role.
    pub(super) name: Cow<'static, str>,
    /// A request that only a node of this role answers with success.
    pub(super) probe: Probe,
    /// Name of the data that the role stores, for error messages.
    pub(super) keeps: &'static str,
}

/// A request that only a node of a role answers with success.
#[derive(Clone, Debug)]
pub(super) enum Probe {
    /// GET of this path.
    Get(&'static str),
    /// POST to this path with this JSON body.
    Post(String, &'static str),
}

impl Probe {
    async fn send(&self, client: &Client) -> Result<Answer, Failure> {
        match self {
            Self::Get(path) => client.request(Method::GET, path).await,
            Self::Post(path, body) => {
                let body = Bytes::from_static(body.as_bytes());
                client.post(Post { path, content_type: "application/json", key: None, body: &body }).await
            }
        }
    }
}

/// Known nodes of a role.
pub(super) struct Providers {
    role: Role,
    /// The node that the user named. It lists providers and forwards writes to them.
    relay: Client,
    /// Known providers; the first one is in use.
    found: Vec<Client>,
}

impl Providers {
    /// Creates an empty list, which the first write fills.
    pub(super) fn new(role: Role, relay: &Client) -> Self {
        Self { role, relay: relay.clone(), found: Vec::new() }
    }

    /// Finds the providers that the relay lists. If the relay has the role itself, it comes first.
    pub(super) async fn find(role: Role, relay: &Client) -> Result<Self, Failure> {
        let mut providers = Self::new(role, relay);
        providers.discover().await?;
        Ok(providers)
    }

    async fn discover(&mut self) -> Result<(), Failure> {
        let answer = self.role.probe.send(&self.relay).await?;
        if answer.status.is_success() {
            add(&mut self.found, self.relay.clone());
        }
        for other in find_providers(&self.role, &self.relay).await? {
            add(&mut self.found, other);
        }
        if !self.found.is_empty() {
            return Ok(());
        }
        Err(match answer.status {
            StatusCode::NOT_FOUND => Failure::NoMatch(format!(
                "the node at {} has no {} and lists no node that has one; start one with `node --role {}`",
                self.relay.url(),
                self.role.keeps,
                self.role.name
            )),
            _ => Failure::Refused(answer.problem()),
        })
    }

    /// Returns the URL of the provider in use.
    pub(super) fn url(&self) -> &str {
        self.found.first().unwrap_or(&self.relay).url()
    }

    /// Sends an idempotent write until a provider accepts it or refuses it for good.
    pub(super) async fn post(&mut self, post: Post<'_>) -> Result<Answer, Failure> {
        let mut pause = PAUSE;
        for round in 1.. {
            match self.post_once(post).await {
                Ok(answer) => return answer.expect_success(),
                Err(PostError::Final(failure)) => return Err(failure),
                Err(PostError::Retryable(failure)) if round >= ROUNDS_MAX => return Err(failure),
                Err(PostError::Retryable(_)) => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                    self.refresh().await;
                }
            }
        }
        // Unreachable: the loop returns in the last round.
        Err(Failure::Refused("no node accepted the write".into()))
    }

    /// Sends an idempotent write to one provider after the other, until one gives an answer that is not
    /// specific to that node.
    pub(super) async fn post_once(&mut self, post: Post<'_>) -> Result<Answer, PostError> {
        if self.found.is_empty() {
            self.discover().await.map_err(PostError::Retryable)?;
        }
        let mut last = None;
        for _ in 0..self.found.len() {
            let provider = self.found.first().unwrap_or(&self.relay);
            match provider.post_through(&self.relay, post).await {
                Ok(answer) if is_node_specific(answer.status) => last = answer.expect_success().err(),
                Ok(answer) => return Ok(answer),
                Err(failure @ Failure::Unreachable { .. }) => last = Some(failure),
                Err(failure) => return Err(PostError::Final(failure)),
            }
            self.found.rotate_left(1);
        }
        Err(PostError::Retryable(last.unwrap_or_else(|| Failure::Refused("no node answers".into()))))
    }

    /// Sends a GET to one provider after the other and returns the first successful response.
    pub(super) async fn get(&mut self, path: &str) -> Result<(Client, Response<Incoming>), Failure> {
        let mut last = None;
        for _ in 0..self.found.len() {
            let provider = self.found.first().unwrap_or(&self.relay).clone();
            match provider.send(Method::GET, path, &[(header::ACCEPT, "text/csv")]).await {
                Ok(response) if response.status().is_success() => return Ok((provider, response)),
                Ok(response) => last = provider.read(response).await?.expect_success().err(),
                Err(failure @ Failure::Unreachable { .. }) => last = Some(failure),
                Err(failure) => return Err(failure),
            }
            self.found.rotate_left(1);
        }
        Err(last.unwrap_or_else(|| Failure::Refused("no node answers".into())))
    }

    /// Updates the list of providers from the first node that answers.
    pub(super) async fn refresh(&mut self) {
        for node in std::iter::once(&self.relay).chain(&self.found) {
            if let Ok(others) = find_providers(&self.role, node).await {
                // Newly listed nodes come first; if the list is full, old ones are dropped.
                let before = std::mem::take(&mut self.found);
                others.into_iter().chain(before).for_each(|other| add(&mut self.found, other));
                return;
            }
        }
    }
}

/// Why no provider accepted a write.
#[derive(Debug)]
pub(super) enum PostError {
    /// A later attempt may succeed: no node answered, or only with node-specific errors.
    Retryable(Failure),
    /// No attempt will succeed.
    Final(Failure),
}

/// Whether a status is specific to a node, so that another node or a later attempt may succeed. The node may
/// be leaving or overloaded, have a full disk, an older version or another name, or have lost the role.
fn is_node_specific(status: StatusCode) -> bool {
    status.is_server_error()
        || matches!(
            status,
            StatusCode::NOT_FOUND
                | StatusCode::METHOD_NOT_ALLOWED
                | StatusCode::REQUEST_TIMEOUT
                | StatusCode::MISDIRECTED_REQUEST
                | StatusCode::TOO_MANY_REQUESTS
        )
}

fn add(found: &mut Vec<Client>, client: Client) {
    if found.len() < PROVIDERS_MAX && !found.iter().any(|known| known.url() == client.url()) {
        found.push(client);
    }
}

/// Returns the nodes of a role that a node lists, passing ones first.
async fn find_providers(role: &Role, node: &Client) -> Result<Vec<Client>, Failure> {
    let answer = node.request(Method::GET, &format!("/services/{}", percent_encoded(&role.name))).await?;
    if answer.status == StatusCode::NOT_FOUND {
        return Ok(Vec::new());
    }
    let services: Services = answer.expect_success()?.json()?;
    let mut instances: Vec<_> = services.services.into_values().flatten().collect();
    instances.sort_by_key(|instance| instance.health != "passing");
    // The clients of providers get no token: the token belongs to the relay.
    let client = |instance: &Instance| {
        Some(Client::with_addresses(&instance.url, &instance.addresses).ok()?.with_name(&instance.node))
    };
    Ok(instances.iter().filter_map(client).collect())
}
