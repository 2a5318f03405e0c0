//! Signed HTTP requests: the [`RequestSignature`] of a member, and the [`ReplayWindow`] that accepts each
//! request once.
//!
//! A node that writes on behalf of a client (gateway, portal, log shipping, forwarded page) signs the
//! request, which proves that the node is a member. The signature covers the cluster, both nodes with their
//! incarnations, a counter, and everything in the request that decides its effect. So an attacker cannot
//! alter a request, send it to another node or path, or repeat it after the recipient restarts. The recipient
//! detects repetitions by the counter ([`ReplayWindow`]). No clock is involved.
//!
//! In HTTP the signature is one header, [`SIGNATURE_HEADER`]:
//! `Hearsay-Signature: node=12D3KooW…; incarnation=1764500000000; counter=17; body=<64 hex digits>;
//! signature=<128 hex digits>`,
//! with the parameters in this order. `body` is the BLAKE3 hash of the body as transferred, so that the
//! recipient can check the signature before it reads the body. RFC 9421 is not used: it has no parameters for
//! a counter and the recipient's incarnation, and the recipient would have to refuse each of the many options
//! of RFC 9421.

use std::{fmt, str::FromStr};

use serde::Serialize;

use crate::{Identity, Incarnation, NodeId, id::Signature, record::signed_bytes};

/// Name of the header, in lower case.
pub const SIGNATURE_HEADER: &str = "hearsay-signature";
/// Headers that a signature covers, in lower case, with all their values in the order of sending. They decide
/// how the recipient understands a request, or (`forwarded`) for which client the request is made.
pub const COVERED_HEADERS: [&str; 4] = ["content-type", "content-encoding", "idempotency-key", "forwarded"];
/// Longest header in bytes: a PeerId, two numbers, a hash and a signature.
const HEADER_BYTES_MAX: usize = 400;

/// BLAKE3 hash of a request's body, as transferred.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct BodyHash([u8; 32]);

impl BodyHash {
    /// Hash of these bytes.
    pub fn of(body: &[u8]) -> Self {
        Self(*blake3::hash(body).as_bytes())
    }
}

/// A node in one incarnation.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Life {
    /// The node.
    pub node: NodeId,
    /// Incarnation of the node.
    pub incarnation: Incarnation,
}

/// Parts of a request that a signature covers, besides the body.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct RequestHead<'a> {
    /// The node that receives the request.
    pub recipient: Life,
    /// Method.
    pub method: &'a str,
    /// `Host`, in lower case.
    pub authority: &'a str,
    /// Path and query.
    pub target: &'a str,
    /// Values of each of [`COVERED_HEADERS`].
    pub covered: [Vec<&'a [u8]>; COVERED_HEADERS.len()],
}

/// Signature of a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RequestSignature {
    /// The node that signed the request.
    pub signer: Life,
    /// Number of the request, from 1, unique within one incarnation of the signer.
    pub counter: u64,
    /// Hash of the body.
    pub body: BodyHash,
    signature: Signature,
}

/// Error of a text that is not a signature.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not of the form node=…; incarnation=…; counter=…; body=…; signature=…")]
pub struct NotASignature;

fn statement(cluster: &str, signer: Life, counter: u64, head: &RequestHead<'_>, body: BodyHash) -> Vec<u8> {
    signed_bytes("request", cluster, &(signer, counter, head, body))
}

impl RequestSignature {
    /// Signs a request of this node, whose incarnation and counter are given.
    pub fn sign(
        me: &Identity,
        (incarnation, counter): (Incarnation, u64),
        cluster: &str,
        head: &RequestHead<'_>,
        body: BodyHash,
    ) -> Self {
        let signer = Life { node: me.id(), incarnation };
        let signature = me.sign(&statement(cluster, signer, counter, head, body));
        Self { signer, counter, body, signature }
    }

    /// Whether the signature is valid for this request in this cluster. The caller must also check that the
    /// signer is a member in its current incarnation, that the request is new, and that the body has the
    /// signed hash.
    pub fn covers(&self, cluster: &str, head: &RequestHead<'_>) -> bool {
        let statement = statement(cluster, self.signer, self.counter, head, self.body);
        self.signer.node.has_signed(&statement, &self.signature)
    }
}

impl fmt::Display for RequestSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Life { node, incarnation } = self.signer;
        write!(f, "node={node}; incarnation={}; counter={}; body=", incarnation.0, self.counter)?;
        write_hex(f, &self.body.0)?;
        f.write_str("; signature=")?;
        write_hex(f, &self.signature.0)
    }
}

