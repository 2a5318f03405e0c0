//! [`Sessions`] of browsers: cookies that replace the API token after sign-in.
//!
//! A session is 256 random bits in a cookie. The node keeps only their hash, in memory: a restart ends all
//! sessions.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use hearsay_protocol::NodeId;
use http::{HeaderMap, HeaderValue, header};

use crate::storage::Secret;

/// Lifetime of a session.
pub const LIFETIME: Duration = Duration::from_secs(12 * 3600);
/// Maximum number of sessions; a new one ends the oldest. A session begins only with the API token, so a
/// stranger cannot push sessions out.
const SESSIONS_MAX: usize = 256;
/// Prefix of the cookie names of all nodes. Browsers send cookies to all ports of a host, so each node has
/// its own cookie name.
const COOKIE_PREFIX: &str = "hearsay-session-";
/// Maximum number of cookies of one name that are checked.
const SAME_NAME_MAX: usize = 8;
/// Context of the key derivation of the form field (BLAKE3).
const FORM_CONTEXT: &str = "hearsay 2026-11 the form field of a browser session";

type Hash = [u8; 32];

/// Sessions of one node.
#[derive(Debug)]
pub struct Sessions {
    cookie: String,
    /// End of each session, by hash.
    ends: Mutex<BTreeMap<Hash, Instant>>,
}

/// The session of a request.
#[derive(Clone, Debug)]
pub struct Session {
    hash: Hash,
    /// Remaining lifetime.
    pub left: Duration,
    /// Value of the hidden field in the forms of this session.
    pub form_field: String,
}

impl Default for Sessions {
    /// Creates the list for a node without an identity, as in tests.
    fn default() -> Self {
        Self { cookie: format!("{COOKIE_PREFIX}0"), ends: Mutex::default() }
    }
}

impl Sessions {
    /// Creates the empty list of a node.
    pub fn new(node: NodeId) -> Self {
        Self { cookie: format!("{COOKIE_PREFIX}{}", node.short()), ends: Mutex::default() }
    }

    /// Begins a session and returns the value of `Set-Cookie`. `is_https`: the browser sends the cookie over
    /// https only.
    ///
    /// # Errors
    /// The system provides no random bits.
    pub fn begin(&self, is_https: bool, now: Instant) -> Result<HeaderValue, getrandom::Error> {
        let id = Secret::random()?;
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        ends.retain(|_, end| *end > now);
        if ends.len() >= SESSIONS_MAX {
            let oldest = ends.iter().min_by_key(|(_, end)| **end).map(|(hash, _)| *hash);
            oldest.map(|oldest| ends.remove(&oldest));
        }
        ends.insert(hash_of(id.to_hex().expose().as_bytes()), now + LIFETIME);
        Ok(self.cookie_with(id.to_hex().expose(), LIFETIME, is_https))
    }

    /// Finds the session of a request.
    pub fn find(&self, headers: &HeaderMap, now: Instant) -> Option<Session> {
        // Another program on the host may have set a cookie of this name for another path.
        let own = cookies(headers).filter(|(name, _)| *name == self.cookie.as_bytes());
        own.take(SAME_NAME_MAX).find_map(|(_, id)| self.session(id, now))
    }

    fn session(&self, id: &[u8], now: Instant) -> Option<Session> {
        let hash = hash_of(id);
        let ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        let left = ends.get(&hash)?.checked_duration_since(now).filter(|left| !left.is_zero())?;
        let mut form_field = String::with_capacity(64);
        for byte in blake3::derive_key(FORM_CONTEXT, id) {
            // Writing to a string cannot fail.
            _ = write!(form_field, "{byte:02x}");
        }
        Some(Session { hash, left, form_field })
    }

    /// Ends a session and returns the value of `Set-Cookie` that removes the cookie.
    pub fn end(&self, session: &Session) -> HeaderValue {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner).remove(&session.hash);
        self.cookie_with("", Duration::ZERO, false)
    }

    fn cookie_with(&self, id: &str, lifetime: Duration, is_https: bool) -> HeaderValue {
        let secure = if is_https { "; Secure" } else { "" };
        let text = format!(
            "{}={id}; Path=/; HttpOnly; SameSite=Strict; Max-Age={}{secure}",
            self.cookie,
            lifetime.as_secs()
        );
        // The text is ASCII.
        let mut value = HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""));
        value.set_sensitive(true);
        value
    }
}

/// Removes the sessions of nodes from the cookies of a request; other cookies stay. Cookies may contain any
/// bytes, so they are not parsed as text.
pub fn strip(headers: &mut HeaderMap) {
    let is_session = |name: &[u8]| name.starts_with(COOKIE_PREFIX.as_bytes());
    if !cookies(headers).any(|(name, _)| is_session(name)) {
        return;
    }
    let others = |value: &HeaderValue| {
        let pairs = value.as_bytes().split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        let others: Vec<&[u8]> = pairs.filter(|pair| !pair.is_empty() && !is_session(pair)).collect();
        (!others.is_empty()).then(|| HeaderValue::from_bytes(&others.join(&b"; "[..])).ok()).flatten()
    };
    let kept: Vec<HeaderValue> = headers.get_all(header::COOKIE).iter().filter_map(others).collect();
    headers.remove(header::COOKIE);
    kept.into_iter().for_each(|value| _ = headers.append(header::COOKIE, value));
}

