//! Types and the trait [`RestoreSource`] for a restore from a backup: rows that the tables have lost or
//! changed since are written again, as new entries.
//!
//! Replacing a database by its backup does not undo a deletion: the deletion is an entry, which comes back
//! from other replicas. So `node journal restore` reads the backup and sends its items to the plug-in on a
//! running node. The plug-in compares them with its tables and writes the differences.
//!
//! A plug-in takes part by [`Service::restoring`](crate::Service::restoring). The command does not depend on
//! a particular plug-in. It reads [`RestoreItem`]s from a [`RestoreSource`] and sends them, as
//! `{"items":[…]}`, to [`RestoreSource::path`], with `?dry-run` for a preview. The endpoint
//!
//! - answers with a [`RestoreReport`];
//! - removes nothing: rows that are not in the backup stay;
//! - does nothing for items that are already restored, so that a request without an answer can be repeated on
//!   any node.

use std::sync::Arc;

use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Whether and how a plug-in is restored.
pub enum RestoreSupport {
    /// Not restored. The phrase is the reason, such as "its records would be in the log twice".
    Refused(&'static str),
    /// Restored from these items.
    Possible(Arc<dyn RestoreSource>),
}

/// Reader of a plug-in's items in a backup.
pub trait RestoreSource: Send + Sync + 'static {
    /// Returns the path that takes items, such as `/students/restore`.
    fn path(&self) -> &'static str;

    /// Returns the kind of its items, such as `student` in `--only student:7`.
    fn kind(&self) -> &'static str;

    /// Counts the items, for the progress display.
    ///
    /// # Errors
    /// An error of the database.
    fn count(&self, tables: &Connection) -> rusqlite::Result<u64>;

    /// Reads the next items after a cursor (at first `None`), or those with an id. The plug-in bounds the
    /// number of items. An empty result is the end.
    ///
    /// # Errors
    /// An error of the database.
    fn items(&self, tables: &Connection, which: ItemSelection<'_>) -> rusqlite::Result<Vec<RestoreItem>>;
}

/// Selection of items.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ItemSelection<'a> {
    /// The next items after this cursor.
    After(Option<&'a str>),
    /// The items with this id. A malformed id has no items.
    Only(&'a str),
}

/// A row of a backup with its dependent rows, or a part of it if it is large.
#[derive(Clone, PartialEq, Debug)]
pub struct RestoreItem {
    /// Cursor after this item.
    pub cursor: String,
    /// Body for the plug-in's endpoint. Some tens of kilobytes of JSON at most.
    pub body: Value,
}

/// Answer of the endpoint.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RestoreReport {
    /// Differences between the items and the tables before the write.
    pub differences: Vec<Difference>,
    /// Number of written entries.
    pub written: u64,
    /// The lowest durability that these entries reached; `None` if nothing was written.
    pub ack: Option<String>,
    /// Differences after the write, which concurrent writes have caused.
    pub remaining: u64,
}

/// A difference between a backup and the tables.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Difference {
    /// Subject of the difference, such as `student:7` or `student:7 grade:3`.
    pub item: String,
    /// Resolution of the difference.
    pub change: Resolution,
    /// Value in the tables.
    pub now: Option<String>,
    /// Value in the backup.
    pub backup: String,
    /// A remark, such as a new id.
    pub note: Option<String>,
}

/// Resolution of a difference.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Resolution {
    /// The row is missing and is added.
    #[default]
    Add,
    /// The row was changed and is set back.
    SetBack,
    /// The row stays, because the plug-in refuses the backup's value. The note has the reason.
    Refuse,
}

impl Resolution {
    /// Returns the words for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::SetBack => "set back",
            Self::Refuse => "refuse",
        }
    }
}
