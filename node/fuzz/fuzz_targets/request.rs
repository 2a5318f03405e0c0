//! Fuzz target: any bytes as an HTTP request, through the guard and the decoding of the body.
#![no_main]

use hearsay_node::fuzz_request;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| fuzz_request(bytes));
