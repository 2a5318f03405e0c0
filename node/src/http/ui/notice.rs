//! [`Notice`]: the text that a service's page shows after a submitted form, for success or refusal.

use axum::http::StatusCode;

/// A notice above the instances.
pub(crate) struct Notice {
    pub(crate) status: StatusCode,
    pub(crate) class: &'static str,
    pub(crate) role: &'static str,
    pub(crate) text: String,
}

impl Notice {
    /// Creates the notice of a form's effect.
    pub(crate) fn done(done: Done) -> Self {
        Self { status: StatusCode::OK, class: "good", role: "status", text: done.sentence().to_owned() }
    }

    /// Creates the notice of a refused form.
    pub(crate) fn refused(status: StatusCode, text: String) -> Self {
        Self { status, class: "bad", role: "alert", text }
    }
}

/// The effect of a form.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Done {
    Deregistered,
    Drained,
    Undone,
}

impl Done {
    const ALL: [Self; 3] = [Self::Deregistered, Self::Drained, Self::Undone];

    /// Returns the value for the query of the page's address.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Deregistered => "deregistered",
            Self::Drained => "drained",
            Self::Undone => "undone",
        }
    }

    /// Returns the text of the notice.
    fn sentence(self) -> &'static str {
        match self {
            Self::Deregistered => "The instance is deregistered.",
            Self::Drained => "The instance is drained: it gets no new requests.",
            Self::Undone => "The instance is back in service.",
        }
    }

    /// Reads the effect from the query of a page.
    pub(crate) fn read(query: Option<&str>) -> Option<Self> {
        let word = query?.strip_prefix("done=")?;
        Self::ALL.into_iter().find(|done| done.as_str() == word)
    }
}
