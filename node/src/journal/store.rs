//! A topic's SQLite database: format and opening (`format`, `open`), signed runs (`runs`), the machine's
//! state (`state`), retention, and rebuilding the plug-in's tables. `topic_store` is the trait that the
//! worker uses.

pub(crate) mod database;
pub(crate) mod error;
pub(crate) mod format;
mod holdings;
mod open;
mod read_only;
mod rebuild;
pub(crate) mod retention;
pub(crate) mod runs;
pub(crate) mod state;
pub(crate) mod topic_store;
