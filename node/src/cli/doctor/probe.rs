//! Gathers what the doctor judges: asks the members, knocks at their ports.

use std::time::Duration;

use futures::{StreamExt as _, stream};
use libp2p::{Multiaddr, multiaddr::Protocol};
use tokio::{net::TcpStream, time::timeout};

use super::super::{
    answers::{Member, Members},
    client::Client,
};
use crate::config::HTTP_PORT;

/// Members looked at. Guess: what keeps two nodes apart also shows among a hundred.
const MEMBERS_MAX: usize = 100;
/// Members looked at at a time.
const AT_A_TIME: usize = 16;
/// Long enough for one lost packet and its repetition (1 s).
const KNOCK_MAX: Duration = Duration::from_millis(1500);
/// Rungs of the HTTP ladder that are tried on this host.
const RUNGS: u16 = 16;
/// After which state that is still different is not just on its way: anti-entropy needs no longer on a connection that works.
pub(super) const SECOND_LOOK: Duration = Duration::from_secs(2);

/// What became of knocking at a member's addresses.
#[derive(Debug)]
pub(super) struct Reached {
    pub(super) name: String,
    /// The addresses that were tried, and what came of each.
    pub(super) attempts: Vec<(String, Result<(), String>)>,
}

/// What a member itself says of the cluster.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) name: String,
    pub(super) said: Result<Members, String>,
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

/// Opens, and closes, a TCP connection to every swarm address of every member that should be there.
pub(super) async fn reach_members(members: &Members) -> Vec<Reached> {
    let reach = |member: Member| async move {
        let mut attempts = Vec::new();
        for address in member.addresses {
            let reached = knock(&address).await;
            attempts.push((address, reached));
        }
        Reached { name: member.name, attempts }
    };
    stream::iter(present(members)).map(reach).buffered(AT_A_TIME).collect().await
}

async fn knock(address: &str) -> Result<(), String> {
    let (host, port) = tcp_target(address).ok_or("no TCP address")?;
    match timeout(KNOCK_MAX, TcpStream::connect((host.as_str(), port))).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer".into()),
    }
}

/// Host and port of a multiaddr such as `/ip4/10.0.0.1/tcp/7600`.
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

/// Asks every member that should be there how it sees the cluster.
pub(super) async fn ask_members(members: &Members) -> Vec<Told> {
    let ask = |member: Member| async move {
        let said = match &member.http {
            Some(http) => ask(http, &http_addresses(http, &member.addresses)).await,
            None => Err("it has no HTTP address".into()),
        };
        Told { name: member.name, said }
    };
    stream::iter(present(members)).map(ask).buffered(AT_A_TIME).collect().await
}

/// Asks the nodes at the first rungs of this host's HTTP ladder, whether or not anybody knows them.
pub(super) async fn nodes_on_this_host(but_not: &Client) -> Vec<Members> {
    let urls = (HTTP_PORT..HTTP_PORT + RUNGS).map(|port| format!("http://127.0.0.1:{port}"));
    let urls: Vec<_> = urls.filter(|url| Some(url) != but_not.origin().as_ref()).collect();
    let answers = stream::iter(urls).map(|url| async move { ask(&url, &[]).await.ok() }).buffered(AT_A_TIME);
    // Something else may listen there, and whatever it answers, a node names itself.
    answers.filter_map(async |said| said.filter(|members| !members.node.is_empty())).collect().await
}

/// Where a member's HTTP may be reached: at the address that it states, and at its other ones where that is
/// one of them. (Otherwise HTTP is mapped, or bound to that address alone.)
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

async fn ask(url: &str, addresses: &[String]) -> Result<Members, String> {
    let client = Client::at_any_of(url, addresses).map_err(|failure| failure.to_string())?;
    let answer = client.get("/members").await.map_err(|failure| failure.to_string())?;
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
