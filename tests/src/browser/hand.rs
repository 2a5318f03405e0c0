//! What a person does to a page. Things are found as those find them who do not see the page: by what they are and what they are called.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Browser, PATIENCE};
use crate::cluster::POLL;

/// Steps of the Tab key after which something is called out of reach.
const TABS_MAX: usize = 100;

impl Browser {
    /// Clicks on the middle of a thing, once it is there. Whatever covers it is clicked instead, and that is a failure.
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

    /// Clicks into a field and types into it, instead of what stands there.
    pub fn fill(&mut self, name: &str, text: &str) {
        self.click("textbox", name);
        self.write_anew(text);
    }

    /// Types into the field that has the focus, instead of what stands there.
    pub fn write_anew(&mut self, text: &str) {
        self.order(
            "Input.dispatchKeyEvent",
            json!({ "type": "keyDown", "key": "a", "code": "KeyA", "modifiers": 2, "commands": ["selectAll"] }),
        );
        self.order("Input.dispatchKeyEvent", json!({ "type": "keyUp", "key": "a", "code": "KeyA" }));
        self.press("Backspace");
        self.write(text);
    }

    /// Types.
    pub fn write(&mut self, text: &str) {
        for c in text.chars() {
            let c = c.to_string();
            self.order("Input.dispatchKeyEvent", json!({ "type": "keyDown", "key": c, "text": c }));
            self.order("Input.dispatchKeyEvent", json!({ "type": "keyUp", "key": c }));
        }
    }

    /// Presses a key by its name, such as `Enter`; `Shift+Tab` holds Shift.
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

    /// Presses Tab until the focus is on a thing.
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

    /// Something by its role and its whole name, as the browser tells them to a screen reader, as soon as it is there.
    fn find(&mut self, role: &str, name: &str) -> u64 {
        let start = Instant::now();
        loop {
            if let Some(found) = self.look_for(role, name) {
                return found;
            }
            if start.elapsed() > PATIENCE.min(Duration::from_secs(5)) {
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
        // The page may give way to another at any time; then it is asked again.
        let found = self.ask("Accessibility.queryAXTree", query).ok()?;
        let nodes = found["nodes"].as_array().cloned().unwrap_or_default();
        nodes.iter().filter(|node| node["ignored"] != true).find_map(|node| node["backendDOMNodeId"].as_u64())
    }

    /// What a function gives with a thing as its `this`; null where the thing is gone.
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
