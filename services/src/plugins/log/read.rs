//! Handlers of `GET /log` and `/records`, which read pages and single records.

use axum::{
    Json,
    body::Bytes,
    extract::{Path, State, rejection::PathRejection},
    response::{IntoResponse, Response},
};
use base64::Engine as _;
use http::{HeaderMap, StatusCode, Uri};
use serde::Deserialize;
use serde_json::json;

use super::{
    filter::Filter,
    offsets::{self, OffsetLookup},
    page::{self, Direction, PageError, PageQuery, Position, RECORDS_PER_PAGE_MAX},
    record::Level,
    search::SearchQuery,
    state::LogState,
    write::BASE64,
};
use crate::{
    Problem,
    http::{append::await_tokens, parameters::Parameters},
    journal::read,
};

/// Default number of records on a page.
const LIMIT_DEFAULT: usize = 100;

/// Handles `GET /log`.
pub(super) async fn list_records(
    State(state): State<LogState>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let known = ["after", "before", "limit", "service", "level", "q"];
    let parameters = Parameters::read(uri.query(), &known)?;
    let query = PageQuery {
        filter: filter(&parameters)?,
        words: words(&parameters)?,
        direction: direction(&parameters)?,
        limit: limit(&parameters)?,
        me: state.me(),
    };
    let journal = state.journal()?;
    await_tokens(journal.as_ref(), &headers).await?;
    let page = read(journal.as_ref(), move |db| match page::read_page(db, &query) {
        Ok(page) => Ok(Ok(page)),
        Err(PageError::Database(error)) => Err(error),
        Err(other) => Ok(Err(other)),
    });
    let page = page.await?.map_err(|error| refused(&error))?;
    Ok(Json(page).into_response())
}

/// The problem of a position that cannot be resumed.
pub(super) fn refused(error: &PageError) -> Problem {
    let detail = match error {
        PageError::ForeignCursor => {
            "this cursor belongs to another node, or to tables that were rebuilt since. Use it at the node that returned it, or start again without it"
        }
        PageError::NoRecord => "no record with this id is here, or it is no longer kept",
        PageError::Database(_) => "the database cannot be read",
    };
    Problem::new(StatusCode::GONE, detail)
}

pub(super) fn filter(parameters: &Parameters<'_>) -> Result<Filter, Problem> {
    let level = parameters.parse::<Level>("level", "a level: trace, debug, info, warn or error")?;
    Ok(Filter { service: parameters.single("service")?.map(str::to_owned), level })
}

fn words(parameters: &Parameters<'_>) -> Result<Option<SearchQuery>, Problem> {
    match parameters.single("q")? {
        // An empty field of an HTML form is no search.
        None | Some("") => Ok(None),
        Some(text) => SearchQuery::read(text).map(Some).map_err(|why| Problem::parameter("q", why)),
    }
}

/// Parses the start and direction. `before=end` reads backward from the end.
fn direction(parameters: &Parameters<'_>) -> Result<Direction, Problem> {
    let after = read_position(parameters, "after")?;
    match parameters.single("before")? {
        None | Some("") => Ok(Direction::Forward(after)),
        Some(_) if after.is_some() => Err(Problem::parameter("before", "goes without after")),
        Some("end") => Ok(Direction::Backward(None)),
        Some(text) => match parse_position(text) {
            Some(Position::Cursor(cursor)) => Ok(Direction::Backward(Some(cursor))),
            _ => Err(Parameters::refuse("before", text, "end or the prev of an earlier page")),
        },
    }
}

/// Parses a parameter that is a cursor or the id of a record.
pub(super) fn read_position(parameters: &Parameters<'_>, name: &str) -> Result<Option<Position>, Problem> {
    let Some(text) = parameters.single(name)?.filter(|text| !text.is_empty()) else { return Ok(None) };
    parse_position(text)
        .map(Some)
        .ok_or_else(|| Parameters::refuse(name, text, "a cursor of an earlier page or the id of a record"))
}

/// Parses a cursor or the id of a record.
pub(super) fn parse_position(text: &str) -> Option<Position> {
    let cursor = || text.parse().ok().map(Position::Cursor);
    cursor().or_else(|| text.parse().ok().map(Position::Record))
}

fn limit(parameters: &Parameters<'_>) -> Result<usize, Problem> {
    let allowed = format!("a whole number from 1 to {RECORDS_PER_PAGE_MAX}");
    match parameters.parse("limit", &allowed)? {
        None => Ok(LIMIT_DEFAULT),
        Some(limit) if (1..=RECORDS_PER_PAGE_MAX).contains(&limit) => Ok(limit),
        Some(limit) => Err(Parameters::refuse("limit", &limit.to_string(), allowed)),
    }
}

/// Body of `GET /records`.
#[derive(Deserialize)]
#[serde(expecting = "an object: {\"offset\":0}")]
struct Asked {
    offset: u64,
}

/// Handles `GET /records`: the record at the offset in the body or, without a body, the number of records.
pub(super) async fn read_numbered(
    State(state): State<LogState>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Problem> {
    Parameters::read(uri.query(), &[])?;
    if !body.is_empty() {
        let Asked { offset } = serde_json::from_slice(&body).map_err(|error| {
            let detail = format!("{error}; expected {{\"offset\":0}}, or GET /records/0");
            Problem::new(StatusCode::BAD_REQUEST, detail).with("field", "offset")
        })?;
        return read_one(&state, &headers, offset).await;
    }
    let journal = state.journal()?;
    await_tokens(journal.as_ref(), &headers).await?;
    let me = state.me();
    let count = read(journal.as_ref(), move |db| offsets::posted(db, me)).await?;
    Ok(Json(json!({ "node": state.host.node(), "count": count })).into_response())
}

/// Handles `GET /records/{offset}`.
pub(super) async fn read_at(
    State(state): State<LogState>,
    offset: Result<Path<String>, PathRejection>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    Parameters::read(uri.query(), &[])?;
    let offset = offset.ok().and_then(|Path(offset)| offset.parse().ok());
    let offset = offset.ok_or_else(|| Problem::not_found("an offset is a whole number from 0"))?;
    read_one(&state, &headers, offset).await
}

async fn read_one(state: &LogState, headers: &HeaderMap, offset: u64) -> Result<Response, Problem> {
    let journal = state.journal()?;
    await_tokens(journal.as_ref(), headers).await?;
    let me = state.me();
    match read(journal.as_ref(), move |db| offsets::find_by_offset(db, me, offset)).await? {
        OffsetLookup::Found(value) => {
            let value = BASE64.encode(value);
            Ok(Json(json!({ "record": { "value": value, "offset": offset } })).into_response())
        }
        OffsetLookup::Dropped => {
            Err(Problem::new(StatusCode::GONE, format!("the record at offset {offset} is no longer kept")))
        }
        OffsetLookup::PastTheEnd(count) => {
            let detail = format!("no record has the offset {offset}: this node has {count}, from 0");
            Err(Problem::not_found(detail).with("count", count))
        }
    }
}
