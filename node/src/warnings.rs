//! Warnings of a node about itself: conditions that a person should mend, and that do not keep the node from serving.
//!
//! Each has a kind and is logged once when it begins and once when it ends. `/readyz` lists the current ones, and `node doctor` shows them.

use std::collections::BTreeMap;

use tokio::sync::watch;

/// The clocks of this node and of its peers differ.
pub const CLOCK: &str = "clock";
/// A replica of an older version orders rows differently.
pub const ROW_ORDER: &str = "row-order";

/// The current warnings, by kind.
#[derive(Debug, Default)]
pub struct Warnings(watch::Sender<BTreeMap<&'static str, String>>);

impl Warnings {
    /// Sets the text of a warning, or ends it.
    pub fn set(&self, kind: &'static str, text: Option<String>) {
        self.0.send_if_modified(|current| {
            let before = current.get(kind).cloned();
            match (&before, &text) {
                (None, Some(text)) => tracing::warn!(kind, "{text}"),
                (Some(before), None) => tracing::info!(kind, "no longer: {before}"),
                _ => (),
            }
            let is_news = before != text;
            match text {
                Some(text) => current.insert(kind, text),
                None => current.remove(kind),
            };
            is_news
        });
    }

    /// The texts of all current warnings.
    pub fn list(&self) -> Vec<String> {
        self.0.borrow().values().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_is_listed_until_it_ends() {
        let warnings = Warnings::default();
        warnings.set(CLOCK, Some("off by 2 days".into()));
        warnings.set(ROW_ORDER, Some("one older replica".into()));
        warnings.set(CLOCK, Some("off by 3 days".into()));
        assert_eq!(warnings.list(), ["off by 3 days", "one older replica"]);
        warnings.set(CLOCK, None);
        warnings.set(CLOCK, None);
        assert_eq!(warnings.list(), ["one older replica"]);
    }
}
