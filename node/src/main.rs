//! The program `node`: the built-in plug-ins on a Hearsay node.

use std::process::ExitCode;

fn main() -> ExitCode {
    let services = hearsay_services::builtin();
    let roles: Vec<String> = services.iter().map(|s| s.name().to_owned()).collect();
    let roles: Vec<&str> = roles.iter().map(String::as_str).collect();
    hearsay_node::cli::main(&roles, |config| hearsay_node::run(config, services))
}
