//! Entity tags: decides whether a conditional GET (RFC 9110, section 13.1.2) gets 304.

use axum::http::{HeaderMap, header::IF_NONE_MATCH};

/// Whether a client has the representation with this strong entity tag (in quotes), by `If-None-Match`.
///
/// The header may have several lines, each with a list. The comparison is weak, as the RFC demands: `W/"x"`,
/// which a compressing proxy makes of `"x"`, is the same. `*` means any representation. A line matches
/// nothing from the place on where it is no list, so that the client gets the whole answer.
pub(crate) fn is_known(headers: &HeaderMap, tag: &str) -> bool {
    headers.get_all(IF_NONE_MATCH).iter().any(|line| is_listed(line.as_bytes(), tag.as_bytes()))
}

fn is_listed(line: &[u8], tag: &[u8]) -> bool {
    if line.trim_ascii() == b"*" {
        return true;
    }
    let mut rest = line;
    loop {
        // Recipients accept empty elements (RFC 9110, section 5.6.1.2).
        while let [b' ' | b'\t' | b',', after @ ..] = rest {
            rest = after;
        }
        let opaque = rest.strip_prefix(b"W/").unwrap_or(rest);
        let Some(inside) = opaque.strip_prefix(b"\"") else { return false };
        let Some(length) = inside.iter().position(|byte| *byte == b'"') else { return false };
        // With both quotes.
        let (found, after) = opaque.split_at(length + 2);
        rest = after.trim_ascii_start();
        if !rest.is_empty() && !rest.starts_with(b",") {
            return false;
        }
        if found == tag {
            return true;
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn is_known_by(lines: &[&'static str]) -> bool {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(IF_NONE_MATCH, HeaderValue::from_static(line));
        }
        is_known(&headers, "\"ab\"")
    }

    #[test]
    fn lists_weak_tags_and_the_star_are_understood() {
        for known in [
            &["\"ab\""][..],
            &["W/\"ab\""],
            &["*"],
            &[" * "],
            &["\"x\", \"ab\""],
            &["\"x\",W/\"ab\" , \"y\""],
            &[", ,\t\"ab\","],
            &["\"a,b\", \"ab\""],
            &["\"\",\"ab\""],
            &["\"x\"", "\"ab\""],
        ] {
            assert!(is_known_by(known), "{known:?}");
        }
        for other in [
            &[][..],
            &[""],
            &["ab"],
            &["\"AB\""],
            &["w/\"ab\""],
            &["W/ \"ab\""],
            &["\"x\", *"],
            &["\"ab"],
            &["\"x\" \"ab\""],
            &["\"ab\"x"],
            &["\"x,\"ab\",\""],
            &["\"abc\", \"a\", \"b\""],
        ] {
            assert!(!is_known_by(other), "{other:?}");
        }
    }
}
