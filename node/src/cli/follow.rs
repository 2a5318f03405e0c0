//! Following a stream of events, over connections that come and go.
//!
//! The first connection must succeed, or the command fails as every other does. After that, a node that restarts is waited for, and asked to go on
//! where the last event left off.

use std::time::Duration;

use http::{Method, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::{sleep, timeout};

use super::{
    client::Client,
    failure::Failure,
    sse::{Event, Parser},
};
use crate::escape::escaped;

/// A stream that is silent for so long is dead: nodes send a comment several times a minute. Asking again costs nothing in any case.
const SILENCE_MAX: Duration = Duration::from_secs(60);
const BACKOFF_MIN: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Shows what a stream brings, for as long as it can be shown.
pub(super) async fn follow(
    client: &Client,
    path: &str,
    mut show: impl FnMut(&Event) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut last_id = None;
    let mut body = open(client, path, None).await?;
    loop {
        let broken = read(body, &mut show, &mut last_id).await?;
        notice!("the connection to {} is lost ({}); trying again", client.url(), escaped(&broken));
        body = reopen(client, path, last_id.as_deref()).await?;
    }
}

async fn open(client: &Client, path: &str, last_id: Option<&str>) -> Result<Incoming, Failure> {
    let mut headers = vec![(header::ACCEPT, "text/event-stream")];
    headers.extend(last_id.map(|id| (header::HeaderName::from_static("last-event-id"), id)));
    let response = client.send(Method::GET, path, &headers).await?;
    if !response.status().is_success() {
        let refusal = client.read(response).await?;
        return Err(refusal.expect_success().err().unwrap_or_else(|| Failure::Refused("no stream".into())));
    }
    Ok(response.into_body())
}

/// Tries for as long as it takes; only a refusal ends it.
async fn reopen(client: &Client, path: &str, last_id: Option<&str>) -> Result<Incoming, Failure> {
    let mut pause = BACKOFF_MIN;
    loop {
        sleep(pause).await;
        match open(client, path, last_id).await {
            Err(Failure::Unreachable { .. }) => pause = (pause * 2).min(BACKOFF_MAX),
            opened => return opened,
        }
    }
}

/// Reads a stream to its end. Returns why it ended, in words.
async fn read(
    mut body: Incoming,
    show: &mut impl FnMut(&Event) -> Result<(), Failure>,
    last_id: &mut Option<String>,
) -> Result<String, Failure> {
    let mut parser = Parser::default();
    loop {
        let piece = match timeout(SILENCE_MAX, body.frame()).await {
            Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
            Ok(Some(Err(error))) => return Ok(error.to_string()),
            Ok(None) => return Ok("the node closed it".into()),
            Err(_) => return Ok("nothing comes".into()),
        };
        let events = parser.feed(&piece).map_err(|error| Failure::Refused(error.to_string()))?;
        for event in events {
            show(&event)?;
            if event.id.is_some() {
                *last_id = event.id;
            }
        }
    }
}
