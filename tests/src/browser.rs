//! Headless Chromium, driven over a pipe in its DevTools protocol
//! (<https://chromedevtools.github.io/devtools-protocol/>): JSON messages, each followed by a zero byte.
//!
//! `actions` simulates a person with mouse and keys; `accessibility` checks the page.

mod accessibility;
mod actions;

use std::{
    collections::BTreeSet,
    io::{BufRead as _, BufReader, Write as _},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::cluster::{POLL, SLACK};

/// Limit of one browser command: long, because the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// Event that reports that a page has opened a dialog.
const DIALOG: &str = "Page.javascriptDialogOpening";

/// Chromium process with one open page.
pub struct Browser {
    child: Child,
    orders: ChildStdin,
    messages: Receiver<Value>,
    session: Option<String>,
    next_id: u64,
    events: Vec<Value>,
}

impl Browser {
    /// Returns whether Chromium is installed. With `LAB=full` it must be.
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

    /// Starts Chromium with its profile in this folder.
    pub fn start(profile: &Path) -> Self {
        Self::start_with(profile, &[])
    }

    /// Starts Chromium with further command-line switches.
    pub fn start_with(profile: &Path, switches: &[&str]) -> Self {
        // Chromium reads commands from descriptor 3 and writes answers to 4. Its sandbox is off, because it
        // needs capabilities that root in a container lacks.
        let line = "exec chromium --headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --hide-scrollbars \
                    --user-data-dir=\"$0\" --remote-debugging-pipe \"$@\" about:blank 3<&0 4>&1 </dev/null >/dev/null 2>&1";
        let mut child = Command::new("sh")
            .args(["-c", line])
            .arg(profile)
            .args(switches)
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

    /// Sets the width and the theme of the page. A narrow page has the pixel density of a phone.
    pub fn view(&mut self, width: u32, dark: bool) {
        let (phone, height) = (width < 500, if width < 500 { 720 } else { 800 });
        let factor = if phone { 2 } else { 1 };
        let metrics =
            json!({ "width": width, "height": height, "deviceScaleFactor": factor, "mobile": phone });
        self.order("Emulation.setDeviceMetricsOverride", metrics);
        let theme = json!({ "name": "prefers-color-scheme", "value": if dark { "dark" } else { "light" } });
        self.order("Emulation.setEmulatedMedia", json!({ "features": [theme] }));
    }

    /// Allows or forbids scripts of pages. The test can evaluate expressions in both cases.
    pub fn scripts(&mut self, run: bool) {
        self.order("Emulation.setScriptExecutionDisabled", json!({ "value": !run }));
    }

    /// Opens an address and waits until it is loaded.
    pub fn go(&mut self, url: &str) {
        self.order("Page.navigate", json!({ "url": url }));
        let loaded =
            format!("document.readyState === 'complete' && location.href.startsWith({})", json!(url));
        self.until(PATIENCE, url, &loaded);
    }

    /// Opens an address that may answer with a page, with an error, or not at all.
    pub fn try_to_go(&mut self, url: &str) {
        self.js("window.before = true");
        // If the address cannot be opened, the answer has an error text, and no load event follows.
        let answer = self.order("Page.navigate", json!({ "url": url }));
        if answer["errorText"].is_null() {
            self.until(PATIENCE, url, "document.readyState === 'complete' && window.before !== true");
        }
    }

    /// Evaluates a JavaScript expression on the page.
    pub fn js(&mut self, expression: &str) -> Value {
        let arguments = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let result = self.order("Runtime.evaluate", arguments);
        assert!(result.get("exceptionDetails").is_none(), "{expression}: {result}");
        result["result"]["value"].clone()
    }

    /// Returns whether an expression is true. While the page navigates, the browser refuses to evaluate, and
    /// the result is false.
    fn is_true(&mut self, expression: &str) -> bool {
        let arguments = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let evaluated = self.ask("Runtime.evaluate", arguments);
        evaluated.is_ok_and(|result| result["result"]["value"] == true)
    }

    /// Waits until an expression is true on the page. Returns the time that it took. Fails `SLACK` after the
    /// bound.
    pub fn until(&mut self, bound: Duration, what: &str, expression: &str) -> Duration {
        let start = Instant::now();
        // While the page navigates, the expression may throw an error, which counts as false.
        let safe = format!("(() => {{ try {{ return Boolean({expression}) }} catch {{ return false }} }})()");
        while !self.is_true(&safe) {
            if start.elapsed() > bound + SLACK {
                let page = self.js("document.body.innerText");
                panic!("not within {bound:?}: {what}\n{}", page.as_str().unwrap_or_default());
            }
            std::thread::sleep(POLL);
        }
        if start.elapsed() > POLL * 2 {
            println!("{what}: {:?}", start.elapsed());
        }
        start.elapsed()
    }

    /// Returns the dialogs and the further pages that the page has opened so far.
    pub fn opened(&mut self) -> Vec<String> {
        let dialogs = self.events.iter().filter(|event| event["method"] == DIALOG);
        let mut opened: Vec<String> = dialogs.map(|event| event["params"].to_string()).collect();
        let session = self.session.take();
        let targets = self.order("Target.getTargets", json!({}))["targetInfos"].clone();
        self.session = session;
        let pages = targets.as_array().into_iter().flatten().filter(|target| target["type"] == "page");
        // The first page is Chromium's `about:blank`, the second was created by `start`. The page opened all
        // further ones.
        opened.extend(pages.skip(2).map(Value::to_string));
        opened
    }

    /// Returns the errors that the browser has reported so far: failed scripts, blocked content, and
    /// resources that did not load.
    pub fn objections(&self) -> Vec<String> {
        let is_objection = |event: &&Value| {
            event["method"] == "Runtime.exceptionThrown"
                || event["method"] == "Log.entryAdded" && event["params"]["entry"]["level"] == "error"
        };
        self.events.iter().filter(is_objection).map(|event| event["params"].to_string()).collect()
    }

    /// Returns all origins to which a request was sent or attempted.
    pub fn origins(&self) -> BTreeSet<String> {
        let requests = self.events.iter().filter(|event| event["method"] == "Network.requestWillBeSent");
        let urls = requests.filter_map(|event| event["params"]["request"]["url"].as_str());
        urls.map(|url| url.split('/').take(3).collect::<Vec<_>>().join("/")).collect()
    }

    fn send(&mut self, method: &str, arguments: Value) -> u64 {
        self.next_id += 1;
        let mut order = json!({ "id": self.next_id, "method": method, "params": arguments });
        if let Some(session) = &self.session {
            order["sessionId"] = json!(session);
        }
        let mut bytes = order.to_string().into_bytes();
        bytes.push(0);
        self.orders.write_all(&bytes).expect("the browser listens");
        self.next_id
    }

    fn order(&mut self, method: &str, arguments: Value) -> Value {
        self.ask(method, arguments).unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    /// Sends a command and returns its result, or the browser's error.
    fn ask(&mut self, method: &str, arguments: Value) -> Result<Value, Value> {
        let id = self.send(method, arguments);
        loop {
            let message = self.messages.recv_timeout(PATIENCE).expect("the browser answers");
            if message["id"] == id {
                return match message.get("error") {
                    Some(error) => Err(error.clone()),
                    None => Ok(message["result"].clone()),
                };
            }
            if message["method"] == DIALOG {
                // A dialog blocks the page until the test answers it.
                self.send("Page.handleJavaScriptDialog", json!({ "accept": false }));
            }
            self.events.push(message);
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The process may already have ended.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
