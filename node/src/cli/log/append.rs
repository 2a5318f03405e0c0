//! `node log append` of standard input: each line a record, and what was read is recorded or told.
//!
//! While no log node answers, it waits and asks every node that it knows of, for as long as it takes; the pipe in front of it fills up
//! meanwhile, so nothing is read that cannot be kept. Lines go in batches, one after the other, each under a key of its own: one whose answer
//! is lost is sent again, to whichever node answers, and is written once.

use std::{
    borrow::Cow,
    io::{self, IsTerminal as _},
    time::{Duration, SystemTime},
};

use anyhow::anyhow;
use bytes::Bytes;
use futures::FutureExt as _;
use hearsay_services::{log::record::Level, timestamp::rfc3339};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::{
    io::AsyncReadExt as _,
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, sleep, sleep_until},
};

use super::lines::{Lines, Piece};
use crate::{
    cli::{
        client::{Answer, Client},
        failure::Failure,
        output::{Output, Tone},
        providers::{Post, Probe, Providers, Role, Untaken},
    },
    escape::escaped,
};

/// The role whose nodes are asked.
const LOG: Role = Role { name: Cow::Borrowed("log"), probe: Probe::Get("/log?limit=1"), keeps: "log" };
/// Lines of standard input sent together. Half of what the log takes at once.
const LINES_MAX: usize = 500;
/// Bytes of them sent together, as JSON. A node takes bodies of a mebibyte.
const LINES_BYTES_MAX: usize = 128 * 1024;
/// Bytes read at a time: what a pipe holds.
const READ_BYTES: usize = 64 * 1024;
/// The pause after the first round in which no node took a batch; doubled with each.
const PAUSE_MIN: Duration = Duration::from_millis(250);
/// At most. A log node that starts is found within this.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// After a signal, the time in which what was read may still be sent.
const GRACE: Duration = Duration::from_secs(3);
/// Refused lines that are told one by one. The rest is counted.
const REFUSED_TOLD_MAX: u64 = 100;

/// Fields that every record gets.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct About {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) service: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "level_name")]
    pub(super) level: Option<Level>,
}

fn level_name<S: serde::Serializer>(level: &Option<Level>, to: S) -> Result<S::Ok, S::Error> {
    level.map(Level::name).serialize(to)
}

/// A line of NDJSON.
#[derive(Serialize)]
struct Record<'a> {
    message: &'a str,
    /// When it was read. It may wait for a log node.
    time: &'a str,
    #[serde(flatten)]
    about: &'a About,
}

/// Records each line of standard input.
pub(super) async fn append_lines(client: &Client, output: Output, about: About) -> Result<(), Failure> {
    if io::stdin().is_terminal() {
        notice!("each line is a record; Ctrl-D ends");
    }
    let mut appender = Appender::new(client, output, about)?;
    let (mut input, mut lines, mut read_error) = (tokio::io::stdin(), Lines::default(), None);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let read = tokio::select! {
            biased;
            () = appender.signals.next() => input.read(&mut buffer).now_or_never().unwrap_or(Ok(0)),
            read = input.read(&mut buffer) => read,
        };
        let mut has_ended = appender.signals.first.is_some();
        match read {
            Ok(0) => has_ended = true,
            Ok(length) => lines.push(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => (has_ended, read_error) = (true, Some(error)),
        }
        if has_ended {
            lines.end();
        }
        appender.tell_of(&lines);
        while let Some(batch) = appender.next_batch(&mut lines) {
            if let Err(failure) = appender.send(&batch).await {
                let unsent = batch.pieces.into_iter().chain(lines.rest()).map(|piece| piece.line);
                return Err(unrecorded(failure, unsent));
            }
        }
        if has_ended {
            break;
        }
    }
    appender.finish(read_error)
}

/// The failure, with which lines it leaves behind.
fn unrecorded(failure: Failure, lines: impl Iterator<Item = u64>) -> Failure {
    let (mut first, mut last, mut count) = (0, 0, 0_u64);
    for line in lines.filter(|line| *line > 0) {
        if count == 0 {
            first = line;
        }
        count += u64::from(line != last);
        last = line;
    }
    let what =
        if count == 1 { "1 line that was read is" } else { &format!("{count} lines that were read are") };
    Failure::Failed(anyhow!("{failure}; {what} not known to be recorded, from line {first} on"))
}

/// Lines that are sent together.
struct Batch {
    key: String,
    body: Bytes,
    pieces: Vec<Piece>,
}

/// What a node says of a batch.
#[derive(Deserialize)]
struct Partly {
    #[serde(default)]
    refused: Vec<Refused>,
}

#[derive(Deserialize)]
struct Refused {
    record: usize,
    #[serde(default)]
    detail: String,
}

struct Appender {
    providers: Providers,
    output: Output,
    about: About,
    /// Of this run; begins the key of every batch.
    name: String,
    batches: u64,
    recorded: u64,
    refused: u64,
    /// Whether it was said that lines are replaced, and that some are split.
    told: (bool, bool),
    /// Why an answer could not be printed.
    output_error: Option<Failure>,
    signals: Signals,
}

impl Appender {
    fn new(client: &Client, output: Output, about: About) -> Result<Self, Failure> {
        let mut name = [0; 16];
        getrandom::fill(&mut name).map_err(|error| Failure::Failed(error.into()))?;
        Ok(Self {
            providers: Providers::new(LOG, client),
            output,
            about,
            name: format!("append-{:032x}", u128::from_le_bytes(name)),
            batches: 0,
            recorded: 0,
            refused: 0,
            told: (false, false),
            output_error: None,
            signals: Signals::new()?,
        })
    }

