//! Fuzz target of the gateway's routing: parses route tags and `--gateway-routes` rules from the input, and
//! finds the route of one request. The properties are checked in `hearsay_gateway::fuzzing`.
#![no_main]

use hearsay_gateway::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| fuzzing::routes(bytes));
