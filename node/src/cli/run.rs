//! `node run`: wraps a command and holds a registration for it while it runs.
//!
//! 1. Waits for the node, then for the required services.
//! 2. Starts the command (`exec_child`) with `PORT`, `HEARSAY_NODE` and `HEARSAY_<REQUIRED>_URL`.
//! 3. Registers the command once it listens at its port. The registration ends with either process.
//! 4. Forwards signals. SIGTERM deregisters, waits for the drain, and then ends the command.
//! 5. Exits with the command's code, or 128 + n if signal n ended it.
//!
//! If the node restarts, the command keeps running and is registered again. Without a node the command is not
//! started.

mod signals;
mod variables;

use std::{
    cell::RefCell,
    collections::BTreeMap,
    ffi::OsString,
    net::{Ipv4Addr, Ipv6Addr, TcpListener},
    os::unix::process::ExitStatusExt as _,
    pin::Pin,
    process::{ExitCode, ExitStatus},
    time::Duration,
};

use bytes::Bytes;
use clap::Args;
use http::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Map, Value, json};
use tokio::{
    process::{Child, Command},
    signal::unix::SignalKind,
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};

use super::{
    client::Client,
    failure::Failure,
    hold::{self, Held, Holder},
    listeners,
    register::Description,
};
use crate::{escape::escaped, go_duration};

/// Time limit for the node to be ready.
const NODE_MAX: Duration = Duration::from_secs(30);
/// Time limit for required services to pass.
const REQUIRED_MAX: Duration = Duration::from_secs(30);
/// Interval of polls of the node.
const NODE_POLL: Duration = Duration::from_millis(250);
/// Interval of polls of the command's port.
const PORT_POLL: Duration = Duration::from_millis(20);
/// Backoff after the first failed registration.
const REGISTER_RETRY: Duration = Duration::from_millis(250);

/// `node run`.
#[derive(Args, Clone, Debug)]
pub(super) struct RunOptions {
    /// Name of the service
    #[arg(long, value_name = "NAME")]
    service: String,
    /// Port at which the command listens, passed in PORT; auto chooses a free one
    #[arg(long, value_name = "PORT|auto", value_parser = parse_port)]
    port: Option<Port>,
    #[command(flatten)]
    description: Description,
    /// After SIGTERM: time between the deregistration and the end of the command
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = parse_duration)]
    drain: Duration,
    /// Time limit for the command to listen at its port; then it is ended
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = parse_duration)]
    start_timeout: Duration,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// The port of a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Port {
    Auto,
    At(u16),
}

fn parse_port(text: &str) -> Result<Port, String> {
    match text {
        "auto" => Ok(Port::Auto),
        text => match text.parse() {
            Ok(0) | Err(_) => Err(format!("{text:?} is not a port; give 1 to 65535, or auto")),
            Ok(port) => Ok(Port::At(port)),
        },
    }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    go_duration::parse(text)
        .ok_or_else(|| format!("{text:?} is not a duration; give one such as 500ms, 2s or 1m30s"))
}

/// The port and the environment of a command.
struct CommandSetup {
    port: Option<u16>,
    /// Variables to set or (`None`) remove: the URL of a missing service must not be inherited.
    variables: BTreeMap<String, Option<String>>,
}

/// Why a registration ended while the command ran.
enum End {
    /// The registration failed: nothing listens at the port, or the node refuses.
    Failed(Failure),
    /// The node ended the registration: it was deregistered or replaced. The command keeps running.
    Ended(Failure),
}

/// Phase of `node run` once the command runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Running,
    /// Deregistered; the command gets SIGTERM at this time.
    Draining(Instant),
    /// SIGTERM was sent to the command.
    Ending,
}

