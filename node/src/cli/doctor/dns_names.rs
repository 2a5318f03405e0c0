//! Findings of `node doctor` about names in DNS: names that need one label, tags that differ in case only,
//! and names that DNS cannot carry.

use hearsay_protocol::dns_label;

use super::super::{
    client::Client,
    responses::{Members, Services},
};
use super::Finding;
use crate::apis::dns::clashes::{clashes_of_names, clashes_of_tags};

/// Maximum number of findings of one kind.
const FINDINGS_MAX: usize = 10;

/// Returns the services that the node lists; `None` if it does not answer.
pub(super) async fn get_services(client: &Client) -> Option<Services> {
    client.get("/services").await.ok()?.json().ok()
}

/// Returns a finding per name clash and per name without a DNS name, and none without them.
pub(super) fn judge(services: &Services, members: &Members) -> Vec<Finding> {
    let nodes = || members.members.iter().filter(|member| member.is_present()).map(|m| m.name.as_str());
    let names = || services.services.keys().map(String::as_str);
    let mut findings = judge_names("service", names());
    findings.extend(judge_names("node", nodes()));
    findings.extend(bounded(services.services.iter().flat_map(|(service, instances)| {
        let tags = instances.iter().flat_map(|instance| instance.tags.iter().map(String::as_str));
        clashes_of_tags(tags).into_iter().map(move |clash| {
            Finding::warn(
                format!(
                    "DNS does not tell these tags of the service {service:?} apart: {}; a query for one gets the instances of all",
                    quoted(&clash.names)
                ),
                "write the tag in one way at all instances",
            )
        })
    })));
    findings
}

/// Findings about the names of a kind, `service` or `node`.
fn judge_names<'a>(kind: &str, names: impl Iterator<Item = &'a str> + Clone) -> Vec<Finding> {
    let clashes = clashes_of_names(names.clone()).into_iter().map(|clash| {
        let (form, first) = (&clash.form, clash.names.first().map(String::as_str).unwrap_or_default());
        Finding::warn(
            format!(
                "several {kind}s have the DNS name {form}.{kind}.hearsay: {}; DNS answers for {first:?} only",
                quoted(&clash.names)
            ),
            "rename all but one; DNS takes dots and spaces for '-' and capitals for small letters",
        )
    });
    let unnamed = names.filter(|name| dns_label(name).is_none()).map(|name| {
        Finding::warn(
            format!("the {kind} {name:?} has no DNS name: its name is longer than 63 bytes"),
            "shorten the name; HTTP and the gateway work in spite of this",
        )
    });
    bounded(clashes).into_iter().chain(bounded(unnamed)).collect()
}

/// The first findings, and one for the rest.
fn bounded(findings: impl Iterator<Item = Finding>) -> Vec<Finding> {
    let mut findings: Vec<Finding> = findings.collect();
    let more = findings.len().saturating_sub(FINDINGS_MAX);
    findings.truncate(FINDINGS_MAX);
    if more > 0 {
        findings.push(Finding::warn(
            format!("DNS names: {more} more findings of this kind"),
            "correct those above, then run the command again",
        ));
    }
    findings
}

fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::Verdict, *};

    #[test]
    fn clashes_are_named_with_the_name_that_answers() {
        let instances =
            |tags: &[&str]| json!(tags.iter().map(|tag| json!({ "tags": [tag] })).collect::<Vec<_>>());
        let long = "x".repeat(64);
        let services: Services = serde_json::from_value(json!({ "services": {
            "My Web": instances(&["V1", "v2"]), "my-web": instances(&["v1"]), "db": instances(&["A", "a"]), &long: [],
        }}))
        .unwrap();
        let members: Members = serde_json::from_value(json!({ "members": [
            { "name": "n 1", "state": "alive" }, { "name": "N.1", "state": "suspect" },
            { "name": "n-1", "state": "failed" },
        ]}))
        .unwrap();
        let findings = judge(&services, &members);
        let said: Vec<_> = findings.iter().map(|finding| finding.what.as_str()).collect();
        assert_eq!(
            said,
            [
                "several services have the DNS name my-web.service.hearsay: \"my-web\", \"My Web\"; DNS answers for \"my-web\" only",
                &format!("the service {long:?} has no DNS name: its name is longer than 63 bytes"),
                "several nodes have the DNS name n-1.node.hearsay: \"N.1\", \"n 1\"; DNS answers for \"N.1\" only",
                "DNS does not tell these tags of the service \"db\" apart: \"a\", \"A\"; a query for one gets the instances of all",
            ]
        );
        assert!(findings.iter().all(|finding| finding.verdict == Verdict::Warn));
        assert_eq!(judge(&Services::default(), &Members::default()), []);
    }

    #[test]
    fn the_findings_are_bounded() {
        let names: Vec<String> = (0..30).flat_map(|n| [format!("a {n}"), format!("a-{n}")]).collect();
        let findings = judge_names("service", names.iter().map(String::as_str));
        assert_eq!(findings.len(), FINDINGS_MAX + 1);
        assert!(findings[FINDINGS_MAX].what.contains("20 more"), "{findings:?}");
    }
}
