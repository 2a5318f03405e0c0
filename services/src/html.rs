//! Web pages: compiled templates in one frame and one style, readable on a phone, dark or light as the reader's system is.
//!
//! A name never becomes markup: the templates escape whatever they are given, [`web_address`] decides what may be a link, and
//! [`Visible`] spells out what could not be seen. Should one be forgotten, the [`POLICY`] still runs no script but the page's own
//! files, loads nothing from elsewhere, and keeps scripts from turning text into markup (Trusted Types).

use std::fmt::{self, Display, Write};

use askama::Template;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, Uri, header};

use crate::Problem;

/// Everything from nowhere, but for the page's own files; forms lead only back here; no page may frame this one.
pub const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                          connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; \
                          require-trusted-types-for 'script'; trusted-types 'none'";

/// The one stylesheet, which every page's plug-in serves under a path of its own.
pub static STYLE: Asset = Asset::new("text/css; charset=utf-8", include_str!("style.css"));
/// The sign of the pages, for the browser's tab.
pub static ICON: Asset = Asset::new("image/svg+xml", include_str!("icon.svg"));

/// A file that is part of the program.
#[derive(Debug)]
pub struct Asset {
    content_type: &'static str,
    content: &'static str,
    version: u64,
}

impl Asset {
    /// A file of this type.
    pub const fn new(content_type: &'static str, content: &'static str) -> Self {
        Self { content_type, content, version: fingerprint(content.as_bytes()) }
    }

    /// Its path, so that a browser may keep it for ever and still fetches the next version.
    pub fn at(&self, path: &str) -> String {
        format!("{path}?v={:016x}", self.version)
    }

    /// Answers with it.
    pub fn answer(&self) -> Response {
        let headers = [
            (header::CONTENT_TYPE, HeaderValue::from_static(self.content_type)),
            (header::CACHE_CONTROL, HeaderValue::from_static("max-age=31536000, immutable")),
            (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
            // An image may be opened as a page of its own.
            (
                header::CONTENT_SECURITY_POLICY,
                HeaderValue::from_static("default-src 'none'; style-src 'self'"),
            ),
        ];
        (headers, self.content).into_response()
    }
}

/// FNV-1a (Fowler, Noll, Vo), here to tell versions apart and not to keep anybody out.
const fn fingerprint(bytes: &[u8]) -> u64 {
    let (mut hash, mut i) = (0xcbf2_9ce4_8422_2325_u64, 0);
    while i < bytes.len() {
        hash = (hash ^ bytes[i] as u64).wrapping_mul(0x0100_0000_01b3);
        i += 1;
    }
    hash
}

/// A way to another page, in the head of each.
#[derive(Clone, Debug)]
pub struct Way {
    /// Its words.
    pub label: &'static str,
    /// Where it leads.
    pub href: String,
    /// Whether it leads to the page on which it stands, or to that page's parent.
    pub here: bool,
}

/// What surrounds a page's content.
#[derive(Clone, Debug)]
pub struct Frame<'a> {
    /// What the page is about, for the browser's tab.
    pub title: &'a str,
    /// The cluster that it shows.
    pub cluster: &'a str,
    /// The node that made it.
    pub node: &'a str,
    /// Ways to other pages.
    pub ways: Vec<Way>,
    /// Under which prefix `style.css` and `icon.svg` are served, such as `/portal`.
    pub assets: &'a str,
    /// The page's script, if it has one.
    pub script: Option<String>,
    /// After how many seconds the page shall load itself again where scripts do not run.
    pub refresh_secs: Option<u32>,
}

#[derive(Template)]
#[template(path = "frame.html")]
struct Framed<'a> {
    frame: &'a Frame<'a>,
    style: String,
    icon: String,
    content: String,
}

