//! The nodes of a role: the node that was asked, or those that it knows. When one goes, the next is asked.

use std::{borrow::Cow, time::Duration};

use bytes::Bytes;
use http::{Method, Response, StatusCode, header};
use hyper::body::Incoming;

use super::{
    answers::{Instance, Services},
    client::{Answer, Client, segment},
    failure::Failure,
};

/// Rounds over all that are known before it is given up: with the pauses, longer than a cluster takes to notice that a node is gone.
const ROUNDS_MAX: u32 = 4;
/// The pause after the first round; the next ones are twice as long each.
const PAUSE: Duration = Duration::from_millis(500);
/// Nodes that are tried. A cluster has a few replicas of a book or of the log, not hundreds.
const PROVIDERS_MAX: usize = 32;

/// A role whose nodes are asked.
#[derive(Clone, Debug)]
pub(super) struct Role {
    /// Its name.
    pub(super) name: Cow<'static, str>,
    /// What only a node of this role answers.
    pub(super) probe: Probe,
    /// What it keeps, in words.
    pub(super) keeps: &'static str,
}

/// A request that only a node of a role answers with success.
#[derive(Clone, Debug)]
pub(super) enum Probe {
    /// A GET of this path.
    Get(&'static str),
    /// A POST of this JSON to this path.
    Post(String, &'static str),
}

impl Probe {
    async fn send(&self, client: &Client) -> Result<Answer, Failure> {
        match self {
            Self::Get(path) => client.ask(Method::GET, path).await,
            Self::Post(path, body) => {
                client.post(path, "application/json", Bytes::from_static(body.as_bytes())).await
            }
        }
    }
}

/// The nodes that have the role, as far as they are known.
pub(super) struct Providers {
    role: Role,
    asked: Client,
    /// The one in use first.
    found: Vec<Client>,
}

/// A write.
#[derive(Clone, Copy, Debug)]
pub(super) struct Post<'a> {
    pub(super) path: &'a str,
    pub(super) content_type: &'a str,
    /// By which a node knows a write that comes again.
    pub(super) key: Option<&'a str>,
    pub(super) body: &'a Bytes,
}

impl Providers {
    /// Those that the asked node will be found to know.
    pub(super) fn new(role: Role, asked: &Client) -> Self {
        Self { role, asked: asked.clone(), found: Vec::new() }
    }

    /// Finds those that the asked node knows; it comes first, if it has the role itself.
    pub(super) async fn find(role: Role, asked: &Client) -> Result<Self, Failure> {
        let mut providers = Self::new(role, asked);
        providers.look().await?;
        Ok(providers)
    }

    async fn look(&mut self) -> Result<(), Failure> {
        let answer = self.role.probe.send(&self.asked).await?;
        if answer.status.is_success() {
            add(&mut self.found, self.asked.clone());
        }
        for other in known_to(&self.role, &self.asked).await? {
            add(&mut self.found, other);
        }
        if !self.found.is_empty() {
            return Ok(());
        }
        Err(match answer.status {
            StatusCode::NOT_FOUND => Failure::NoMatch(format!(
                "the node at {} keeps no {} and knows of none; start one with `node --role {}`",
                self.asked.url(),
                self.role.keeps,
                self.role.name
            )),
            _ => Failure::Refused(answer.problem()),
        })
    }

    /// The origin of the node in use.
    pub(super) fn url(&self) -> &str {
        self.found.first().unwrap_or(&self.asked).url()
    }

    /// Sends a write that may come twice, until a node takes it or says what is wrong with it.
    pub(super) async fn post(&mut self, post: Post<'_>) -> Result<Answer, Failure> {
        let mut pause = PAUSE;
        for round in 1.. {
            match self.post_once(post).await {
                Ok(answer) => return answer.expect_success(),
                Err(Untaken::Final(failure)) => return Err(failure),
                Err(Untaken::ForNow(failure)) if round >= ROUNDS_MAX => return Err(failure),
                Err(Untaken::ForNow(_)) => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                    self.look_again().await;
                }
            }
        }
        // Rounds are counted up to where this is left.
        Err(Failure::Refused("no node took it".into()))
    }

    /// Sends a write that may come twice to one node after the other, until one gives an answer that the others would give, too.
    pub(super) async fn post_once(&mut self, post: Post<'_>) -> Result<Answer, Untaken> {
        if self.found.is_empty() {
            self.look().await.map_err(Untaken::ForNow)?;
        }
        let mut last = None;
        for _ in 0..self.found.len() {
            let provider = self.found.first().unwrap_or(&self.asked);
            let Post { path, content_type, key, body } = post;
            let tried = provider.post_through(&self.asked, path, content_type, key, body.clone()).await;
            match tried {
                Ok(answer) if is_its_own_fault(answer.status) => last = answer.expect_success().err(),
                Ok(answer) => return Ok(answer),
                Err(failure @ Failure::Unreachable { .. }) => last = Some(failure),
                Err(failure) => return Err(Untaken::Final(failure)),
            }
            self.found.rotate_left(1);
        }
        Err(Untaken::ForNow(last.unwrap_or_else(|| Failure::Refused("no node answers".into()))))
    }

    /// Begins to read something that any of them has.
    pub(super) async fn get(&mut self, path: &str) -> Result<(Client, Response<Incoming>), Failure> {
        let mut last = None;
        for _ in 0..self.found.len() {
            let provider = self.found.first().unwrap_or(&self.asked).clone();
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

    /// Asks whichever node answers which nodes have the role now.
    pub(super) async fn look_again(&mut self) {
        for node in std::iter::once(&self.asked).chain(&self.found) {
            if let Ok(others) = known_to(&self.role, node).await {
                // First those that are listed now: of others there may be more than are tried.
                let before = std::mem::take(&mut self.found);
                others.into_iter().chain(before).for_each(|other| add(&mut self.found, other));
                return;
            }
        }
    }
}

/// Why a write was not taken by any node.
#[derive(Debug)]
pub(super) enum Untaken {
    /// It may be later: no node answered, or each that did spoke of itself.
    ForNow(Failure),
    /// It will not be.
    Final(Failure),
}

/// Whether another node, or the same one later, may answer otherwise: it is leaving, its disk is full, it no longer has the role, or an earlier
/// version of it, it does not go by this name, it has too much to do.
fn is_its_own_fault(status: StatusCode) -> bool {
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

/// The nodes of a role that a node knows, the healthy ones first.
async fn known_to(role: &Role, node: &Client) -> Result<Vec<Client>, Failure> {
    let answer = node.ask(Method::GET, &format!("/services/{}", segment(&role.name))).await?;
    if answer.status == StatusCode::NOT_FOUND {
        return Ok(Vec::new());
    }
    let services: Services = answer.expect_success()?.json()?;
    let mut instances: Vec<_> = services.services.into_values().flatten().collect();
    instances.sort_by_key(|instance| instance.health != "passing");
    // The token is the asked node's, and no business of the others.
    let client = |instance: &Instance| {
        Some(Client::at_any_of(&instance.url, &instance.addresses).ok()?.named(&instance.node))
    };
    Ok(instances.iter().filter_map(client).collect())
}
