//! Floods for tests: one host holds many connections to a port of a node, while another host measures the
//! node's answers.
//!
//! | file | content |
//! | --- | --- |
//! | `flood` | a running flood |
//! | `flooder` | the process that opens the connections |
//! | `cpu_limit` | the limit of the flooder's processor time |
//! | `flooded` | the flooded node, and a second host that sends requests meanwhile |
//! | `kinds` | the kinds of floods |

mod cpu_limit;
mod flood;
mod flooded;
mod flooder;
mod kinds;

pub use cpu_limit::CpuLimit;
pub use flood::Flood;
pub use flooded::{Flooded, TimedRequest};
pub use flooder::run_flooder;
pub use kinds::Flooding;
