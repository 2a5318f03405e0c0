//! Benchmarks: `tests/run --bench NAME [OPTIONS]`. Each measures the shipped binary, compares it with other
//! systems if there are any, and writes a page of figures to `docs/bench`.

mod agent;
mod clock;
mod cluster;
mod consul;
mod disk;
mod fleet;
mod floods;
mod gateway;
mod grpc;
mod hearsay;
mod journal;
mod load;
mod machine;
mod measure;
mod namespace;
mod process;
mod protocol;
mod registry;
mod report;
mod serf;
mod server;
mod sighting;
mod simulation;
mod statistics;
mod swarms;
mod system;
mod table;
mod usage;
mod wrk;
mod xds;

use std::process::ExitCode;

use anyhow::{Result, bail};

/// Benchmark: name, usage, function.
type Benchmark = (&'static str, &'static str, fn(&[String]) -> Result<()>);

const BENCHMARKS: [Benchmark; 9] = [
    ("cluster", cluster::USAGE, cluster::run),
    ("consul", consul::USAGE, consul::run),
    ("floods", floods::USAGE, floods::run),
    ("gateway", gateway::USAGE, gateway::run),
    ("journal", journal::USAGE, journal::run),
    ("registry", registry::USAGE, registry::run),
    ("simulation", simulation::USAGE, simulation::run),
    ("swarms", swarms::USAGE, swarms::run),
    ("xds", xds::USAGE, xds::run),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("bench: {problem:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    let usage = || BENCHMARKS.map(|(_, usage, _)| usage).join("\n");
    match arguments.first().map(String::as_str) {
        None | Some("-h" | "--help" | "help") => {
            print!("{}", usage());
            Ok(())
        }
        // These are not benchmarks, but processes that a benchmark starts.
        Some("agent") => agent::run(&arguments[1..]),
        Some("flooder") => hearsay_tests::run_flooder(&arguments[1..]),
        Some("program") => registry::run_program(&arguments[1..]),
        Some("swarms-of") => swarms::run_one(&arguments[1..]),
        Some(name) => match BENCHMARKS.iter().find(|benchmark| benchmark.0 == name) {
            Some((_, usage, _)) if arguments.iter().any(|a| a == "-h" || a == "--help") => {
                print!("{usage}");
                Ok(())
            }
            Some((_, _, run)) => run(&arguments[1..]),
            None => bail!("no benchmark {name}\n{}", usage()),
        },
    }
}