    /// Says once of each kind of line what becomes of it.
    fn tell_of(&mut self, lines: &Lines) {
        if let Some(line) = lines.newly_replaced(self.told.0) {
            notice!(
                "line {line} is not UTF-8: what is no character is recorded as U+FFFD, here and in later lines"
            );
            self.told.0 = true;
        }
        if let Some(line) = lines.newly_split(self.told.1) {
            notice!(
                "line {line} is longer than a record may be: it is split into several, and so are later ones"
            );
            self.told.1 = true;
        }
    }

    /// What is there goes together; what comes later is not waited for.
    fn next_batch(&mut self, lines: &mut Lines) -> Option<Batch> {
        let (mut body, mut pieces) = (Vec::new(), Vec::new());
        let time = rfc3339(SystemTime::now());
        while pieces.len() < LINES_MAX
            && body.len() < LINES_BYTES_MAX
            && let Some(piece) = lines.pop()
        {
            let record = Record { message: &piece.text, time: &time, about: &self.about };
            // Such a record always serialises.
            _ = serde_json::to_writer(&mut body, &record);
            body.push(b'\n');
            pieces.push(piece);
        }
        if pieces.is_empty() {
            return None;
        }
        self.batches += 1;
        Some(Batch { key: format!("{}-{}", self.name, self.batches), body: body.into(), pieces })
    }

    /// Sends a batch, and waits for as long as no node takes it.
    ///
    /// # Errors
    /// A signal came, or no node will ever take it.
    async fn send(&mut self, batch: &Batch) -> Result<(), Failure> {
        let (mut pause, mut is_waiting) = (PAUSE_MIN, false);
        let post = Post {
            path: "/log",
            content_type: "application/x-ndjson",
            key: Some(&batch.key),
            body: &batch.body,
        };
        loop {
            let tried = tokio::select! {
                tried = self.providers.post_once(post) => tried,
                () = self.signals.overdue() => return Err(Failure::Refused("ended by a signal".into())),
            };
            let failure = match tried {
                Ok(answer) => {
                    if is_waiting {
                        notice!("{} answers; going on", self.providers.url());
                    }
                    return self.judge(batch, answer);
                }
                Err(Untaken::Final(failure)) => return Err(failure),
                Err(Untaken::ForNow(failure)) => failure,
            };
            if self.signals.first.is_some() {
                return Err(Failure::Refused(format!(
                    "ended by a signal while no node took them ({failure})"
                )));
            }
            if !is_waiting {
                let problem = failure.to_string();
                notice!("no log node takes records, so this waits for one: {}", escaped(&problem));
                is_waiting = true;
            }
            tokio::select! {
                () = sleep(pause) => (),
                () = self.signals.next() => {
                    return Err(Failure::Refused(format!("ended by a signal while no node took them ({failure})")));
                }
            }
            pause = (pause * 2).min(PAUSE_MAX);
            self.providers.look_again().await;
        }
    }

    /// What the answer of a node means for a batch.
    fn judge(&mut self, batch: &Batch, answer: Answer) -> Result<(), Failure> {
        let records = batch.pieces.len() as u64;
        match answer.status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return answer.expect_success().map(drop),
            status if status.is_success() => {
                let partly =
                    (status == StatusCode::MULTI_STATUS).then(|| answer.json::<Partly>()).transpose()?;
                let refused = partly.map(|partly| partly.refused).unwrap_or_default();
                self.recorded += records.saturating_sub(refused.len() as u64);
                for Refused { record, detail } in &refused {
                    let line = batch.pieces.get(*record).map_or(0, |piece| piece.line);
                    self.refuse(1, &format!("line {line} is refused: {detail}"));
                }
                if self.output.json
                    && self.output_error.is_none()
                    && let Err(failure) = self.output.json(&answer.body)
                {
                    // Lines go on being recorded: what reads the answers has no part in that.
                    self.output_error = Some(failure);
                }
            }
            // The log understood, and will not: not now, and not later.
            _ => {
                let of = |piece: Option<&Piece>| piece.map_or(0, |piece| piece.line);
                let (first, last) = (of(batch.pieces.first()), of(batch.pieces.last()));
                self.refuse(records, &format!("lines {first} to {last} are refused: {}", answer.problem()));
            }
        }
        Ok(())
    }

    fn refuse(&mut self, records: u64, text: &str) {
        if self.refused < REFUSED_TOLD_MAX {
            notice!("{}", escaped(text));
        }
        self.refused += records;
    }

    fn finish(self, read_error: Option<io::Error>) -> Result<(), Failure> {
        let Self { output, recorded, refused, output_error, .. } = self;
        if let Some(failure) = output_error {
            return Err(failure);
        }
        if !output.json {
            output.line(Tone::Good, &format!("{recorded} records"))?;
        }
        match (read_error, refused) {
            (Some(error), _) => {
                Err(Failure::Failed(anyhow!("cannot read standard input any further: {error}")))
            }
            (None, 0) => Ok(()),
            (None, refused) => Err(Failure::Refused(format!("{refused} records were refused"))),
        }
    }
}

/// The signals that end a run.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// When the first one came.
    first: Option<Instant>,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::Failed(error.into());
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
            first: None,
        })
    }

    /// The next signal.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => (),
            _ = self.terminate.recv() => (),
        }
        self.first.get_or_insert_with(Instant::now);
    }

    /// Resolves when there is no more time: some seconds after the first signal, or at the second.
    async fn overdue(&mut self) {
        let first = match self.first {
            Some(first) => first,
            None => {
                self.next().await;
                Instant::now()
            }
        };
        tokio::select! {
            () = sleep_until(first + GRACE) => (),
            () = self.next() => (),
        }
    }
}
