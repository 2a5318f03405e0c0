//! `node xds`: bootstrap files for Envoy and gRPC, with the address and zone of a node.
//!
//! The files are those of `deploy/`. Only the values that depend on the node are replaced, so that a file
//! that a user copied by hand and a printed one behave alike.

use std::{net::IpAddr, time::Duration};

use clap::{Args, Subcommand, ValueEnum};
use http::uri::Authority;
use serde::Deserialize;
use serde_json::json;
use tokio::{net::TcpStream, time::timeout};

use super::{
    client::Client,
    failure::Failure,
    output::Output,
    responses::{Member, Members},
};

const ENVOY: &str = include_str!("../../../deploy/envoy/bootstrap.yaml");
const GRPC: &str = include_str!("../../../deploy/grpc/bootstrap.json");

/// Connect timeout on loopback.
const CONNECT_MAX: Duration = Duration::from_secs(1);
/// Maximum number of bytes of `--id`: the longest name of a node, and a suffix.
const ID_BYTES_MAX: usize = 192;

#[derive(Debug, Subcommand)]
pub(super) enum XdsCommand {
    /// Print the bootstrap file with which Envoy or gRPC gets all services from a node
    #[command(after_help = "Examples:\n  node xds bootstrap envoy > envoy.yaml && envoy -c envoy.yaml\n  \
                            node xds bootstrap grpc > grpc.json && GRPC_XDS_BOOTSTRAP=grpc.json ./client")]
    Bootstrap(BootstrapOptions),
}

/// `node xds bootstrap`.
#[derive(Args, Clone, Debug)]
pub(super) struct BootstrapOptions {
    /// The client that reads the file
    #[arg(value_enum)]
    client: XdsClient,
    /// Id that the client states in its requests [default: envoy or grpc, and the node's name]
    #[arg(long)]
    id: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum XdsClient {
    Envoy,
    Grpc,
}

/// The part of `GET /v1/agent/self` that has the node's zone.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct OwnNode {
    #[serde(rename = "Meta")]
    meta: OwnMeta,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct OwnMeta {
    zone: Option<String>,
}

/// Values of a bootstrap file.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Bootstrap {
    id: String,
    zone: Option<String>,
    /// Host name or IP address of the node's gRPC; an IPv6 address has no brackets.
    host: String,
    port: u16,
}

pub(super) async fn run(command: &XdsCommand, client: &Client, output: Output) -> Result<(), Failure> {
    let XdsCommand::Bootstrap(options) = command;
    if output.json && options.client == XdsClient::Envoy {
        return Err(Failure::Usage("Envoy's bootstrap file is YAML; leave --json out".into()));
    }
    if let Some(id) = &options.id {
        check_id(id)?;
    }
    let members: Members = client.get("/members").await?.json()?;
    let own = find_own(&members)?;
    let advertised = advertised_grpc(own)?;
    let (host, port) = reachable_from_here(client, advertised).await;
    let node: OwnNode = client.get("/v1/agent/self").await?.json()?;
    let kind = match options.client {
        XdsClient::Envoy => "envoy",
        XdsClient::Grpc => "grpc",
    };
    let id = options.id.clone().unwrap_or_else(|| format!("{kind}-{}", own.name));
    let bootstrap = Bootstrap { id, zone: node.meta.zone, host, port };
    output.print(&match options.client {
        XdsClient::Envoy => bootstrap.for_envoy(),
        XdsClient::Grpc => bootstrap.for_grpc(),
    })
}

fn check_id(id: &str) -> Result<(), Failure> {
    if id.is_empty() || id.len() > ID_BYTES_MAX || id.chars().any(char::is_control) {
        return Err(Failure::Usage(format!(
            "--id has 1 to {ID_BYTES_MAX} bytes, without control characters; {} bytes were given",
            id.len()
        )));
    }
    Ok(())
}

/// Finds the member that answered. Failed members may have the same name.
fn find_own(members: &Members) -> Result<&Member, Failure> {
    let mut named = members.members.iter().filter(|member| member.name == members.node);
    named.find(|member| member.is_present()).ok_or_else(|| {
        Failure::Refused(format!("the node {:?} does not list itself yet; try again", members.node))
    })
}

/// Returns the gRPC address that the node advertises.
fn advertised_grpc(own: &Member) -> Result<Authority, Failure> {
    let name = &own.name;
    let Some(address) = &own.grpc else {
        return Err(Failure::NoMatch(format!(
            "the node {name:?} serves no gRPC: its log says why no port was free, or it is of an older version; \
             `node --grpc ADDRESS` chooses another port"
        )));
    };
    let authority = address.parse::<Authority>().ok().filter(|authority| authority.port_u16().is_some());
    authority.ok_or_else(|| {
        Failure::Refused(format!(
            "the node {name:?} states the gRPC address {address:?}, which is not HOST:PORT"
        ))
    })
}

