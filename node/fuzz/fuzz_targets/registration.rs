//! Fuzz target: any bytes as a registration, in a request body or a file.
#![no_main]

use hearsay_node::fuzz_registration;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| fuzz_registration(bytes));
