//! Command line: parses the arguments and runs a node (`node`) or a command (`node <command>`). Most commands
//! send requests to a running node.
//!
//! A command is an ordinary HTTP client that knows only the URL of a node. Scripts may rely on its output and
//! exit codes. The output is a table for people, or the node's JSON with `--json`. The exit code is 0 for
//! success, 1 for failure, 2 for wrong usage or no match, and 3 if no node answers.

/// Prints a line to standard error and ignores errors: a closed pipe or a full disk must not end the command.
macro_rules! notice {
    ($($argument:tt)*) => {{
        use std::io::Write as _;
        _ = writeln!(std::io::stderr(), $($argument)*);
    }};
}

mod checks;
mod client;
mod doctor;
mod drain;
mod event;
mod exec_child;
mod failure;
mod follow;
mod grades;
mod hold;
mod journal_admin;
mod kv;
mod kv_writes;
mod listeners;
mod log;
mod mcp;
mod output;
mod progress;
mod providers;
mod queries;
mod register;
mod responses;
mod run;
mod sse;
mod watch;
mod xds;

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use hearsay_services::Service;

use self::{
    client::Client, drain::DrainOptions, event::EventCommand, exec_child::ExecChildOptions, failure::Failure,
    grades::GradesCommand, journal_admin::JournalCommand, kv::KvCommand, mcp::McpOptions, output::Output,
    register::RegisterOptions, run::RunOptions, xds::XdsCommand,
};
use crate::{
    admission::ClusterKey,
    config::{Config, Environment, Options},
    logging,
    storage::{Secret, restrict_umask},
};

const EXAMPLES: &str = "\
Examples:
  node                              run a plain node; start a second one and they find each other
  node --role grading,portal --demo a node with two plug-ins and sample data
  node --join db1 --cluster shop    join the cluster \"shop\" through the host db1
  node services                     list all services and their instances
  node register web --port 8080 --check http=/health
                                    register a program that listens at that port
  node run --service web --port auto -- ./server
                                    run a program that is registered while it runs
  node checks                       list the health checks of registered programs
  node members                      list the nodes and their states
  node watch                        print changes of services as they happen
  node log tail                     print log records as they arrive
  node forget db1                   remove a failed member that will not come back
  node doctor                       find out why nodes do not see each other

Each option of a node is also an environment variable (--data-dir is HEARSAY_DATA_DIR) and a key of the file
that --config names (data-dir). A flag takes precedence over the environment, which takes precedence over the
file.

Exit codes of commands: 0 done, 1 failed, 2 wrong usage or no match, 3 no node answers; `node run` ends with
the code of its command. A node ends with 4 if another process uses its key (a copied data directory): a
restart does not help.";

const RUN: &str = "\
Examples:
  node run --service web --port auto -- ./server        # the server listens at $PORT
  node run --service web --port 8080 --check http=/health --requires db -- ./server
  node run --service worker -- ./worker                 # no port: registered as soon as it runs

The environment of the command has PORT, HEARSAY_NODE, and HEARSAY_DB_URL for --requires db.

`node run` waits 30 s for the node (then exit code 3) and 30 s for the services of --requires (then it starts
without them). SIGTERM removes the instance, waits for the drain and ends the command; a second SIGTERM ends
it at once. Other signals go to the command. If `node run` is killed, so is the command.

Exit codes: that of the command; 128 + n if signal n ended it; 126 not executable, 127 not found. Before the
command runs: 1 failed, 2 wrong usage, 3 no node answers.";

