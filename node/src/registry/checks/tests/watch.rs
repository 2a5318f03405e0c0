//! Tests of the `watch` check: it notices the death and the return of a server, and falls back to `tcp` if
//! the server closes connections or sends without end.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use super::{
    super::{reporter::Reporter, reporter::Shared, watch::Watch},
    *,
};

fn watch(address: SocketAddr) -> CheckKind {
    CheckKind::Watch { address: address.to_string() }
}

/// Holds a connection until the other side closes it.
async fn hold(mut stream: TcpStream) {
    while stream.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0) {}
}

#[tokio::test]
async fn the_death_of_the_server_is_critical_and_its_return_passes() {
    let mut node = Node::new();
    let server = Server::start(hold).await;
    let address = server.address;
    // The check notices changes at once, whatever its interval is.
    let check = node.start(CheckSpec { interval: Duration::from_secs(3600), ..spec(watch(address)) });
    let state = node.change_to(Health::Passing).await;
    assert_eq!((state.output, state.next_run_ms), (format!("a connection to {address} is held open"), None));
    server.kill().await;
    let state = node.change_to(Health::Critical).await;
    assert!(state.output.contains("refused"), "{}", state.output);
    let listener = TcpListener::bind(address).await.unwrap();
    node.change_to(Health::Passing).await;
    drop((listener, check));
}

#[tokio::test]
async fn a_server_that_accepts_again_is_alive() {
    let node = Node::new();
    let accepted = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&accepted);
    let server = Server::start(move |stream| {
        let is_first = counter.fetch_add(1, SeqCst) == 0;
        async move {
            if !is_first {
                hold(stream).await;
            }
        }
    })
    .await;
    let mut node = node;
    let check = node.start(spec(watch(server.address)));
    eventually("a second connection", || accepted.load(SeqCst) == 2).await;
    node.change_to(Health::Passing).await;
    eventually("two outcomes", || node.metric("check_runs") == 2).await;
    assert!(node.events.try_recv().is_err());
    assert_eq!(check.state().status, Health::Passing);
}

#[tokio::test]
async fn a_server_that_closes_connections_is_checked_by_tcp_with_a_note() {
    let mut node = Node::new();
    let server = Server::start(|_| async {}).await;
    let check = node.start(often(watch(server.address)));
    let state = output(&check, "checked by tcp every 100ms").await;
    assert!(state.output.starts_with("watch: the server closed 3 connections within 2s"), "{}", state.output);
    assert!(state.output.ends_with(&format!("connected to {}", server.address)), "{}", state.output);
    node.change_to(Health::Passing).await;
    server.kill().await;
    let state = node.change_to(Health::Critical).await;
    assert!(state.output.contains("checked by tcp"), "{}", state.output);
}

#[tokio::test]
async fn after_the_fallback_a_connection_is_held_again() {
    let (events, mut receiver) = mpsc::channel(16);
    let accepted = Arc::new(AtomicU32::new(0));
    let counter = Arc::clone(&accepted);
    let server = Server::start(move |stream| {
        let is_held = counter.fetch_add(1, SeqCst) >= 3;
        async move {
            if is_held {
                hold(stream).await;
            }
        }
    })
    .await;
    let spec = Arc::new(often(watch(server.address)));
    let shared = Arc::new(Shared::new(&spec, state(Health::Critical)));
    let reporter = Reporter::new(key(), Arc::clone(&spec), Arc::clone(&shared), events, Arc::default());
    let (connector, connects) = (connector(), tokio::sync::Semaphore::new(1));
    let target = crate::registry::address::Target::parse("watch", &server.address.to_string()).unwrap();
    let watch = Watch::new(&reporter, &connector, &connects, target);
    let watch = Watch { fallback: Duration::from_millis(300), ..watch };
    let facts = async {
        eventually("the fallback", || shared.state().output.contains("checked by tcp")).await;
        eventually("a held connection", || shared.state().output.contains("is held open")).await;
    };
    tokio::select! {
        () = watch.run(spec.interval, spec.timeout) => (),
        () = facts => (),
    }
    assert!(matches!(receiver.try_recv(), Ok(CheckEvent::Changed(_, s)) if s.status == Health::Passing));
    assert!(receiver.try_recv().is_err());
}

#[tokio::test]
async fn a_greeting_is_dropped() {
    let mut node = Node::new();
    let server = Server::start(|mut stream| async move {
        let _ = stream.write_all(b"220 mail.example.org ESMTP\r\n").await;
        hold(stream).await;
    })
    .await;
    let check = node.start(spec(watch(server.address)));
    node.change_to(Health::Passing).await;
    server.kill().await;
    node.change_to(Health::Critical).await;
    drop(check);
}

#[tokio::test]
async fn a_server_that_sends_without_end_is_checked_by_tcp() {
    let mut node = Node::new();
    let server =
        Server::start(|mut stream| async move { while stream.write_all(&[b'a'; 65536]).await.is_ok() {} })
            .await;
    let check = node.start(often(watch(server.address)));
    output(&check, "watch: the server sent more than 65536 bytes in a second unasked; checked by tcp").await;
    node.change_to(Health::Passing).await;
    server.kill().await;
    node.change_to(Health::Critical).await;
}

#[tokio::test]
async fn successes_are_counted_while_the_connection_is_open() {
    let mut node = Node::new();
    let server = Server::start(hold).await;
    let check = node.start(CheckSpec { successes_before_passing: 3, ..often(watch(server.address)) });
    node.change_to(Health::Passing).await;
    assert_eq!(node.metric("check_runs"), 3);
    drop(check);
}
