//! The program `node`: the built-in plug-ins on a Hearsay node.

use std::process::ExitCode;

fn main() -> ExitCode {
    hearsay_node::cli::main(hearsay_services::builtin(), hearsay_node::run)
}
