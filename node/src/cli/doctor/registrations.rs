//! Judging the programs that are registered with the asked node: which check fails, and why.

use http::Method;

use super::super::{
    answers::{Check, Registration, Registrations},
    checks::first_line,
    client::Client,
};
use super::Finding;

/// What the node holds; an older one does not say.
pub(super) async fn held(client: &Client) -> Option<Registrations> {
    client.ask(Method::GET, "/registrations").await.ok()?.expect_success().ok()?.json().ok()
}

/// One finding for each program that is not passing, or for all that are.
pub(super) fn judge(held: &Registrations) -> Vec<Finding> {
    let mut findings: Vec<_> = held.registrations.iter().flat_map(judge_one).collect();
    findings.extend(held.files.iter().map(|file| {
        let error = file.error.as_deref().unwrap_or("it is not in effect");
        Finding::fail(
            format!("the file of registrations {} is refused: {error}", file.path),
            "mend it; the node reads it again by itself",
        )
    }));
    if findings.is_empty() && !held.registrations.is_empty() {
        let count = held.registrations.len();
        findings.push(Finding::ok(format!("registered with it: {count}; all are passing")));
    }
    findings
}

fn judge_one(registration: &Registration) -> Vec<Finding> {
    let id = &registration.id;
    if let Some(reason) = registration.drained() {
        let why = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        let advice = format!("`node drain {id} --undo` puts it back into service");
        return vec![Finding::warn(format!("{id} is drained{why}"), advice)];
    }
    let failing = registration.checks.iter().filter(|check| check.status != "passing");
    failing.map(|check| judge_check(id, check)).collect()
}

fn judge_check(id: &str, check: &Check) -> Finding {
    let name = if check.name.is_empty() { &check.id } else { &check.name };
    let said = match first_line(&check.output) {
        said if said.is_empty() => "it has not run yet".to_owned(),
        said => said,
    };
    let what = format!("{id}: the {} check {name:?} is {}: {said}", check.kind, check.status);
    let advice =
        format!("see to the program; `node checks {id}` shows the check, `node why {id}` since when");
    match check.status.as_str() {
        "critical" => Finding::fail(what, advice),
        _ => Finding::warn(what, advice),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::doctor::Verdict;

    #[test]
    fn a_failing_check_is_named_with_its_reason() {
        let held: Registrations = serde_json::from_value(json!({
            "node": "a",
            "registrations": [
                {"id": "w1", "health": "critical", "checks": [
                    {"id": "c1", "name": "up", "kind": "http", "status": "critical", "output": "503 Service Unavailable\nmore"},
                    {"id": "c2", "kind": "tcp", "status": "passing"}]},
                {"id": "w2", "health": "warning", "checks": [{"id": "c3", "kind": "ttl", "status": "warning", "output": "slow"}]},
                {"id": "w3", "health": "critical", "maintenance": {"reason": "new disk"}, "checks": []},
            ],
            "files": [{"path": "/etc/hearsay/x.toml", "error": "line 3: no name"}],
        }))
        .unwrap();
        let findings = judge(&held);
        let said: Vec<_> = findings.iter().map(|finding| (finding.verdict, finding.what.as_str())).collect();
        assert_eq!(
            said,
            [
                (Verdict::Fail, "w1: the http check \"up\" is critical: 503 Service Unavailable"),
                (Verdict::Warn, "w2: the ttl check \"c3\" is warning: slow"),
                (Verdict::Warn, "w3 is drained: new disk"),
                (Verdict::Fail, "the file of registrations /etc/hearsay/x.toml is refused: line 3: no name"),
            ]
        );
    }

    #[test]
    fn programs_that_pass_are_one_line_and_none_are_no_line() {
        assert_eq!(judge(&Registrations::default()), []);
        let passing = json!({"registrations": [{"id": "w", "health": "passing", "checks": []}]});
        let findings = judge(&serde_json::from_value(passing).unwrap());
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].verdict, Verdict::Ok);
    }
}
