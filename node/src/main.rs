//! The program `node`: runs a Hearsay node with the built-in plug-ins.

use std::process::ExitCode;

fn main() -> ExitCode {
    hearsay_node::main(hearsay_node::builtin(), hearsay_node::run)
}