impl FromStr for RequestSignature {
    type Err = NotASignature;

    fn from_str(text: &str) -> Result<Self, NotASignature> {
        if text.len() > HEADER_BYTES_MAX {
            return Err(NotASignature);
        }
        let mut parameters = text.split("; ");
        let mut next = |name: &str| -> Result<&str, NotASignature> {
            let parameter = parameters.next().and_then(|parameter| parameter.strip_prefix(name));
            parameter.and_then(|value| value.strip_prefix('=')).ok_or(NotASignature)
        };
        let node = next("node")?.parse().map_err(|_| NotASignature)?;
        let incarnation = Incarnation(decimal(next("incarnation")?)?);
        let counter = decimal(next("counter")?)?;
        let body = BodyHash(hex(next("body")?)?);
        let signature = Signature(hex(next("signature")?)?);
        if parameters.next().is_some() {
            return Err(NotASignature);
        }
        Ok(Self { signer: Life { node, incarnation }, counter, body, signature })
    }
}

/// Parses a number in its only spelling, so that a signature has only one text form.
fn decimal(text: &str) -> Result<u64, NotASignature> {
    let number: u64 = text.parse().map_err(|_| NotASignature)?;
    if number.to_string() == text { Ok(number) } else { Err(NotASignature) }
}

fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

fn hex<const N: usize>(text: &str) -> Result<[u8; N], NotASignature> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Ok(byte - b'0'),
        b'a'..=b'f' => Ok(byte - b'a' + 10),
        _ => Err(NotASignature),
    };
    let mut bytes = [0; N];
    if text.len() != 2 * N {
        return Err(NotASignature);
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Ok(bytes)
}

/// Greatest distance of a counter from the newest one of its signer. Requests overtake each other, but a node
/// has far fewer of them in flight to one recipient.
pub const REPLAY_WINDOW: u64 = 1024;

/// Anti-replay window (RFC 4303, section 3.4.3): the counters seen of one signer in one incarnation. The
/// window has one bit for each of the newest [`REPLAY_WINDOW`] counters; all older counters count as seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplayWindow {
    incarnation: Incarnation,
    newest: u64,
    /// Ring buffer of bits: the bit of a counter is at the counter modulo [`REPLAY_WINDOW`].
    seen: [u64; (REPLAY_WINDOW / 64) as usize],
}

impl ReplayWindow {
    /// A window without counters.
    pub fn new(incarnation: Incarnation) -> Self {
        Self { incarnation, newest: 0, seen: [0; (REPLAY_WINDOW / 64) as usize] }
    }

    /// Incarnation of the signer.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// Whether a counter is older than the window. Such a counter may have been seen.
    pub fn is_past(&self, counter: u64) -> bool {
        self.newest.saturating_sub(counter) >= REPLAY_WINDOW
    }

    /// Records a counter. `false`: it was already seen, or is older than the window.
    #[must_use]
    pub fn note(&mut self, counter: u64) -> bool {
        if counter == 0 || self.is_past(counter) {
            return false;
        }
        if counter > self.newest {
            // The ring positions of the counters from `newest + 1` to `counter` still hold bits of counters
            // that now leave the window.
            if counter - self.newest >= REPLAY_WINDOW {
                self.seen.fill(0);
            } else {
                (self.newest + 1..=counter).for_each(|passed| self.set(passed, false));
            }
            self.newest = counter;
        } else if self.is_set(counter) {
            return false;
        }
        self.set(counter, true);
        true
    }

    fn place(counter: u64) -> (usize, u64) {
        let at = counter % REPLAY_WINDOW;
        ((at / 64) as usize, 1 << (at % 64))
    }

    fn is_set(&self, counter: u64) -> bool {
        let (word, bit) = Self::place(counter);
        self.seen[word] & bit != 0
    }

