//! Tests of the callers that may read and register over gRPC.

use super::*;

/// A request from another machine, as a trusted proxy states it.
fn from<T>(ip: &'static str, token: Option<&'static str>, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("x-forwarded-for", ip.parse().unwrap());
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", token.parse().unwrap());
    }
    request
}

fn access() -> Access {
    Access {
        token: Some(Secret::new("abc".to_owned())),
        trusted_proxies: vec!["127.0.0.0/8".parse().unwrap()],
        ..Access::default()
    }
}

#[tokio::test]
async fn strangers_read_and_do_not_write() {
    let mut grpc =
        Grpc::with(Setup { access: Access { is_keyed: true, ..access() }, ..Setup::default() }).await;
    for ip in ["8.8.8.8", "10.0.0.7"] {
        let list = from(ip, None, pb::ListRequest::default());
        assert!(within(grpc.client.list(list)).await.is_ok());
        for token in [None, Some("Bearer abd")] {
            let requests = futures::stream::iter([first(registration("job"), "")]);
            let refused = within(grpc.client.register(from(ip, token, requests))).await.unwrap_err();
            assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
            let report = from(ip, token, report("x", pb::HealthStatus::Passing));
            let refused = within(grpc.client.report_check(report)).await.unwrap_err();
            assert_eq!(refused.code(), Code::Unauthenticated, "{refused}");
        }
        let report = from(ip, Some("Bearer abc"), report("x", pb::HealthStatus::Passing));
        let allowed = within(grpc.client.report_check(report)).await.unwrap_err();
        assert_eq!(allowed.code(), Code::NotFound, "the token passes");
    }
    assert!(grpc.held().is_empty());
    assert_eq!(grpc.calls("/hearsay.v1.Discovery/Register", "UNAUTHENTICATED"), 4);
}

#[tokio::test]
async fn a_program_without_proof_registers_only_its_own_address() {
    let mut grpc = Grpc::with(Setup { access: access(), ..Setup::default() }).await;
    let foreign = pb::Registration { address: "10.0.0.8".into(), ..registration("job") };
    let requests = futures::stream::iter([first(foreign, "")]);
    let mut refused =
        within(grpc.client.register(from("10.0.0.7", None, requests))).await.unwrap().into_inner();
    let refused = within(refused.message()).await.unwrap_err();
    assert!(refused.code() == Code::PermissionDenied && refused.message().contains("address"), "{refused}");
    let (_sender, mut responses) = grpc.register(first(registration("local"), "")).await;
    event(&mut responses).await.unwrap();
    let report = from("10.0.0.7", None, report("local-ttl", pb::HealthStatus::Passing));
    let refused = within(grpc.client.report_check(report)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let (mut sender, requests) = futures::channel::mpsc::channel(1);
    sender.try_send(first(registration("own"), "")).unwrap();
    let mut own = within(grpc.client.register(from("10.0.0.7", None, requests))).await.unwrap().into_inner();
    event(&mut own).await.unwrap();
    let held = grpc.server.registry.get("own-1").unwrap();
    assert_eq!(held.row.registration.host.as_deref(), Some("10.0.0.7"), "the address of the call");
}

#[tokio::test]
async fn a_private_node_closes_reads_health_and_reflection() {
    let access = Access { reads_need_proof: true, ..access() };
    let mut grpc = Grpc::with(Setup { access, ..Setup::default() }).await;
    let list = |token| from("8.8.8.8", token, pb::ListRequest::default());
    for (token, code) in [(None, Some(Code::Unauthenticated)), (Some("Bearer abc"), None)] {
        assert_eq!(within(grpc.client.list(list(token))).await.err().map(|status| status.code()), code);
        let check = from("8.8.8.8", token, HealthCheckRequest::default());
        assert_eq!(within(grpc.health.check(check)).await.err().map(|status| status.code()), code);
        let watch = from("8.8.8.8", token, pb::WatchRequest::default());
        assert_eq!(within(grpc.client.watch(watch)).await.err().map(|status| status.code()), code);
    }
    assert!(within(grpc.client.list(pb::ListRequest::default())).await.is_ok(), "this machine");
}
