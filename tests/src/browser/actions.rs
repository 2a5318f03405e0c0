//! Actions of a person on a page. Elements are found as by a screen reader: by role and accessible name.

use std::time::Instant;

use serde_json::{Value, json};

use super::{Browser, PATIENCE};
use crate::cluster::POLL;

/// Steps of the Tab key after which an element counts as unreachable.
const TABS_MAX: usize = 100;

impl Browser {
    /// Waits for an element, and clicks on its middle. If another element covers it, the other one gets the
    /// click, and the test fails.
    pub fn click(&mut self, role: &str, name: &str) {
        let thing = self.find(role, name);
        self.order("DOM.scrollIntoViewIfNeeded", json!({ "backendNodeId": thing }));
        let quads = self.order("DOM.getContentQuads", json!({ "backendNodeId": thing }));
        let corner = |i: usize| quads["quads"][0][i].as_f64().expect("it is somewhere");
        let (x, y) = ((corner(0) + corner(4)) / 2.0, (corner(1) + corner(5)) / 2.0);
        let inside = self.on(
            thing,
            "function(x, y) { const hit = document.elementFromPoint(x, y); return this.contains(hit) || hit.contains(this); }",
            json!([{ "value": x }, { "value": y }]),
        );
        assert_eq!(inside, true, "{role} {name:?} is covered by something else");
        for kind in ["mouseMoved", "mousePressed", "mouseReleased"] {
            let button = if kind == "mouseMoved" { "none" } else { "left" };
            let event = json!({ "type": kind, "x": x, "y": y, "button": button, "clickCount": 1 });
            self.order("Input.dispatchMouseEvent", event);
        }
    }

    /// Clicks into a field, and replaces its content.
    pub fn fill(&mut self, name: &str, text: &str) {
        self.click("textbox", name);
        self.write_anew(text);
    }

    /// Replaces the content of the focused field.
    pub fn write_anew(&mut self, text: &str) {
        self.order(
            "Input.dispatchKeyEvent",
            json!({ "type": "keyDown", "key": "a", "code": "KeyA", "modifiers": 2, "commands": ["selectAll"] }),
        );
        self.order("Input.dispatchKeyEvent", json!({ "type": "keyUp", "key": "a", "code": "KeyA" }));
        self.press("Backspace");
        self.write(text);
    }

    /// Types text.
    pub fn write(&mut self, text: &str) {
        for c in text.chars() {
            let c = c.to_string();
            self.order("Input.dispatchKeyEvent", json!({ "type": "keyDown", "key": c, "text": c }));
            self.order("Input.dispatchKeyEvent", json!({ "type": "keyUp", "key": c }));
        }
    }

    /// Presses a key by its name, such as `Enter`. With `Shift+Tab`, Shift is held.
    pub fn press(&mut self, key: &str) {
        let (modifiers, key) = key.strip_prefix("Shift+").map_or((0, key), |key| (8, key));
        let (code, text) = match key {
            "Enter" => (13, "\r"),
            "Space" => (32, " "),
            "Tab" => (9, ""),
            "Backspace" => (8, ""),
            "Escape" => (27, ""),
            "ArrowDown" => (40, ""),
            _ => panic!("no such key: {key}"),
        };
        let name = if key == "Space" { " " } else { key };
        let kind = if text.is_empty() { "rawKeyDown" } else { "keyDown" };
        let mut down = json!({
            "type": kind, "key": name, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers,
        });
        if !text.is_empty() {
            down["text"] = json!(text);
        }
        self.order("Input.dispatchKeyEvent", down);
        let up = json!({
            "type": "keyUp", "key": name, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers,
        });
        self.order("Input.dispatchKeyEvent", up);
    }

    /// Presses Tab until an element has the focus.
    pub fn tab_to(&mut self, role: &str, name: &str) {
        let thing = self.find(role, name);
        for _ in 0..TABS_MAX {
            self.press("Tab");
            if self.on(thing, "function() { return this === document.activeElement; }", json!([])) == true {
                return;
            }
        }
        panic!("{role} {name:?} is out of reach of the keyboard");
    }

    /// Waits for an element with this role and exactly this accessible name.
    fn find(&mut self, role: &str, name: &str) -> u64 {
        let start = Instant::now();
        loop {
            if let Some(found) = self.look_for(role, name) {
                return found;
            }
            if start.elapsed() > PATIENCE {
                let page = self.js("document.body.innerText");
                panic!("there is no {role} {name:?}\n{}", page.as_str().unwrap_or_default());
            }
            std::thread::sleep(POLL);
        }
    }

    fn look_for(&mut self, role: &str, name: &str) -> Option<u64> {
        let document = self.order("DOM.getDocument", json!({ "depth": 0 }));
        let query = json!({
            "backendNodeId": document["root"]["backendNodeId"], "role": role, "accessibleName": name,
        });
        // The page may navigate at any time. In that case the query is repeated.
        let found = self.ask("Accessibility.queryAXTree", query).ok()?;
        let nodes = found["nodes"].as_array().cloned().unwrap_or_default();
        nodes.iter().filter(|node| node["ignored"] != true).find_map(|node| node["backendDOMNodeId"].as_u64())
    }

    /// Calls a JavaScript function with an element as its `this`. Returns null if the element no longer
    /// exists.
    fn on(&mut self, thing: u64, function: &str, arguments: Value) -> Value {
        let Ok(object) = self.ask("DOM.resolveNode", json!({ "backendNodeId": thing })) else {
            return Value::Null;
        };
        let call = json!({
            "objectId": object["object"]["objectId"], "functionDeclaration": function,
            "arguments": arguments, "returnByValue": true,
        });
        self.ask("Runtime.callFunctionOn", call)
            .map_or(Value::Null, |result| result["result"]["value"].clone())
    }
}
