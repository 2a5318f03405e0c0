//! Fuzz target of the decoders of addresses: CIDR ranges, `Forwarded`, URLs, queries, resolved addresses.
#![no_main]

use hearsay_services::testing::fuzz_addresses;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| fuzz_addresses(bytes));
