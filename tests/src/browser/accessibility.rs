//! Accessibility checks of a page (`judge.js`), a walk with the Tab key that checks the visible focus, and
//! screenshots.

use std::{fs, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;

use super::Browser;

/// Script that finds faults of accessibility and readability.
const JUDGE: &str = include_str!("judge.js");

impl Browser {
    /// Returns the faults of the page in its current state: see `judge.js`.
    pub fn faults(&mut self) -> Vec<String> {
        let faults = self.js(JUDGE);
        let list = faults.as_array().unwrap_or_else(|| panic!("the judge has failed: {faults}"));
        list.iter().map(|fault| fault.as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Moves through the page with the Tab key. Returns the number of stops, and those at which the focus
    /// cannot be seen.
    pub fn walk(&mut self) -> (usize, Vec<String>) {
        // The walk starts at the top of the page, even if an element has the focus.
        self.js("document.activeElement.blur(), getSelection().collapse(document.body, 0), scrollTo(0, 0)");
        let (mut stops, mut faults) = (0, Vec::new());
        loop {
            self.press("Tab");
            let fault = self.js(FOCUS);
            if fault == "nothing" || stops > 300 {
                return (stops, faults);
            }
            stops += 1;
            if let Some(fault) = fault.as_str() {
                faults.push(fault.to_owned());
            }
        }
    }

    /// Takes a screenshot of the page, from its top to a height in pixels. Returns its size in bytes.
    pub fn picture(&mut self, file: &Path, height_max: u32) -> usize {
        let size =
            self.js("[innerWidth, Math.ceil(document.documentElement.getBoundingClientRect().height)]");
        let height = size[1].as_u64().unwrap_or_default().min(u64::from(height_max));
        let clip = json!({ "x": 0, "y": 0, "width": size[0], "height": height, "scale": 1 });
        self.js("document.activeElement.blur(), scrollTo(0, 0)");
        let shot = json!({ "format": "png", "captureBeyondViewport": true, "clip": clip });
        let shot = self.order("Page.captureScreenshot", shot);
        let bytes = STANDARD.decode(shot["data"].as_str().unwrap_or_default()).expect("a picture");
        fs::write(file, &bytes).expect("a place for pictures");
        bytes.len()
    }
}

/// Script that checks the focused element. Its result is null if the focus is visible, `nothing` if no
/// element has the focus, and otherwise the fault.
const FOCUS: &str = r#"(() => {
  const at = document.activeElement;
  if (!at || at === document.body) return "nothing";
  const style = getComputedStyle(at), box = at.getBoundingClientRect();
  const what = `${at.tagName} ${(at.getAttribute("aria-label") || at.name || at.textContent).trim().slice(0, 40)}`;
  if (style.outlineStyle === "none" || parseFloat(style.outlineWidth) < 2) return `${what}: no outline`;
  if (box.bottom <= 0 || box.top >= innerHeight || box.right <= 0 || box.left >= innerWidth) return `${what}: out of sight`;
  return null;
})()"#;