/// Runs a command with a registration. Returns the exit code of the command.
pub(super) async fn run(client: &Client, options: &RunOptions) -> Result<ExitCode, Failure> {
    // Checks are validated before the command is started.
    options.description.add_to(&mut Map::new())?;
    let mut signals_received = signals::catch_signals()?;
    let setup = tokio::select! {
        setup = prepare(client, options) => setup?,
        kind = await_ending_signal(&mut signals_received) => return Ok(exit_code_of_signal(kind.as_raw_value())),
    };
    let mut child = start_command(&options.command, &setup)?;
    let id = RefCell::new(None);
    let service = keep_registered(client, options, setup.port, child.id(), &id);
    let mut service = Some(Box::pin(service));
    let (mut phase, mut failure) = (Phase::Running, None);
    let status = loop {
        let drained = match phase {
            Phase::Draining(until) => Some(until),
            Phase::Running | Phase::Ending => None,
        };
        tokio::select! {
            biased;
            status = child.wait() => break status?,
            Some(kind) = signals_received.recv() => match phase {
                Phase::Running if kind == SignalKind::terminate() => {
                    // A separate statement, so that the `RefCell` is not borrowed during the request.
                    let registered = id.take();
                    phase = match registered {
                        Some(registered) => {
                            hold::deregister(client, &registered).await;
                            Phase::Draining(Instant::now() + options.drain)
                        }
                        None => terminate(&child),
                    };
                    service = None;
                }
                // A second SIGTERM ends the drain.
                _ if kind == SignalKind::terminate() => phase = terminate(&child),
                _ if signals::is_sent_by_terminal(kind) => {}
                _ => send_signal(&child, kind),
            },
            ended = await_end(&mut service) => {
                service = None;
                id.take();
                match ended {
                    End::Failed(problem) => (failure, phase) = (Some(problem), terminate(&child)),
                    End::Ended(problem) => notice!("node run: {}", escaped(&problem.to_string())),
                }
            }
            () = sleep_until(drained.unwrap_or_else(Instant::now)), if drained.is_some() => phase = terminate(&child),
        }
    };
    // Dropping it closes the connection, which ends the registration.
    drop(service);
    failure.map_or_else(|| Ok(exit_code_of(status)), Err)
}

/// Chooses the port, and waits for the node and the required services.
async fn prepare(client: &Client, options: &RunOptions) -> Result<CommandSetup, Failure> {
    let port = match options.port {
        None => None,
        Some(Port::Auto) => Some(free_port()?),
        Some(Port::At(port)) if listeners::is_listening(port) => {
            let user = listeners::pid_at(port).map(|pid| format!(" by process {pid}")).unwrap_or_default();
            let problem = format!("port {port} is in use{user}. Choose another, or use --port auto");
            return Err(Failure::Failed(anyhow::anyhow!(problem)));
        }
        Some(Port::At(port)) => Some(port),
    };
    await_node(client).await?;
    let required = &options.description.requires;
    let urls = variables::await_services(client, required, Instant::now() + REQUIRED_MAX).await;
    let mut variables =
        BTreeMap::from([(variables::NODE_VARIABLE.to_owned(), Some(variables::node_url(client).await?))]);
    if let Some(port) = port {
        variables.insert("PORT".into(), Some(port.to_string()));
    }
    for service in required {
        let url = urls.get(service).cloned();
        if url.is_none() {
            let waited = REQUIRED_MAX.as_secs();
            notice!(
                "node run: no instance of {} was passing within {waited} s; starting without it",
                escaped(service)
            );
        }
        variables.insert(variables::variable_of(service), url);
    }
    Ok(CommandSetup { port, variables })
}

/// Returns a port that is free at all IPv4 and IPv6 addresses. Another process may take it before the command
/// binds it; then the command fails.
fn free_port() -> Result<u16, Failure> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0));
    let listener = listener.or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)));
    Ok(listener.and_then(|listener| listener.local_addr())?.port())
}

