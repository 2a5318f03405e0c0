//! Interfaces between a node and its machine: listening ports, network interfaces, systemd, and memory.

pub(crate) mod interfaces;
pub(crate) mod memory;
pub(crate) mod ports;
pub(crate) mod systemd;
