//! Fuzz target: any bytes as a DNS request, from any client and over any transport.
#![no_main]

use hearsay_node::fuzz_dns;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| fuzz_dns(bytes));
