//! Fuzz target: decodes any bytes as the values of an instance's entries, and as check reports.
#![no_main]

use hearsay_protocol::fuzzing;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| fuzzing::values(bytes));
