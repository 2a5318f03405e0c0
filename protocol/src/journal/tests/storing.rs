//! Between a run's way to the disk and its being there: nobody hears of it, and what follows on it does not outlive it.

use super::*;

/// A machine, and what it says.
struct Bench {
    journal: Journal,
    appends: u64,
}

impl Bench {
    fn new() -> Self {
        let config = Config::new("test", TOPIC);
        let mut journal = Journal::new(identity(0), config, Restored::default(), 7);
        // The node itself joins the replica set.
        while journal.poll_output().is_some() {}
        Self { journal, appends: 0 }
    }

    fn feed(&mut self, input: Input) -> Vec<Output> {
        self.journal.handle(Time::ZERO, 1, input);
        std::iter::from_fn(|| self.journal.poll_output()).collect()
    }

    fn append(&mut self, key: Option<&str>) -> Vec<Output> {
        self.append_bytes(key, b"x".to_vec())
    }

    fn append_bytes(&mut self, key: Option<&str>, body: Vec<u8>) -> Vec<Output> {
        self.appends += 1;
        let deadline = Time::ZERO + SECOND;
        let key = key.map(Into::into);
        let level = Some(Level::Local);
        let append = Append { id: AppendId(self.appends), key, body, level, deadline };
        self.feed(Input::Append(append))
    }

    /// Writes one entry down, and returns its run on the way to the disk.
    fn write(&mut self) -> (WriteId, Run) {
        self.append(None);
        match &self.feed(Input::Tick)[..] {
            [Output::Store(id, run, _)] => (*id, Run::clone(run)),
            other => panic!("{other:?}"),
        }
    }
}

fn answers(outputs: &[Output]) -> Vec<(u64, Result<EntryId, AppendError>)> {
    let answer = |output: &Output| match output {
        Output::Answer(id, answer) => Some((id.0, answer.clone().map(|done| done.id))),
        _ => None,
    };
    outputs.iter().filter_map(answer).collect()
}

#[test]
fn a_few_runs_are_at_the_disk_at_once_and_no_more() {
    let mut bench = Bench::new();
    let writes: Vec<_> = (0..4).map(|_| bench.write()).collect();
    bench.append(None);
    assert_eq!(bench.feed(Input::Tick), []);
    assert!(bench.journal.poll_timeout() > Some(Time::ZERO), "it waits for the disk, not for the clock");
    for (index, (id, run)) in writes.iter().enumerate() {
        assert_eq!(run.start.0, index as u64 + 1, "each goes on where the one before ends");
        let name = EntryId { feed: run.feed, seq: run.start };
        assert_eq!(answers(&bench.feed(Input::Stored(*id))), [(index as u64 + 1, Ok(name))]);
    }
    assert_eq!(bench.journal.poll_timeout(), Some(Time::ZERO));
    assert!(matches!(&bench.feed(Input::Tick)[..], [Output::Store(_, run, _)] if run.start.0 == 5));
}

#[test]
fn a_run_that_is_not_stored_takes_those_after_it_with_it_and_none_before() {
    let mut bench = Bench::new();
    let [(first, run), (second, _), (third, _)] = [bench.write(), bench.write(), bench.write()];
    let full = bench.feed(Input::NotStored(second, DiskError::Full));
    assert_eq!(answers(&full), [(2, Err(AppendError::DiskFull)), (3, Err(AppendError::DiskFull))]);
    // As it says of all of a transaction.
    assert_eq!(bench.feed(Input::NotStored(third, DiskError::Full)), []);
    assert_eq!(bench.feed(Input::Stored(third)), [], "nothing that was refused is there");
    let (_, next) = bench.write();
    assert!(next.feed != run.feed && next.start.0 == 1, "numbers of which nobody knows are not used again");
    let name = EntryId { feed: run.feed, seq: Version(1) };
    assert_eq!(answers(&bench.feed(Input::Stored(first))), [(1, Ok(name))]);
    assert_eq!(bench.journal.extents().of(run.feed).seen, Seen::up_to(Version(1)));
}

#[test]
fn of_runs_not_yet_given_to_the_disk_none_follows_one_that_is_not_stored() {
    let mut bench = Bench::new();
    // Too much for one run.
    for _ in 0..3 {
        bench.append_bytes(None, vec![b'x'; feed::BODY_BYTES_MAX]);
    }
    bench.journal.handle(Time::ZERO, 1, Input::Tick);
    let Some(Output::Store(first, ..)) = bench.journal.poll_output() else { panic!("nothing to store") };
    let refused = bench.feed(Input::NotStored(first, DiskError::Full));
    assert_eq!(answers(&refused).len(), 3);
    assert!(!refused.iter().any(|output| matches!(output, Output::Store(..))), "{refused:?}");
}

#[test]
fn nobody_hears_of_what_is_not_on_the_disk_yet() {
    let mut bench = Bench::new();
    let other = identity(1);
    let feed = FeedId { writer: other.id(), boot: 9 };
    let at = (EntryId { feed, seq: Version(1) }, ChainHash::root("test", TOPIC, feed));
    let entry = Entry { time: HybridTime::default(), key: Some("k".into()), body: b"x".to_vec() };
    let (run, _) = Run::sign(&other, "test", TOPIC, at, vec![entry.clone()]);
    let from = identity(2).id();
    let request = |ticket, request| Input::Request { from, ticket: Ticket(ticket), request };
    let storing = bench.feed(request(1, JournalRequest::Push(run.clone())));
    let [Output::Store(write, ..)] = storing[..] else { panic!("{storing:?}") };
    // The disk finds it already, because it is in the open transaction.
    bench.append(Some("k"));
    assert_eq!(bench.feed(Input::LookedUp(AppendId(1), Some((at.0, entry)))), []);
    let wanted = Extent { feed, seen: Seen::default() };
    let loading = bench.feed(request(2, JournalRequest::Pull(wanted)));
    let [Output::Load(load, _)] = loading[..] else { panic!("{loading:?}") };
    let loaded = bench.feed(Input::Loaded { load, dropped: Seq::default(), runs: vec![run] });
    let nothing = JournalResponse::Runs { dropped: Seq::default(), runs: Vec::new() };
    assert_eq!(loaded, [Output::Respond(from, Ticket(2), nothing)]);
    assert_eq!(answers(&bench.feed(Input::Stored(write))), [(1, Ok(at.0))]);
}
