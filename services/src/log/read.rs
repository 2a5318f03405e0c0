//! Reading the log.

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
    Desk,
    numbers::{self, Found},
    page::{self, Filter, From, PageError, Question, RECORDS_PER_PAGE_MAX, Way},
    record::Level,
    search::Words,
    write::BASE64,
};
use crate::{Problem, journal::read, parameters::Parameters, writing::catch_up};

/// Records on a page where nobody says.
const LIMIT_DEFAULT: usize = 100;

/// `GET /log`.
pub(super) async fn list(
    State(desk): State<Desk>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let known = ["after", "before", "limit", "service", "level", "q"];
    let parameters = Parameters::read(uri.query(), &known)?;
    let question = Question {
        filter: filter(&parameters)?,
        words: words(&parameters)?,
        way: way(&parameters)?,
        limit: limit(&parameters)?,
        me: desk.me(),
    };
    let journal = desk.journal()?;
    catch_up(journal.as_ref(), &headers).await?;
    let page = read(journal.as_ref(), move |db| match page::page(db, &question) {
        Ok(page) => Ok(Ok(page)),
        Err(PageError::Database(error)) => Err(error),
        Err(other) => Ok(Err(other)),
    });
    let page = page.await?.map_err(|error| refused(&error))?;
    Ok(Json(page).into_response())
}

/// Why a place to go on from is none.
pub(super) fn refused(error: &PageError) -> Problem {
    let detail = match error {
        PageError::Stranger => {
            "this cursor is not of this node, or from before its tables were made anew; ask the node that gave it, or begin anew"
        }
        PageError::NoRecord => "no record with this id is here, or it is no longer kept",
        PageError::Database(_) => "the database cannot be read",
    };
    Problem::new(StatusCode::GONE, detail)
}

pub(super) fn filter(parameters: &Parameters<'_>) -> Result<Filter, Problem> {
    let level = parameters.parse::<Level>("level", "a level: trace, debug, info, warn or error")?;
    Ok(Filter { service: parameters.one("service")?.map(str::to_owned), level })
}

fn words(parameters: &Parameters<'_>) -> Result<Option<Words>, Problem> {
    match parameters.one("q")? {
        // An empty field of a form asks for nothing.
        None | Some("") => Ok(None),
        Some(text) => Words::read(text).map(Some).map_err(|why| Problem::parameter("q", why)),
    }
}

/// Which way, and from where: `before=end` is from the end.
fn way(parameters: &Parameters<'_>) -> Result<Way, Problem> {
    let after = from(parameters, "after")?;
    match parameters.one("before")? {
        None | Some("") => Ok(Way::On(after)),
        Some(_) if after.is_some() => Err(Problem::parameter("before", "goes without after")),
        Some("end") => Ok(Way::Back(None)),
        Some(text) => match place(text) {
            Some(From::Cursor(cursor)) => Ok(Way::Back(Some(cursor))),
            _ => Err(Parameters::refuse("before", text, "end or the prev of an earlier page")),
        },
    }
}

/// A cursor or the id of a record.
pub(super) fn from(parameters: &Parameters<'_>, name: &str) -> Result<Option<From>, Problem> {
    let Some(text) = parameters.one(name)?.filter(|text| !text.is_empty()) else { return Ok(None) };
    place(text)
        .map(Some)
        .ok_or_else(|| Parameters::refuse(name, text, "a cursor of an earlier page or the id of a record"))
}

/// Reads a cursor or the id of a record.
pub(super) fn place(text: &str) -> Option<From> {
    let cursor = || text.parse().ok().map(From::Cursor);
    cursor().or_else(|| text.parse().ok().map(From::Record))
}

fn limit(parameters: &Parameters<'_>) -> Result<usize, Problem> {
    let allowed = format!("a whole number from 1 to {RECORDS_PER_PAGE_MAX}");
    match parameters.parse("limit", &allowed)? {
        None => Ok(LIMIT_DEFAULT),
        Some(limit) if (1..=RECORDS_PER_PAGE_MAX).contains(&limit) => Ok(limit),
        Some(limit) => Err(Parameters::refuse("limit", &limit.to_string(), allowed)),
    }
}

/// What `GET /records` takes as a body.
#[derive(Deserialize)]
#[serde(expecting = "an object: {\"offset\":0}")]
struct Asked {
    offset: u64,
}

/// `GET /records`: the record that the body asks for; without a body, how many there are.
pub(super) async fn numbered(
    State(desk): State<Desk>,
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
        return one(&desk, &headers, offset).await;
    }
    let journal = desk.journal()?;
    catch_up(journal.as_ref(), &headers).await?;
    let me = desk.me();
    let count = read(journal.as_ref(), move |db| numbers::posted(db, me)).await?;
    Ok(Json(json!({ "node": desk.host.node(), "count": count })).into_response())
}

/// `GET /records/{offset}`.
pub(super) async fn at(
    State(desk): State<Desk>,
    offset: Result<Path<String>, PathRejection>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    Parameters::read(uri.query(), &[])?;
    let offset = offset.ok().and_then(|Path(offset)| offset.parse().ok());
    // What is no number is the offset of nothing.
    let offset = offset.ok_or_else(|| Problem::not_found("an offset is a whole number from 0"))?;
    one(&desk, &headers, offset).await
}

async fn one(desk: &Desk, headers: &HeaderMap, offset: u64) -> Result<Response, Problem> {
    let journal = desk.journal()?;
    catch_up(journal.as_ref(), headers).await?;
    let me = desk.me();
    match read(journal.as_ref(), move |db| numbers::at_offset(db, me, offset)).await? {
        Found::Here(value) => {
            let value = BASE64.encode(value);
            Ok(Json(json!({ "record": { "value": value, "offset": offset } })).into_response())
        }
        Found::Dropped => {
            Err(Problem::new(StatusCode::GONE, format!("the record at offset {offset} is no longer kept")))
        }
        Found::PastTheEnd(count) => {
            let detail = format!("no record has the offset {offset}: this node has {count}, from 0");
            Err(Problem::not_found(detail).with("count", count))
        }
    }
}
