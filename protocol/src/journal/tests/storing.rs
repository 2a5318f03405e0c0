//! Tests of the time between a write and its sync: no replica receives the run, and if the write fails, later
//! runs are lost, too.

use super::*;

/// A journal and its outputs.
struct Fixture {
    journal: Journal,
    appends: u64,
}

impl Fixture {
    fn new() -> Self {
        let config = JournalConfig::new("test", TOPIC);
        let mut journal = Journal::new(identity(0), config, RestoredJournal::default(), 7);
        // The node itself joins the replica set.
        while journal.poll_output().is_some() {}
        Self { journal, appends: 0 }
    }

    fn feed(&mut self, input: JournalInput) -> Vec<JournalOutput> {
        self.journal.handle(Time::ZERO, 1, input);
        std::iter::from_fn(|| self.journal.poll_output()).collect()
    }

    fn append(&mut self, key: Option<&str>) -> Vec<JournalOutput> {
        self.append_bytes(key, b"x".to_vec())
    }

    fn append_bytes(&mut self, key: Option<&str>, body: Vec<u8>) -> Vec<JournalOutput> {
        self.appends += 1;
        let deadline = Time::ZERO + SECOND;
        let key = key.map(Into::into);
        let level = Some(Level::Local);
        let append = Append { id: AppendId(self.appends), key, body, level, deadline };
        self.feed(JournalInput::Append(append))
    }

    /// Writes one entry, and returns the run that is being written.
    fn write(&mut self) -> (WriteId, Run) {
        self.append(None);
        match &self.feed(JournalInput::Tick)[..] {
            [JournalOutput::Store(id, run, _)] => (*id, Run::clone(run)),
            other => panic!("{other:?}"),
        }
    }
}

fn answers(outputs: &[JournalOutput]) -> Vec<(u64, Result<EntryId, AppendError>)> {
    let answer = |output: &JournalOutput| match output {
        JournalOutput::Answer(id, answer) => Some((id.0, answer.clone().map(|done| done.id))),
        _ => None,
    };
    outputs.iter().filter_map(answer).collect()
}

#[test]
fn a_few_runs_are_at_the_disk_at_once_and_no_more() {
    let mut fixture = Fixture::new();
    let writes: Vec<_> = (0..4).map(|_| fixture.write()).collect();
    fixture.append(None);
    assert_eq!(fixture.feed(JournalInput::Tick), []);
    assert!(fixture.journal.poll_timeout() > Some(Time::ZERO), "it waits for the disk, not for the clock");
    for (index, (id, run)) in writes.iter().enumerate() {
        assert_eq!(run.start.0, index as u64 + 1, "each goes on where the one before ends");
        let name = EntryId { feed: run.feed, seq: run.start };
        assert_eq!(answers(&fixture.feed(JournalInput::Stored(*id))), [(index as u64 + 1, Ok(name))]);
    }
    assert_eq!(fixture.journal.poll_timeout(), Some(Time::ZERO));
    assert!(
        matches!(&fixture.feed(JournalInput::Tick)[..], [JournalOutput::Store(_, run, _)] if run.start.0 == 5)
    );
}

#[test]
fn a_run_that_is_not_stored_takes_those_after_it_with_it_and_none_before() {
    let mut fixture = Fixture::new();
    let [(first, run), (second, _), (third, _)] = [fixture.write(), fixture.write(), fixture.write()];
    let full = fixture.feed(JournalInput::NotStored(second, DiskError::Full));
    assert_eq!(answers(&full), [(2, Err(AppendError::DiskFull)), (3, Err(AppendError::DiskFull))]);
    // The disk reports a failure for each write of the transaction.
    assert_eq!(fixture.feed(JournalInput::NotStored(third, DiskError::Full)), []);
    assert_eq!(fixture.feed(JournalInput::Stored(third)), [], "nothing that was refused is there");
    let (_, next) = fixture.write();
    assert!(next.feed != run.feed && next.start.0 == 1, "numbers that may be taken are not used again");
    let name = EntryId { feed: run.feed, seq: Version(1) };
    assert_eq!(answers(&fixture.feed(JournalInput::Stored(first))), [(1, Ok(name))]);
    assert_eq!(fixture.journal.extents().of(run.feed).seen, VersionSet::up_to(Version(1)));
}

#[test]
fn of_runs_not_yet_given_to_the_disk_none_follows_one_that_is_not_stored() {
    let mut fixture = Fixture::new();
    // The appends are too large for one run.
    for _ in 0..3 {
        fixture.append_bytes(None, vec![b'x'; feed::BODY_BYTES_MAX]);
    }
    fixture.journal.handle(Time::ZERO, 1, JournalInput::Tick);
    let Some(JournalOutput::Store(first, ..)) = fixture.journal.poll_output() else {
        panic!("nothing to store")
    };
    let refused = fixture.feed(JournalInput::NotStored(first, DiskError::Full));
    assert_eq!(answers(&refused).len(), 3);
    assert!(!refused.iter().any(|output| matches!(output, JournalOutput::Store(..))), "{refused:?}");
}

#[test]
fn nobody_hears_of_what_is_not_on_the_disk_yet() {
    let mut fixture = Fixture::new();
    let other = identity(1);
    let feed = FeedId { writer: other.id(), boot: 9 };
    let at = (EntryId { feed, seq: Version(1) }, ChainHash::root("test", TOPIC, feed));
    let entry = JournalEntry { time: HybridTime::default(), key: Some("k".into()), body: b"x".to_vec() };
    let (run, _) = Run::sign(&other, "test", TOPIC, at, vec![entry.clone()]);
    let from = identity(2).id();
    let alive = [other.id(), from].map(|id| (id, Durability::Durable));
    fixture.feed(JournalInput::Replicas(alive.into()));
    let request =
        |request_id, request| JournalInput::Request { from, request_id: RequestId(request_id), request };
    let storing = fixture.feed(request(1, JournalRequest::Push(run.clone())));
    let [JournalOutput::Store(write, ..)] = storing[..] else { panic!("{storing:?}") };
    // The lookup already finds the entry, because it is in the open transaction.
    fixture.append(Some("k"));
    assert_eq!(fixture.feed(JournalInput::LookedUp(AppendId(1), Some((at.0, entry)))), []);
    let wanted = Extent { feed, seen: VersionSet::default() };
    let loading = fixture.feed(request(2, JournalRequest::Pull(wanted)));
    let [JournalOutput::Load(load, _)] = loading[..] else { panic!("{loading:?}") };
    let loaded = fixture.feed(JournalInput::Loaded { load, dropped: Seq::default(), runs: vec![run] });
    let nothing = JournalResponse::Runs { dropped: Seq::default(), runs: Vec::new() };
    assert_eq!(loaded, [JournalOutput::Respond(from, RequestId(2), nothing)]);
    assert_eq!(answers(&fixture.feed(JournalInput::Stored(write))), [(1, Ok(at.0))]);
}
