//! Trace context (W3C, level 1): a valid `traceparent` is forwarded, and a request without one gets a new
//! one. So all instances that work on a request share its trace. The gateway adds no span of its own, so the
//! parent remains the client's.

use http::{HeaderMap, HeaderName, HeaderValue};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
/// Bytes of a `traceparent` of version 00: `00-<32 digits>-<16>-<2>`.
const LEN: usize = 55;

/// Keeps a valid `traceparent`. Otherwise inserts a new one and removes `tracestate`, which belongs to the
/// old one. `may_exist`: whether the request may have one of the two headers.
pub(crate) fn ensure(headers: &mut HeaderMap, may_exist: bool) {
    if !may_exist {
        headers.insert(TRACEPARENT, new_trace());
        return;
    }
    let mut given = headers.get_all(TRACEPARENT).iter();
    let is_valid = match (given.next(), given.next()) {
        (Some(value), None) => is_valid(value.as_bytes()),
        _ => false,
    };
    if !is_valid {
        headers.insert(TRACEPARENT, new_trace());
        headers.remove(TRACESTATE);
    }
}

/// Whether a value is valid: of version 00, or of a later one, which may be longer.
fn is_valid(value: &[u8]) -> bool {
    let field = |from: usize, to: usize| {
        let field = value.get(from..to)?;
        field.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')).then_some(field)
    };
    let dashes = [2, 35, 52].iter().all(|at| value.get(*at) == Some(&b'-'));
    let (Some(version), Some(trace), Some(parent), Some(_flags)) =
        (field(0, 2), field(3, 35), field(36, 52), field(53, 55))
    else {
        return false;
    };
    let length = match version {
        b"ff" => return false,
        b"00" => value.len() == LEN,
        _ => value.len() == LEN || value.get(LEN) == Some(&b'-'),
    };
    let is_zero = |field: &[u8]| field.iter().all(|b| *b == b'0');
    dashes && length && !is_zero(trace) && !is_zero(parent)
}

/// Returns a new trace that is not sampled.
fn new_trace() -> HeaderValue {
    // Zero is not a valid id.
    let (trace, parent) = (fastrand::u128(..).max(1), fastrand::u64(..).max(1));
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
    hex(&trace.to_be_bytes(), &mut text[3..35]);
    hex(&parent.to_be_bytes(), &mut text[36..52]);
    // Digits and dashes are valid in a header.
    HeaderValue::from_bytes(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Writes bytes as hexadecimal digits.
fn hex(bytes: &[u8], digits: &mut [u8]) {
    let digit = |n: u8| n + if n < 10 { b'0' } else { b'a' - 10 };
    for (byte, pair) in bytes.iter().zip(digits.chunks_exact_mut(2)) {
        pair[0] = digit(byte >> 4);
        pair[1] = digit(byte & 0xf);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_specification_allows_is_valid() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert!(is_valid(good.as_bytes()));
        assert!(is_valid(good.replacen("00", "cc", 1).as_bytes()));
        assert!(is_valid(format!("{}-what-will-be", good.replacen("00", "cc", 1)).as_bytes()));
        for bad in [
            "",
            "00",
            &good.to_uppercase(),
            &format!("{good}-x"),
            &good.replacen("00", "ff", 1),
            &good.replacen("00", "0x", 1),
            &good.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &good.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &good.replace('-', "_"),
            &good[1..],
        ] {
            assert!(!is_valid(bad.as_bytes()), "{bad:?}");
        }
    }

    #[test]
    fn a_valid_trace_stays_and_another_is_replaced_with_its_state() {
        let with = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            headers.insert(TRACESTATE, HeaderValue::from_static("a=b"));
            values.iter().for_each(|v| _ = headers.append(TRACEPARENT, HeaderValue::from_static(v)));
            ensure(&mut headers, true);
            headers
        };
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let kept = with(&[good]);
        assert!(kept[TRACEPARENT] == good && kept.contains_key(TRACESTATE));
        for values in [&[][..], &["nonsense"], &[good, good]] {
            let made = with(values);
            assert_eq!(made.get_all(TRACEPARENT).iter().count(), 1);
            assert!(is_valid(made[TRACEPARENT].as_bytes()) && !made.contains_key(TRACESTATE));
        }
        assert_ne!(new_trace(), new_trace());
    }
}
