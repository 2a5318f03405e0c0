//! Notice on a service's page about the form that was submitted.

use axum::http::StatusCode;

/// The notice above the instances.
pub(super) struct Note {
    pub(super) status: StatusCode,
    pub(super) class: &'static str,
    pub(super) role: &'static str,
    pub(super) text: String,
}

impl Note {
    /// The effect of a form.
    pub(super) fn done(done: Done) -> Self {
        Self { status: StatusCode::OK, class: "good", role: "status", text: done.sentence().to_owned() }
    }

    /// Why a form was not carried out.
    pub(super) fn refused(status: StatusCode, text: String) -> Self {
        Self { status, class: "bad", role: "alert", text }
    }
}

/// The effect of a form.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Done {
    Deregistered,
    Drained,
    Undone,
}

impl Done {
    const ALL: [Self; 3] = [Self::Deregistered, Self::Drained, Self::Undone];

    /// The value in the query of the page's address.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Deregistered => "deregistered",
            Self::Drained => "drained",
            Self::Undone => "undone",
        }
    }

    /// The sentence for people.
    fn sentence(self) -> &'static str {
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
