//! [`Signing`]: signs HTTP requests to members, and checks the signatures of members' requests.
//!
//! A signer must be in the provider table: a member that has not failed, in its newest incarnation, and on
//! the list of `--allow` if there is one. The guard of [`http`](crate::http) decides what a signed request
//! may do.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use hearsay_protocol::{
    BodyHash, Identity, Life, MemberState, NodeId, NotASignature, ProviderTable, REPLAY_WINDOW, ReplayWindow,
    RequestSignature, SIGNATURE_HEADER,
};
use hearsay_services::http::UnsignedRequest;
use http::HeaderValue;

use crate::view::View;

/// Signs requests and checks signatures.
pub struct Signing {
    me: Identity,
    cluster: String,
    view: Arc<View>,
    /// Counter of the last signed request.
    counter: AtomicU64,
    /// Replay window of each signer, for at most as many signers as the table has members.
    windows: Mutex<BTreeMap<NodeId, ReplayWindow>>,
    /// The nodes of `--allow`; `None`: all.
    allowed: RwLock<Option<BTreeSet<NodeId>>>,
}

impl fmt::Debug for Signing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signing").field("me", &self.me).finish_non_exhaustive()
    }
}

/// The signer of a request, and the hash of its body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Signed {
    /// The signer.
    pub by: NodeId,
    /// The signed hash of the body.
    pub body: BodyHash,
}

/// A signature was refused. The request had no effect.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadSignature {
    /// The header is malformed or repeated.
    #[error("{SIGNATURE_HEADER}: {0}")]
    Malformed(#[from] NotASignature),
    /// The signer is no member, or this node knows another incarnation of it.
    #[error(
        "{SIGNATURE_HEADER}: {0} is not a present member of this cluster, or has restarted; repeat the request in a moment"
    )]
    UnknownSigner(NodeId),
    /// The signature covers another request, another recipient, or this node before its restart.
    #[error(
        "{SIGNATURE_HEADER}: the signature does not cover this request to this node since its last start; sign the request again"
    )]
    Other,
    /// The request was received before.
    #[error("{SIGNATURE_HEADER}: the counter {0} was used before; sign each request separately")]
    Replayed(u64),
    /// The counter is older than the replay window, so the request may have been received before.
    #[error(
        "{SIGNATURE_HEADER}: the counter {0} is older than the newest {REPLAY_WINDOW} requests; sign the request again"
    )]
    Late(u64),
    /// The body does not match.
    #[error("{SIGNATURE_HEADER}: the body does not match the signature")]
    Body,
}

impl BadSignature {
    /// Whether a repetition may succeed a moment later, when the table is up to date.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::UnknownSigner(_) | Self::Other | Self::Late(_))
    }
}

impl Signing {
    /// Creates the signer of a node.
    pub fn new(me: Identity, cluster: String, view: Arc<View>, allowed: Option<BTreeSet<NodeId>>) -> Self {
        let (windows, allowed) = (Mutex::default(), RwLock::new(allowed));
        Self { me, cluster, view, counter: AtomicU64::new(0), windows, allowed }
    }

    /// Replaces the list of admitted signers.
    pub fn set_allowed(&self, allowed: Option<BTreeSet<NodeId>>) {
        *self.allowed.write().unwrap_or_else(PoisonError::into_inner) = allowed;
    }

    /// Signs a request to a member and returns the value of `Hearsay-Signature`. `None`: this node or the
    /// recipient is not in the table.
    pub fn sign(&self, recipient: NodeId, request: &UnsignedRequest<'_>, body: &[u8]) -> Option<HeaderValue> {
        let lives = |table: &ProviderTable| Some((life(table, self.me.id())?, life(table, recipient)?));
        let (me, recipient) = self.view.read(lives)?;
        let counter = self.counter.fetch_add(1, Ordering::Relaxed) + 1;
        let head = request.head(recipient);
        let signature = RequestSignature::sign(
            &self.me,
            (me.incarnation, counter),
            &self.cluster,
            &head,
            BodyHash::of(body),
        );
        HeaderValue::try_from(signature.to_string()).ok()
    }

