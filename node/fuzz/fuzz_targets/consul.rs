//! Fuzz target: any bytes as a request to Consul's interface, as the body of a registration, query parameters
//! or a filter expression.
#![no_main]

use hearsay_node::fuzz_consul;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| fuzz_consul(bytes));
