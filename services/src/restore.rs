//! Restoring from a backup: what a backup has and the tables no longer have is written again, as new entries.
//!
//! Putting a backup in the place of a database undoes no deletion, because the deletion is an entry of its
//! own and comes back from the other replicas. So `node journal restore` reads the backup, and sends what is
//! in it to the plug-in on a running node. The plug-in compares it with its tables and writes the difference
//! like any other write.
//!
//! A plug-in takes part by [`Service::restoring`](crate::Service::restoring). The command knows no plug-in by
//! name: it reads [`Item`]s by way of [`Restore`] and sends them, as `{"items":[…]}`, to [`Restore::path`],
//! with `?dry-run` where nothing may be written. The endpoint
//!
//! - answers with a [`Report`];
//! - never removes anything: what is not in the backup stays;
//! - finds nothing to do when the same items are sent again, so that a part whose answer is lost can be sent
//!   again, to whichever node.

use std::sync::Arc;

use rusqlite::Connection;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Whether and how a plug-in is restored from a backup.
pub enum Restoring {
    /// It is not restored. The phrase says why, such as "its records would be in the log twice".
    Refused(&'static str),
    /// It is restored from these items.
    Possible(Arc<dyn Restore>),
}

/// Reads a plug-in's items out of a backup.
pub trait Restore: Send + Sync + 'static {
    /// The path of the plug-in that takes items, such as `/students/restore`.
    fn path(&self) -> &'static str;

    /// The kind of its items, such as `student` of `--only student:7`.
    fn kind(&self) -> &'static str;

    /// Counts the items, for showing progress.
    ///
    /// # Errors
    /// What the database said.
    fn count(&self, tables: &Connection) -> rusqlite::Result<u64>;

    /// Reads the next items behind a cursor (at first: `None`), or those with an id. Empty: there are no
    /// more. The plug-in bounds how many it returns at once.
    ///
    /// # Errors
    /// What the database said.
    fn items(&self, tables: &Connection, which: Which<'_>) -> rusqlite::Result<Vec<Item>>;
}

/// Which items are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Which<'a> {
    /// The next behind this cursor.
    After(Option<&'a str>),
    /// Those with this id. None for a text that is no id.
    Only(&'a str),
}

/// A row of a backup with all that belongs to it, or a part of a large one.
#[derive(Clone, PartialEq, Debug)]
pub struct Item {
    /// Reading goes on behind this item with it.
    pub cursor: String,
    /// As the plug-in's endpoint takes it. At most some tens of kilobytes as JSON.
    pub body: Value,
}

/// The endpoint's answer.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Report {
    /// Differences between the items and the tables before the write.
    pub differences: Vec<Difference>,
    /// Entries that were written.
    pub written: u64,
    /// The lowest level that they reached; `None` where nothing was written.
    pub ack: Option<String>,
    /// Differences that are still there after the write, because something else was written meanwhile.
    pub remaining: u64,
}

/// A difference between a backup and the tables.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Difference {
    /// Its subject, such as `student:7` or `student:7 grade:3`.
    pub item: String,
    /// How restoring resolves it.
    pub change: Kind,
    /// What the tables have.
    pub now: Option<String>,
    /// What the backup has.
    pub backup: String,
    /// Anything else to know, such as a new id.
    pub note: Option<String>,
}

/// How restoring resolves a difference.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// It is missing, and is added.
    #[default]
    Add,
    /// It was changed, and is set back.
    SetBack,
    /// It stays, because the plug-in refuses the backup's value. The note says why.
    Refuse,
}

impl Kind {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::SetBack => "set back",
            Self::Refuse => "refuse",
        }
    }
}
