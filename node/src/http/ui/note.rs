//! What a service's page says of the form that led to it.

use axum::http::StatusCode;

/// What is said above the instances.
pub(super) struct Note {
    pub(super) status: StatusCode,
    pub(super) class: &'static str,
    pub(super) role: &'static str,
    pub(super) text: String,
}

impl Note {
    /// What a form has done.
    pub(super) fn done(done: Done) -> Self {
        Self { status: StatusCode::OK, class: "good", role: "status", text: done.told().to_owned() }
    }

    /// Why a form was not carried out.
    pub(super) fn refused(status: StatusCode, text: String) -> Self {
        Self { status, class: "bad", role: "alert", text }
    }
}

/// What a form has done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Done {
    Deregistered,
    Drained,
    Undone,
}

impl Done {
    const ALL: [Self; 3] = [Self::Deregistered, Self::Drained, Self::Undone];

    /// As it stands in the address of the page that tells of it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Deregistered => "deregistered",
            Self::Drained => "drained",
            Self::Undone => "undone",
        }
    }

    /// As a sentence.
    fn told(self) -> &'static str {
        match self {
            Self::Deregistered => "The instance is deregistered.",
            Self::Drained => "The instance is drained: it gets no new requests.",
            Self::Undone => "The instance is back in service.",
        }
    }

    /// Reads it from the query of a page.
    pub(super) fn read(query: Option<&str>) -> Option<Self> {
        let word = query?.strip_prefix("done=")?;
        Self::ALL.into_iter().find(|done| done.as_str() == word)
    }
}
