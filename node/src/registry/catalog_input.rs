//! Parses the bodies of `PUT /v1/catalog/register` and `/v1/catalog/deregister` into the form of Consul's
//! agent.
//!
//! The keys are those of Consul's API documentation. A check of the catalog has a status, and in its
//! `Definition` perhaps what a node can run. Without that it keeps its status as a TTL check of a year.

use hearsay_protocol::Invalid;
use serde_json::{Map, Value};

use super::{
    consul_input::{is_blank, parse},
    input::fields::{Fields, invalid},
};

/// Keys of a service that mean the same as in a registration with the agent.
const OF_SERVICE: [&str; 10] = [
    "id",
    "service",
    "tags",
    "meta",
    "port",
    "ports",
    "address",
    "taggedaddresses",
    "weights",
    "enabletagoverride",
];
/// Keys of a check that mean the same as in a registration with the agent.
const OF_CHECK: [&str; 4] = ["checkid", "name", "notes", "status"];
/// Kinds of checks that a definition can state.
const KINDS: [&str; 5] = ["http", "tcp", "udp", "grpc", "h2ping"];
/// Other keys of a definition that mean the same as in a registration with the agent.
const OF_DEFINITION: [&str; 11] = [
    "interval",
    "timeout",
    "method",
    "header",
    "body",
    "tlsskipverify",
    "tlsservername",
    "tcpusetls",
    "grpcusetls",
    "h2pingusetls",
    "deregistercriticalserviceafter",
];
/// TTL of a check that has a status alone: the longest of the registry.
const TTL: &str = "8760h";

/// A registration by the catalog.
#[derive(Debug, PartialEq)]
pub struct CatalogRegistration {
    /// Name of the node in whose name it is entered.
    pub node: String,
    /// What it is, in the form of Consul's agent.
    pub content: CatalogContent,
}

/// Content of a [`CatalogRegistration`], in the form of Consul's agent.
#[derive(Debug, PartialEq)]
pub enum CatalogContent {
    /// A service with its checks.
    Service(Vec<u8>),
    /// A check of a service that is registered already.
    Check(Vec<u8>),
    /// The node alone.
    Node,
}

/// A removal by the catalog.
#[derive(Debug, PartialEq, Eq)]
pub struct CatalogRemoval {
    /// Name of its node; empty for the node that is asked.
    pub node: String,
    /// Id of the service.
    pub service: Option<String>,
    /// Id of the check. It comes first if both are given.
    pub check: Option<String>,
}

impl CatalogRegistration {
    /// Parses a body. The address of a node other than `own` is that of a service that states none.
    ///
    /// # Errors
    /// Names the field and the allowed values.
    pub fn parse(body: &[u8], own: &str) -> Result<Self, Invalid> {
        let fields = Fields::of("body", parse(body)?)?;
        let node = node_of(&fields)?;
        let checks: Vec<Value> =
            fields.value("check").into_iter().chain(fields.array("checks")?.into_iter().flatten()).collect();
        // Some clients send an empty object if they have no check.
        let is_given = |check: &Value| check.as_object().is_none_or(|check| !check.values().all(is_blank));
        let checks = checks.into_iter().filter(is_given);
        let checks: Vec<Fields> = checks.map(|check| Fields::of("Check", check)).collect::<Result<_, _>>()?;
        let Some(service) = fields.value("service") else {
            let content = match checks.as_slice() {
                [] => CatalogContent::Node,
                [check] => CatalogContent::Check(check_of_service(check)?),
                // The first could be registered, and the second refused.
                _ => return Err(invalid("Checks", "has several; without a Service, a request takes one")),
            };
            return Ok(Self { node, content });
        };
        let service = Fields::of("Service", service)?;
        let mut agent = copied(&service, &OF_SERVICE);
        if service.text("address", &[])?.is_none_or(|address| address.is_empty()) && node != own {
            let address =
                fields.text("address", &[])?.filter(|address| !address.is_empty()).ok_or_else(|| {
                    invalid("Address", "is missing; it is the address of a service that states none")
                })?;
            agent.insert("address".into(), address.into());
        }
        let name = service.text("service", &[])?.unwrap_or_default();
        let id = service.text("id", &[])?.filter(|id| !id.is_empty()).unwrap_or(name);
        let mut of_service = Vec::new();
        for check in &checks {
            let of = check.text("serviceid", &[])?.filter(|of| !of.is_empty());
            if of.is_some_and(|of| of != id) {
                return Err(invalid("ServiceID", "of a check is not the ID of the service in this request"));
            }
            of_service.push(Value::Object(agent_check(check)?));
        }
        agent.insert("checks".into(), of_service.into());
        Ok(Self { node, content: CatalogContent::Service(Value::Object(agent).to_string().into()) })
    }
}

impl CatalogRemoval {
    /// Parses a body.
    ///
    /// # Errors
    /// Names the field and the allowed values.
    pub fn parse(body: &[u8]) -> Result<Self, Invalid> {
        let fields = Fields::of("body", parse(body)?)?;
        let given = |key| Ok(fields.text(key, &[])?.filter(|id| !id.is_empty()));
        let node = given("node")?.unwrap_or_default();
        Ok(Self { node, service: given("serviceid")?, check: given("checkid")? })
    }
}

