//! Filter of records by service and level, and the choice of the SQLite index to read them through.

use super::{record::Level, tables::Row};

/// Filter of a listing or a tail.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Filter {
    /// The service of the records.
    pub(super) service: Option<String>,
    /// The lowest level of the records.
    pub(super) level: Option<Level>,
}

impl Filter {
    pub(super) fn takes(&self, row: &Row) -> bool {
        !row.is_hidden
            && self.level.is_none_or(|level| row.level >= level)
            && self.service.as_ref().is_none_or(|service| row.service.as_ref() == Some(service))
    }

    /// Returns the index that yields these records in the order of time, and its condition in SQL.
    pub(super) fn index(&self) -> (&'static str, &'static str) {
        match self {
            // Each condition mentions the fourth parameter, so that all statements take the same parameters.
            Self { level: Some(level), .. } if *level >= Level::Warn => {
                ("log_warnings", "r.level >= 4 AND ?4 IS ?4")
            }
            Self { service: Some(_), .. } => ("log_by_service", "r.service = ?4"),
            _ => ("log_by_time", "?4 IS ?4"),
        }
    }
}
