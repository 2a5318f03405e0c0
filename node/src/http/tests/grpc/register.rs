//! Tests of registrations by a stream: reports, the end of the stream, grace, and refusals.

use super::{raw::RawClient, *};

#[tokio::test]
async fn a_stream_holds_a_registration_and_takes_reports() {
    let mut grpc = Grpc::start().await;
    let (mut sender, mut responses) = grpc.register(first(registration("job"), "")).await;
    let registered = event(&mut responses).await.unwrap();
    assert!(matches!(registered, Some(Event::Registered(r)) if r.id == "job-1" && r.node == "n1"));
    assert_eq!(grpc.held(), ["job-1"]);
    let status = |grpc: &Grpc| grpc.server.registry.get("job-1").map(|view| view.checks[0].status);
    assert_eq!(status(&grpc), Some(Health::Critical));
    sender.try_send(by_report(report("job-ttl", pb::HealthStatus::Passing))).unwrap();
    until("the report is recorded", || status(&grpc) == Some(Health::Passing)).await;
    for (refused, code) in [
        (by_report(report("none", pb::HealthStatus::Passing)), Code::NotFound),
        (by_report(report("job-ttl", pb::HealthStatus::Unspecified)), Code::InvalidArgument),
        (first(registration("other"), ""), Code::InvalidArgument),
        (pb::RegisterRequest::default(), Code::InvalidArgument),
    ] {
        sender.try_send(refused).unwrap();
        let response = event(&mut responses).await.unwrap();
        assert!(matches!(&response, Some(Event::ReportRefused(r)) if r.code == code as i32), "{response:?}");
    }
    let unary = report("job-ttl", pb::HealthStatus::Warning);
    within(grpc.client.report_check(unary)).await.unwrap();
    until("the report is recorded", || status(&grpc) == Some(Health::Warning)).await;
    let unknown = within(grpc.client.report_check(report("none", pb::HealthStatus::Passing))).await;
    assert_eq!(unknown.unwrap_err().code(), Code::NotFound);
    drop(sender);
    assert_eq!(event(&mut responses).await.unwrap(), None, "the call ends with OK");
    until("the registration is gone", || grpc.held().is_empty()).await;
    assert_eq!(grpc.calls("/hearsay.v1.Discovery/Register", "OK"), 1);
}

#[tokio::test]
async fn a_registration_ends_with_its_call_or_its_connection_whichever_is_first() {
    let mut grpc = Grpc::start().await;
    let (sender, mut responses) = grpc.register(first(registration("job"), "")).await;
    event(&mut responses).await.unwrap();
    // A reset.
    drop((sender, responses));
    until("the registration is gone", || grpc.held().is_empty()).await;
    until("it is counted", || grpc.calls("/hearsay.v1.Discovery/Register", "CANCELLED") == 1).await;
    // A lost connection.
    let (_sender, mut responses) = grpc.register(first(registration("job"), "")).await;
    event(&mut responses).await.unwrap();
    grpc.socket.shutdown(std::net::Shutdown::Both).unwrap();
    until("the registration is gone", || grpc.held().is_empty()).await;
    until("the permits are returned", || grpc.server.metrics.http.waiting.get() == 0).await;
}

#[tokio::test]
async fn grace_is_for_lost_calls_and_not_for_ended_ones() {
    let mut grpc = Grpc::start().await;
    // A client of tonic ends its side before it resets a call; this one resets it at once.
    let client = RawClient::open(&grpc, 65_535).await;
    let health = |id: &str| grpc.server.registry.get(id).map(|view| view.health);
    // Often, because the server may notice the end of the response first, or that of the request.
    for n in 0..20 {
        let (name, id) = (format!("job{n}"), format!("job{n}-1"));
        let mut lost = client.call("/hearsay.v1.Discovery/Register").await;
        lost.send(&first(registration(&name), "1h"));
        until("it is registered", || health(&id).is_some()).await;
        lost.reset();
        until("the call has ended", || grpc.calls("/hearsay.v1.Discovery/Register", "CANCELLED") == n + 1)
            .await;
        assert_eq!(health(&id), Some(Health::Critical), "it stays for the time of grace");
    }
    let (sender, mut responses) = grpc.register(first(registration("job"), "1h")).await;
    assert!(matches!(event(&mut responses).await, Ok(Some(Event::Registered(_)))), "again");
    drop(sender);
    assert_eq!(event(&mut responses).await.unwrap(), None);
    until("the registration is gone", || grpc.server.registry.get("job-1").is_none()).await;
}

#[tokio::test]
async fn a_client_learns_why_its_registration_has_ended() {
    let mut grpc = Grpc::start().await;
    let (_sender, mut responses) = grpc.register(first(registration("job"), "")).await;
    event(&mut responses).await.unwrap();
    assert_eq!(grpc.server.send("DELETE /services/job-1", &[], "").await.status, 200);
    assert!(matches!(event(&mut responses).await.unwrap(), Some(Event::Deregistered(_))));
    assert_eq!(event(&mut responses).await.unwrap(), None);
    let (_sender, mut old) = grpc.register(first(registration("job"), "")).await;
    event(&mut old).await.unwrap();
    let (_sender, mut new) = grpc.register(first(registration("job"), "")).await;
    event(&mut new).await.unwrap();
    assert!(matches!(event(&mut old).await.unwrap(), Some(Event::Replaced(_))));
    grpc.server.readiness.send(Readiness::Leaving).unwrap();
    assert_eq!(event(&mut new).await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn a_bad_registration_is_refused_with_the_words_of_http() {
    let mut grpc = Grpc::start().await;
    let far = pb::Registration { port: 70_000, ..registration("job") };
    let json = r#"{"name":"job","id":"job-1","port":70000}"#;
    let by_http =
        grpc.server.send("POST /services", &["content-type: application/json"], json).await.problem(400);
    let large = pb::Registration { tags: vec!["x".repeat(1_100_000)], ..registration("job") };
    for (request, code, word) in [
        (first(far, ""), Code::InvalidArgument, by_http.as_str()),
        (first(registration("job"), "2h"), Code::InvalidArgument, "grace"),
        (first(registration(""), ""), Code::InvalidArgument, "name"),
        (first(large, ""), Code::OutOfRange, "1048576"),
        (by_report(report("x", pb::HealthStatus::Passing)), Code::InvalidArgument, "registration"),
    ] {
        let (_sender, mut responses) = grpc.register(request).await;
        let refused = event(&mut responses).await.unwrap_err();
        assert!(refused.code() == code && refused.message().contains(word), "{refused}, not {word}");
    }
    let (sender, requests) = futures::channel::mpsc::channel::<pb::RegisterRequest>(1);
    drop(sender);
    let mut nothing = within(grpc.client.register(requests)).await.unwrap().into_inner();
    assert_eq!(within(nothing.message()).await.unwrap_err().code(), Code::InvalidArgument);
    assert!(grpc.held().is_empty());
    until("the permits are returned", || grpc.server.metrics.http.waiting.get() == 0).await;
}
