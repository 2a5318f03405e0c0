//! The nodes that run a plug-in: the node that was asked, or those that it knows. When one goes, the next is
//! asked.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Response, StatusCode, header};
use hyper::body::Incoming;

use crate::cli::{
    answers::Services,
    client::{Answer, Client, segment},
    failure::Failure,
};

/// Rounds over all that are known before it is given up: with the pauses, longer than a cluster takes to notice that a node is gone.
const ROUNDS_MAX: u32 = 4;
/// The pause after the first round; the next ones are twice as long each.
const PAUSE: Duration = Duration::from_millis(500);
/// Nodes that are tried. A cluster has a few replicas of a book, not hundreds.
const PROVIDERS_MAX: usize = 32;

/// The nodes that run the plug-in, as far as they are known.
pub(in crate::cli) struct Providers {
    service: String,
    asked: Client,
    /// At least one, the one in use first.
    found: Vec<Client>,
}

impl Providers {
    /// Finds the nodes with the grade book that the asked node knows; it comes first, if it keeps the book
    /// itself.
    pub(super) async fn find(asked: &Client) -> Result<Self, Failure> {
        let answer = asked.ask(Method::GET, "/students?limit=1").await?;
        Self::of("grading", asked, &answer).await
    }

    /// Finds the nodes with a plug-in that the asked node knows; it comes first, if this answer shows that it
    /// runs the plug-in itself.
    pub(in crate::cli) async fn of(service: &str, asked: &Client, answer: &Answer) -> Result<Self, Failure> {
        let mut found = if answer.status.is_success() { vec![asked.clone()] } else { Vec::new() };
        for other in known_to(asked, service).await? {
            add(&mut found, other);
        }
        if found.is_empty() {
            return Err(match answer.status {
                StatusCode::NOT_FOUND => Failure::NoMatch(format!(
                    "the node at {} does not run {service} and knows of none that does; start one with `node --role {service}`",
                    asked.url()
                )),
                _ => Failure::Refused(answer.problem()),
            });
        }
        Ok(Self { service: service.to_owned(), asked: asked.clone(), found })
    }

    /// Whom it is asking.
    pub(in crate::cli) fn url(&self) -> &str {
        self.found.first().unwrap_or(&self.asked).url()
    }

    /// Sends a write that may come twice.
    pub(in crate::cli) async fn post(
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
        Err(Failure::Refused(format!("no node that runs {} took it", self.service)))
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
            if let Ok(others) = known_to(node, &self.service).await {
                others.into_iter().for_each(|other| add(&mut self.found, other));
                return;
            }
        }
    }
}

/// Whether another node may answer otherwise: it is leaving, its disk is full, it no longer runs the plug-in,
/// or an earlier version of it.
fn is_its_own_fault(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED)
}

fn add(found: &mut Vec<Client>, client: Client) {
    if found.len() < PROVIDERS_MAX && !found.iter().any(|known| known.url() == client.url()) {
        found.push(client);
    }
}

/// The nodes with a plug-in that a node knows, the healthy ones first.
async fn known_to(node: &Client, service: &str) -> Result<Vec<Client>, Failure> {
    let answer = node.ask(Method::GET, &format!("/services/{}", segment(service))).await?;
    if answer.status == StatusCode::NOT_FOUND {
        return Ok(Vec::new());
    }
    let services: Services = answer.expect_success()?.json()?;
    let mut instances: Vec<_> = services.services.into_values().flatten().collect();
    instances.sort_by_key(|instance| instance.health != "passing");
    // The token is the asked node's, and no business of the others; they ask for none.
    Ok(instances.iter().filter_map(|instance| Client::new(&instance.url, None).ok()).collect())
}