/// Makes a page of a frame and its content.
pub fn page(status: StatusCode, frame: &Frame<'_>, content: &impl Template) -> Response {
    // Writing to a String fails only if a Display does, and none of ours can.
    let rendered = content.render().and_then(|content| {
        let style = STYLE.at(&format!("{}/style.css", frame.assets));
        let icon = ICON.at(&format!("{}/icon.svg", frame.assets));
        Framed { frame, style, icon, content }.render()
    });
    let Ok(html) = rendered else {
        return Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the page could not be written")
            .into_response();
    };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        // Others learn nothing of where a reader comes from. Not `no-referrer`: under that, browsers send the forms of these very pages
        // with `Origin: null`, and they would be refused like those of a stranger.
        (header::REFERRER_POLICY, HeaderValue::from_static("same-origin")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    (status, headers, html).into_response()
}

/// An address that may become a link: one of the web, of a host and perhaps a port. `None` for `javascript:` and the like, and for what
/// shows one host and leads to another (`http://bank@evil`); they stay text.
pub fn web_address(url: &str) -> Option<&str> {
    let uri: Uri = url.parse().ok()?;
    let authority = uri.authority()?;
    let plain = match authority.port_u16() {
        Some(port) => format!("{}:{port}", authority.host()),
        None => authority.host().to_owned(),
    };
    // A host as the DNS has it, or an address; the library takes more than any resolver does.
    let is_host = |c: char| c.is_ascii_alphanumeric() || "-_.[]:".contains(c);
    let has_host = !authority.host().is_empty() && authority.host().chars().all(is_host);
    let is_web = matches!(uri.scheme_str(), Some("http" | "https"));
    (is_web && has_host && authority.as_str() == plain).then_some(url)
}

/// Text from strangers with nothing hidden in it: control characters, and those that turn the direction of writing or have no width, are
/// spelt out as `\u001b`. Line breaks and tabs stay, as the lines of a log need them. Not escaped; templates do that.
#[derive(Clone, Copy, Debug)]
pub struct Visible<'a>(pub &'a str);

impl Display for Visible<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '\n' | '\t' => f.write_char(c),
            // Not the joiners U+200C and U+200D, without which several scripts and many emoji cannot be written.
            '\0'..='\u{1f}'
            | '\u{7f}'..='\u{9f}'
            | '\u{200b}'
            | '\u{200e}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{2069}'
            | '\u{feff}' => write!(f, "\\u{:04x}", u32::from(c)),
            c => f.write_char(c),
        })
    }
}

/// A number as people write it: up to two digits after the point, and no point without any.
#[derive(Clone, Copy, Debug)]
pub struct Number(pub f64);

impl Number {
    /// So much more.
    #[must_use]
    pub fn plus(self, more: f64) -> Self {
        Self(self.0 + more)
    }
}

impl Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{:.2}", self.0);
        let text = text.trim_end_matches('0').trim_end_matches('.');
        f.write_str(if text == "-0" { "0" } else { text })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_web_addresses_become_links() {
        for url in [
            "javascript:alert(1)",
            "java\nscript://x",
            "data:text/html,x",
            "//evil",
            "",
            "http:x",
            "http://",
            "ftp://a",
            "http://a b",
            "http://<b>/",
            "http://a:b(1)/",
            "http://&lt;a/",
            "http://bank@evil/",
        ] {
            assert_eq!(web_address(url), None, "{url:?}");
        }
        for url in ["http://a", "https://a.example:8443/x?y=z#f", "http://[::1]:7500/ui", "HTTP://10.0.0.1/"]
        {
            assert_eq!(web_address(url), Some(url));
        }
    }

    #[test]
    fn nothing_hides_in_text() {
        assert_eq!(Visible("a\u{1b}[2J\u{7f}").to_string(), "a\\u001b[2J\\u007f");
        assert_eq!(Visible("ab\u{202e}cd\u{9b}").to_string(), "ab\\u202ecd\\u009b");
        assert_eq!(Visible("one\n\ttwo, Grüße, 世界").to_string(), "one\n\ttwo, Grüße, 世界");
    }

    #[test]
    fn numbers_have_no_needless_digits() {
        let written = [100.0, 87.5, 66.666_666, 0.0].map(|n| Number(n).to_string());
        assert_eq!(written, ["100", "87.5", "66.67", "0"]);
    }

    #[test]
    fn another_content_is_another_address() {
        let (a, b) = (Asset::new("text/css", "a"), Asset::new("text/css", "b"));
        assert_ne!(a.at("/x.css"), b.at("/x.css"));
    }
}
