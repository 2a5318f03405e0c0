//! Tests of the `ttl` check: a report sets the status at once, and without a report within the TTL the check
//! becomes critical.

use super::*;

fn ttl(ttl: Duration) -> CheckSpec {
    spec(CheckKind::Ttl { ttl })
}

const LONG: Duration = Duration::from_secs(3600);
const SHORT: Duration = Duration::from_millis(200);

#[tokio::test]
async fn a_report_is_the_status_at_once_and_is_announced_when_it_is_another_one() {
    let mut node = Node::new();
    let check = node.start(ttl(LONG));
    assert_eq!(check.state().status, Health::Critical);
    check.report(Health::Passing, "warm\u{7}".into()).unwrap();
    let state = check.state();
    assert_eq!((state.status, state.output.as_str()), (Health::Passing, "warm\u{fffd}"));
    assert!(state.last_run_ms.is_some() && state.since_ms > 0);
    assert_eq!(node.change_to(Health::Passing).await, state);
    check.report(Health::Passing, "still".into()).unwrap();
    assert_eq!((check.state().since_ms, check.state().output.as_str()), (state.since_ms, "still"));
    check.report(Health::Warning, "hot".into()).unwrap();
    // A report without a change sends no event.
    assert_eq!(node.change_to(Health::Warning).await.output, "hot");
}

#[tokio::test]
async fn without_a_report_it_expires_and_the_next_report_begins_a_new_ttl() {
    let mut node = Node::new();
    let check = node.start(CheckSpec { initial_status: Health::Passing, ..ttl(SHORT) });
    assert_eq!(node.change_to(Health::Critical).await.output, "TTL expired");
    check.report(Health::Passing, "back".into()).unwrap();
    node.change_to(Health::Passing).await;
    let state = node.change_to(Health::Critical).await;
    assert_eq!(state.output, "TTL expired (last output before it follows): back");
    // A report of the current status expires, too.
    check.report(Health::Critical, "down".into()).unwrap();
    output(&check, "TTL expired (last output before it follows): down").await;
}

#[tokio::test]
async fn a_restored_or_replaced_check_keeps_its_status_for_one_ttl() {
    let mut node = Node::new();
    for begin in [Begin::Restored(state(Health::Warning), 0), Begin::Replaced(state(Health::Warning))] {
        let check = node.begin(ttl(SHORT), begin);
        assert_eq!(check.state(), state(Health::Warning));
        node.change_to(Health::Critical).await;
    }
}

#[tokio::test]
async fn other_kinds_take_no_report() {
    let node = Node::new();
    let check = node.start(spec(tcp(closed_port())));
    assert!(check.report(Health::Passing, String::new()).is_err());
}