    /// Checks the signature of a request; `None` without one. The caller must compare the hash of the body.
    ///
    /// # Errors
    /// The signature was refused.
    pub fn check(&self, request: &UnsignedRequest<'_>) -> Result<Option<Signed>, BadSignature> {
        let mut values = request.headers.get_all(SIGNATURE_HEADER).iter();
        let value = match (values.next(), values.next()) {
            (None, _) => return Ok(None),
            (Some(value), None) => value.to_str().map_err(|_| NotASignature)?,
            (Some(_), Some(_)) => return Err(NotASignature.into()),
        };
        let signature: RequestSignature = value.parse()?;
        let by = signature.signer.node;
        let is_allowed = {
            let allowed = self.allowed.read().unwrap_or_else(PoisonError::into_inner);
            by == self.me.id() || allowed.as_ref().is_none_or(|allowed| allowed.contains(&by))
        };
        let lives = self.view.read(|table| (signing_life(table, by), life(table, self.me.id())));
        let (Some(signer), Some(me), true) = (lives.0, lives.1, is_allowed) else {
            return Err(BadSignature::UnknownSigner(by));
        };
        if signer != signature.signer {
            return Err(BadSignature::UnknownSigner(by));
        }
        if !signature.covers(&self.cluster, &request.head(me)) {
            return Err(BadSignature::Other);
        }
        self.record_counter(signer, signature.counter)?;
        Ok(Some(Signed { by, body: signature.body }))
    }

    /// Records a counter in the replay window of its signer.
    fn record_counter(&self, signer: Life, counter: u64) -> Result<(), BadSignature> {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        if !windows.contains_key(&signer.node) {
            // Runs once for each signer, and removes the windows of forgotten members.
            self.view.read(|table| windows.retain(|node, _| table.member(*node).is_some()));
        }
        let window = windows.entry(signer.node).or_insert_with(|| ReplayWindow::new(signer.incarnation));
        if window.incarnation() != signer.incarnation {
            *window = ReplayWindow::new(signer.incarnation);
        }
        let is_past = window.is_past(counter);
        match window.note(counter) {
            true => Ok(()),
            false if is_past => Err(BadSignature::Late(counter)),
            false => Err(BadSignature::Replayed(counter)),
        }
    }
}

/// Returns the current life of a member.
fn life(table: &ProviderTable, node: NodeId) -> Option<Life> {
    table.member(node).map(|member| Life { node, incarnation: member.incarnation })
}

