//! Facts for `node doctor`: TCP connects to members' swarm ports, HTTP requests to members, and a search for
//! nodes on this machine.

use std::time::Duration;

use futures::{StreamExt as _, stream};
use http::{Method, StatusCode};
use libp2p::{Multiaddr, multiaddr::Protocol};
use tokio::{net::TcpStream, time::timeout};

use super::super::{
    client::Client,
    responses::{Member, Members},
};
use crate::config::HTTP_PORT;

/// Maximum number of members probed. Guess: a problem of the cluster also shows among a hundred.
const MEMBERS_MAX: usize = 100;
/// Concurrent probes.
const CONCURRENCY_MAX: usize = 16;
/// Connect timeout. Leaves time for one lost packet and its retransmission (1 s).
const CONNECT_MAX: Duration = Duration::from_millis(1500);
/// Ports of the HTTP ladder that are probed on this host.
const RUNGS: u16 = 16;
/// Delay before a difference in state is checked again. Anti-entropy is faster if the connection works.
pub(super) const RECHECK_DELAY: Duration = Duration::from_secs(2);

/// Results of connects to a member's addresses.
#[derive(Debug)]
pub(super) struct Reachability {
    pub(super) name: String,
    /// Each address with its result.
    pub(super) attempts: Vec<(String, Result<(), String>)>,
}

/// A member's view of the cluster, or the error.
#[derive(Debug)]
pub(super) struct MemberReport {
    pub(super) name: String,
    pub(super) view: Result<Members, String>,
}

fn present(members: &Members) -> impl Iterator<Item = Member> {
    members
        .members
        .iter()
        .filter(|member| member.is_present())
        .take(MEMBERS_MAX)
        .cloned()
        .collect::<Vec<_>>()
        .into_iter()
}

/// Opens and closes a TCP connection to each swarm address of each alive or suspect member.
pub(super) async fn connect_members(members: &Members) -> Vec<Reachability> {
    let reach = |member: Member| async move {
        let mut attempts = Vec::new();
        for address in member.addresses {
            let reached = try_connect(&address).await;
            attempts.push((address, reached));
        }
        Reachability { name: member.name, attempts }
    };
    stream::iter(present(members)).map(reach).buffered(CONCURRENCY_MAX).collect().await
}

async fn try_connect(address: &str) -> Result<(), String> {
    let (host, port) = tcp_target(address).ok_or("no TCP address")?;
    match timeout(CONNECT_MAX, TcpStream::connect((host.as_str(), port))).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer".into()),
    }
}

/// Returns host and port of a multiaddr such as `/ip4/10.0.0.1/tcp/7600`.
pub(super) fn tcp_target(address: &str) -> Option<(String, u16)> {
    let address: Multiaddr = address.parse().ok()?;
    let mut parts = address.iter();
    let host = match parts.next()? {
        Protocol::Ip4(ip) => ip.to_string(),
        Protocol::Ip6(ip) => ip.to_string(),
        Protocol::Dns(name) | Protocol::Dns4(name) | Protocol::Dns6(name) => name.into_owned(),
        _ => return None,
    };
    match parts.next()? {
        Protocol::Tcp(port) => Some((host, port)),
        _ => None,
    }
}

/// Requests the view of the cluster from each alive or suspect member.
pub(super) async fn query_members(members: &Members) -> Vec<MemberReport> {
    let query_member = |member: Member| async move {
        let view = match &member.http {
            Some(http) => query(http, &http_addresses(http, &member.addresses)).await,
            None => Err("it has no HTTP address".into()),
        };
        MemberReport { name: member.name, view }
    };
    stream::iter(present(members)).map(query_member).buffered(CONCURRENCY_MAX).collect().await
}

/// Returns the nodes at the first ports of this host's HTTP ladder, members or not.
pub(super) async fn find_local_nodes(excluded: &Client) -> Vec<Members> {
    let urls = (HTTP_PORT..HTTP_PORT + RUNGS).map(|port| format!("http://127.0.0.1:{port}"));
    let urls: Vec<_> = urls.filter(|url| Some(url) != excluded.origin().as_ref()).collect();
    let answers =
        stream::iter(urls).map(|url| async move { query(&url, &[]).await.ok() }).buffered(CONCURRENCY_MAX);
    // Another program may answer there; only a node states its name.
    answers.filter_map(async |view| view.filter(|members| !members.node.is_empty())).collect().await
}

/// Returns the addresses of a member's HTTP. If the stated host is one of the member's swarm hosts, HTTP is
/// assumed at the other hosts, too. Otherwise the port is mapped, or HTTP listens at one address only.
fn http_addresses(http: &str, swarm: &[String]) -> Vec<String> {
    let mut addresses = vec![http.to_owned()];
    let hosts =
        swarm.iter().filter_map(|address| tcp_target(address)).map(|(host, _)| match host.contains(':') {
            true => format!("[{host}]"),
            false => host,
        });
    if let Some((stated, port)) = http.rsplit_once(':') {
        let hosts: Vec<String> = hosts.collect();
        if hosts.iter().any(|host| host == stated) {
            let others = hosts.iter().filter(|host| *host != stated);
            addresses.extend(others.map(|host| format!("{host}:{port}")));
        }
    }
    addresses
}

/// Error for a member that requires proof for reads (`--private`). Its token is not known here.
pub(super) const PRIVATE: &str = "it is private";

async fn query(url: &str, addresses: &[String]) -> Result<Members, String> {
    let client = Client::with_addresses(url, addresses).map_err(|failure| failure.to_string())?;
    let answer = client.request(Method::GET, "/members").await.map_err(|failure| failure.to_string())?;
    if answer.status == StatusCode::UNAUTHORIZED {
        return Err(PRIVATE.to_owned());
    }
    let answer = answer.expect_success().map_err(|failure| failure.to_string())?;
    answer.json().map_err(|failure| failure.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_members_http_is_looked_for_at_all_its_addresses_unless_it_states_one_of_its_own() {
        let swarm = ["/ip4/10.0.0.1/tcp/7600", "/ip6/fd77::1/tcp/7600"].map(str::to_owned);
        assert_eq!(http_addresses("10.0.0.1:7500", &swarm), ["10.0.0.1:7500", "[fd77::1]:7500"]);
        assert_eq!(http_addresses("[fd77::1]:7500", &swarm), ["[fd77::1]:7500", "10.0.0.1:7500"]);
        assert_eq!(http_addresses("db.example:17500", &swarm), ["db.example:17500"]);
    }

    #[test]
    fn a_swarm_address_is_understood_as_host_and_port() {
        for (text, expected) in [
            ("/ip4/10.0.0.1/tcp/7600", Some(("10.0.0.1", 7600))),
            ("/ip6/::1/tcp/1", Some(("::1", 1))),
            (
                "/dns4/db/tcp/7600/p2p/12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X",
                Some(("db", 7600)),
            ),
            ("/ip4/10.0.0.1/udp/7600", None),
            ("10.0.0.1:7600", None),
        ] {
            assert_eq!(tcp_target(text), expected.map(|(host, port)| (host.to_owned(), port)), "{text}");
        }
    }
}
