//! [`Warnings`]: conditions that an operator should correct and that do not keep the node from serving.
//!
//! A warning has a kind and is logged when it begins and when it ends. `/readyz` and `node doctor` list the
//! current ones.

use std::collections::BTreeMap;

use tokio::sync::watch;

/// Kind: the clock of this node differs from those of its peers.
pub const CLOCK: &str = "clock";
/// Kind: a replica of an older version orders rows differently.
pub const ROW_ORDER: &str = "row-order";

/// Current warnings by kind.
#[derive(Debug, Default)]
pub struct Warnings(watch::Sender<BTreeMap<&'static str, String>>);

impl Warnings {
    /// Sets the text of a warning, or ends it with `None`.
    pub fn set(&self, kind: &'static str, text: Option<String>) {
        self.0.send_if_modified(|current| {
            let before = current.get(kind).cloned();
            match (&before, &text) {
                (None, Some(text)) => tracing::warn!(kind, "{text}"),
                (Some(before), None) => tracing::info!(kind, "resolved: {before}"),
                _ => (),
            }
            let is_changed = before != text;
            match text {
                Some(text) => current.insert(kind, text),
                None => current.remove(kind),
            };
            is_changed
        });
    }

    /// Returns the texts of all current warnings.
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
