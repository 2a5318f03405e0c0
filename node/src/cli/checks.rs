//! `node checks`: the checks that a node runs for the programs registered with it.

use serde_json::Value;

use super::{
    answers::{Registration, Registrations, age},
    client::Client,
    failure::Failure,
    output::{Output, Tone},
};

/// How much of an output fits a line.
const OUTPUT_CHARS_MAX: usize = 80;

/// Prints the checks of all instances that the node holds, or of those whose id or service is `name`.
pub(super) async fn print_checks(client: &Client, output: Output, name: Option<&str>) -> Result<(), Failure> {
    let answer = client.get("/registrations").await?;
    let is_meant = |id: &str, service: &str| name.is_none_or(|name| name == id || name == service);
    let mut held: Registrations = answer.json()?;
    held.registrations.retain(|registration| is_meant(&registration.id, &registration.name));
    if let (Some(name), true) = (name, held.registrations.is_empty()) {
        return Err(Failure::NoMatch(format!(
            "the node {} holds no instance with the id or service {name:?}; `node services` tells which node offers what",
            held.node
        )));
    }
    if output.json {
        let mut all: Value = answer.json()?;
        if let Some(list) = all.get_mut("registrations").and_then(Value::as_array_mut) {
            let text = |one: &Value, key: &str| one[key].as_str().unwrap_or_default().to_owned();
            list.retain(|one| is_meant(&text(one, "id"), &text(one, "name")));
        }
        return output.json(all.to_string().as_bytes());
    }
    if held.registrations.is_empty() && held.files.is_empty() {
        let line = "no program is registered with this node; `node register` and `node run` register one";
        return output.line(Tone::Plain, line);
    }
    let rows: Vec<_> = held.registrations.iter().flat_map(rows_of).collect();
    output.table(&["INSTANCE", "CHECK", "KIND", "STATUS", "AGE", "LAST RUN", "OUTPUT"], &rows)?;
    if let Some(reason) = &held.maintenance {
        let line = format!(
            "the node {} is drained, and with it all that it holds: {}",
            held.node,
            first_line(reason)
        );
        output.line(Tone::Warning, &line)?;
    }
    for file in &held.files {
        let error = file.error.as_deref().unwrap_or("it is not in effect");
        output.line(Tone::Bad, &format!("{}: {error}", file.path))?;
    }
    Ok(())
}

/// One row for each check, and one for an instance without checks or that is drained.
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

/// The first line of an output, as far as it fits.
pub(super) fn first_line(output: &str) -> String {
    let line = output.trim().lines().next().unwrap_or_default();
    match line.char_indices().nth(OUTPUT_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}
