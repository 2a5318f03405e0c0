//! Findings of `node doctor` about the programs registered with a node: failing checks, programs in
//! maintenance, and registration files that the node refused.

use http::Method;

use super::super::{
    checks::first_line,
    client::Client,
    responses::{Check, Registration, Registrations},
};
use super::Finding;

/// Returns the registrations of the node; `None`: an older node.
pub(super) async fn get_registrations(client: &Client) -> Option<Registrations> {
    client.request(Method::GET, "/registrations").await.ok()?.expect_success().ok()?.json().ok()
}

/// Returns a finding per failing check, drain and refused file, or one if all programs pass.
pub(super) fn judge(own: &Registrations) -> Vec<Finding> {
    let mut findings: Vec<_> = own.registrations.iter().flat_map(judge_registration).collect();
    findings.extend(own.files.iter().map(|file| {
        let error = file.error.as_deref().unwrap_or("it is not in effect");
        Finding::fail(
            format!("the file of registrations {} is refused: {error}", file.path),
            "correct it; the node reads it again after the change",
        )
    }));
    if findings.is_empty() && !own.registrations.is_empty() {
        let count = own.registrations.len();
        findings.push(Finding::ok(format!("programs registered with it: {count}; all are passing")));
    }
    findings
}

fn judge_registration(registration: &Registration) -> Vec<Finding> {
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
    let output = match first_line(&check.output) {
        output if output.is_empty() => "it has not run yet".to_owned(),
        output => output,
    };
    let what = format!("{id}: the {} check {name:?} is {}: {output}", check.kind, check.status);
    let advice = format!("check the program; `node checks {id}` shows the check, `node why {id}` the time");
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
        let own: Registrations = serde_json::from_value(json!({
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
        let findings = judge(&own);
        let output: Vec<_> =
            findings.iter().map(|finding| (finding.verdict, finding.what.as_str())).collect();
        assert_eq!(
            output,
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
