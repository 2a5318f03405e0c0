//! `node run`: a command that is a service for as long as it runs.
//!
//! 1. Waits for the node, then for the services that are required.
//! 2. Starts the command (`exec_child`) with `PORT`, `HEARSAY_NODE` and `HEARSAY_<REQUIRED>_URL`.
//! 3. Registers it once its port listens, held by a connection: the instance is gone when either process is.
//! 4. Passes signals on. SIGTERM deregisters first, waits for the drain, and then ends the command.
//! 5. Exits with the command's code, or 128 + n where signal n ended it.
//!
//! A node that restarts does not disturb the command; it is registered again. Without a node, nothing is started.

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
    listening,
    register::Description,
};
use crate::{escape::escaped, go_duration};

/// How long a node is waited for.
const NODE_MAX: Duration = Duration::from_secs(30);
/// How long required services are waited for.
const REQUIRED_MAX: Duration = Duration::from_secs(30);
/// Between two looks: for a node, and for the port of the command.
const NODE_POLL: Duration = Duration::from_millis(250);
const PORT_POLL: Duration = Duration::from_millis(20);
/// After the first registration that no node took.
const REGISTER_RETRY: Duration = Duration::from_millis(250);

/// `node run`.
#[derive(Args, Clone, Debug)]
pub(super) struct RunOptions {
    /// Name of the service
    #[arg(long, value_name = "NAME")]
    service: String,
    /// The port at which the command listens; auto picks a free one. The command finds it in PORT
    #[arg(long, value_name = "PORT|auto", value_parser = parse_port)]
    port: Option<Port>,
    #[command(flatten)]
    description: Description,
    /// After SIGTERM: how long the command still serves when it is no longer found
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = parse_duration)]
    drain: Duration,
    /// How long the command may take to listen at its port; after that it is ended
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
            Ok(0) | Err(_) => Err(format!("{text:?} is no port; write 1 to 65535, or auto")),
            Ok(port) => Ok(Port::At(port)),
        },
    }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    go_duration::parse(text).ok_or_else(|| format!("{text:?} is no duration; write 500ms, 2s or 1m30s"))
}

/// The port and the environment of a command.
struct CommandSetup {
    port: Option<u16>,
    /// Variables to set, and those to remove: a service that is not there must not be found at an address of before.
    variables: BTreeMap<String, Option<String>>,
}

/// How a registration ended while the command ran.
enum End {
    /// It came to nothing: the port does not listen, or the node refuses.
    Failed(Failure),
    /// The node ended it: it was deregistered or replaced. The command goes on.
    Ended(Failure),
}

/// The phase of `node run`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Running,
    /// No longer registered; the command gets SIGTERM at this time.
    Draining(Instant),
    /// The command has got SIGTERM.
    Ending,
}

/// Runs a command as a service. Returns the exit code of the command.
pub(super) async fn run(client: &Client, options: &RunOptions) -> Result<ExitCode, Failure> {
    // Before anything is started: a check that makes no sense is wrong usage.
    options.description.add_to(&mut Map::new())?;
    let mut signals_received = signals::catch_signals()?;
    let prepared = tokio::select! {
        prepared = prepare(client, options) => prepared?,
        kind = await_ending_signal(&mut signals_received) => return Ok(exit_code_of_signal(kind.as_raw_value())),
    };
    let mut child = start_command(&options.command, &prepared)?;
    let id = RefCell::new(None);
    let service = keep_registered(client, options, prepared.port, child.id(), &id);
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
                    // A statement of its own: the id must not stay borrowed during the request.
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
                // A second one ends the drain.
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
    // The connection closes, and the instance is gone.
    drop(service);
    failure.map_or_else(|| Ok(exit_code_of(status)), Err)
}

/// Waits for the node and for the services that are required, and chooses the port.
async fn prepare(client: &Client, options: &RunOptions) -> Result<CommandSetup, Failure> {
    let port = match options.port {
        None => None,
        Some(Port::Auto) => Some(free_port()?),
        Some(Port::At(port)) if listening::is_listening(port) => {
            let holder = listening::pid_at(port).map(|pid| format!(" by process {pid}")).unwrap_or_default();
            let problem = format!("port {port} is in use{holder}. Choose another, or --port auto");
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
                "node run: no instance of {} has been passing for {waited} s; starting without",
                escaped(service)
            );
        }
        variables.insert(variables::variable_of(service), url);
    }
    Ok(CommandSetup { port, variables })
}

