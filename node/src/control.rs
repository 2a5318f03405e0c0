//! What the front ends (HTTP, signals) ask of the driver.

/// A request to the driver. It travels over a bounded channel; whoever finds that full says so to its user and does not wait.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Control {
    /// Say goodbye to the others, drain and stop.
    Leave,
    /// Take the node's own instances out of service (`true`), or back in.
    Maintenance(bool),
}
