//! Fuzz target: any bytes as a message of `POST /rpc`, or as a line over TCP.
#![no_main]

use hearsay_node::fuzz_jsonrpc;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| fuzz_jsonrpc(bytes));