    fn set(&mut self, counter: u64, seen: bool) {
        let (word, bit) = Self::place(counter);
        if seen { self.seen[word] |= bit } else { self.seen[word] &= !bit }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const CLUSTER: &str = "school";

    /// Name of an alteration, and the function that makes the alteration.
    type Alteration<T> = (&'static str, fn(&mut T));

    fn me() -> Identity {
        Identity::from_seed(&[1; 32])
    }

    fn head() -> RequestHead<'static> {
        RequestHead {
            recipient: Life { node: Identity::from_seed(&[2; 32]).id(), incarnation: Incarnation(7) },
            method: "POST",
            authority: "10.0.0.2:7500",
            target: "/students?ack=majority",
            covered: [vec![b"application/json"], vec![], vec![b"k1"], vec![b"host=school.example"]],
        }
    }

    fn signed() -> RequestSignature {
        RequestSignature::sign(&me(), (Incarnation(5), 17), CLUSTER, &head(), BodyHash::of(b"{}"))
    }

    #[test]
    fn a_signature_holds_for_its_request_alone() {
        let signature = signed();
        assert!(signature.covers(CLUSTER, &head()));
        assert!(!signature.covers("other", &head()), "another cluster");
        let altered: [Alteration<RequestHead<'static>>; 9] = [
            ("recipient", |head| head.recipient.node = me().id()),
            ("incarnation of the recipient", |head| head.recipient.incarnation = Incarnation(8)),
            ("method", |head| head.method = "PUT"),
            ("authority", |head| head.authority = "10.0.0.3:7500"),
            ("path", |head| head.target = "/students/1?ack=majority"),
            ("query", |head| head.target = "/students?ack=local"),
            ("content type", |head| head.covered[0] = vec![b"text/plain"]),
            ("an additional header", |head| head.covered[1] = vec![b"gzip"]),
            ("a value that moves to another header", |head| head.covered.swap(1, 2)),
        ];
        for (what, alter) in altered {
            let mut head = head();
            alter(&mut head);
            assert!(!signature.covers(CLUSTER, &head), "{what}");
        }
        let altered: [Alteration<RequestSignature>; 4] = [
            ("signer", |signature| signature.signer.node = Identity::from_seed(&[3; 32]).id()),
            ("incarnation of the signer", |signature| signature.signer.incarnation = Incarnation(6)),
            ("counter", |signature| signature.counter = 18),
            ("body", |signature| signature.body = BodyHash::of(b"{ }")),
        ];
        for (what, alter) in altered {
            let mut signature = signature.clone();
            alter(&mut signature);
            assert!(!signature.covers(CLUSTER, &head()), "{what}");
        }
    }

    #[test]
    fn a_header_is_read_as_it_was_written_and_in_no_other_spelling() {
        let signature = signed();
        let text = signature.to_string();
        assert!(text.len() <= HEADER_BYTES_MAX, "{}", text.len());
        let most = RequestSignature {
            signer: Life { incarnation: Incarnation(u64::MAX), ..signature.signer },
            counter: u64::MAX,
            ..signature.clone()
        };
        assert!(most.to_string().len() <= HEADER_BYTES_MAX);
        assert_eq!(text.parse(), Ok(signature.clone()));
        let spelt = [
            text.replace("counter=17", "counter=017"),
            text.replace("counter=17", "counter=+17"),
            text.replace("; ", ";"),
            text.to_uppercase(),
            format!("{text}; more=1"),
            format!(" {text}"),
            text[..text.len() - 1].to_owned(),
            text.replace("signature=", "Signature="),
            String::new(),
        ];
        for spelt in spelt {
            assert_eq!(spelt.parse::<RequestSignature>(), Err(NotASignature), "{spelt}");
        }
    }

    #[test]
    fn a_counter_counts_once_and_an_old_one_never() {
        let mut window = ReplayWindow::new(Incarnation(1));
        assert!(!window.note(0));
        assert!(window.note(5) && window.note(3) && !window.note(5) && !window.note(3));
        assert!(window.note(5 + REPLAY_WINDOW));
        assert!(!window.note(5), "left the window");
        assert!(window.note(6) && !window.note(6));
        assert!(window.note(u64::MAX) && !window.note(u64::MAX) && !window.note(6 + REPLAY_WINDOW));
        assert!(window.note(u64::MAX - REPLAY_WINDOW + 1) && !window.note(u64::MAX - REPLAY_WINDOW));
    }

    proptest! {
        #[test]
        fn a_window_agrees_with_a_set(counters in proptest::collection::vec(0u64..4000, 0..600)) {
            let mut window = ReplayWindow::new(Incarnation(1));
            let (mut seen, mut newest) = (BTreeSet::new(), 0);
            for counter in counters {
                let is_new = counter > 0 && counter + REPLAY_WINDOW > newest && seen.insert(counter);
                newest = newest.max(if is_new { counter } else { 0 });
                prop_assert_eq!(window.note(counter), is_new);
            }
        }

        #[test]
        fn no_text_makes_it_panic(text in ".{0,420}") {
            _ = text.parse::<RequestSignature>();
        }
    }
}
