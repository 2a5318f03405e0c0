//! Tests of running checks at intervals: only changes of status are events, failures warn and are retried
//! before the check is critical, a critical check expires, and a restored one keeps its status.

use super::*;

/// Starts a server that answers each request with a different body.
async fn counting() -> Server {
    Server::serve(|mut stream, requests| async move {
        read_request(&mut stream, &requests).await;
        let count = requests.lock().unwrap().len();
        let answer = format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nanswer {count}");
        let _ = stream.write_all(answer.as_bytes()).await;
    })
    .await
}

#[tokio::test]
async fn a_new_output_is_kept_and_sends_no_event() {
    let mut node = Node::new();
    let server = counting().await;
    let check = node.start(often(CheckKind::Http(server.http())));
    let passing = node.change_to(Health::Passing).await;
    assert!(passing.output.contains("answer 1"), "{}", passing.output);
    let state = output(&check, "answer 4").await;
    assert_eq!(state.since_ms, passing.since_ms);
    assert!(state.last_run_ms >= passing.last_run_ms && state.next_run_ms >= state.last_run_ms);
    assert!(node.events.try_recv().is_err());
    server.kill().await;
    node.change_to(Health::Critical).await;
}

#[tokio::test]
async fn failures_in_a_row_warn_before_they_are_critical() {
    let mut node = Node::new();
    let spec = CheckSpec {
        failures_before_warning: Some(2),
        failures_before_critical: 3,
        initial_status: Health::Passing,
        ..often(tcp(closed_port()))
    };
    let _check = node.start(spec);
    node.change_to(Health::Warning).await;
    node.change_to(Health::Critical).await;
}

#[tokio::test]
async fn the_next_run_is_a_retry_until_the_check_is_critical() {
    let node = Node::new();
    let retry = Duration::from_secs(60);
    for (failures_before_critical, status) in [(2, Health::Passing), (1, Health::Critical)] {
        let spec = CheckSpec {
            // The interval is so long that no phase is as short as the retry.
            interval: super::spec::DURATION_MAX,
            retry_interval: Some(retry),
            failures_before_critical,
            initial_status: Health::Passing,
            ..spec(tcp(closed_port()))
        };
        let check = node.start(spec);
        let state = output(&check, "cannot connect").await;
        let pause = state.next_run_ms.unwrap() - state.last_run_ms.unwrap();
        let is_retry = u128::from(pause) <= retry.as_millis();
        assert_eq!((state.status, is_retry), (status, status == Health::Passing), "{pause} ms");
    }
}

#[tokio::test]
async fn a_check_that_stays_critical_expires_once() {
    let mut node = Node::new();
    let deregister_after = Some(Duration::from_millis(300));
    let check = node.start(CheckSpec { deregister_after, ..often(tcp(closed_port())) });
    assert_eq!(node.event().await, CheckEvent::Expired(key()));
    let runs = node.metric("check_runs");
    eventually("more runs", || node.metric("check_runs") > runs + 3).await;
    assert!(node.events.try_recv().is_err());
    drop(check);
}

#[tokio::test]
async fn the_time_to_expiry_begins_when_a_check_turns_critical() {
    let mut node = Node::new();
    let server = Server::start(|_| async {}).await;
    let deregister_after = Some(Duration::from_secs(3));
    let check = node.start(CheckSpec { deregister_after, ..often(tcp(server.address)) });
    node.change_to(Health::Passing).await;
    server.kill().await;
    node.change_to(Health::Critical).await;
    assert_eq!(node.event().await, CheckEvent::Expired(key()));
    drop(check);
}

#[tokio::test]
async fn a_replaced_or_restored_check_keeps_its_status_until_its_first_run() {
    let mut node = Node::new();
    let server = Server::start(|_| async {}).await;
    for begin in [Begin::Replaced(state(Health::Passing)), Begin::Restored(state(Health::Passing), 10)] {
        let check = node.begin(spec(tcp(server.address)), begin);
        assert_eq!(check.state().status, Health::Passing);
        let state = output(&check, "connected to").await;
        assert_eq!((state.status, state.since_ms), (Health::Passing, 5));
        assert!(node.events.try_recv().is_err());
    }
}

#[tokio::test]
async fn a_dropped_check_runs_no_more() {
    let node = Node::new();
    let check = node.start(often(tcp(closed_port())));
    eventually("a run", || node.metric("check_runs") > 0).await;
    assert_eq!(node.metric("checks"), 1);
    drop(check);
    eventually("the end of the task", || node.metric("checks") == 0).await;
    assert_eq!(node.metric("check_in_flight"), 0);
}

#[tokio::test]
async fn a_check_that_cannot_run_is_critical_with_the_reason() {
    let mut node = Node::new();
    let kind = CheckKind::Http(HttpCheck { url: "/health".into(), ..HttpCheck::default() });
    assert_eq!(spec(kind.clone()).validate().unwrap_err().field, "http");
    let check = node.begin(spec(kind), Begin::Replaced(state(Health::Passing)));
    let state = node.change_to(Health::Critical).await;
    assert!(state.output.contains("is not a URL"), "{}", state.output);
    drop(check);
}

#[tokio::test]
async fn a_name_without_address_is_a_failure() {
    let kind = CheckKind::Tcp { address: "name.invalid:80".into(), tls: CheckTls::default() };
    let outcome = run_once(kind, PATIENCE).await;
    assert_eq!(outcome.health, Health::Critical);
}

#[test]
fn a_check_starts_on_the_runtime_of_the_runner_from_any_thread() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let node = runtime.block_on(async { Node::new() });
    let check = node.start(spec(tcp(closed_port())));
    runtime.block_on(async { output(&check, "cannot connect").await });
}

/// Returns the CPU time of this process, in ticks of 10 ms.
fn processor_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Prints the CPU time of 5,000 checks per 10 s, server included. To be run by hand, with
/// `--release -- --ignored --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures, and takes half a minute"]
async fn five_thousand_http_checks() {
    let node = Node::new();
    let server = Server::start(|mut stream| async move {
        let _ = stream.read(&mut [0; 1024]).await;
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    })
    .await;
    let start = |n: usize| {
        let key = CheckKey { instance: format!("web-{n}"), generation: 1, check: format!("check-{n}") };
        node.runner.start(key, spec(CheckKind::Http(server.http())), Begin::Registered)
    };
    let checks: Vec<RunningCheck> = (0..5000).map(start).collect();
    eventually("the first runs", || node.metric("check_runs") >= 5000).await;
    let (runs, ticks) = (node.metric("check_runs"), processor_ticks());
    sleep(Duration::from_secs(20)).await;
    let (runs, ticks) = (node.metric("check_runs") - runs, processor_ticks() - ticks);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let resident = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    println!(
        "{runs} runs, {} ms of processor time in 20 s, late {}, {resident}",
        ticks * 10,
        node.metric("check_late")
    );
    drop(checks);
}
