//! Fuzz target: parses any bytes as texts from a client or another node (signatures of requests, URLs, node
//! ids), and passes them as counters to the check against replayed requests.
#![no_main]

use hearsay_protocol::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| fuzzing::texts(bytes));
