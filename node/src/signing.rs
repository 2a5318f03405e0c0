//! Requests that this node signs for other nodes, and those that others sign for it.
//!
//! Who signs is known from the provider table: a member that has not failed, in its newest incarnation, and on the list of `--allow` where there is
//! one. What a signed request may do is for [`http`](crate::http) to say.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use hearsay_protocol::{
    Identity, NodeId,
    providers::{MemberState, ProviderTable},
    signed_request::{BodyHash, HEADER, Life, NotASignature, RequestSignature, Window},
};
use hearsay_services::signing::Unsigned;
use http::HeaderValue;

use crate::view::View;

/// Signs and checks.
pub struct Signing {
    me: Identity,
    cluster: String,
    view: Arc<View>,
    /// The number of the last request that was signed.
    counter: AtomicU64,
    /// What was seen of each signer. No larger than the table of members.
    windows: Mutex<BTreeMap<NodeId, Window>>,
    /// The nodes of `--allow`; `None` admits all.
    allowed: RwLock<Option<BTreeSet<NodeId>>>,
}

impl fmt::Debug for Signing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signing").field("me", &self.me).finish_non_exhaustive()
    }
}

/// Who signed a request, and which body belongs to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Signed {
    /// The member.
    pub by: NodeId,
    /// The hash that the body must have.
    pub body: BodyHash,
}

/// Why a signature does not count.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadSignature {
    /// There are several, or none can be read.
    #[error("{HEADER}: {0}")]
    Malformed(#[from] NotASignature),
    /// The signer is no member, or not as this node knows it.
    #[error(
        "{HEADER}: {0} is no present member of this cluster, or has restarted since; repeat the request in a moment"
    )]
    UnknownSigner(NodeId),
    /// Another request was signed, or this one for another node, or for this node before it restarted.
    #[error(
        "{HEADER}: the signature is not of this request to this node since its last start; sign it again"
    )]
    Other,
    /// It came before.
    #[error("{HEADER}: the counter {0} was used before; sign each request anew")]
    Replayed(u64),
    /// The body is another one.
    #[error("{HEADER}: the body is not the one that was signed")]
    Body,
}

impl BadSignature {
    /// Whether the same node may be believed in a moment, when the table has caught up.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::UnknownSigner(_) | Self::Other)
    }
}

impl Signing {
    /// For a node with this identity and table.
    pub fn new(me: Identity, cluster: String, view: Arc<View>, allowed: Option<BTreeSet<NodeId>>) -> Self {
        let (windows, allowed) = (Mutex::default(), RwLock::new(allowed));
        Self { me, cluster, view, counter: AtomicU64::new(0), windows, allowed }
    }

    /// Admits these signers from now on.
    pub fn set_allowed(&self, allowed: Option<BTreeSet<NodeId>>) {
        *self.allowed.write().unwrap_or_else(PoisonError::into_inner) = allowed;
    }

    /// The value of `Hearsay-Signature` for a request to a member. `None`: this node, or the recipient, is not in the table.
    pub fn sign(&self, recipient: NodeId, request: &Unsigned<'_>, body: &[u8]) -> Option<HeaderValue> {
        let lives = |table: &ProviderTable| Some((life(table, self.me.id())?, life(table, recipient)?));
        let (me, recipient) = self.view.read(lives)?;
        let counter = self.counter.fetch_add(1, Ordering::Relaxed) + 1;
        let head = request.head(recipient);
        let signature = RequestSignature::sign(
            &self.me,
            me.incarnation,
            &self.cluster,
            counter,
            &head,
            BodyHash::of(body),
        );
        HeaderValue::try_from(signature.to_string()).ok()
    }

    /// Who signed a request; `None`: it bears no signature. The body remains to be compared.
    ///
    /// # Errors
    /// It bears one that does not count.
    pub fn check(&self, request: &Unsigned<'_>) -> Result<Option<Signed>, BadSignature> {
        let mut values = request.headers.get_all(HEADER).iter();
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
        if !self.note(signer, signature.counter) {
            return Err(BadSignature::Replayed(signature.counter));
        }
        Ok(Some(Signed { by, body: signature.body }))
    }

    fn note(&self, signer: Life, counter: u64) -> bool {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        if !windows.contains_key(&signer.node) {
            // Signers are members, so this looks at each of them once, and keeps none that is forgotten.
            self.view.read(|table| windows.retain(|node, _| table.member(*node).is_some()));
        }
        let window = windows.entry(signer.node).or_insert_with(|| Window::new(signer.incarnation));
        if window.incarnation() != signer.incarnation {
            *window = Window::new(signer.incarnation);
        }
        window.note(counter)
    }
}

fn life(table: &ProviderTable, node: NodeId) -> Option<Life> {
    table.member(node).map(|member| Life { node, incarnation: member.incarnation })
}

/// The life of a member that may sign. One that has said goodbye still finishes what it has taken on.
fn signing_life(table: &ProviderTable, node: NodeId) -> Option<Life> {
    let has_failed = table.member(node).is_some_and(|member| member.state == MemberState::Failed);
    life(table, node).filter(|_| !has_failed)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hearsay_protocol::{
        Incarnation, Time, Version,
        providers::{Change, Index, Member},
    };
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
            incarnation: Incarnation(incarnation),
            version: Version(1),
            since: Time::from_start(Duration::ZERO),
            rtt: None,
        }))
    }

    /// The signings of nodes 1 and 2, each with a table of its own that lists both.
    fn two() -> [(Signing, Arc<View>); 2] {
        [1, 2].map(|seed| {
            let view = Arc::new(View::new(Index(1), Clock::start()));
            view.apply(Time::ZERO, [1, 2].map(|seed| member(seed, 10, MemberState::Alive)));
            (Signing::new(identity(seed), "c".into(), Arc::clone(&view), None), view)
        })
    }

    fn post(headers: &HeaderMap) -> Unsigned<'_> {
        Unsigned { method: &Method::POST, authority: "10.0.0.2:7500", target: "/students", headers }
    }

    fn signed_by(signing: &Signing) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_static("application/json"));
        let signature = signing.sign(identity(2).id(), &post(&headers), b"{}").unwrap();
        headers.insert(HEADER, signature);
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
        doubled.append(HEADER, HeaderValue::from_static("x"));
        assert_eq!(two.check(&post(&doubled)), Err(BadSignature::Malformed(NotASignature)));
    }

    #[test]
    fn what_was_signed_for_another_node_or_path_does_not_count() {
        let [(one, _), (two, _)] = two();
        let headers = signed_by(&one);
        assert_eq!(one.check(&post(&headers)), Err(BadSignature::Other), "redirected");
        let other = Unsigned { target: "/students/1", ..post(&headers) };
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
