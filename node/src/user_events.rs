//! [`UserEvents`]: the user events that this node lists for programs: those whose filters accept this node.
//!
//! The protocol delivers each event once, to the driver, which adds it here. Readers wait for the next event
//! by a watch channel. The list is bounded: a new event displaces the oldest.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use hearsay_protocol::{
    NodeId,
    wire::{UserEvent, UserEventContent},
};
use regex::{Regex, RegexBuilder};
use tokio::sync::watch;

use crate::view::View;

/// Events listed, as many as Consul's agent lists.
pub const LISTED_MAX: usize = 256;
/// Memory of one compiled filter. Guess: a hundred times that of a plain name. It bounds the driver's time
/// for a filter of another node, too.
const PATTERN_BYTES_MAX: usize = 64 * 1024;

/// The list of user events of one node.
#[derive(Debug)]
pub struct UserEvents {
    node: NodeId,
    name: String,
    view: Arc<View>,
    listed: Mutex<VecDeque<Arc<UserEvent>>>,
    /// Number of events listed so far.
    newest: watch::Sender<u64>,
    filtered: AtomicU64,
}

impl UserEvents {
    /// Creates an empty list for the node with this id and name.
    pub fn new(node: NodeId, name: String, view: Arc<View>) -> Self {
        Self {
            node,
            name,
            view,
            listed: Mutex::default(),
            newest: watch::Sender::new(0),
            filtered: AtomicU64::new(0),
        }
    }

    /// Lists an event if its filters accept this node, and wakes the readers. For the driver.
    pub fn deliver(&self, event: UserEvent) {
        if !self.accepts(&event.claim.content) {
            self.filtered.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        if listed.len() >= LISTED_MAX {
            listed.pop_front();
        }
        listed.push_back(Arc::new(event));
        drop(listed);
        self.newest.send_modify(|count| *count += 1);
    }

    /// Returns the listed events in the order in which they arrived: those with this name, or all.
    pub fn list(&self, name: Option<&str>) -> Vec<Arc<UserEvent>> {
        let listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        let has_name = |event: &&Arc<UserEvent>| name.is_none_or(|name| event.claim.content.name == name);
        listed.iter().filter(has_name).cloned().collect()
    }

    /// Returns the index of a list: that of its newest event, and 1 for an empty list.
    pub fn index(&self, name: Option<&str>) -> u64 {
        let listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        let has_name = |event: &&Arc<UserEvent>| name.is_none_or(|name| event.claim.content.name == name);
        listed.iter().rev().find(has_name).map_or(1, |event| event.id().index().max(1))
    }

    /// Subscribes to the number of events listed so far.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    /// Returns how many events were not listed because their filters do not accept this node.
    pub fn filtered(&self) -> u64 {
        self.filtered.load(Ordering::Relaxed)
    }

    /// Whether the filters of an event accept this node. Another node may send filters that are no regular
    /// expressions; they accept none.
    fn accepts(&self, content: &UserEventContent) -> bool {
        let UserEventContent { node_filter, service_filter, tag_filter, .. } = content;
        let Ok([node, service, tag]) = compile_filters([node_filter, service_filter, tag_filter]) else {
            return false;
        };
        let is_match = |filter: &Option<Regex>, text: &str| filter.as_ref().is_none_or(|f| f.is_match(text));
        if !is_match(&node, &self.name) {
            return false;
        }
        if service.is_none() && tag.is_none() {
            return true;
        }
        self.view.read(|table| {
            let names = table.services().filter(|name| is_match(&service, name));
            let own = names.flat_map(|name| table.providers(name)).filter(|p| p.node_id == self.node);
            let mut own = own.map(|provider| &provider.instance);
            own.any(|i| tag.is_none() || i.tags.iter().any(|own| is_match(&tag, own)))
        })
    }
}

/// Compiles the filters for node, service and tag; an empty one is `None`.
///
/// # Errors
/// The number of the filter that is no regular expression, or too large, and why.
pub fn compile_filters(filters: [&str; 3]) -> Result<[Option<Regex>; 3], (usize, regex::Error)> {
    let mut compiled = [None, None, None];
    for (number, text) in filters.into_iter().enumerate().filter(|(_, text)| !text.is_empty()) {
        let filter = RegexBuilder::new(text).size_limit(PATTERN_BYTES_MAX).build();
        compiled[number] = Some(filter.map_err(|error| (number, error))?);
    }
    Ok(compiled)
}

#[cfg(test)]
mod tests {
    use hearsay_protocol::{
        Change, Identity, Incarnation, Index, Instance, Member, MemberState, Time, Version,
        wire::UserEventClaim,
    };

