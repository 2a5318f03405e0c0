//! Small web pages: escaped, without scripts, readable on a phone, dark or light as the reader's system is.
//!
//! A name never becomes markup: text goes through [`Text`], an address that becomes a link through [`Link`]. Should one be
//! forgotten, the Content-Security-Policy still runs no script and loads nothing from elsewhere.

use std::fmt::{self, Display, Write};

use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, header};

/// Everything from nowhere, but for the page's own stylesheet; forms lead only back here; no page may frame this one.
pub const POLICY: &str =
    "default-src 'none'; style-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

/// The one stylesheet, which every page's plug-in serves under a path of its own.
pub const STYLE: &str = include_str!("style.css");

/// Text between tags or in a quoted attribute.
pub struct Text<T>(pub T);

impl<T: Display> Display for Text<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escape(f), "{}", self.0)
    }
}

struct Escape<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl Write for Escape<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.chars().try_for_each(|c| match c {
            '&' => self.0.write_str("&amp;"),
            '<' => self.0.write_str("&lt;"),
            '>' => self.0.write_str("&gt;"),
            '"' => self.0.write_str("&quot;"),
            '\'' => self.0.write_str("&#39;"),
            c => self.0.write_char(c),
        })
    }
}

/// A link to an address that somebody announced; only a text where the address is not one of the web (`javascript:` …).
pub struct Link<'a>(pub &'a str);

impl Display for Link<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = Text(self.0);
        if self.0.starts_with("http://") || self.0.starts_with("https://") {
            write!(f, r#"<a href="{text}">{text}</a>"#)
        } else {
            write!(f, "{text}")
        }
    }
}

/// A page.
#[derive(Debug)]
pub struct Page<'a> {
    /// What it is about; becomes its title and its heading.
    pub title: &'a str,
    /// Where its stylesheet is served.
    pub stylesheet: &'a str,
    /// After how many seconds it shall load itself again.
    pub refresh_secs: Option<u32>,
    /// Its content: markup.
    pub body: String,
}

impl IntoResponse for Page<'_> {
    fn into_response(self) -> Response {
        let title = Text(self.title);
        let refresh = self
            .refresh_secs
            .map_or_else(String::new, |secs| format!("<meta http-equiv=\"refresh\" content=\"{secs}\">\n"));
        let html = format!(
            "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n{refresh}<title>{title}</title>\n\
             <link rel=\"stylesheet\" href=\"{}\">\n<main>\n<h1>{title}</h1>\n{}</main>\n</html>\n",
            Text(self.stylesheet),
            self.body
        );
        let headers: [(HeaderName, HeaderValue); 5] = [
            (header::CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
            (header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY)),
            (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
            (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
            (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        ];
        (headers, html).into_response()
    }
}

/// Answers with [`STYLE`].
pub async fn stylesheet() -> Response {
    let headers =
        [(header::CONTENT_TYPE, "text/css; charset=utf-8"), (header::CACHE_CONTROL, "max-age=3600")];
    (headers, STYLE).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_never_becomes_markup() {
        assert_eq!(Text("<b a='\"'>&").to_string(), "&lt;b a=&#39;&quot;&#39;&gt;&amp;");
    }

    #[test]
    fn only_web_addresses_become_links() {
        assert_eq!(Link("javascript:alert(1)").to_string(), "javascript:alert(1)");
        assert_eq!(Link("http://a/\"").to_string(), r#"<a href="http://a/&quot;">http://a/&quot;</a>"#);
    }
}
