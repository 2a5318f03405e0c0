//! A node for tests. With `HEARSAY_BROKEN` its journal breaks a guarantee, and with `HEARSAY_NEXT` it speaks
//! the next version of the protocol.

use std::process::ExitCode;

use hearsay_node::Overrides;
use hearsay_tests::faulty_store;

fn main() -> ExitCode {
    let overrides = Overrides {
        wrap_store: faulty_store::wrap_store,
        is_next_version: std::env::var_os("HEARSAY_NEXT").is_some(),
    };
    hearsay_node::main(hearsay_node::builtin(), |config, services| {
        hearsay_node::run_with(config, services, overrides)
    })
}