/// A port that is free at every address of both families. It may be taken before the command takes it; then the command says so.
fn free_port() -> Result<u16, Failure> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0));
    let listener = listener.or_else(|_| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)));
    Ok(listener.and_then(|listener| listener.local_addr())?.port())
}

/// Waits until the node is ready. Without one, nothing is started: a program that cannot be found is of no use, and a supervisor tries again.
async fn await_node(client: &Client) -> Result<(), Failure> {
    let until = Instant::now() + NODE_MAX;
    let mut is_reported = false;
    loop {
        let failure = match client.ask(Method::GET, "/readyz").await {
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

/// The next signal that ends a process.
async fn await_ending_signal(signals_received: &mut mpsc::Receiver<SignalKind>) -> SignalKind {
    loop {
        match signals_received.recv().await {
            Some(kind) if kind != SignalKind::window_change() => return kind,
            Some(_) => {}
            None => std::future::pending().await,
        }
    }
}

/// The step between this process and its command: a subcommand of this program.
const EXEC_CHILD: &str = "exec-child";

/// Starts the command. It must be called by the main thread: the command ends with the thread that started it.
fn start_command(command: &[OsString], prepared: &CommandSetup) -> Result<Child, Failure> {
    // This program, also where its file has been replaced since.
    let mut step = Command::new("/proc/self/exe");
    step.args([EXEC_CHILD, "--parent", &std::process::id().to_string(), "--"]).args(command);
    for (name, value) in &prepared.variables {
        match value {
            Some(value) => step.env(name, value),
            None => step.env_remove(name),
        };
    }
    step.spawn().map_err(|error| Failure::Failed(anyhow::anyhow!("cannot start the command: {error}")))
}

/// Registers the command once its port listens, and keeps it registered. `id` is that of the instance while it is registered.
async fn keep_registered(
    client: &Client,
    options: &RunOptions,
    port: Option<u16>,
    pid: Option<u32>,
    id: &RefCell<Option<String>>,
) -> End {
    if let Some(port) = port {
        let until = Instant::now() + options.start_timeout;
        while !listening::is_listening(port) {
            if Instant::now() >= until {
                let waited = options.start_timeout;
                let problem = format!(
                    "the command does not listen at port {port} after {waited:?}; it is ended. It finds the port in PORT; --start-timeout gives it more time"
                );
                return End::Failed(Failure::Failed(anyhow::anyhow!(problem)));
            }
            sleep(PORT_POLL).await;
        }
    }
    // A command that cannot be run is no service.
    while pid.is_some_and(|pid| !has_become_command(pid)) {
        sleep(PORT_POLL).await;
    }
    // Only by the socket, a node looks at processes; so it has to be the socket each time.
    let (client, pid) = match client.by_socket_alone().await {
        Some((client, true)) => (client, pid),
        Some((client, false)) => (client, None),
        None => (client.clone(), None),
    };
    let mut opened = open_registration(&client, options, port, pid).await;
    if let (Err(Failure::Refused(problem)), Some(_)) = (&opened, pid) {
        // The node may be in a container, or the process of another user. The connection shows its end in any case.
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
    // Updates are dropped: the environment of a running command cannot be changed.
    End::Ended(holder.keep(held, |_| Ok(())).await)
}

/// Whether the child runs the command, and is not the step before it any more. One that has ended shows no command line. Where there is no
/// `/proc` to tell, it is taken for the command.
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
    let held = holder.open_at_last(REGISTER_RETRY).await?;
    Ok((holder, held))
}

impl RunOptions {
    /// The registration as JSON.
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

/// How a registration ends; never, where there is none.
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
    // A process that has been waited for has no pid any more, so that no other process is meant.
    let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    if let (Some(pid), Some(signal)) = (pid, Signal::from_named_raw(kind.as_raw_value())) {
        // It may have ended just now, or have become another user's.
        _ = kill_process(pid, signal);
    }
}

/// As shells do: 128 + n for a command that signal n ended.
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
    struct Alone {
        #[command(flatten)]
        options: RunOptions,
    }

    fn options(args: &str) -> Result<RunOptions, clap::Error> {
        Ok(Alone::try_parse_from(["run"].into_iter().chain(args.split_whitespace()))?.options)
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
    fn what_makes_no_sense_is_wrong_usage() {
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
