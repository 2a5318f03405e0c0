//! The command line: `node` runs a node, `node <command>` asks one.
//!
//! A command is a client like any other: it knows a node by its URL alone and speaks HTTP. What it prints and how it ends is a contract with
//! scripts: tables for people, the node's JSON with `--json`; exit code 0 for success, 1 for failure, 2 for wrong usage or no match, 3 when no node answers.

/// Writes a line to standard error. A reader that is gone, or a full disk behind it, ends neither this command nor the one that it runs.
macro_rules! notice {
    ($($argument:tt)*) => {{
        use std::io::Write as _;
        _ = writeln!(std::io::stderr(), $($argument)*);
    }};
}

mod answers;
mod ask;
mod checks;
mod client;
mod doctor;
mod drain;
mod exec_child;
mod failure;
mod follow;
mod grades;
mod hold;
mod journal;
mod listening;
mod log;
mod output;
mod progress;
mod providers;
mod register;
mod run;
mod sse;
mod watch;

use std::{path::PathBuf, process::ExitCode, sync::Arc};

use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use hearsay_services::Service;

use self::{
    client::Client, drain::DrainOptions, exec_child::ExecChildOptions, failure::Failure,
    grades::GradesCommand, journal::JournalCommand, output::Output, register::RegisterOptions,
    run::RunOptions,
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
  node --join db1 --cluster shop    join the cluster \"shop\" by way of the host db1
  node services                     who offers what
  node register web --port 8080 --check http=/health
                                    make a program that listens there a service
  node run --service web --port auto -- ./server
                                    run a program that is a service for as long as it runs
  node checks                       how the registered programs are, and why
  node members                      which nodes there are, and how they are
  node watch                        every change as it happens
  node log tail                     what any service says, as it says it
  node forget db1                   remove a member that failed and will not come back
  node doctor                       why do my nodes not see each other?

Every option of a node is also a variable of the environment (--data-dir is HEARSAY_DATA_DIR) and a key in the
file that --config names (data-dir). A flag outranks the environment, which outranks the file.

Exit codes of commands: 0 done, 1 failed, 2 wrong usage or no match, 3 no node answers; `node run`: those of its
command. A node ends with 4 where
another process already runs under its key (a copied data dir): starting it again does not help.";

const RUN: &str = "\
Examples:
  node run --service web --port auto -- ./server        # the server listens at $PORT
  node run --service web --port 8080 --check http=/health --requires db -- ./server
  node run --service worker -- ./worker                 # no port: registered as soon as it runs

The command finds PORT, HEARSAY_NODE, and HEARSAY_DB_URL for --requires db in its environment.

It waits 30 s for the node (exit code 3 without) and 30 s for what --requires names, and starts without that.
SIGTERM removes the instance, waits for the drain, and ends the command; a second one ends it at once. Other signals go
to the command. When `node run` is killed, the command is, too.

Exit codes: that of the command; 128 + n if signal n ended it; 126 not executable, 127 not found. Before the command
runs: 1 failed, 2 wrong usage, 3 no node answers.";

/// Service discovery without a registry: runs a node, or asks one
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

    /// The node to ask (or HEARSAY_NODE): http://host:port or unix:PATH [default: the Unix socket of a node of
    /// this machine, or http://127.0.0.1:7500]
    #[arg(long, value_name = "URL", global = true, help_heading = "Options of commands")]
    node: Option<String>,

    /// API token of that node, for writes from another machine (better: HEARSAY_TOKEN)
    #[arg(long, global = true, help_heading = "Options of commands")]
    token: Option<String>,

    /// Print JSON, for programs
    #[arg(long, global = true, help_heading = "Options of commands")]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List services and who offers them
    #[command(after_help = "Examples:\n  node services\n  node services grading\n  \
                            node services grading --json | jq -r '.services.grading[].url'")]
    Services {
        /// Only this one; exit code 2 if nobody offers it
        name: Option<String>,
    },
    /// List the nodes of the cluster
    #[command(after_help = "Examples:\n  node members\n  node members --node http://db1:7500\n  \
                            node members --json | jq -r '.members[] | select(.state == \"alive\") | .id'")]
    Members,
    /// Print every change of the services as it happens, one a line, until interrupted
    Watch,
    /// Tell why a service or member is as it is: who saw what, and when
    #[command(after_help = "Examples:\n  node why grading\n  node why db1-00aa11")]
    Why {
        /// A service, or the name or id of a member
        name: String,
    },
    /// Add to the central log, read along, or search it
    #[command(subcommand)]
    Log(log::Command),
    /// Make a program that runs a service, and print the id of the instance
    #[command(after_help = "Examples:\n  node register web --port 8080 --check http=/health,interval=5s\n  \
                      node register db --port 5432 --check watch --check process=:5432\n  \
                      node register --file web.json\n  node register web --port 8080 --hold")]
    Register(Box<RegisterOptions>),
    /// Remove an instance that was registered
    #[command(after_help = "Example:\n  node deregister \"$(node register web --port 8080)\"")]
    Deregister {
        /// The id of the instance
        id: String,
    },
    /// Run a command that is a service for as long as it runs
    #[command(after_help = RUN)]
    Run(Box<RunOptions>),
    /// List the checks of the programs that are registered with the node
    Checks {
        /// Only those of this instance, or of this service; exit code 2 if there is none
        #[arg(value_name = "ID|SERVICE")]
        name: Option<String>,
    },
    /// Take an instance or a node out of service without stopping it
    #[command(after_help = "Examples:\n  node drain web-1 --reason \"new disk\"\n  node drain web-1 --undo")]
    Drain(DrainOptions),
    /// The step between `node run` and its command
    #[command(hide = true)]
    ExecChild(ExecChildOptions),
    /// Let the node say goodbye, finish its requests and stop
    Leave,
    /// Forget a member that has failed or left and will not come back, on all nodes
    #[command(
        after_help = "Examples:\n  node forget db1-00aa11\n  node forget 12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X\n\n\
                            A member that is alive is not forgotten. One that was forgotten and lives comes back by itself."
    )]
    Forget {
        /// The name or id of the member
        #[arg(value_name = "NAME|ID")]
        member: String,
    },
    /// Bring the grade book in from CSV, or take it out
    #[command(subcommand)]
    Grades(GradesCommand),
    /// Check, mend and back up what this machine's nodes keep on disk
    #[command(subcommand)]
    Journal(JournalCommand),
    /// Make a cluster key, without which nobody can join
    #[command(
        after_help = "Example:\n  (umask 077; node keygen > cluster.key)\n  node --key-file cluster.key\n\n\
                            Every node of the cluster needs the same file."
    )]
    Keygen,
    /// Find out why nodes do not see each other; exit code 1 if something is wrong
    Doctor,
    /// Ask whether the node is ready; exit code 0 if so (for a container's HEALTHCHECK)
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

