//! Bounds on request bodies.
//!
//! A body is read here, whole, before any handler sees the request: so no handler and no plug-in can forget a bound, and none can
//! be held up by a client that sends a byte a minute. Its size, its time and the memory that all bodies take together are
//! limited; the last is charged as bytes arrive, so that announcing a large body costs the others nothing. A body with a content coding is
//! decoded here too (`decode`), within the same limits.

use std::sync::Arc;

use axum::{
    body::{Body, HttpBody},
    extract::Request,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::{Bytes, BytesMut};
use hearsay_protocol::signed_request::BodyHash;
use hearsay_services::Problem;
use http_body_util::BodyExt;
use tokio::sync::Semaphore;

use super::{
    accept::Connection,
    body_room::{Refusal, Room, charge},
    decode::{CODINGS, Coding},
    site::Site,
};
use crate::signing::{BadSignature, Signed};

/// Reads the body.
///
/// # Errors
/// What to answer instead of passing the request on.
pub(super) async fn bound(site: &Site, request: Request) -> Result<(Request, Room), Response> {
    // A signature says which body belongs to it, and was checked with the head.
    let signed = request.extensions().get::<Signed>().map(|signed| signed.body);
    let is_signed = |bytes: &[u8]| signed.is_none_or(|signed| signed == BodyHash::of(bytes));
    if request.body().is_end_stream() {
        return if is_signed(&[]) { Ok((request, None)) } else { Err(answer(site, Refusal::NotSigned)) };
    }
    // Without a connection (a test that calls the router itself) the defaults hold.
    let connection = request.extensions().get::<Connection>().cloned().unwrap_or_default();
    let (mut head, body) = request.into_parts();
    let read = async {
        let coding = Coding::of(&head.headers)?;
        let (bytes, room) = read(body, &connection).await?;
        if !is_signed(&bytes) {
            return Err(Refusal::NotSigned);
        }
        if coding == Coding::Identity {
            return Ok((bytes, room));
        }
        let decoded = coding.decode(&bytes, connection.limits.body_bytes, &connection.body_room)?;
        head.headers.remove(header::CONTENT_ENCODING);
        head.headers.remove(header::CONTENT_LENGTH);
        Ok(decoded)
    };
    match read.await {
        Ok((bytes, room)) => Ok((Request::from_parts(head, Body::from(bytes)), room)),
        Err(refusal) => Err(answer(site, refusal)),
    }
}

fn answer(site: &Site, refusal: Refusal) -> Response {
    let (reason, response) = refuse(refusal);
    site.metrics.http.refused(reason);
    response
}

async fn read(body: Body, connection: &Connection) -> Result<(Bytes, Room), Refusal> {
    let limits = &connection.limits;
    let max = limits.body_bytes;
    if body.size_hint().lower() > max as u64 {
        return Err(Refusal::TooLarge(max));
    }
    let reading = collect(body, max, &connection.body_room);
    tokio::time::timeout(limits.body, reading).await.unwrap_or(Err(Refusal::TooSlow))
}

async fn collect(mut body: Body, max: usize, room: &Arc<Semaphore>) -> Result<(Bytes, Room), Refusal> {
    let (mut bytes, mut taken) = (BytesMut::new(), Room::None);
    while let Some(frame) = body.frame().await {
        // Trailers mean nothing here.
        let Ok(data) = frame.map_err(|_| Refusal::Broken)?.into_data() else { continue };
        if max - bytes.len() < data.len() {
            return Err(Refusal::TooLarge(max));
        }
        charge(&mut taken, data.len(), room)?;
        bytes.extend_from_slice(&data);
    }
    Ok((bytes.freeze(), taken))
}

fn refuse(refusal: Refusal) -> (&'static str, Response) {
    let (reason, status, detail) = match refusal {
        Refusal::TooLarge(max) => (
            "body_size",
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body is larger than {max} bytes; send less at a time"),
        ),
        Refusal::TooSlow => {
            ("body_time", StatusCode::REQUEST_TIMEOUT, "the body took too long to arrive".to_owned())
        }
        Refusal::NoRoom => (
            "body_room",
            StatusCode::SERVICE_UNAVAILABLE,
            "the node holds too many bodies now; try again".to_owned(),
        ),
        Refusal::Broken => {
            ("body_broken", StatusCode::BAD_REQUEST, "the body broke off or is malformed".to_owned())
        }
        Refusal::NotSigned => ("signature", StatusCode::UNAUTHORIZED, BadSignature::Body.to_string()),
        Refusal::UnknownCoding => (
            "content_encoding",
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            format!("Content-Encoding: one of {CODINGS} is read, or none at all"),
        ),
        Refusal::Undecodable => (
            "content_encoding",
            StatusCode::BAD_REQUEST,
            "the body is not what Content-Encoding says, is cut off, or needs a window over 8 MiB".to_owned(),
        ),
    };
    let mut response = Problem::new(status, detail).into_response();
    if refusal == Refusal::NotSigned {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if refusal == Refusal::NoRoom {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if refusal == Refusal::UnknownCoding {
        response.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static(CODINGS));
    }
    // What is left of the body is not worth reading.
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    (reason, response)
}
