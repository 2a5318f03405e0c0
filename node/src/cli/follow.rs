//! Follows an event stream of a node for a command, and reconnects when the stream ends.
//!
//! If the first connection fails, the command fails. Later the command waits for a node that restarts and
//! resumes after the last event (`Last-Event-ID`).

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

/// Silence after which a stream counts as dead. Nodes send a comment several times a minute.
const SILENCE_MAX: Duration = Duration::from_secs(60);
const BACKOFF_MIN: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Passes the events of a stream to `show`. Ends only with an error: `show` fails, the node refuses or sends
/// a malformed stream, or the first connection fails.
pub(super) async fn follow(
    client: &Client,
    path: &str,
    mut show: impl FnMut(&Event) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let mut last_id = None;
    let mut body = open(client, path, None).await?;
    loop {
        let broken = read(body, &mut show, &mut last_id).await?;
        notice!("the connection to {} is lost ({}); reconnecting", client.url(), escaped(&broken));
        body = reopen(client, path, last_id.as_deref()).await?;
    }
}

async fn open(client: &Client, path: &str, last_id: Option<&str>) -> Result<Incoming, Failure> {
    let mut headers = vec![(header::ACCEPT, "text/event-stream")];
    headers.extend(last_id.map(|id| (header::HeaderName::from_static("last-event-id"), id)));
    let response = client.send(Method::GET, path, &headers).await?;
    if !response.status().is_success() {
        let refusal = client.read(response).await?;
        return Err(refusal
            .expect_success()
            .err()
            .unwrap_or_else(|| Failure::Refused("the node sent no event stream".into())));
    }
    Ok(response.into_body())
}

/// Reconnects until the node answers; any error but an unreachable node ends the loop.
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

/// Reads a stream to its end. Returns the reason of the end.
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
            Ok(None) => return Ok("the node closed the stream".into()),
            Err(_) => return Ok("no data within the timeout".into()),
        };
        let events = parser.push(&piece).map_err(|error| Failure::Refused(error.to_string()))?;
        for event in events {
            show(&event)?;
            if event.id.is_some() {
                *last_id = event.id;
            }
        }
    }
}