/// Does what the command line says. `services` are the plug-ins of this program; `run` runs a node with them until it has left.
///
/// For a program with plug-ins of its own, this is the whole of `main`.
pub fn main(
    services: Vec<Arc<dyn Service>>,
    run: impl FnOnce(Config, Vec<Arc<dyn Service>>) -> anyhow::Result<()>,
) -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too, with code 0. A reader that is gone does not matter.
            _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    // What `node run` starts keeps the umask that it would have without a node.
    if !matches!(cli.command, Some(Command::Run(_) | Command::ExecChild(_))) {
        restrict_umask();
    }
    let environment = Environment::of_process();
    let ended = match &cli.command {
        Some(Command::ExecChild(options)) => return ExitCode::from(exec_child::exec(options)),
        Some(command) => ask(&cli, command, &services, &environment),
        None => start(cli, services, &environment, run),
    };
    ended.unwrap_or_else(|failure| failure.report())
}

fn start(
    cli: Cli,
    services: Vec<Arc<dyn Service>>,
    environment: &Environment,
    run: impl FnOnce(Config, Vec<Arc<dyn Service>>) -> anyhow::Result<()>,
) -> Result<ExitCode, Failure> {
    if cli.node.is_some() || cli.token.is_some() || cli.json {
        return Err(Failure::Usage(
            "--node, --token and --json belong to commands such as `node services`".into(),
        ));
    }
    let roles: Vec<&str> = services.iter().map(|service| service.name()).collect();
    let config = Config::load(cli.options, cli.config, environment, &roles)?;
    let _log =
        logging::init(config.log_format, environment).map_err(|error| Failure::Usage(error.to_string()))?;
    run(config, services).map_err(Failure::Failed)?;
    Ok(ExitCode::SUCCESS)
}

fn ask(
    cli: &Cli,
    command: &Command,
    services: &[Arc<dyn Service>],
    environment: &Environment,
) -> Result<ExitCode, Failure> {
    if cli.config.is_some() || cli.options != Options::default() {
        return Err(Failure::Usage("a command takes no options of a node".into()));
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
            return Err(Failure::Usage("`node journal` asks no node: it works on a data directory".into()));
        }
        Command::Journal(command) => {
            return journal::run(command, services, output, environment).map(|()| ExitCode::SUCCESS);
        }
        _ => {}
    }
    let said = |flag: &Option<String>, variable| {
        flag.clone().or_else(|| environment.get(variable).map(|value| value.to_string_lossy().into_owned()))
    };
    let token = said(&cli.token, "HEARSAY_TOKEN").map(Secret::new);
    let client = match said(&cli.node, "HEARSAY_NODE") {
        Some(url) => Client::new(&url, token)?,
        None => Client::of_this_machine(environment, token)?,
    };
    // Of the current thread: a command that `node run` starts ends with the thread that started it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        match command {
            Command::Services { name } => ask::services(&client, output, name.as_deref()).await,
            Command::Members => ask::members(&client, output).await,
            Command::Watch => watch::watch(&client, output).await,
            Command::Why { name } => ask::why(&client, output, name).await,
            Command::Log(command) => log::log(&client, output, command).await,
            Command::Register(options) => register::register(&client, output, options).await,
            Command::Deregister { id } => register::deregister(&client, output, id).await,
            Command::Run(options) => return run::run(&client, options).await,
            Command::Checks { name } => checks::print_checks(&client, output, name.as_deref()).await,
            Command::Drain(options) => drain::drain(&client, output, options).await,
            Command::Leave => ask::leave(&client, output).await,
            Command::Forget { member } => ask::forget(&client, output, member).await,
            Command::Health => ask::health(&client, output).await,
            Command::Doctor => doctor::doctor(&client, output).await,
            Command::Grades(command) => grades::run(command, &client, output, environment).await,
            Command::Journal(JournalCommand::Restore(options)) => {
                journal::restore::restore(options, &client, services, output, environment).await
            }
            Command::Journal(_) | Command::Keygen | Command::Completions { .. } | Command::ExecChild(_) => {
                Ok(())
            }
        }
        .map(|()| ExitCode::SUCCESS)
    });
    // A name that is still being resolved has a thread of its own; the answer is no longer of interest.
    runtime.shutdown_background();
    ended
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
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
