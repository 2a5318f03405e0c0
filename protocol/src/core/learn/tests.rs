//! Tests of instances with parts: an instance is published once it is complete, in any order of entries.

use proptest::{prelude::*, sample::Index as Pick};

use super::*;
use crate::{
    Identity, Incarnation, Startup, Version,
    config::Config,
    io::{Command, Input, Output, Profile},
    providers::{Index, ProviderTable},
};

fn core(seed: u8) -> Core {
    let profile = Profile {
        name: format!("n{seed}"),
        addresses: vec![],
        http: None,
        roles: vec![],
        zone: None,
        software: "test".into(),
        ephemeral: false,
        grpc: None,
    };
    let startup =
        Startup { incarnation: Incarnation(1), remembered: vec![], known: vec![], profile, seed: 1 };
    Core::new(Identity::from_seed(&[seed; 32]), Config::default(), startup, Time::ZERO)
}

/// Instance with this many tags, of which about 65 fit into a part.
fn instance(port: u16, tags: usize) -> Instance {
    Instance {
        service: "web".into(),
        address: "10.0.0.1".into(),
        port,
        url: format!("http://10.0.0.1:{port}"),
        tags: (0..tags).map(|n| format!("{n:0100}")).collect(),
        ..Instance::default()
    }
}

/// A node that receives another node's entries.
struct Reader {
    core: Core,
    table: ProviderTable,
}

impl Reader {
    fn new() -> Self {
        Self { core: core(2), table: ProviderTable::new(Index(0)) }
    }

    fn learn_entry(&mut self, entry: &Entry) -> Learned {
        let learned = self.core.learn_entry(Time::ZERO, entry.clone(), entry.fact.node);
        while let Some(output) = self.core.poll_output() {
            if let Output::Change(change) = output {
                self.table.apply(Time::ZERO, change);
            }
        }
        learned
    }

    fn shown(&self) -> Option<Instance> {
        self.table.providers("web").next().map(|provider| (*provider.instance).clone())
    }
}

/// A node and the entries that it has stated.
struct Author {
    core: Core,
    stated: Vec<Entry>,
}

impl Author {
    fn new() -> Self {
        let core = core(1);
        let header = core.state.node(core.id).and_then(|s| s.entry(&Key::Header)).cloned();
        Self { stated: header.into_iter().collect(), core }
    }

