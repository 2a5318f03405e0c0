//! Reads request bodies before any handler: limits their size, time and memory, checks them against the hash
//! in the request's signature, and decodes their `Content-Encoding`.
//!
//! A body is read whole before a handler sees the request. So the bounds hold for every handler and plug-in,
//! and a slow client occupies no handler. Size, time, and the memory of all bodies together are bounded.
//! Memory is charged as bytes arrive, so a client that only announces a large body takes nothing from others.
//! A body with a content coding is decoded here within the same limits.

use std::sync::Arc;

use axum::{
    body::{Body, HttpBody},
    extract::Request,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use hearsay_protocol::BodyHash;
use hearsay_services::Problem;
use http_body_util::BodyExt;
use tokio::sync::Semaphore;

use crate::{
    http::{
        server::{
            body_budget::{BodyPermit, BodyRefusal, charge},
            connection::Connection,
            content_coding::{CODINGS, Coding},
        },
        state::AppState,
    },
    signing::{BadSignature, Signed},
};

/// Reads and decodes the body, checks it against the signature, and returns the request with it.
///
/// # Errors
/// The response to a request whose body is refused.
pub(crate) async fn read_body(state: &AppState, request: Request) -> Result<(Request, BodyPermit), Response> {
    // The signature was checked with the head and states the hash of the body.
    let signed = request.extensions().get::<Signed>().map(|signed| signed.body);
    let is_signed = |bytes: &[u8]| signed.is_none_or(|signed| signed == BodyHash::of(bytes));
    if request.body().is_end_stream() {
        return if is_signed(&[]) { Ok((request, None)) } else { Err(refuse(state, BodyRefusal::NotSigned)) };
    }
    // A test that calls the router directly has no connection: the defaults apply.
    let connection = request.extensions().get::<Connection>().cloned().unwrap_or_default();
    let (mut head, body) = request.into_parts();
    let read = async {
        let coding = Coding::of(&head.headers)?;
        let (bytes, permit) = read(body, &connection).await?;
        if !is_signed(&bytes) {
            return Err(BodyRefusal::NotSigned);
        }
        if coding == Coding::Identity {
            return Ok((bytes, permit));
        }
        let decoded = coding.decode(&bytes, connection.limits.body_bytes, &connection.body_memory)?;
        head.headers.remove(header::CONTENT_ENCODING);
        head.headers.remove(header::CONTENT_LENGTH);
        Ok(decoded)
    };
    match read.await {
        Ok((bytes, permit)) => Ok((Request::from_parts(head, Body::from(bytes)), permit)),
        Err(refusal) => Err(refuse(state, refusal)),
    }
}

/// Counts a refusal and returns the response to it.
fn refuse(state: &AppState, refusal: BodyRefusal) -> Response {
    let (reason, response) = refusal_response(refusal);
    state.metrics.http.refused(reason);
    response
}

async fn read(body: Body, connection: &Connection) -> Result<(Bytes, BodyPermit), BodyRefusal> {
    let limits = &connection.limits;
    let max = limits.body_bytes;
    if body.size_hint().lower() > max as u64 {
        return Err(BodyRefusal::TooLarge(max));
    }
    let reading = collect(body, max, &connection.body_memory);
    tokio::time::timeout(limits.body, reading).await.unwrap_or(Err(BodyRefusal::TooSlow))
}

async fn collect(
    mut body: Body,
    max: usize,
    budget: &Arc<Semaphore>,
) -> Result<(Bytes, BodyPermit), BodyRefusal> {
    let (mut bytes, mut permit) = (BytesMut::new(), BodyPermit::None);
    while let Some(frame) = body.frame().await {
        // Trailers are ignored.
        let Ok(data) = frame.map_err(|_| BodyRefusal::Broken)?.into_data() else { continue };
        if max - bytes.len() < data.len() {
            return Err(BodyRefusal::TooLarge(max));
        }
        charge(&mut permit, data.len(), budget)?;
        bytes.extend_from_slice(&data);
    }
    Ok((bytes.freeze(), permit))
}

/// Returns the metric label and the response for a refusal.
fn refusal_response(refusal: BodyRefusal) -> (&'static str, Response) {
    let (reason, status, detail) = match refusal {
        BodyRefusal::TooLarge(max) => (
            "body_size",
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body is larger than {max} bytes, the limit; split it into several requests"),
        ),
        BodyRefusal::TooSlow => (
            "body_time",
            StatusCode::REQUEST_TIMEOUT,
            "the body took too long to arrive; send it without pauses".to_owned(),
        ),
        BodyRefusal::NoMemory => (
            "body_room",
            StatusCode::SERVICE_UNAVAILABLE,
            "the node has no memory left for request bodies; try again in a second".to_owned(),
        ),
        BodyRefusal::Broken => (
            "body_broken",
            StatusCode::BAD_REQUEST,
            "the body ended early or its framing is malformed".to_owned(),
        ),
        BodyRefusal::NotSigned => ("signature", StatusCode::UNAUTHORIZED, BadSignature::Body.to_string()),
        BodyRefusal::UnknownCoding => (
            "content_encoding",
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!("Content-Encoding: not supported; use one of {CODINGS}, or none"),
        ),
        BodyRefusal::Undecodable => (
            "content_encoding",
            StatusCode::BAD_REQUEST,
            "the body does not match its Content-Encoding, is cut off, or needs a window over 8 MiB"
                .to_owned(),
        ),
    };
    let mut response = Problem::new(status, detail).into_response();
    if refusal == BodyRefusal::NotSigned {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if refusal == BodyRefusal::NoMemory {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if refusal == BodyRefusal::UnknownCoding {
        response.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static(CODINGS));
    }
    // The rest of the body is not read, so the connection cannot be used again.
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    (reason, response)
}
