//! Tests of the `exec` check: exit codes, output, timeout and leftover processes.

use super::*;

fn sh(script: &str) -> CheckKind {
    CheckKind::Exec { argv: vec!["sh".into(), "-c".into(), script.into()] }
}

/// Waits until the process has ended.
async fn ended(pid: &str) {
    let pid = pid.trim().parse().unwrap();
    eventually("the process ends", || ProcessIdentity::of(pid).is_err()).await;
}

#[tokio::test]
async fn the_exit_code_decides() {
    let outcome = run_once(sh("echo out; echo err >&2"), PATIENCE).await;
    assert_eq!(outcome.health, Health::Passing);
    assert!(outcome.output.contains("out") && outcome.output.contains("err"));
    assert_eq!(run_once(sh("echo w; exit 1"), PATIENCE).await, Outcome::new(Health::Warning, "w"));
    let outcome = run_once(sh("echo c; exit 3"), PATIENCE).await;
    assert_eq!(outcome, Outcome::critical("exit status: 3\nc"));
    let outcome = run_once(sh("kill -9 $$"), PATIENCE).await;
    assert!(outcome.output.starts_with("signal: 9"), "{}", outcome.output);
    let missing = CheckKind::Exec { argv: vec!["/nonexistent/command".into()] };
    assert!(run_once(missing, PATIENCE).await.output.starts_with("cannot run /nonexistent/command"));
}

#[tokio::test]
async fn the_environment_has_a_path_and_nothing_of_the_node() {
    let outcome = run_once(sh("env"), PATIENCE).await;
    let names: Vec<&str> = outcome.output.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    assert!(names.contains(&"PATH"), "{names:?}");
    // The shell sets the other variables.
    assert!(names.iter().all(|name| ["PATH", "PWD", "OLDPWD", "SHLVL", "_"].contains(name)), "{names:?}");
}

#[tokio::test]
async fn the_group_is_killed_when_time_is_up() {
    let outcome = run_once(sh("sleep 1000 & echo $!; wait"), Duration::from_secs(3)).await;
    assert_eq!(outcome.health, Health::Critical);
    let (words, pid) = outcome.output.split_once('\n').unwrap();
    assert_eq!(words, "killed: the command ran for longer than 3s");
    ended(pid).await;
}

#[tokio::test]
async fn leftover_processes_of_a_command_are_killed() {
    let outcome = run_once(sh("sleep 1000 & echo $!"), PATIENCE).await;
    assert_eq!(outcome.health, Health::Passing);
    ended(&outcome.output).await;
}

#[tokio::test]
async fn much_output_is_read_and_bounded() {
    let outcome = run_once(sh("head -c 1000000 /dev/zero | tr '\\0' a"), PATIENCE).await;
    assert_eq!((outcome.health, outcome.output.len()), (Health::Passing, OUTPUT_BYTES_MAX));
}

#[tokio::test]
async fn a_command_ends_with_its_check() {
    let node = Node::new();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pid");
    let script = format!("echo $$ > {0}.new; mv {0}.new {0}; exec sleep 1000", file.display());
    let check = node.start(CheckSpec { timeout: Duration::from_secs(900), ..spec(sh(&script)) });
    eventually("the command runs", || file.exists()).await;
    drop(check);
    ended(&std::fs::read_to_string(file).unwrap()).await;
}

#[tokio::test]
async fn it_runs_only_where_it_is_allowed() {
    let node = Node::with(|context| context.allow_exec = false);
    let check = node.start(often(sh("exit 0")));
    let state = output(&check, "--allow-exec-checks").await;
    assert_eq!((state.status, state.next_run_ms), (Health::Critical, None));
}
