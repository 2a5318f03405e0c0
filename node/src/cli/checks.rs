//! `node checks`: prints the state of the health checks that a node runs for registered programs.

use serde_json::Value;

use super::{
    client::Client,
    failure::Failure,
    output::{Output, Tone},
    responses::{Registration, Registrations, age},
};

/// Maximum number of characters of an output in a table.
const OUTPUT_CHARS_MAX: usize = 80;

/// Prints the checks of all instances, or of those with this id or service.
pub(super) async fn print_checks(client: &Client, output: Output, name: Option<&str>) -> Result<(), Failure> {
    let answer = client.get("/registrations").await?;
    let matches = |id: &str, service: &str| name.is_none_or(|name| name == id || name == service);
    let mut response: Registrations = answer.json()?;
    response.registrations.retain(|registration| matches(&registration.id, &registration.name));
    if let (Some(name), true) = (name, response.registrations.is_empty()) {
        return Err(Failure::NoMatch(format!(
            "the node {} has no instance with the id or service {name:?}; `node services` lists the nodes of each service",
            response.node
        )));
    }
    if output.json {
        let mut all: Value = answer.json()?;
        if let Some(list) = all.get_mut("registrations").and_then(Value::as_array_mut) {
            let text = |entry: &Value, key: &str| entry[key].as_str().unwrap_or_default().to_owned();
            list.retain(|entry| matches(&text(entry, "id"), &text(entry, "name")));
        }
        return output.json(all.to_string().as_bytes());
    }
    if response.registrations.is_empty() && response.files.is_empty() {
        let line = "no program is registered with this node; `node register` or `node run` registers one";
        return output.line(Tone::Plain, line);
    }
    let rows: Vec<_> = response.registrations.iter().flat_map(rows_of).collect();
    output.table(&["INSTANCE", "CHECK", "KIND", "STATUS", "AGE", "LAST RUN", "OUTPUT"], &rows)?;
    if let Some(reason) = &response.maintenance {
        let line =
            format!("the node {} and all its instances are drained: {}", response.node, first_line(reason));
        output.line(Tone::Warning, &line)?;
    }
    for file in &response.files {
        let error = file.error.as_deref().unwrap_or("it is not in effect");
        output.line(Tone::Bad, &format!("{}: {error}", file.path))?;
    }
    Ok(())
}

/// Returns a row per check, and one for an instance that is drained or has no checks.
fn rows_of(registration: &Registration) -> Vec<(Tone, Vec<String>)> {
    let row = |cells: [&str; 7]| cells.map(str::to_owned).to_vec();
    let mut rows = Vec::new();
    if let Some(reason) = registration.drained() {
        rows.push((Tone::Warning, row([&registration.id, "", "drain", "critical", "", "", &reason])));
    } else if registration.checks.is_empty() {
        let health = registration.health.as_str();
        rows.push((Tone::of(health), row([&registration.id, "", "", health, "", "", ""])));
    }
    rows.extend(registration.checks.iter().map(|check| {
        let name = if check.name.is_empty() { &check.id } else { &check.name };
        let last_run = match age(&check.last_run) {
            age if age.is_empty() => age,
            age => format!("{age} ago"),
        };
        let (since, output) = (age(&check.since), first_line(&check.output));
        let cells = [&registration.id, name, &check.kind, &check.status, &since, &last_run, &output];
        (Tone::of(&check.status), cells.map(String::clone).to_vec())
    }));
    rows
}

/// Returns the first line of an output, truncated for a table.
pub(super) fn first_line(output: &str) -> String {
    let line = output.trim().lines().next().unwrap_or_default();
    match line.char_indices().nth(OUTPUT_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}
