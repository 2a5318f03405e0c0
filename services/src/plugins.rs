//! Plug-ins: log, grade book, web pages, visit counter and key/value store.

pub(crate) mod grading;
pub(crate) mod kv;
pub(crate) mod log;
pub(crate) mod portal;
pub(crate) mod visits;

pub use grading::{Grading, Row, Sheet, SheetError};
pub use kv::{KV_INDEX, KV_KEY_BYTES_MAX, KV_ROLE, KV_VALUE_BYTES_MAX, Kv};
pub use log::{
    LOG_RETENTION_DEFAULT, LOG_ROLE, Log,
    record::{Level, MESSAGE_BYTES_MAX, NAME_BYTES_MAX, NotALevel},
};
pub use portal::Portal;
pub use visits::Visits;
