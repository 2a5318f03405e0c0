//! Who keeps the grade book: the node that was asked, or those that it knows. When one goes, the next is asked.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Response, StatusCode, header};
use hyper::body::Incoming;

use crate::cli::{
    answers::{Instance, Services},
    client::{Answer, Client},
    failure::Failure,
};

/// Rounds over all that are known before it is given up: with the pauses, longer than a cluster takes to notice that a node is gone.
const ROUNDS_MAX: u32 = 4;
/// The pause after the first round; the next ones are twice as long each.
const PAUSE: Duration = Duration::from_millis(500);
/// Nodes that are tried. A cluster has a few replicas of a book, not hundreds.
const PROVIDERS_MAX: usize = 32;

/// The nodes that keep the book, as far as they are known.
pub(super) struct Providers {
    asked: Client,
    /// At least one, the one in use first.
    found: Vec<Client>,
}

impl Providers {
    /// Finds those that the asked node knows; it comes first, if it keeps the book itself.
    pub(super) async fn find(asked: &Client) -> Result<Self, Failure> {
        let answer = asked.ask(Method::GET, "/students?limit=1").await?;
        let mut found = if answer.status.is_success() { vec![asked.clone()] } else { Vec::new() };
        for other in known_to(asked).await? {
            add(&mut found, other);
        }
        if found.is_empty() {
            return Err(match answer.status {
                StatusCode::NOT_FOUND => Failure::NoMatch(format!(
                    "the node at {} keeps no grade book and knows of none; start one with `node --role grading`",
                    asked.url()
                )),
                _ => Failure::Refused(answer.problem()),
            });
        }
        Ok(Self { asked: asked.clone(), found })
    }

    /// Whom it is asking.
    pub(super) fn url(&self) -> &str {
        self.found.first().unwrap_or(&self.asked).url()
    }

    /// Sends a write that may come twice.
    pub(super) async fn post(
        &mut self,
        path: &str,
        content_type: &str,
        body: &Bytes,
    ) -> Result<Answer, Failure> {
        let mut pause = PAUSE;
        for round in 1.. {
            let mut last = None;
            for _ in 0..self.found.len() {
                let provider = self.found.first().unwrap_or(&self.asked);
                match provider.post(path, content_type, body.clone()).await {
                    Ok(answer) if is_its_own_fault(answer.status) => last = answer.expect_success().err(),
                    Ok(answer) => return answer.expect_success(),
                    Err(failure @ Failure::Unreachable { .. }) => last = Some(failure),
                    Err(failure) => return Err(failure),
                }
                self.found.rotate_left(1);
            }
            match last {
                Some(failure) if round >= ROUNDS_MAX => return Err(failure),
                _ => self.look_again(&mut pause).await,
            }
        }
        // Rounds are counted up to where this is left.
        Err(Failure::Refused("no grading node took it".into()))
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
        Err(last.unwrap_or_else(|| Failure::Refused("no grading node answers".into())))
    }

    /// Waits, and asks whoever answers who keeps the book now.
    async fn look_again(&mut self, pause: &mut Duration) {
        tokio::time::sleep(*pause).await;
        *pause *= 2;
        for node in std::iter::once(&self.asked).chain(&self.found) {
            if let Ok(others) = known_to(node).await {
                others.into_iter().for_each(|other| add(&mut self.found, other));
                return;
            }
        }
    }
}

/// Whether another node may answer otherwise: it is leaving, its disk is full, it no longer keeps the book.
fn is_its_own_fault(status: StatusCode) -> bool {
    status.is_server_error() || status == StatusCode::NOT_FOUND
}

fn add(found: &mut Vec<Client>, client: Client) {
    if found.len() < PROVIDERS_MAX && !found.iter().any(|known| known.url() == client.url()) {
        found.push(client);
    }
}

/// The grading nodes that a node knows, the healthy ones first.
async fn known_to(node: &Client) -> Result<Vec<Client>, Failure> {
    let answer = node.ask(Method::GET, "/services/grading").await?;
    if answer.status == StatusCode::NOT_FOUND {
        return Ok(Vec::new());
    }
    let services: Services = answer.expect_success()?.json()?;
    let mut instances: Vec<_> = services.services.into_values().flatten().collect();
    instances.sort_by_key(|instance| instance.health != "passing");
    // The token is the asked node's, and no business of the others.
    let client = |instance: &Instance| Client::at_any_of(&instance.url, &instance.addresses).ok();
    Ok(instances.iter().filter_map(client).collect())
}
