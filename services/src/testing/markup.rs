//! Parses the HTML of pages for tests, and lists what breaks the rules of this project's markup.
//!
//! The parser reads only the strict markup of this project's templates. Markup that it cannot read is a
//! breach.

use std::collections::BTreeSet;

/// Hostile texts for every field that a client can fill. They would do harm as markup, an address or a
/// script.
pub const HOSTILE: [&str; 16] = [
    "<script>alert(1)</script>",
    "</script><script src=//evil.example/x.js></script>",
    "\"><img src=x onerror=alert(1)>",
    "' onmouseover='alert(1)' x='",
    "\" autofocus onfocus=alert(1) x=\"",
    "</title><svg onload=alert(1)>",
    "</textarea></select></option><b>",
    "<!--><style>*{display:none}</style>",
    "javascript:alert(1)",
    "JaVaScRiPt:alert(1)//http://x",
    "data:text/html,<script>alert(1)</script>",
    "{{7*7}}${7*7}<%= 7*7 %>",
    "&lt;script&gt;&#60;script&#62;",
    "<a href=\"https://evil.example/\">x</a>",
    "\u{1b}]0;title\u{7}\u{1b}[2J\u{202e}txt.exe",
    "<template><math><mtext></form><form action=//evil.example>",
];

/// A tag with its attributes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MarkupTag {
    /// Name in lower case; an end tag begins with `/`.
    pub name: String,
    /// Names in lower case, with values that are still escaped.
    pub attributes: Vec<(String, String)>,
}

impl MarkupTag {
    fn get(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// Returns all tags of a page in order.
///
/// # Errors
/// The text that cannot be parsed.
pub fn markup_tags(html: &str) -> Result<Vec<MarkupTag>, String> {
    let mut tags = Vec::new();
    let mut rest = html;
    while let Some(start) = rest.find('<') {
        let here = &rest[start..];
        let shown: String = here.chars().take(60).collect();
        if let Some(after) = strip_doctype(here) {
            rest = after;
            continue;
        }
        let (tag, after) = tag(&here[1..]).ok_or_else(|| format!("no tag of ours: {shown:?}"))?;
        tags.push(tag);
        rest = after;
    }
    Ok(tags)
}

fn strip_doctype(text: &str) -> Option<&str> {
    text.strip_prefix("<!doctype html>")
}

/// Parses one tag after its `<`.
fn tag(text: &str) -> Option<(MarkupTag, &str)> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let (slash, text) = text.strip_prefix('/').map_or(("", text), |text| ("/", text));
    let end = text.find(|c| !is_name(c))?;
    let (name, mut rest) = text.split_at(end);
    if name.is_empty() {
        return None;
    }
    let mut attributes = Vec::new();
    loop {
        rest = rest.trim_start();
        if let Some(after) = rest.strip_prefix("/>").or_else(|| rest.strip_prefix('>')) {
            return Some((
                MarkupTag { name: format!("{slash}{}", name.to_ascii_lowercase()), attributes },
                after,
            ));
        }
        let end = rest.find(|c: char| !is_name(c) && c != ':')?;
        let (attribute, after) = rest.split_at(end);
        if attribute.is_empty() {
            return None;
        }
        let mut value = "";
        rest = after;
        if let Some(after) = rest.strip_prefix("=\"") {
            let end = after.find('"')?;
            (value, rest) = (&after[..end], &after[end + 1..]);
        } else if rest.starts_with('=') {
            return None;
        }
        attributes.push((attribute.to_ascii_lowercase(), value.to_owned()));
    }
}

/// Returns the markup without any text. Pages that differ only in untrusted text have the same skeleton.
///
/// # Errors
/// The text that cannot be parsed.
pub fn markup_skeleton(html: &str) -> Result<Vec<String>, String> {
    let shape = |tag: MarkupTag| {
        let names: Vec<String> = tag.attributes.into_iter().map(|(name, _)| name).collect();
        format!("{} {}", tag.name, names.join(" "))
    };
    Ok(markup_tags(html)?.into_iter().map(shape).collect())
}

/// Attributes that make a browser load or send something.
const LOADING: [&str; 8] =
    ["src", "srcset", "action", "formaction", "data", "poster", "background", "xlink:href"];

/// Returns everything that a page must not have: inline scripts and styles, event handlers, and resources or
/// form targets on other origins. Links may lead to other sites.
pub fn markup_breaches(html: &str) -> Vec<String> {
    let tags = match markup_tags(html) {
        Ok(tags) => tags,
        Err(error) => return vec![error],
    };
    let mut breaches = Vec::new();
    let forbidden: BTreeSet<&str> =
        ["style", "iframe", "object", "embed", "base", "img", "video", "audio", "math", "applet"].into();
    for (i, tag) in tags.iter().enumerate() {
        let mut expect = |kept: bool, what: &str| {
            if !kept {
                breaches.push(format!("{what}: {tag:?}"));
            }
        };
        expect(!forbidden.contains(tag.name.as_str()), "an element that no page needs");
        for (name, value) in &tag.attributes {
            expect(!name.starts_with("on"), "a handler");
            expect(name != "style" && name != "srcdoc", "a style or a document in an attribute");
            expect(!LOADING.contains(&name.as_str()) || is_own(value), "something from elsewhere");
            if name == "href" {
                let is_link = tag.name == "a";
                let is_web =
                    value.starts_with("http://") || value.starts_with("https://") || value.starts_with('#');
                expect(is_own(value) || is_link && is_web, "a link to something that is not the web");
            }
        }
        if tag.name == "script" {
            expect(tag.get("src").is_some_and(is_own), "a script within the page");
            let ends = tags.get(i + 1).is_some_and(|next| next.name == "/script");
            expect(ends && html.contains("defer></script>"), "a script with content");
        }
        if tag.name == "meta" && tag.get("http-equiv").is_some() {
            let content = tag.get("content").unwrap_or_default();
            expect(
                content.bytes().all(|b| b.is_ascii_digit()),
                "a header in the page that is more than a reload",
            );
        }
    }
    breaches
}

/// Returns whether an address is on the page's own origin.
fn is_own(address: &str) -> bool {
    address.starts_with('/') && !address.starts_with("//") && !address.starts_with("/\\")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_our_templates_write_is_clean() {
        let page = "<!doctype html>\n<p class=\"a\">x &lt; y<br><a href=\"https://a.example/\">z</a> <a href=\"/b\">b</a>\
                    <script src=\"/x.js\" defer></script><svg viewBox=\"0 0 1 1\"><rect width=\"1\"/></svg>";
        assert_eq!(markup_breaches(page), Vec::<String>::new());
        assert_eq!(markup_skeleton(page).unwrap()[0], "p class");
    }

    #[test]
    fn each_breach_is_found() {
        for page in [
            "<script>alert(1)</script>",
            "<script src=\"//evil.example/x.js\" defer></script>",
            "<p onclick=\"x\">",
            "<p style=\"color:red\">",
            "<style>p{}</style>",
            "<img src=\"/x\">",
            "<form action=\"https://evil.example/\">",
            "<a href=\"javascript:alert(1)\">",
            "<a href=\"//evil.example\">",
            "<link rel=\"stylesheet\" href=\"https://evil.example/x.css\">",
            "<meta http-equiv=\"refresh\" content=\"0;url=//evil.example\">",
            "<p class=unquoted>",
            "a < b",
            "<!-- x -->",
        ] {
            assert!(!markup_breaches(page).is_empty(), "{page}");
        }
    }
}