/// Returns names and values of the cookies of a request.
fn cookies(headers: &HeaderMap) -> impl Iterator<Item = (&[u8], &[u8])> {
    let values = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes);
    let pairs = values.flat_map(|value| value.split(|byte| *byte == b';')).map(<[u8]>::trim_ascii);
    pairs.filter_map(|pair| {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        Some((pair.get(..at)?, pair.get(at + 1..)?))
    })
}

/// Hashes a session id, so that a lookup compares no secret and the list contains none.
fn hash_of(id: &[u8]) -> Hash {
    *blake3::hash(id).as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bearing(cookie: &str) -> HeaderMap {
        let pair = cookie.split(';').next().unwrap();
        let mut headers = HeaderMap::new();
        headers.append(header::COOKIE, HeaderValue::try_from(format!("theme=dark; {pair}")).unwrap());
        headers
    }

    fn begin(sessions: &Sessions, now: Instant) -> HeaderMap {
        bearing(sessions.begin(false, now).unwrap().to_str().unwrap())
    }

    #[test]
    fn a_session_lasts_twelve_hours_or_until_it_is_ended() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let (one, other) = (begin(&sessions, now), begin(&sessions, now));
        let last = now + LIFETIME - Duration::from_secs(1);
        assert!(sessions.find(&one, last).is_some() && sessions.find(&one, now + LIFETIME).is_none());
        let session = sessions.find(&one, now).unwrap();
        assert_ne!(session.form_field, sessions.find(&other, now).unwrap().form_field);
        let forget = sessions.end(&session);
        assert!(forget.to_str().unwrap().contains("=; ") && forget.to_str().unwrap().contains("Max-Age=0"));
        assert!(sessions.find(&one, now).is_none() && sessions.find(&other, now).is_some());
    }

    #[test]
    fn the_cookie_is_kept_from_scripts_and_other_sites_and_holds_no_token() {
        let cookie = |is_https| {
            let cookie = Sessions::default().begin(is_https, Instant::now()).unwrap();
            cookie.to_str().unwrap().to_owned()
        };
        let plain = cookie(false);
        for part in ["; HttpOnly", "; SameSite=Strict", "; Path=/", "; Max-Age=43200"] {
            assert!(plain.contains(part), "{plain}");
        }
        assert!(!plain.contains("Secure") && cookie(true).ends_with("; Secure"));
        assert_ne!(plain, cookie(false));
    }

    #[test]
    fn another_nodes_session_and_an_invented_one_are_none() {
        let now = Instant::now();
        let (one, two) = (
            Sessions::new(NodeId::from_public_key([1; 32])),
            Sessions::new(NodeId::from_public_key([2; 32])),
        );
        assert!(one.find(&begin(&one, now), now).is_some());
        assert!(two.find(&begin(&one, now), now).is_none());
        let invented = bearing(&format!("{}={}; x", one.cookie, "0".repeat(64)));
        assert!(one.find(&invented, now).is_none() && one.find(&HeaderMap::new(), now).is_none());
    }

    #[test]
    fn the_oldest_ends_where_there_are_too_many() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let at = |n: usize| now + Duration::from_secs(n as u64);
        let all: Vec<_> = (0..=SESSIONS_MAX).map(|n| begin(&sessions, at(n))).collect();
        let lives = |headers| sessions.find(headers, at(SESSIONS_MAX)).is_some();
        assert_eq!(
            all.iter().map(lives).collect::<Vec<_>>(),
            (0..=SESSIONS_MAX).map(|n| n > 0).collect::<Vec<_>>()
        );
    }

    #[test]
    fn a_session_goes_no_further_than_to_its_node() {
        let mut headers = begin(&Sessions::default(), Instant::now());
        headers.append(header::COOKIE, HeaderValue::from_static("hearsay-session-abc=1"));
        headers.append(
            header::COOKIE,
            HeaderValue::from_static("a=1; hearsay-session-x=2; b=hearsay-session-y"),
        );
        strip(&mut headers);
        let left: Vec<_> = headers.get_all(header::COOKIE).iter().map(|v| v.to_str().unwrap()).collect();
        assert_eq!(left, ["theme=dark", "a=1; b=hearsay-session-y"]);
    }

    #[test]
    fn other_cookies_of_any_bytes_hide_no_session() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let cookie = sessions.begin(false, now).unwrap();
        let pair = cookie.to_str().unwrap().split(';').next().unwrap();
        let mut headers = HeaderMap::new();
        let line = [b"x=\xe9; hearsay-session-0=of-another-path; ", pair.as_bytes()].concat();
        headers.insert(header::COOKIE, HeaderValue::from_bytes(&line).unwrap());
        assert!(sessions.find(&headers, now).is_some());
        strip(&mut headers);
        assert_eq!(headers[header::COOKIE].as_bytes(), b"x=\xe9");
    }
}