/// Service discovery without a registry: runs a node, or sends commands to one
#[derive(Debug, Parser)]
#[command(name = "node", version, after_help = EXAMPLES, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,

    /// File with the options of a node, in TOML
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,

    #[command(flatten)]
    options: Options,

    /// Node that gets the command (or HEARSAY_NODE): http://host:port or unix:PATH [default: the Unix socket
    /// of a node of this machine, or http://127.0.0.1:7500]
    #[arg(long, value_name = "URL", global = true, help_heading = "Options of commands")]
    node: Option<String>,

    /// API token of that node, for writes from another machine; safer in HEARSAY_TOKEN
    #[arg(long, global = true, help_heading = "Options of commands")]
    token: Option<String>,

    /// Print JSON, for programs
    #[arg(long, global = true, help_heading = "Options of commands")]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List services and their instances
    #[command(after_help = "Examples:\n  node services\n  node services grading\n  \
                            node services grading --json | jq -r '.services.grading[].url'")]
    Services {
        /// Only this service; exit code 2 if it has no instance
        name: Option<String>,
    },
    /// List the nodes of the cluster
    #[command(after_help = "Examples:\n  node members\n  node members --node http://db1:7500\n  \
                            node members --json | jq -r '.members[] | select(.state == \"alive\") | .id'")]
    Members,
    /// Print changes of services as they happen, one per line, until interrupted
    Watch,
    /// Explain the state of a service or member: which node observed what, and when
    #[command(after_help = "Examples:\n  node why grading\n  node why db1-00aa11")]
    Why {
        /// A service, or the name or id of a member
        name: String,
    },
    /// Append to the central log, follow it, or search it
    #[command(subcommand)]
    Log(log::Command),
    /// Register a running program as an instance of a service, and print its id
    #[command(after_help = "Examples:\n  node register web --port 8080 --check http=/health,interval=5s\n  \
                      node register db --port 5432 --check watch --check process=:5432\n  \
                      node register --file web.json\n  node register web --port 8080 --hold")]
    Register(Box<RegisterOptions>),
    /// Remove a registered instance
    #[command(after_help = "Example:\n  node deregister \"$(node register web --port 8080)\"")]
    Deregister {
        /// The id of the instance
        id: String,
    },
    /// Run a command and register it as an instance while it runs
    #[command(after_help = RUN)]
    Run(Box<RunOptions>),
    /// List the health checks of programs that are registered with the node
    Checks {
        /// Only those of this instance or service; exit code 2 if there is none
        #[arg(value_name = "ID|SERVICE")]
        name: Option<String>,
    },
    /// Take an instance or a node out of service without stopping it
    #[command(after_help = "Examples:\n  node drain web-1 --reason \"new disk\"\n  node drain web-1 --undo")]
    Drain(DrainOptions),
    /// Executes the command of `node run`
    #[command(hide = true)]
    ExecChild(ExecChildOptions),
    /// Make the node leave the cluster, finish its requests and stop
    Leave,
    /// Remove a failed or left member that will not come back, on all nodes
    #[command(
        after_help = "Examples:\n  node forget db1-00aa11\n  node forget 12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X\n\n\
                            A member that is alive is refused. A forgotten member that turns out to be alive joins again."
    )]
    Forget {
        /// The name or id of the member
        #[arg(value_name = "NAME|ID")]
        member: String,
    },
    /// Import or export the grade book as CSV
    #[command(subcommand)]
    Grades(GradesCommand),
    /// Fire user events, and watch those that a node receives
    #[command(subcommand)]
    Event(EventCommand),
    /// Read and write keys of the key/value store
    #[command(subcommand)]
    Kv(KvCommand),
    /// Serve the Model Context Protocol on standard input and output, for an agent
    #[command(after_help = mcp::HELP)]
    Mcp(McpOptions),
    /// Configure Envoy and gRPC to get services from a node by xDS
    #[command(subcommand)]
    Xds(XdsCommand),
    /// Verify, rebuild, back up and restore the journals of this machine's nodes
    #[command(subcommand)]
    Journal(JournalCommand),
    /// Make a cluster key; only nodes with the same key can join
    #[command(
        after_help = "Example:\n  (umask 077; node keygen > cluster.key)\n  node --key-file cluster.key\n\n\
                            Every node of the cluster needs the same file."
    )]
    Keygen,
    /// Find out why nodes do not see each other; exit code 1 if a check fails
    Doctor,
    /// Check whether the node is ready; exit code 0 if so (for a container's HEALTHCHECK)
    Health,
    /// Print completions for a shell
    #[command(
        after_help = "Example:\n  node completions bash > ~/.local/share/bash-completion/completions/node"
    )]
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// Parses the command line and runs a node or a command. `services` are the plug-ins of this program; `run`
/// runs a node with them until it has left.
///
/// A program with further plug-ins needs nothing else in its `main`.
pub fn main(
    services: Vec<Arc<dyn Service>>,
    run: impl FnOnce(Config, Vec<Arc<dyn Service>>) -> anyhow::Result<()>,
) -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // For clap, help and version are errors with exit code 0. A closed pipe is ignored.
            _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    // The command of `node run` must inherit the umask.
    if !matches!(cli.command, Some(Command::Run(_) | Command::ExecChild(_))) {
        restrict_umask();
    }
    let environment = Environment::of_process();
    let ended = match &cli.command {
        Some(Command::ExecChild(options)) => return ExitCode::from(exec_child::exec(options)),
        Some(command) => run_command(&cli, command, &services, &environment),
        None => run_node(cli, services, &environment, run),
    };
    ended.unwrap_or_else(|failure| failure.report())
}