    /// States or removes an instance. Returns the number of entries stated.
    fn state(&mut self, instance: Option<Instance>) -> usize {
        let command = match instance {
            Some(instance) => Command::SetInstance("w".into(), Box::new(instance)),
            None => Command::RemoveInstance("w".into()),
        };
        self.core.handle(Time::ZERO, Input::Command(command));
        let last = self.stated.last().unwrap().fact.version;
        let own = self.core.state.node(self.core.id).unwrap();
        let mut new: Vec<Entry> = own.entries().filter(|e| e.fact.version > last).cloned().collect();
        new.sort_by_key(|entry| entry.fact.version);
        let count = new.len();
        self.stated.extend(new);
        count
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_order_of_arrival_ends_with_the_last_state_and_shows_only_whole_ones(
        history in prop::collection::vec(prop::option::weighted(0.8, 0usize..400), 1..6),
        order in prop::collection::vec(any::<Pick>(), 0..40),
    ) {
        let mut author = Author::new();
        let states: Vec<Option<Instance>> =
            (80..).zip(history).map(|(port, tags)| tags.map(|tags| instance(port, tags))).collect();
        states.iter().for_each(|state| _ = author.state(state.clone()));
        let mut reader = Reader::new();
        reader.learn_entry(&author.stated[0]);
        let some_twice = order.iter().map(|pick| pick.get(&author.stated)).collect::<Vec<_>>();
        for entry in some_twice.into_iter().chain(author.stated.iter().rev()) {
            reader.learn_entry(entry);
            let shown = reader.shown();
            prop_assert!(shown.is_none() || states.contains(&shown), "a mixture is shown");
        }
        prop_assert_eq!(&reader.shown(), states.last().unwrap());
        prop_assert_eq!(reader.core.counters.malformed, 0);
        let (ours, theirs) = (author.core.state.node(author.core.id), reader.core.state.node(author.core.id));
        let live = |s: Option<&crate::membership::state::Statements>| {
            s.unwrap().entries().filter(|e| e.fact.value.is_some()).cloned().collect::<Vec<_>>()
        };
        prop_assert_eq!(live(ours), live(theirs));
    }
}

#[test]
fn only_what_changed_is_stated_and_what_is_not_needed_goes() {
    let mut author = Author::new();
    let parts = |author: &Author| {
        let own = author.core.state.node(author.core.id).unwrap();
        own.entries().filter(|e| matches!(e.fact.key, Key::Part(..)) && e.fact.value.is_some()).count()
    };
    author.state(Some(instance(80, 400)));
    let all = parts(&author);
    assert!(all >= 4, "{all}");
    assert_eq!(author.state(Some(instance(80, 400))), 0, "the same again");
    assert_eq!(author.state(Some(instance(81, 400))), 1, "the parts are the same");
    author.state(Some(instance(81, 100)));
    assert_eq!(parts(&author), 1);
    author.state(Some(instance(81, 10)));
    assert_eq!(parts(&author), 0);
    author.state(Some(instance(81, 400)));
    author.state(None);
    assert_eq!(parts(&author), 0, "parts go with their instance");
    assert_eq!(author.core.counters.table_full + author.core.counters.malformed, 0);
}

#[test]
fn while_a_part_is_missing_the_last_whole_value_is_shown() {
    let mut author = Author::new();
    let mut reader = Reader::new();
    let first = instance(80, 200);
    author.state(Some(first.clone()));
    author.stated.iter().for_each(|entry| _ = reader.learn_entry(entry));
    assert_eq!(reader.shown(), Some(first.clone()));
    let known = author.stated.len();
    let second = instance(80, 300);
    author.state(Some(second.clone()));
    let news = author.stated.split_off(known);
    for (missing, entry) in (0..news.len()).rev().zip(&news) {
        assert_eq!(reader.shown(), Some(first.clone()), "{} more to come", missing + 1);
        reader.learn_entry(entry);
    }
    assert_eq!(reader.shown(), Some(second));
}

#[test]
fn an_instance_too_large_to_be_stated_is_counted_and_the_last_one_stays() {
    let mut author = Author::new();
    author.state(Some(instance(80, 10)));
    assert_eq!(author.state(Some(instance(80, 700))), 0);
    assert_eq!(author.core.counters.malformed, 1);
}

/// The header of a node that states this name.
fn header_of(seed: u8, name: &str) -> Entry {
    let header = Header { name: name.into(), software: "test".into(), ..Header::default() };
    let fact = Fact {
        node: Identity::from_seed(&[seed; 32]).id(),
        incarnation: Incarnation(1000),
        version: Version(1),
        key: Key::Header,
        value: Some(header.encode()),
    };
    fact.sign(&Identity::from_seed(&[seed; 32]), "default").unwrap()
}

#[test]
fn a_name_that_others_state_too_ends_no_process_and_stays_with_the_one_known_first() {
    let mut reader = Reader::new();
    let shown = |reader: &Reader, seed: u8| {
        reader.table.member(Identity::from_seed(&[seed; 32]).id()).map(|member| member.name.clone())
    };
    let beside = |seed: u8, name: &str| format!("{name}-{}", Identity::from_seed(&[seed; 32]).id().short());
    for (seed, name) in [(3, "n2"), (4, "web"), (5, "web")] {
        assert_eq!(reader.learn_entry(&header_of(seed, name)), Learned::New);
    }
    assert_eq!(shown(&reader, 2).as_deref(), Some("n2"), "the own name is the node's own");
    assert_eq!(shown(&reader, 3), Some(beside(3, "n2")));
    assert_eq!(shown(&reader, 4).as_deref(), Some("web"));
    assert_eq!(shown(&reader, 5), Some(beside(5, "web")));
    let until = Time::ZERO + std::time::Duration::from_secs(60);
    reader.core.handle(until, Input::Tick);
    while let Some(output) = reader.core.poll_output() {
        assert!(!matches!(output, Output::Fatal(_)), "{output:?}");
    }
    // The first one is gone; the name is free for the other.
    let first = Identity::from_seed(&[4; 32]).id();
    reader.core.set_member_state(until, first, MemberState::Failed);
    while let Some(output) = reader.core.poll_output() {
        if let Output::Change(change) = output {
            reader.table.apply(until, change);
        }
    }
    assert_eq!(shown(&reader, 5).as_deref(), Some("web"));
}
