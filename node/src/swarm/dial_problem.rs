//! Describes in words why a dial failed.

use std::error::Error;

use libp2p::swarm::DialError;

/// Texts of errors, and their meanings. The transport's layers wrap the system's error, and only its text is
/// accessible through all of them.
const MEANINGS: [(&[&str], &str); 5] = [
    (&["ConnectionRefused", "Connection refused"], "nothing listens at this port"),
    (
        &["ConnectionReset", "Connection reset", "UnexpectedEof", "unexpected end of file"],
        "it hangs up: it is no swarm's port, or has another key",
    ),
    (&["InvalidMessage", "InvalidData", "invalid data"], "it speaks another protocol, such as HTTP"),
    (&["Timeout", "timed out", "TimedOut"], "it does not answer in time"),
    (&["HostUnreachable", "NetworkUnreachable"], "there is no route to this address"),
];

/// Returns the reason in words, never empty: the error of the system or a library, and its meaning.
pub fn dial_problem(error: &DialError) -> String {
    let DialError::Transport(attempts) = error else { return causes(error) };
    let mut problems: Vec<String> = Vec::new();
    for (_, error) in attempts {
        let (words, all) = (causes(error), format!("{error:?}"));
        let meaning = MEANINGS.iter().find(|(signs, _)| signs.iter().any(|sign| all.contains(sign)));
        let problem = match meaning {
            Some((_, meaning)) if words.is_empty() => (*meaning).to_owned(),
            Some((_, meaning)) => format!("{words}; {meaning}"),
            None if words.is_empty() => all,
            None => words,
        };
        if !problems.contains(&problem) {
            problems.push(problem);
        }
    }
    if problems.is_empty() { causes(error) } else { problems.join("; ") }
}

/// Formats an error and its causes, without empty and repeated texts. (The text of a `TransportError` is
/// empty.)
fn causes(error: &dyn Error) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let words = error.to_string();
        if !words.is_empty() && !text.contains(&words) {
            text = if text.is_empty() { words } else { format!("{text}: {words}") };
        }
        next = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, time::Duration};

    use futures::StreamExt as _;
    use hearsay_services::http::bare_response;
    use http::StatusCode;
    use libp2p::{
        Multiaddr,
        identity::Keypair,
        swarm::{SwarmEvent, dial_opts::DialOpts},
    };

    use super::*;
    use crate::swarm::{SwarmConfig, build};

    /// Dials this port with a swarm, and returns the problem.
    async fn failed_dial(port: u16) -> String {
        let config = SwarmConfig {
            cluster: "test".into(),
            cluster_key: None,
            allowed: None,
            mdns: false,
            exempt: Default::default(),
        };
        let (mut swarm, _) = build(&Keypair::generate_ed25519(), &config).unwrap();
        let address: Multiaddr = format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap();
        swarm.dial(DialOpts::unknown_peer_id().address(address).build()).unwrap();
        let failing = async {
            loop {
                if let SwarmEvent::OutgoingConnectionError { error, .. } = swarm.select_next_some().await {
                    return dial_problem(&error);
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(60), failing).await.unwrap()
    }

    #[tokio::test]
    async fn a_refused_dial_says_so() {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let problem = failed_dial(port).await;
        assert!(problem.contains("Connection refused") && problem.contains("nothing listens"), "{problem}");
        assert_eq!(problem.matches("Connection refused").count(), 1, "{problem}");
    }

    #[tokio::test]
    async fn a_port_that_speaks_http_or_hangs_up_is_told_from_one_where_nothing_is() {
        use std::io::Write as _;
        let http = bare_response(StatusCode::BAD_REQUEST, "this is no HTTP request");
        for (answer, words) in [(http, "such as HTTP"), (Vec::new(), "hangs up")] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = listener.local_addr().unwrap().port();
            std::thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                // The other end may hang up first.
                _ = stream.write_all(&answer);
                _ = stream.shutdown(std::net::Shutdown::Write);
                _ = std::io::copy(&mut stream, &mut std::io::sink());
            });
            let problem = failed_dial(port).await;
            assert!(problem.contains(words), "{words}: {problem}");
        }
    }
}