    use super::*;
    use crate::view::Clock;

    fn event(number: u64, content: UserEventContent) -> UserEvent {
        let me = Identity::from_seed(&[2; 32]);
        let (by, incarnation) = (me.id(), Incarnation(1));
        UserEventClaim { by, incarnation, number, lamport: number, content }.sign(&me, "test")
    }

    fn named(name: &str) -> UserEventContent {
        UserEventContent { name: name.to_owned(), ..UserEventContent::default() }
    }

    /// The list of a node `web-1`, which offers `api` with the tags `v1` and `blue`. Another node offers
    /// `db`.
    fn events() -> UserEvents {
        let view = Arc::new(View::new(Index(1), Clock::start()));
        let [own, other] = [1, 2].map(|seed| Identity::from_seed(&[seed; 32]).id());
        let member = |id, name: &str| {
            Change::Member(Box::new(Member {
                id,
                name: name.to_owned(),
                state: MemberState::Alive,
                roles: Vec::new(),
                addresses: Vec::new(),
                http: None,
                zone: None,
                software: String::new(),
                protocol: 1,
                ephemeral: false,
                grpc: None,
                incarnation: Incarnation(1),
                version: Version(1),
                since: Time::ZERO,
                rtt: None,
                rank: 0,
                namesake: false,
            }))
        };
        let instance = |service: &str, tags: &[&str]| Instance {
            service: service.to_owned(),
            address: "10.0.0.1".to_owned(),
            port: 80,
            url: "http://10.0.0.1:80".to_owned(),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            ..Instance::default()
        };
        let offer = |node, instance| Change::Instance {
            node,
            id: "a".to_owned(),
            instance: Some(Arc::new(instance)),
        };
        let changes = [
            member(own, "web-1"),
            member(other, "web-2"),
            offer(own, instance("api", &["v1", "blue"])),
            offer(other, instance("db", &["v1"])),
        ];
        view.apply(Time::ZERO, changes);
        UserEvents::new(own, "web-1".to_owned(), view)
    }

    #[test]
    fn an_event_is_listed_only_where_its_filters_accept_the_node() {
        for (node, service, tag, expected) in [
            ("", "", "", true),
            ("web", "", "", true),
            ("^web-1$", "", "", true),
            ("^web-2$", "", "", false),
            ("", "^api$", "", true),
            ("", "^db$", "", false),
            ("", "a|d", "", true),
            ("", "api", "^v1$", true),
            ("", "api", "^blue", true),
            ("", "api", "^v2$", false),
            ("web-2", "api", "v1", false),
            ("(", "", "", false),
            ("", "", "v1", true),
        ] {
            let events = events();
            let content = UserEventContent {
                node_filter: node.to_owned(),
                service_filter: service.to_owned(),
                tag_filter: tag.to_owned(),
                ..named("deploy")
            };
            events.deliver(event(1, content));
            assert_eq!(events.list(None).len(), usize::from(expected), "{node:?} {service:?} {tag:?}");
            assert_eq!(events.filtered(), u64::from(!expected));
        }
    }

    #[test]
    fn the_list_is_bounded_and_its_index_is_that_of_the_newest_event() {
        let events = events();
        assert_eq!((events.index(None), events.list(None).len()), (1, 0));
        let woken = events.subscribe();
        let (first, second) = (event(1, named("a")), event(2, named("b")));
        events.deliver(first.clone());
        events.deliver(second.clone());
        assert!(woken.has_changed().unwrap());
        assert_eq!(events.index(None), second.id().index());
        assert_eq!(events.index(Some("a")), first.id().index());
        assert_eq!(events.index(Some("c")), 1);
        assert_eq!(events.list(Some("b"))[0].id(), second.id());
        for number in 3..=LISTED_MAX as u64 + 3 {
            events.deliver(event(number, named("c")));
        }
        let listed = events.list(None);
        assert_eq!((listed.len(), listed[0].claim.number), (LISTED_MAX, 4));
    }

    #[test]
    fn a_filter_that_is_too_large_or_no_expression_is_named_by_its_number() {
        let number = |filters| compile_filters(filters).map(|_| ()).map_err(|(number, _)| number);
        assert_eq!(number(["", "", ""]), Ok(()));
        assert_eq!(number(["a", "(", ""]), Err(1));
        assert_eq!(number(["a", "", "(a{900}){900}"]), Err(2));
    }
}
