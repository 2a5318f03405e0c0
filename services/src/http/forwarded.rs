//! [`Forwarded`]: writes and parses the `Forwarded` header (RFC 7239), in which a gateway gives a role the
//! client's address and the host name that the client requested.
//!
//! The `Host` of a request to a role is the authority of its node. The requested name, `school.example`, is
//! in `Forwarded: for=192.0.2.1;host="school.example";proto=http`. The parser is strict: one element, each
//! parameter once, nothing else. Any client can send this header; the caller decides whether to trust it.

use std::net::{IpAddr, Ipv6Addr};

use hearsay_protocol::WebOrigin;

/// Maximum number of bytes of the header value. A host name has at most 253.
pub(crate) const BYTES_MAX: usize = 512;

/// Content of the header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Forwarded<'a> {
    /// Address of the client that connected to the gateway.
    pub client: IpAddr,
    /// Requested host, with the port if there was one.
    pub host: &'a str,
    /// Whether the client uses TLS to the gateway, or to a trusted proxy in front of it.
    pub is_https: bool,
}

impl<'a> Forwarded<'a> {
    /// Parses the header value. `None`: a gateway of this version would not write it.
    pub fn parse(value: &'a str) -> Option<Self> {
        if value.len() > BYTES_MAX {
            return None;
        }
        let (mut client, mut host, mut is_https) = (None, None, None);
        for pair in value.split(';') {
            let (name, value) = pair.split_once('=')?;
            let value = unquoted(value)?;
            let is_first = match name.to_ascii_lowercase().as_str() {
                "for" => client.replace(node(value)?).is_none(),
                "host" => host.replace(value).is_none(),
                "proto" => is_https.replace(scheme(value)?).is_none(),
                _ => false,
            };
            if !is_first {
                return None;
            }
        }
        let host = host.filter(|host| is_host_and_port(host))?;
        Some(Self { client: client?, host, is_https: is_https? })
    }

    /// Formats the header value.
    pub fn write(&self) -> String {
        let Self { client, host, is_https } = self;
        let proto = if *is_https { "https" } else { "http" };
        match client {
            IpAddr::V4(client) => format!("for={client};host=\"{host}\";proto={proto}"),
            IpAddr::V6(client) => format!("for=\"[{client}]\";host=\"{host}\";proto={proto}"),
        }
    }
}

/// Parses a token or a quoted string. Escapes are refused, because no valid value needs them.
fn unquoted(value: &str) -> Option<&str> {
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let is_text = |byte: u8| (0x21..0x7f).contains(&byte) && byte != b'"' && byte != b'\\';
    match value.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"').filter(|text| text.bytes().all(is_text)),
        None => Some(value).filter(|value| !value.is_empty() && value.bytes().all(is_token)),
    }
}

/// Parses an address without a port; IPv6 in brackets.
fn node(value: &str) -> Option<IpAddr> {
    match value.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        None => value.parse().ok().filter(IpAddr::is_ipv4),
    }
}

fn scheme(value: &str) -> Option<bool> {
    match value {
        "http" => Some(false),
        "https" => Some(true),
        _ => None,
    }
}

/// Returns whether the text is a host with an optional port. A comma, which a URL may have in its host, is
/// refused: a parser that splits the header at commas would see a second element.
fn is_host_and_port(text: &str) -> bool {
    WebOrigin::parse(&format!("http://{text}")).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for (client, host, is_https) in [
            ("192.0.2.1", "school.example", false),
            ("192.0.2.1", "school.example:8443", true),
            ("2001:db8::1", "[fd77::1]:8080", false),
            ("::1", "a_b", true),
        ] {
            let forwarded = Forwarded { client: client.parse().unwrap(), host, is_https };
            assert_eq!(Forwarded::parse(&forwarded.write()), Some(forwarded));
        }
        let value = r#"For=192.0.2.1;HOST=a;Proto="http""#;
        assert_eq!(Forwarded::parse(value).unwrap().host, "a", "names are read in any case");
    }

    #[test]
    fn all_else_is_refused() {
        let long = format!("for=192.0.2.1;host=\"{}\";proto=http", "a".repeat(BYTES_MAX));
        for value in [
            "",
            "for=192.0.2.1",
            "for=192.0.2.1;host=a",
            "host=a;proto=http",
            "for=192.0.2.1;host=a;proto=http;",
            "for=192.0.2.1;host=a;proto=http;by=x",
            "for=192.0.2.1;host=a;host=b;proto=http",
            "for=192.0.2.1;host=a;proto=http, for=192.0.2.2;host=b;proto=http",
            "for=192.0.2.1; host=a; proto=http",
            "for=unknown;host=a;proto=http",
            "for=_hidden;host=a;proto=http",
            "for=\"192.0.2.1:80\";host=a;proto=http",
            "for=\"2001:db8::1\";host=a;proto=http",
            "for=\"[192.0.2.1]\";host=a;proto=http",
            "for=192.0.2.1;host=\"a\\\"b\";proto=http",
            "for=192.0.2.1;host=\"a;proto=http",
            "for=192.0.2.1;host=\"u@a\";proto=http",
            "for=192.0.2.1;host=\"a:x\";proto=http",
            "for=192.0.2.1;host=\"a:\";proto=http",
            "for=192.0.2.1;host=\":80\";proto=http",
            "for=192.0.2.1;host=\"a/b\";proto=http",
            "for=192.0.2.1;host=\"a,for=10.0.0.1\";proto=http",
            "for=192.0.2.1;host=\"a%2fb\";proto=http",
            "for=192.0.2.1;host=\"\";proto=http",
            "for=192.0.2.1;host=a;proto=ftp",
            "for=192.0.2.1;host=\u{e4};proto=http",
            &long,
        ] {
            assert_eq!(Forwarded::parse(value), None, "{value}");
        }
    }
}