/// Returns the host and port at which programs of this machine reach the node. For a node of this machine
/// that is loopback, where it listens: the advertised address may be one that only other machines use.
async fn reachable_from_here(client: &Client, advertised: Authority) -> (String, u16) {
    let port = advertised.port_u16().unwrap_or_default();
    let origin = client.origin().and_then(|origin| origin.parse::<http::Uri>().ok());
    let is_local = origin.is_none_or(|origin| origin.host().is_some_and(is_loopback));
    for host in ["127.0.0.1", "::1"].into_iter().filter(|_| is_local) {
        if let Ok(Ok(_)) = timeout(CONNECT_MAX, TcpStream::connect((host, port))).await {
            return (host.to_owned(), port);
        }
    }
    (without_brackets(advertised.host()).to_owned(), port)
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || without_brackets(host).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn without_brackets(host: &str) -> &str {
    host.trim_start_matches('[').trim_end_matches(']')
}

impl Bootstrap {
    fn is_ip(&self) -> bool {
        self.host.parse::<IpAddr>().is_ok()
    }

    /// Returns the file for Envoy. A JSON string is a YAML string, too.
    fn for_envoy(&self) -> String {
        let zone = self.zone.as_deref().unwrap_or_default();
        let kind = if self.is_ip() { "STATIC" } else { "STRICT_DNS" };
        ENVOY
            .replace("  id: \"envoy\"", &format!("  id: {}", json!(self.id)))
            .replace("locality: {zone: \"\"}", &format!("locality: {{zone: {}}}", json!(zone)))
            .replace("      type: STATIC\n", &format!("      type: {kind}\n"))
            .replace(
                "{address: 127.0.0.1, port_value: 7700}",
                &format!("{{address: {}, port_value: {}}}", json!(self.host), self.port),
            )
    }

    fn for_grpc(&self) -> String {
        let zone = self.zone.as_deref().unwrap_or_default();
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        GRPC.replace("\"127.0.0.1:7700\"", &json!(format!("{host}:{}", self.port)).to_string())
            .replace("\"id\": \"grpc\"", &format!("\"id\": {}", json!(self.id)))
            .replace("{\"zone\": \"\"}", &json!({ "zone": zone }).to_string())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn bootstrap(host: &str) -> Bootstrap {
        Bootstrap { id: "envoy \"1\"".into(), zone: Some("rack 1".into()), host: host.into(), port: 7701 }
    }

    #[test]
    fn a_file_for_envoy_differs_from_the_shipped_one_only_in_the_values_of_the_node() {
        let text = bootstrap("db1").for_envoy();
        let changed: Vec<_> = text.lines().zip(ENVOY.lines()).filter(|(new, old)| new != old).collect();
        let new: Vec<_> = changed.iter().map(|(new, _)| new.trim()).collect();
        assert_eq!(
            new,
            [
                "id: \"envoy \\\"1\\\"\"",
                "locality: {zone: \"rack 1\"}",
                "type: STRICT_DNS",
                "socket_address: {address: \"db1\", port_value: 7701}",
            ]
        );
        assert_eq!(text.lines().count(), ENVOY.lines().count());
        assert!(bootstrap("fd00::1").for_envoy().contains("      type: STATIC\n"));
    }

    #[test]
    fn a_file_for_grpc_has_the_values_of_the_node() {
        let read = |text: &str| serde_json::from_str::<Value>(text).unwrap();
        let shipped = read(GRPC);
        let mut file = read(&bootstrap("fd00::1").for_grpc());
        assert_eq!(file["node"], json!({ "id": "envoy \"1\"", "locality": { "zone": "rack 1" } }));
        assert_eq!(file["xds_servers"][0]["server_uri"], "[fd00::1]:7701");
        file["node"] = shipped["node"].clone();
        file["xds_servers"][0]["server_uri"] = shipped["xds_servers"][0]["server_uri"].clone();
        assert_eq!(file, shipped);
    }

    #[test]
    fn an_address_without_a_port_is_no_address() {
        let member = |grpc: Option<&str>| Member { grpc: grpc.map(str::to_owned), ..Member::default() };
        assert!(matches!(advertised_grpc(&member(None)), Err(Failure::NoMatch(_))));
        for wrong in ["db1", "", "db1:x", "http://db1:1"] {
            assert!(matches!(advertised_grpc(&member(Some(wrong))), Err(Failure::Refused(_))), "{wrong}");
        }
        assert_eq!(advertised_grpc(&member(Some("[fd00::1]:7700"))).unwrap().host(), "[fd00::1]");
    }

    #[test]
    fn only_loopback_is_this_machine() {
        for (host, expected) in
            [("127.0.0.1", true), ("localhost", true), ("[::1]", true), ("10.0.0.1", false), ("db1", false)]
        {
            assert_eq!(is_loopback(host), expected, "{host}");
        }
    }

    #[test]
    fn an_id_has_bounds() {
        for wrong in ["", "a\nb", &"x".repeat(ID_BYTES_MAX + 1)] {
            assert!(check_id(wrong).is_err(), "{wrong:?}");
        }
        assert!(check_id("edge-1").is_ok());
    }
}
