//! Tests of the `process` check: end and identity of a process.

use std::process::{Child, Command};

use super::*;

struct Sleeper(Child);

impl Sleeper {
    fn start() -> (Self, ProcessIdentity) {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let identity = ProcessIdentity::of(i32::try_from(child.id()).unwrap()).unwrap();
        (Self(child), identity)
    }

    fn kill(&mut self) {
        let _ = self.0.kill();
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        self.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn the_end_of_the_process_is_critical_also_before_it_is_reaped() {
    let mut node = Node::new();
    let (mut sleeper, identity) = Sleeper::start();
    let pid = identity.pid;
    let check =
        node.start(CheckSpec { interval: Duration::from_secs(3600), ..spec(CheckKind::Process(identity)) });
    assert_eq!(node.change_to(Health::Passing).await.output, format!("process {pid} lives"));
    sleeper.kill();
    assert_eq!(node.change_to(Health::Critical).await.output, format!("process {pid} has ended"));
    assert_eq!(check.state().status, Health::Critical);
    assert!(ProcessIdentity::of(pid).is_err(), "a zombie is no process");
}

#[tokio::test]
async fn another_process_with_the_same_pid_is_not_it() {
    let mut node = Node::new();
    let (_sleeper, identity) = Sleeper::start();
    for (identity, words) in [
        (
            ProcessIdentity { start_ticks: identity.start_ticks - 1, ..identity.clone() },
            "another process has its pid",
        ),
        (ProcessIdentity { boot_id: "before".into(), ..identity.clone() }, "the machine was started again"),
        (ProcessIdentity { pid: i32::MAX, ..identity }, "has ended"),
    ] {
        let check =
            node.begin(spec(CheckKind::Process(identity)), Begin::Restored(state(Health::Passing), 0));
        let state = node.change_to(Health::Critical).await;
        assert!(state.output.contains(words), "{}", state.output);
        drop(check);
    }
}