/// Waits until the node is ready. Without a node the command is not started, and a supervisor can retry.
async fn await_node(client: &Client) -> Result<(), Failure> {
    let until = Instant::now() + NODE_MAX;
    let mut is_reported = false;
    loop {
        let failure = match client.request(Method::GET, "/readyz").await {
            Ok(answer) if answer.status.is_success() => return Ok(()),
            Ok(answer) => client.unreachable(answer.problem()),
            Err(failure) => failure,
        };
        if Instant::now() >= until {
            return Err(failure);
        }
        if !std::mem::replace(&mut is_reported, true) {
            notice!("node run: waiting for the node: {}", escaped(&failure.to_string()));
        }
        sleep(NODE_POLL).await;
    }
}

/// Waits for a signal that ends a process.
async fn await_ending_signal(signals_received: &mut mpsc::Receiver<SignalKind>) -> SignalKind {
    loop {
        match signals_received.recv().await {
            Some(kind) if kind != SignalKind::window_change() => return kind,
            Some(_) => {}
            None => std::future::pending().await,
        }
    }
}

/// The hidden subcommand that executes the command.
const EXEC_CHILD: &str = "exec-child";

/// Starts the command. Must be called on the main thread: the parent-death signal is bound to the thread.
fn start_command(command: &[OsString], setup: &CommandSetup) -> Result<Child, Failure> {
    // `/proc/self/exe` is the running program, even if its file was replaced.
    let mut step = Command::new("/proc/self/exe");
    step.args([EXEC_CHILD, "--parent", &std::process::id().to_string(), "--"]).args(command);
    for (name, value) in &setup.variables {
        match value {
            Some(value) => step.env(name, value),
            None => step.env_remove(name),
        };
    }
    step.spawn().map_err(|error| Failure::Failed(anyhow::anyhow!("cannot start the command: {error}")))
}

/// Registers the command once its port listens, and keeps it registered. `id` is set while it is registered.
async fn keep_registered(
    client: &Client,
    options: &RunOptions,
    port: Option<u16>,
    pid: Option<u32>,
    id: &RefCell<Option<String>>,
) -> End {
    if let Some(port) = port {
        let until = Instant::now() + options.start_timeout;
        while !listeners::is_listening(port) {
            if Instant::now() >= until {
                let waited = options.start_timeout;
                let problem = format!(
                    "the command does not listen at port {port} after {waited:?}, so it is ended. It must listen at $PORT; --start-timeout gives it more time"
                );
                return End::Failed(Failure::Failed(anyhow::anyhow!(problem)));
            }
            sleep(PORT_POLL).await;
        }
    }
    // The command is registered only after it was executed.
    while pid.is_some_and(|pid| !has_become_command(pid)) {
        sleep(PORT_POLL).await;
    }
    // Process checks need the Unix socket for each registration.
    let (client, pid) = match client.over_socket_only().await {
        Some((client, true)) => (client, pid),
        Some((client, false)) => (client, None),
        None => (client.clone(), None),
    };
    let mut opened = open_registration(&client, options, port, pid).await;
    if let (Err(Failure::Refused(problem)), Some(_)) = (&opened, pid) {
        // A node in a container, or of another user, may refuse the check of the process. The registration
        // ends with the connection anyway.
        let refused = problem.clone();
        opened = open_registration(&client, options, port, None).await;
        if opened.is_ok() {
            notice!("node run: registered without a check of the process: {}", escaped(&refused));
        }
    }
    let (holder, held) = match opened {
        Ok(opened) => opened,
        Err(failure) => return End::Failed(failure),
    };
    notice!("node run: registered as {}", escaped(&held.registered.id));
    id.replace(Some(held.registered.id.clone()));
    // Updates are ignored: the environment of a running command cannot change.
    End::Ended(holder.keep(held, |_| Ok(())).await)
}

/// Whether the child has executed the command. `/proc/PID/cmdline` is empty for an ended process. Without
/// `/proc` the command counts as executed.
fn has_become_command(pid: u32) -> bool {
    let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) else { return true };
    !line.is_empty() && line.split(|byte| *byte == 0).nth(1) != Some(EXEC_CHILD.as_bytes())
}

