//! Tests of users' programs that are registered with real nodes: their deaths are noticed, rolling restarts
//! fail no request, and nodes send no request to forbidden addresses.
//!
//! | file | what |
//! | --- | --- |
//! | `deaths` | a program dies, and every node of ten knows it, however the program was registered |
//! | `rolling` | ten instances under `node run` are restarted behind the gateway, and no request fails |
//! | `kinds` | the end of a server is known by its `udp` and `h2ping` checks |
//! | `forbidden` | no check and no notification reaches an address that the policy forbids |
//! | `namesakes` | a program that bears a role's name is listed, and gets none of the role's requests |
//! | `outputs` | what changes only in the output of a check wakes nothing |
//! | `commands` | `exec` checks run from files that only the node's user and root may write |

// In a test, a failed unwrap is the failure.
#![allow(clippy::unwrap_used)]

mod commands;
mod deaths;
mod forbidden;
mod kinds;
mod namesakes;
mod outputs;
mod rolling;

use std::time::Duration;

const S: Duration = Duration::from_secs(1);
const PROGRAM: &str = env!("CARGO_BIN_EXE_program");
