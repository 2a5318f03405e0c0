//! `node kv get -v`: prints the write of a key that is in effect and the one that it superseded.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::StatusCode;
use serde::Deserialize;

use super::{
    client::Answer,
    failure::Failure,
    output::{Output, Tone},
};

/// Characters of a value that are shown.
const SHOWN_CHARS_MAX: usize = 60;

/// A key with its writes, as `/v1/kv/{key}?writes` answers it. A 404 has the writes alone.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct WrittenKey {
    /// In base64.
    #[serde(default)]
    value: Option<String>,
    #[serde(default)]
    flags: u64,
    writes: Option<Writes>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Writes {
    latest: WriteOfKey,
    superseded: Option<WriteOfKey>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct WriteOfKey {
    change: String,
    node: String,
    #[serde(rename = "NodeID")]
    node_id: String,
    time: String,
    entry: String,
}

/// Prints the answer to a read with `?writes`.
///
/// # Errors
/// The key has no value (exit code 2), or the read was refused.
pub(super) fn show_writes(output: Output, key: &str, answer: Answer) -> Result<(), Failure> {
    let is_absent = answer.status == StatusCode::NOT_FOUND;
    let (written, answer) = if is_absent {
        (answer.json::<WrittenKey>()?, answer)
    } else {
        let answer = answer.expect_success()?;
        let [written] = answer.json::<[WrittenKey; 1]>()?;
        (written, answer)
    };
    if output.json {
        output.json(&answer.body)?;
    } else {
        print(output, key, &written, is_absent)?;
    }
    if is_absent { answer.expect_success().map(drop) } else { Ok(()) }
}

fn print(output: Output, key: &str, written: &WrittenKey, is_absent: bool) -> Result<(), Failure> {
    if !is_absent {
        let value = STANDARD.decode(written.value.as_deref().unwrap_or_default());
        let value = value.map_err(|error| {
            Failure::Refused(format!("the response is not one of a Hearsay node: {error}"))
        })?;
        let start: String = String::from_utf8_lossy(&value).chars().take(SHOWN_CHARS_MAX).collect();
        let size = value.len();
        output.line(Tone::Plain, &format!("{key} = {start:?} ({size} bytes, flags {})", written.flags))?;
    }
    // A key that was never written has no writes.
    let Some(writes) = &written.writes else { return Ok(()) };
    let row = |role: &str, tone, write: &WriteOfKey| {
        let node = if write.node.is_empty() { &write.node_id } else { &write.node };
        let cells = [role, &write.change, node, &write.time, &write.entry];
        (tone, cells.map(str::to_owned).to_vec())
    };
    let mut rows = vec![row("in effect", Tone::Plain, &writes.latest)];
    rows.extend(writes.superseded.as_ref().map(|write| row("superseded", Tone::Faint, write)));
    output.table(&["WRITE", "CHANGE", "NODE", "TIME", "ENTRY"], &rows)
}
