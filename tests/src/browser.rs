//! A real browser: Chromium without a window, told what to do over a pipe in its DevTools protocol
//! (<https://chromedevtools.github.io/devtools-protocol/>), which is JSON with a zero byte after each message.

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::cluster::POLL;

/// No answer of the browser itself takes longer, however busy the machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A browser with one page.
pub struct Browser {
    child: Child,
    orders: ChildStdin,
    messages: Receiver<Value>,
    session: Option<String>,
    next_id: u64,
    events: Vec<Value>,
}

impl Browser {
    /// Whether there is one to start. With `LAB=full` there must be.
    pub fn is_there() -> bool {
        let ran =
            Command::new("chromium").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        let there = ran.is_ok_and(|status| status.success());
        if !there {
            println!("skipped: needs chromium");
            assert!(std::env::var("LAB").as_deref() != Ok("full"), "LAB=full, and there is no chromium");
        }
        there
    }

    /// Starts it; what it keeps goes into this folder.
    pub fn start(profile: &Path) -> Self {
        // It reads from descriptor 3 and writes to 4. The sandbox needs what a container's root lacks.
        let line = "exec chromium --headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking \
                    --user-data-dir=\"$0\" --remote-debugging-pipe about:blank 3<&0 4>&1 </dev/null >/dev/null 2>&1";
        let mut child = Command::new("sh")
            .args(["-c", line])
            .arg(profile)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("there is a shell");
        let orders = child.stdin.take().expect("a pipe");
        let output = child.stdout.take().expect("a pipe");
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            for message in BufReader::new(output).split(0).map_while(Result::ok) {
                let Ok(message) = serde_json::from_slice(&message) else { continue };
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let mut browser = Self { child, orders, messages, session: None, next_id: 0, events: Vec::new() };
        let target =
            browser.order("Target.createTarget", json!({ "url": "about:blank" }))["targetId"].clone();
        let attached = browser.order("Target.attachToTarget", json!({ "targetId": target, "flatten": true }));
        browser.session = attached["sessionId"].as_str().map(Into::into);
        for domain in ["Page", "Runtime", "Network", "Log"] {
            browser.order(&format!("{domain}.enable"), json!({}));
        }
        browser
    }

    /// Has a page of this width, in the dark theme or the light one.
    pub fn view(&mut self, width: u32, dark: bool) {
        let metrics = json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500 });
        self.order("Emulation.setDeviceMetricsOverride", metrics);
        let theme = json!({ "name": "prefers-color-scheme", "value": if dark { "dark" } else { "light" } });
        self.order("Emulation.setEmulatedMedia", json!({ "features": [theme] }));
    }

    /// Opens an address and waits until it is loaded.
    pub fn go(&mut self, url: &str) {
        self.order("Page.navigate", json!({ "url": url }));
        let loaded =
            format!("document.readyState === 'complete' && location.href.startsWith({})", json!(url));
        self.until(PATIENCE, url, &loaded);
    }

    /// What a JavaScript expression gives on the page.
    pub fn js(&mut self, expression: &str) -> Value {
        let arguments = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let result = self.order("Runtime.evaluate", arguments);
        assert!(result.get("exceptionDetails").is_none(), "{expression}: {result}");
        result["result"]["value"].clone()
    }

    /// Waits until an expression is true on the page. Returns how long that took.
    pub fn until(&mut self, bound: Duration, what: &str, expression: &str) -> Duration {
        let start = Instant::now();
        // While a page gives way to the next there is nothing to ask.
        let safe = format!("(() => {{ try {{ return Boolean({expression}) }} catch {{ return false }} }})()");
        while self.js(&safe) != true {
            if start.elapsed() > bound {
                let page = self.js("document.body.innerText");
                panic!("not within {bound:?}: {what}\n{}", page.as_str().unwrap_or_default());
            }
            std::thread::sleep(POLL);
        }
        println!("{what}: {:?}", start.elapsed());
        start.elapsed()
    }

    /// What the browser had to object to so far: scripts that failed, what the page's policy kept out, what could not be loaded.
    pub fn objections(&self) -> Vec<String> {
        let is_objection = |event: &&Value| {
            event["method"] == "Runtime.exceptionThrown"
                || event["method"] == "Log.entryAdded" && event["params"]["entry"]["level"] == "error"
        };
        self.events.iter().filter(is_objection).map(|event| event["params"].to_string()).collect()
    }

    /// Every origin that something was asked of so far, or had to be.
    pub fn origins(&self) -> BTreeSet<String> {
        let requests = self.events.iter().filter(|event| event["method"] == "Network.requestWillBeSent");
        let urls = requests.filter_map(|event| event["params"]["request"]["url"].as_str());
        urls.map(|url| url.split('/').take(3).collect::<Vec<_>>().join("/")).collect()
    }

    fn order(&mut self, method: &str, arguments: Value) -> Value {
        self.next_id += 1;
        let id = self.next_id;
        let mut order = json!({ "id": id, "method": method, "params": arguments });
        if let Some(session) = &self.session {
            order["sessionId"] = json!(session);
        }
        let mut bytes = order.to_string().into_bytes();
        bytes.push(0);
        self.orders.write_all(&bytes).expect("the browser listens");
        loop {
            let message = self.messages.recv_timeout(PATIENCE).expect("the browser answers");
            if message["id"] == id {
                assert!(message.get("error").is_none(), "{method}: {message}");
                return message["result"].clone();
            }
            self.events.push(message);
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It may have ended by itself.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
