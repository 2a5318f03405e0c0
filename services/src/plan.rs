//! What a plug-in says while the journal, on which it will stand, is not there yet: what it is, what it will be, and which
//! writes it therefore refuses. A refused write is 501 and names the reason; nothing is ever accepted that would be lost.

use axum::{Json, routing::MethodRouter};
use http::Method;
use serde_json::{Value, json};

use crate::Problem;

/// The present state of a plug-in that is not whole.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Its role.
    pub role: &'static str,
    /// What it will be, as a sentence.
    pub will: &'static str,
    /// Requests that are refused with 501 until then, such as `POST /log`.
    pub refused: &'static [&'static str],
}

impl Plan {
    /// The answer to `GET` on its prefix.
    pub fn describe(&self) -> Json<Value> {
        Json(json!({
            "role": self.role,
            "state": "announced",
            "will": self.will,
            "refused": self.refused,
        }))
    }

    /// How `/openapi.json` describes [`Self::describe`].
    pub fn openapi_get(&self) -> Value {
        json!({
            "summary": format!("What {} can do so far; it will {}", self.role, self.will),
            "responses": { "200": { "description": "Its state", "content": { "application/json": {
                "schema": { "$ref": "#/components/schemas/Plan" } } } } },
        })
    }

    /// How `/openapi.json` describes a write that is refused.
    pub fn openapi_refused(&self, what: &str) -> Value {
        json!({
            "summary": format!("{what}: not yet, needs the journal"),
            "responses": { "501": { "$ref": "#/components/responses/Problem" } },
        })
    }
}

/// Why a plug-in refuses a write.
pub fn not_yet(role: &str) -> Problem {
    Problem::not_yet(format!(
        "{role} takes no writes yet: they need the replicated journal, which this version does not have. Nothing was stored."
    ))
}

/// Lets these methods of a path answer 501 for a role. Any other method is still 405.
pub fn refuse<S: Clone + Send + Sync + 'static>(
    path: MethodRouter<S>,
    methods: &[Method],
    role: &'static str,
) -> MethodRouter<S> {
    methods.iter().fold(path, |path, method| match axum::routing::MethodFilter::try_from(method.clone()) {
        Ok(filter) => path.on(filter, move || async move { not_yet(role) }),
        // A method beyond those that axum routes stays what it was: not allowed.
        Err(_) => path,
    })
}
