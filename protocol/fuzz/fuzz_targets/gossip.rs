//! Fuzz target: passes any bytes as gossip to a running core.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use live::{Live, Way};

#[allow(dead_code)]
#[path = "../../tests/garbage/live.rs"]
mod live;

thread_local!(static LIVE: RefCell<Live> = RefCell::new(Live::new()));

fuzz_target!(|bytes: &[u8]| {
    LIVE.with(|live| _ = live.borrow_mut().feed(Way::Gossip, bytes.to_vec()));
});