fn run_node(
    cli: Cli,
    services: Vec<Arc<dyn Service>>,
    environment: &Environment,
    run: impl FnOnce(Config, Vec<Arc<dyn Service>>) -> anyhow::Result<()>,
) -> Result<ExitCode, Failure> {
    if cli.node.is_some() || cli.token.is_some() || cli.json {
        return Err(Failure::Usage(
            "--node, --token and --json need a command, such as `node services`; leave them out to run a node".into(),
        ));
    }
    let roles: Vec<&str> = services.iter().map(|service| service.name()).collect();
    let config = Config::load(cli.options, cli.config, environment, &roles)?;
    let _log =
        logging::init(config.log_format, environment).map_err(|error| Failure::Usage(error.to_string()))?;
    run(config, services).map_err(Failure::Failed)?;
    Ok(ExitCode::SUCCESS)
}

fn run_command(
    cli: &Cli,
    command: &Command,
    services: &[Arc<dyn Service>],
    environment: &Environment,
) -> Result<ExitCode, Failure> {
    if cli.config.is_some() || cli.options != Options::default() {
        return Err(Failure::Usage(
            "options of a node cannot be combined with a command; leave them out".into(),
        ));
    }
    let output = Output::new(cli.json, environment);
    match command {
        Command::Keygen => {
            let key = ClusterKey::random().map_err(|error| Failure::Failed(error.into()))?;
            return output.print(key.to_file().expose()).map(|()| ExitCode::SUCCESS);
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "node", &mut script);
            return output.print(&String::from_utf8_lossy(&script)).map(|()| ExitCode::SUCCESS);
        }
        Command::Journal(JournalCommand::Restore(_)) => {}
        Command::Journal(_) if cli.node.is_some() || cli.token.is_some() => {
            return Err(Failure::Usage("`node journal` works on a data directory, not on a running node; leave --node and --token out".into()));
        }
        Command::Journal(command) => {
            return journal_admin::run(command, services, output, environment).map(|()| ExitCode::SUCCESS);
        }
        _ => {}
    }
    let option = |flag: &Option<String>, variable| {
        flag.clone().or_else(|| environment.get(variable).map(|value| value.to_string_lossy().into_owned()))
    };
    let token = option(&cli.token, "HEARSAY_TOKEN").map(Secret::new);
    let client = match option(&cli.node, "HEARSAY_NODE") {
        Some(url) => Client::new(&url, token)?,
        None => Client::local(environment, token)?,
    };
    // Single-threaded: the parent-death signal of `node run`'s command is bound to the thread that starts it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        match command {
            Command::Services { name } => queries::services(&client, output, name.as_deref()).await,
            Command::Members => queries::members(&client, output).await,
            Command::Watch => watch::watch(&client, output).await,
            Command::Why { name } => queries::why(&client, output, name).await,
            Command::Log(command) => log::log(&client, output, command).await,
            Command::Register(options) => register::register(&client, output, options).await,
            Command::Deregister { id } => register::deregister(&client, output, id).await,
            Command::Run(options) => return run::run(&client, options).await,
            Command::Checks { name } => checks::print_checks(&client, output, name.as_deref()).await,
            Command::Drain(options) => drain::drain(&client, output, options).await,
            Command::Leave => queries::leave(&client, output).await,
            Command::Forget { member } => queries::forget(&client, output, member).await,
            Command::Health => queries::health(&client, output).await,
            Command::Doctor => doctor::doctor(&client, output).await,
            Command::Grades(command) => grades::run(command, &client, output, environment).await,
            Command::Event(command) => event::run(command, &client, output).await,
            Command::Kv(command) => kv::run(command, &client, output).await,
            Command::Mcp(options) => mcp::serve(client, options).await,
            Command::Xds(command) => xds::run(command, &client, output).await,
            Command::Journal(JournalCommand::Restore(options)) => {
                journal_admin::restore::restore(options, &client, services, output, environment).await
            }
            Command::Journal(_) | Command::Keygen | Command::Completions { .. } | Command::ExecChild(_) => {
                Ok(())
            }
        }
        .map(|()| ExitCode::SUCCESS)
    });
    // Does not wait for threads that still resolve a host name.
    runtime.shutdown_background();
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_valid_for_clap() {
        Cli::command().debug_assert();
    }

    #[test]
    fn no_option_of_a_node_is_hidden_behind_an_option_of_commands() {
        let mut longs: Vec<_> =
            Cli::command().get_arguments().filter_map(|a| a.get_long().map(str::to_owned)).collect();
        let all = longs.len();
        longs.sort();
        longs.dedup();
        assert_eq!(longs.len(), all);
    }
}
