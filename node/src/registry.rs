//! The registry: programs of this machine, and of machines without a node, that this node speaks for.
//!
//! A program registers with its nearest node. The node stores the registration, runs its health checks and states an
//! [`Instance`](hearsay_protocol::record::Instance) for it, which every node of the cluster then lists.
//!
//! | file | what |
//! | --- | --- |
//! | `registration` | a registration that has been checked, as it is stored |
//! | `checks` | health checks: what they are, and their runs |

pub mod checks;
pub mod registration;
