//! Tools that read: the path that each one requests, and the part of the answer that an agent gets.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::{
    backend::{Backend, ToolError, ToolRequest},
    page::{self, RESULT_BYTES_MAX},
    parameter::Arguments,
};
use crate::escape::percent_encoded;

/// Tags of a service that are listed.
const TAGS_LISTED_MAX: usize = 32;
/// Filters of instances, by their names in the tools and in the API.
const FILTERS: [&str; 3] = ["tag", "health", "zone"];

/// Health of an instance that the table guard keeps listed. The API has no filter for it; the tools have.
pub(super) const UNVERIFIED: &str = "unverified";

/// A result, before it is cut.
type Object = Map<String, Value>;

async fn get(backend: &impl Backend, target: String) -> Result<Object, ToolError> {
    match backend.send(ToolRequest::read(target)).await?.json()? {
        Value::Object(object) => Ok(object),
        _ => Err(ToolError::new("the response is not one of a Hearsay node: no JSON object")),
    }
}

/// Returns a path with the given arguments of these names as its query.
fn with_query(path: &str, pairs: impl IntoIterator<Item = (&'static str, Option<String>)>) -> String {
    let pairs = pairs.into_iter().filter_map(|(name, value)| Some((name, value?)));
    let pairs: Vec<String> =
        pairs.map(|(name, value)| format!("{name}={}", percent_encoded(&value))).collect();
    if pairs.is_empty() { path.to_owned() } else { format!("{path}?{}", pairs.join("&")) }
}

fn filters(arguments: &Arguments) -> impl Iterator<Item = (&'static str, Option<String>)> {
    let of_api = |name| arguments.text(name).filter(|text| name != "health" || *text != UNVERIFIED);
    FILTERS.map(|name| (name, of_api(name).map(str::to_owned))).into_iter()
}

/// Applies to the instances of a service the filter that the API lacks. Returns whether the service stays.
fn keep_meant(arguments: &Arguments, instances: &mut Value) -> bool {
    if arguments.text("health") != Some(UNVERIFIED) {
        return true;
    }
    let Some(instances) = instances.as_array_mut() else { return false };
    instances.retain(|instance| instance["health"] == UNVERIFIED);
    !instances.is_empty()
}

/// Returns the page of a result that the arguments ask for.
fn page_of(mut result: Object, key: &str, arguments: &Arguments) -> Value {
    page::cut(&mut result, key, arguments.number("offset"), arguments.number("limit"));
    result.into()
}

/// Returns the facts of an answer that tell which node has answered.
fn of_answer(mut answer: Object) -> Object {
    answer.retain(|key, _| ["cluster", "node"].contains(&key.as_str()));
    answer
}

/// `list_services`.
pub(super) async fn list_services(backend: &impl Backend, arguments: &Arguments) -> Result<Value, ToolError> {
    let mut answer = get(backend, with_query("/services", filters(arguments))).await?;
    let mut services = answer.remove("services").unwrap_or_default();
    if let Some(services) = services.as_object_mut() {
        services.retain(|_, instances| keep_meant(arguments, instances));
    }
    let part = arguments.text("name").map(str::to_lowercase);
    let is_meant = |name: &str| part.as_ref().is_none_or(|part| name.to_lowercase().contains(part));
    let services = services.as_object().into_iter().flatten().filter(|(name, _)| is_meant(name));
    let services: Vec<Value> = services.map(|(name, instances)| summary(name, instances)).collect();
    let mut result = of_answer(answer);
    result.insert("services".to_owned(), services.into());
    Ok(page_of(result, "services", arguments))
}

/// Summarises the instances of a service.
fn summary(name: &str, instances: &Value) -> Value {
    let instances = instances.as_array().map(Vec::as_slice).unwrap_or_default();
    let count = |health: &str| instances.iter().filter(|instance| instance["health"] == health).count();
    let tags = instances.iter().filter_map(|instance| instance["tags"].as_array()).flatten();
    let tags: BTreeSet<&str> = tags.filter_map(Value::as_str).collect();
    let mut summary = json!({
        "name": name, "instances": instances.len(), "passing": count("passing"), "warning": count("warning"),
        "critical": count("critical"), "unverified": count(UNVERIFIED),
        "tags": tags.iter().take(TAGS_LISTED_MAX).collect::<Vec<_>>(),
    });
    if TAGS_LISTED_MAX < tags.len() {
        summary["tags_omitted"] = (tags.len() - TAGS_LISTED_MAX).into();
    }
    summary
}

/// `get_service`.
pub(super) async fn get_service(backend: &impl Backend, arguments: &Arguments) -> Result<Value, ToolError> {
    let name = arguments.required("name");
    if arguments.text("instance").is_some() {
        let others = [&FILTERS[..], &["nearest_first", "limit", "offset"]].concat();
        if let Some(other) = arguments.first_of(&others) {
            return Err(ToolError::new(format!("{other}: goes without instance; leave one of them out")));
        }
        let target = format!("/services/{}/{}", arguments.segment("name"), arguments.segment("instance"));
        return get(backend, target).await.map(|instance| json!({ "instance": instance }));
    }
    let near = arguments.flag("nearest_first").then(|| "_self".to_owned());
    let query = filters(arguments).chain([("near", near)]);
    let mut answer =
        get(backend, with_query(&format!("/services/{}", arguments.segment("name")), query)).await?;
    let instances = answer.get_mut("services").and_then(|services| services.get_mut(name)).map(Value::take);
    let mut instances = instances.unwrap_or_else(|| json!([]));
    keep_meant(arguments, &mut instances);
    let mut result = of_answer(answer);
    result.insert("service".to_owned(), name.into());
    result.insert("instances".to_owned(), instances);
    Ok(page_of(result, "instances", arguments))
}

/// `list_members`.
pub(super) async fn list_members(backend: &impl Backend, arguments: &Arguments) -> Result<Value, ToolError> {
    let mut answer = get(backend, "/members".to_owned()).await?;
    let Some(Value::Array(mut members)) = answer.remove("members") else {
        return Err(ToolError::new("the response is not one of a Hearsay node: it has no members"));
    };
    let mut states = BTreeMap::<String, usize>::new();
    for member in &members {
        *states.entry(member["state"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
    }
    let has_role = |member: &Value, role: &str| {
        member["roles"].as_array().is_some_and(|roles| roles.iter().any(|has| has == role))
    };
    members.retain(|member| {
        arguments.text("state").is_none_or(|state| member["state"] == state)
            && arguments.text("role").is_none_or(|role| has_role(member, role))
    });
    members
        .sort_by(|a, b| (a["name"].as_str(), a["id"].as_str()).cmp(&(b["name"].as_str(), b["id"].as_str())));
    let mut result = of_answer(answer);
    result.insert("states".to_owned(), json!(states));
    result.insert("members".to_owned(), members.into());
    Ok(page_of(result, "members", arguments))
}

/// `why`.
pub(super) async fn why(backend: &impl Backend, arguments: &Arguments) -> Result<Value, ToolError> {
    let mut answer = get(backend, format!("/why/{}", arguments.segment("subject"))).await?;
    if let Some(Value::Array(events)) = answer.get_mut("events") {
        let omitted = page::keep_last(events, arguments.number("limit"));
        answer.insert("omitted".to_owned(), omitted.into());
    }
    Ok(answer.into())
}

/// `search_log`.
pub(super) async fn search_log(backend: &impl Backend, arguments: &Arguments) -> Result<Value, ToolError> {
    let text = |name| arguments.text(name).map(str::to_owned);
    let target = with_query(
        "/log",
        [
            ("before", Some(text("before").unwrap_or_else(|| "end".to_owned()))),
            ("limit", Some(arguments.number("limit").to_string())),
            ("service", text("service")),
            ("level", text("level")),
            ("q", text("words")),
        ],
    );
    let mut log = backend.read_log(target).await?.json()?;
    let records = log["records"].as_array_mut().map(std::mem::take).unwrap_or_default();
    let records: Vec<Value> =
        records.into_iter().map(|record| cut_record(record, arguments.number("message_chars"))).collect();
    let result = json!({ "records": records, "prev": log["prev"] });
    let bytes = result.to_string().len();
    if RESULT_BYTES_MAX < bytes {
        let detail =
            format!("the result has {bytes} bytes, over {RESULT_BYTES_MAX}; lower limit or message_chars");
        return Err(ToolError::new(detail));
    }
    Ok(result)
}

fn cut_record(mut record: Value, message_chars: usize) -> Value {
    if let Some(Value::String(message)) = record.get_mut("message") {
        page::cut_text(message, message_chars);
    }
    record
}

/// `dependencies`.
pub(super) async fn dependencies(backend: &impl Backend, arguments: &Arguments) -> Result<Value, ToolError> {
    let mut answer = get(backend, "/dependencies".to_owned()).await?;
    let Some(Value::Array(mut services)) = answer.remove("services") else {
        return Err(ToolError::new("the response is not one of a Hearsay node: it has no services"));
    };
    if let Some(name) = arguments.text("service") {
        services = neighbours(services, name)?;
    }
    if arguments.flag("missing_only") {
        services.retain(|service| service["missing"].as_array().is_some_and(|missing| !missing.is_empty()));
    }
    let mut result = of_answer(answer);
    result.insert("services".to_owned(), services.into());
    Ok(page_of(result, "services", arguments))
}

/// Returns a service, those that it requires, and those that require it.
fn neighbours(services: Vec<Value>, name: &str) -> Result<Vec<Value>, ToolError> {
    let requires = |service: &Value, name: &str| {
        service["requires"].as_array().is_some_and(|required| required.iter().any(|other| other == name))
    };
    let Some(subject) = services.iter().find(|service| service["name"] == name).cloned() else {
        let detail =
            format!("no service {name:?} is known here, and none requires it; list_services lists them");
        return Err(ToolError::new(detail));
    };
    let is_near = |service: &Value| {
        let is_required = service["name"].as_str().is_some_and(|other| requires(&subject, other));
        service["name"] == name || is_required || requires(service, name)
    };
    Ok(services.into_iter().filter(is_near).collect())
}