fn node_of(fields: &Fields) -> Result<String, Invalid> {
    let node = fields.text("node", &[])?.filter(|node| !node.is_empty());
    node.ok_or_else(|| invalid("Node", "is missing; it is the name of a node"))
}

/// Copies the given values of these keys.
fn copied(fields: &Fields, keys: &[&str]) -> Map<String, Value> {
    keys.iter().filter_map(|key| Some(((*key).to_owned(), fields.value(key)?))).collect()
}

/// Maps a check that stands alone.
fn check_of_service(check: &Fields) -> Result<Vec<u8>, Invalid> {
    let mut agent = agent_check(check)?;
    agent.extend(copied(check, &["serviceid"]));
    Ok(Value::Object(agent).to_string().into())
}

/// Maps a check to the form of Consul's agent.
fn agent_check(check: &Fields) -> Result<Map<String, Value>, Invalid> {
    let mut agent = copied(check, &OF_CHECK);
    // In the catalog, the id of a check defaults to its name.
    if check.text("checkid", &[])?.is_none_or(|id| id.is_empty()) {
        agent.extend(check.value("name").map(|name| ("checkid".to_owned(), name)));
    }
    let definition = check.value("definition").map(|of| Fields::of("Definition", of)).transpose()?;
    let is_stated = |definition: &&Fields, key: &str| {
        definition.value(key).is_some_and(|target| target.as_str().is_some_and(|target| !target.is_empty()))
    };
    match definition.as_ref().filter(|of| KINDS.iter().any(|kind| is_stated(of, kind))) {
        Some(definition) => {
            agent.extend(copied(definition, &KINDS));
            agent.extend(copied(definition, &OF_DEFINITION));
        }
        None => _ = agent.insert("ttl".into(), TTL.into()),
    }
    Ok(agent)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(body: &Value) -> Result<CatalogRegistration, Invalid> {
        CatalogRegistration::parse(body.to_string().as_bytes(), "n1")
    }

    fn agent(body: &Value) -> Value {
        match read(body).unwrap().content {
            CatalogContent::Service(agent) => serde_json::from_slice(&agent).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_service_has_the_address_of_a_foreign_node_unless_it_states_its_own() {
        let of = |node: &str, own: &str| {
            let body = json!({ "Node": node, "Address": "10.0.0.9",
                "Service": { "Service": "db", "Port": 5432, "Address": own } });
            agent(&body)["address"].clone()
        };
        assert_eq!((of("legacy", ""), of("legacy", "10.0.0.8")), ("10.0.0.9".into(), "10.0.0.8".into()));
        assert_eq!(of("n1", ""), "");
        let nowhere = read(&json!({ "Node": "legacy", "Service": { "Service": "db" } }));
        assert_eq!(nowhere.unwrap_err().field, "Address");
    }

    #[test]
    fn a_check_runs_its_definition_or_keeps_its_status() {
        let checks = |check: Value| {
            agent(
                &json!({ "Node": "x", "Address": "10.0.0.9", "Service": { "Service": "db" }, "Check": check }),
            )
        };
        let stated = checks(json!({ "CheckID": "c", "Name": "c", "Status": "passing", "ServiceID": "db" }));
        assert_eq!(
            stated["checks"][0],
            json!({ "checkid": "c", "name": "c", "status": "passing", "ttl": TTL })
        );
        let run =
            checks(json!({ "Name": "c", "Definition": { "HTTP": "http://10.0.0.9/", "Interval": "5s" } }));
        assert_eq!(
            run["checks"][0],
            json!({ "checkid": "c", "name": "c", "http": "http://10.0.0.9/", "interval": "5s" })
        );
        let refused = read(
            &json!({ "Node": "x", "Address": "10.0.0.9", "Service": { "Service": "db" }, "Check": { "ServiceID": "web" } }),
        );
        assert_eq!(refused.unwrap_err().field, "ServiceID");
    }

    #[test]
    fn a_body_without_node_is_refused_and_one_without_service_is_a_node_or_a_check() {
        assert_eq!(read(&json!({ "Address": "10.0.0.9" })).unwrap_err().field, "Node");
        assert_eq!(read(&json!({ "Node": "x" })).unwrap().content, CatalogContent::Node);
        let alone = read(&json!({ "Node": "x", "Check": { "Name": "c", "ServiceID": "db" } })).unwrap();
        assert!(matches!(alone.content, CatalogContent::Check(_)));
        let several = read(&json!({ "Node": "x", "Checks": [{ "Name": "c" }, { "Name": "d" }] }));
        assert_eq!(several.unwrap_err().field, "Checks");
        let removal = CatalogRemoval::parse(br#"{"Node":"x","ServiceID":"db"}"#).unwrap();
        assert_eq!((removal.service.as_deref(), removal.check), (Some("db"), None));
    }
}
