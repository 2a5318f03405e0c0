//! Renders web pages: puts compiled templates into a common frame with links, stylesheet and security
//! headers, answers with the stylesheet and other assets, and keeps untrusted text from becoming markup.
//!
//! Untrusted text never becomes markup. Templates escape it, [`web_address`] decides which links are allowed,
//! and [`Visible`] spells out invisible characters. As a second defence, the [`CONTENT_SECURITY_POLICY`]
//! allows only the page's own script files and nothing from other origins. It also keeps scripts from turning
//! text into markup (Trusted Types).

use std::fmt::{self, Display, Write};

use askama::Template;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, Uri, header};

use crate::Problem;

/// Policy of a page: only its own files; forms only to the same origin; no framing by other pages.
pub const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
                          connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'; \
                          require-trusted-types-for 'script'; trusted-types 'none'";

/// Stylesheet. Each plug-in with pages serves it under a path of its own.
pub static STYLESHEET: Asset = Asset::new("text/css; charset=utf-8", include_str!("../style.css"));
/// Icon of the browser's tab.
pub static ICON: Asset = Asset::new("image/svg+xml", include_str!("../icon.svg"));

/// A file that is part of the program.
#[derive(Debug)]
pub struct Asset {
    content_type: &'static str,
    content: &'static str,
    version: u64,
}

impl Asset {
    /// A file of this media type.
    pub const fn new(content_type: &'static str, content: &'static str) -> Self {
        Self { content_type, content, version: fingerprint(content.as_bytes()) }
    }

    /// Returns the path with a hash of the content, so that browsers may cache the file without limit.
    pub fn at(&self, path: &str) -> String {
        format!("{path}?v={:016x}", self.version)
    }

    /// Returns the response with the file.
    pub fn answer(&self) -> Response {
        let headers = [
            (header::CONTENT_TYPE, HeaderValue::from_static(self.content_type)),
            (header::CACHE_CONTROL, HeaderValue::from_static("max-age=31536000, immutable")),
            (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
            // This policy applies if an image is opened as a page.
            (
                header::CONTENT_SECURITY_POLICY,
                HeaderValue::from_static("default-src 'none'; style-src 'self'"),
            ),
        ];
        (headers, self.content).into_response()
    }
}

/// FNV-1a hash (Fowler, Noll, Vo). It distinguishes versions and is not a protection.
const fn fingerprint(bytes: &[u8]) -> u64 {
    let (mut hash, mut i) = (0xcbf2_9ce4_8422_2325_u64, 0);
    while i < bytes.len() {
        hash = (hash ^ bytes[i] as u64).wrapping_mul(0x0100_0000_01b3);
        i += 1;
    }
    hash
}

/// A link in the head of a page.
#[derive(Clone, Debug)]
pub struct PageLink {
    /// Text.
    pub label: &'static str,
    /// Target.
    pub href: String,
    /// Whether the target is this page or its parent.
    pub here: bool,
}

/// Frame of a page.
#[derive(Clone, Debug)]
pub struct PageFrame<'a> {
    /// Title in the browser's tab.
    pub title: &'a str,
    /// Name of the cluster.
    pub cluster: &'a str,
    /// Name of the node.
    pub node: &'a str,
    /// Links to other pages.
    pub links: Vec<PageLink>,
    /// Path prefix of `style.css` and `icon.svg`, such as `/portal`.
    pub assets: &'a str,
    /// Script of the page.
    pub script: Option<String>,
    /// Seconds until the page reloads in a browser without scripts.
    pub refresh_secs: Option<u32>,
}

#[derive(Template)]
#[template(path = "frame.html")]
struct Framed<'a> {
    frame: &'a PageFrame<'a>,
    style: String,
    icon: String,
    content: String,
}

/// Renders a page.
pub fn render_page(status: StatusCode, frame: &PageFrame<'_>, content: &impl Template) -> Response {
    // Writing to a `String` fails only if a `Display` implementation fails; none here does.
    let rendered = content.render().and_then(|content| {
        let style = STYLESHEET.at(&format!("{}/style.css", frame.assets));
        let icon = ICON.at(&format!("{}/icon.svg", frame.assets));
        Framed { frame, style, icon, content }.render()
    });
    let Ok(html) = rendered else {
        return Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the page could not be written")
            .into_response();
    };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(CONTENT_SECURITY_POLICY)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        // Other sites do not learn the address of the page. With `no-referrer`, browsers would send forms of
        // these pages with `Origin: null`, which is refused.
        (header::REFERRER_POLICY, HeaderValue::from_static("same-origin")),
        (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    ];
    (status, headers, html).into_response()
}

/// Returns a URL that may become a link: http or https, with a host and an optional port. `None` for
/// `javascript:` and the like, and for a URL that shows one host and leads to another (`http://bank@evil`).
pub fn web_address(url: &str) -> Option<&str> {
    let uri: Uri = url.parse().ok()?;
    let authority = uri.authority()?;
    let plain = match authority.port_u16() {
        Some(port) => format!("{}:{port}", authority.host()),
        None => authority.host().to_owned(),
    };
    // A DNS name or an address. The URL parser accepts more than any resolver does.
    let is_host = |c: char| c.is_ascii_alphanumeric() || "-_.[]:".contains(c);
    let has_host = !authority.host().is_empty() && authority.host().chars().all(is_host);
    let is_web = matches!(uri.scheme_str(), Some("http" | "https"));
    (is_web && has_host && authority.as_str() == plain).then_some(url)
}

/// Untrusted text with its invisible characters spelt out as `\u001b`: control characters, and those that
/// change the direction of writing or have no width. Line breaks and tabs stay. Templates escape it.
#[derive(Clone, Copy, Debug)]
pub struct Visible<'a>(pub &'a str);

impl Display for Visible<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '\n' | '\t' => f.write_char(c),
            // The joiners U+200C and U+200D stay; several scripts and many emoji need them.
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

/// A number with up to two decimals.
#[derive(Clone, Copy, Debug)]
pub struct Number(pub f64);

impl Number {
    /// Adds to the number.
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