async fn open_registration(
    client: &Client,
    options: &RunOptions,
    port: Option<u16>,
    pid: Option<u32>,
) -> Result<(Holder, Held), Failure> {
    let body = options.registration(port, pid)?;
    let holder = Holder::new(client.clone(), body, None);
    let held = holder.open_with_retries(REGISTER_RETRY).await?;
    Ok((holder, held))
}

impl RunOptions {
    /// Returns the registration as JSON.
    fn registration(&self, port: Option<u16>, pid: Option<u32>) -> Result<Bytes, Failure> {
        let mut registration = Map::from_iter([("name".to_owned(), json!(self.service))]);
        if let Some(port) = port {
            registration.insert("port".into(), json!(port));
        }
        self.description.add_to(&mut registration)?;
        if let Some(pid) = pid {
            let checks = registration.entry("checks").or_insert_with(|| Value::Array(Vec::new()));
            let check = json!({ "process": { "pid": pid } });
            checks.as_array_mut().into_iter().for_each(|checks| checks.push(check.clone()));
        }
        Ok(Value::Object(registration).to_string().into())
    }
}

/// Waits for the end of the registration; forever if there is none.
async fn await_end(service: &mut Option<Pin<Box<impl Future<Output = End>>>>) -> End {
    match service {
        Some(service) => service.as_mut().await,
        None => std::future::pending().await,
    }
}

/// Sends SIGTERM to the command.
fn terminate(child: &Child) -> Phase {
    send_signal(child, SignalKind::terminate());
    Phase::Ending
}

fn send_signal(child: &Child, kind: SignalKind) {
    // After the wait the child has no pid, so the signal cannot reach another process.
    let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    if let (Some(pid), Some(signal)) = (pid, Signal::from_named_raw(kind.as_raw_value())) {
        // An error means that the command has just ended or has changed its user.
        _ = kill_process(pid, signal);
    }
}

/// Returns the exit code, or 128 + n for signal n, as shells do.
fn exit_code_of(status: ExitStatus) -> ExitCode {
    match (status.code(), status.signal()) {
        (Some(code), _) => ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)),
        (None, signal) => exit_code_of_signal(signal.unwrap_or_default()),
    }
}

fn exit_code_of_signal(signal: i32) -> ExitCode {
    ExitCode::from(u8::try_from(128 + signal).unwrap_or(u8::MAX))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct TestCommand {
        #[command(flatten)]
        options: RunOptions,
    }

    fn options(args: &str) -> Result<RunOptions, clap::Error> {
        Ok(TestCommand::try_parse_from(["run"].into_iter().chain(args.split_whitespace()))?.options)
    }

    #[test]
    fn a_command_is_registered_with_its_port_its_checks_and_its_process() {
        let args = "--service web --port auto --tag a --requires db --check http=/health -- serve --tag x";
        let options = options(args).unwrap();
        assert_eq!(options.command, ["serve", "--tag", "x"]);
        assert_eq!((options.drain, options.start_timeout), (Duration::from_secs(2), Duration::from_secs(60)));
        let body = |port, pid| -> Value {
            serde_json::from_slice(&options.registration(port, pid).unwrap()).unwrap()
        };
        let http = json!({"http": "/health"});
        assert_eq!(
            body(Some(8080), Some(7)),
            json!({"name": "web", "port": 8080, "tags": ["a"], "requires": ["db"],
                "checks": [http, {"process": {"pid": 7}}]})
        );
        assert_eq!(body(Some(8080), None)["checks"], json!([http]));
    }

    #[test]
    fn invalid_options_are_wrong_usage() {
        for args in [
            "--service web",
            "-- x",
            "--service web --port 0 -- x",
            "--service web --drain soon -- x",
            "--service web x",
        ] {
            assert!(options(args).is_err(), "{args}");
        }
        assert_eq!(options("--service web --port 80 -- x").unwrap().port, Some(Port::At(80)));
        assert!(free_port().unwrap() > 0);
    }
}