/// Returns the life of a member that may sign. A member that has left may still sign, because it finishes
/// accepted requests.
fn signing_life(table: &ProviderTable, node: NodeId) -> Option<Life> {
    let has_failed = table.member(node).is_some_and(|member| member.state == MemberState::Failed);
    life(table, node).filter(|_| !has_failed)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hearsay_protocol::{Change, Incarnation, Index, Member, Time, Version};
    use http::{HeaderMap, Method};

    use super::*;
    use crate::view::Clock;

    fn identity(seed: u8) -> Identity {
        Identity::from_seed(&[seed; 32])
    }

    fn member(seed: u8, incarnation: u64, state: MemberState) -> Change {
        Change::Member(Box::new(Member {
            id: identity(seed).id(),
            name: format!("n{seed}"),
            state,
            roles: Vec::new(),
            addresses: Vec::new(),
            http: None,
            zone: None,
            software: String::new(),
            protocol: 3,
            ephemeral: false,
            grpc: None,
            incarnation: Incarnation(incarnation),
            version: Version(1),
            since: Time::from_start(Duration::ZERO),
            rtt: None,
            rank: 0,
            namesake: false,
        }))
    }

    /// Returns the signing of nodes 1 and 2. Each has its own table, which lists both.
    fn two() -> [(Signing, Arc<View>); 2] {
        [1, 2].map(|seed| {
            let view = Arc::new(View::new(Index(1), Clock::start()));
            view.apply(Time::ZERO, [1, 2].map(|seed| member(seed, 10, MemberState::Alive)));
            (Signing::new(identity(seed), "c".into(), Arc::clone(&view), None), view)
        })
    }

    fn post(headers: &HeaderMap) -> UnsignedRequest<'_> {
        UnsignedRequest { method: &Method::POST, authority: "10.0.0.2:7500", target: "/students", headers }
    }

    fn signed_by(signing: &Signing) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_static("application/json"));
        let signature = signing.sign(identity(2).id(), &post(&headers), b"{}").unwrap();
        headers.insert(SIGNATURE_HEADER, signature);
        headers
    }

    #[test]
    fn a_request_of_a_member_counts_once() {
        let [(one, _), (two, _)] = two();
        let headers = signed_by(&one);
        let signed = two.check(&post(&headers)).unwrap().unwrap();
        assert_eq!((signed.by, signed.body), (identity(1).id(), BodyHash::of(b"{}")));
        assert_eq!(two.check(&post(&headers)), Err(BadSignature::Replayed(1)));
        assert!(two.check(&post(&signed_by(&one))).is_ok());
        assert_eq!(two.check(&post(&HeaderMap::new())), Ok(None));
        let mut doubled = signed_by(&one);
        doubled.append(SIGNATURE_HEADER, HeaderValue::from_static("x"));
        assert_eq!(two.check(&post(&doubled)), Err(BadSignature::Malformed(NotASignature)));
    }

    #[test]
    fn what_was_signed_for_another_node_or_path_does_not_count() {
        let [(one, _), (two, _)] = two();
        let headers = signed_by(&one);
        assert_eq!(one.check(&post(&headers)), Err(BadSignature::Other), "redirected");
        let other = UnsignedRequest { target: "/students/1", ..post(&headers) };
        assert_eq!(two.check(&other), Err(BadSignature::Other));
        assert!(two.check(&post(&headers)).is_ok(), "what was refused has not used up the counter");
    }

    #[test]
    fn only_present_members_in_their_newest_life_count() {
        let [(one, own), (two, view)] = two();
        let headers = signed_by(&one);
        let refused = Err(BadSignature::UnknownSigner(identity(1).id()));
        view.apply(Time::ZERO, [member(1, 10, MemberState::Failed)]);
        assert_eq!(two.check(&post(&headers)), refused);
        view.apply(Time::ZERO, [member(1, 11, MemberState::Alive)]);
        assert_eq!(two.check(&post(&headers)), refused, "signed in an earlier life");
        own.apply(Time::ZERO, [member(1, 11, MemberState::Alive)]);
        let in_the_new_life = signed_by(&one);
        assert!(two.check(&post(&in_the_new_life)).is_ok());
        view.apply(Time::ZERO, [member(1, 11, MemberState::Suspect)]);
        assert!(two.check(&post(&signed_by(&one))).is_ok(), "a suspect may only be slow");
        view.apply(Time::ZERO, [member(1, 11, MemberState::Left)]);
        assert!(two.check(&post(&signed_by(&one))).is_ok(), "it finishes what it has taken on");
        view.apply(Time::ZERO, [member(2, 12, MemberState::Alive)]);
        assert_eq!(two.check(&post(&signed_by(&one))), Err(BadSignature::Other), "for the life before");
        let stranger = Signing::new(identity(3), "c".into(), Arc::clone(&own), None);
        assert!(stranger.sign(identity(2).id(), &post(&HeaderMap::new()), b"").is_none());
        own.apply(Time::ZERO, [member(3, 1, MemberState::Alive)]);
        let unknown = Err(BadSignature::UnknownSigner(identity(3).id()));
        assert_eq!(two.check(&post(&signed_by(&stranger))), unknown);
    }

    #[test]
    fn a_list_of_the_allowed_is_for_signers_too() {
        let [(one, _), (two, _)] = two();
        two.set_allowed(Some(BTreeSet::from([identity(2).id()])));
        let refused = Err(BadSignature::UnknownSigner(identity(1).id()));
        assert_eq!(two.check(&post(&signed_by(&one))), refused);
        two.set_allowed(Some(BTreeSet::from([identity(1).id()])));
        assert!(two.check(&post(&signed_by(&one))).is_ok());
        assert!(two.check(&post(&signed_by(&two))).is_ok(), "a gateway asks the roles of its own node");
    }
}
