//! `node log append` of standard input: sends each line as a record, in batches, and reports lines that are
//! not recorded.
//!
//! While no log node answers, the command retries with all known nodes and stops reading, so the pipe fills
//! up (backpressure). Lines are sent in batches, one at a time, each with an idempotency key: a batch whose
//! answer is lost is sent again to any node and stored once.

use std::{
    borrow::Cow,
    io::{self, IsTerminal as _},
    time::{Duration, SystemTime},
};

use anyhow::anyhow;
use bytes::Bytes;
use futures::FutureExt as _;
use hearsay_services::{plugins::Level, rfc3339};
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
        client::{Answer, Client, Post},
        failure::Failure,
        output::{Output, Tone},
        providers::{PostError, Probe, Providers, Role},
    },
    escape::escaped,
};

/// The role that stores the log.
const LOG: Role = Role { name: Cow::Borrowed("log"), probe: Probe::Get("/log?limit=1"), keeps: "log" };
/// Maximum number of lines in a batch: half of the log's limit.
const LINES_MAX: usize = 500;
/// Maximum number of bytes of a batch, as JSON. The limit of a node is 1 MiB.
const LINES_BYTES_MAX: usize = 128 * 1024;
/// Bytes per read: the capacity of a pipe.
const READ_BYTES: usize = 64 * 1024;
/// Backoff after the first failed round; it doubles with each round.
const PAUSE_MIN: Duration = Duration::from_millis(250);
/// The longest backoff; a new log node is found within this time.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Time after the first signal for sending lines that were already read.
const GRACE: Duration = Duration::from_secs(3);
/// Maximum number of refused lines that are listed; further ones are only counted.
const REFUSED_LISTED_MAX: u64 = 100;

/// Fields that all records get.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct RecordFields {
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
    /// Time of reading; the record may be sent later.
    time: &'a str,
    #[serde(flatten)]
    fields: &'a RecordFields,
}

/// Appends each line of standard input as a record.
pub(super) async fn append_lines(
    client: &Client,
    output: Output,
    fields: RecordFields,
) -> Result<(), Failure> {
    if io::stdin().is_terminal() {
        notice!("each line is a record; Ctrl-D ends the input");
    }
    let mut appender = Appender::new(client, output, fields)?;
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
        appender.report_conversions(&lines);
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

/// Extends a failure by the number of read lines that are not known to be recorded, and by the first of them.
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

/// A batch of lines.
struct Batch {
    key: String,
    body: Bytes,
    pieces: Vec<Piece>,
}

/// A node's answer to a batch with refused records (207).
#[derive(Deserialize)]
struct PartialAnswer {
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
    fields: RecordFields,
    /// Random id of this run; prefix of the batches' idempotency keys.
    run_id: String,
    batches: u64,
    recorded: u64,
    refused: u64,
    /// Whether replaced and split lines have been reported.
    reported: (bool, bool),
    /// The first error in printing an answer.
    output_error: Option<Failure>,
    signals: Signals,
}

impl Appender {
    fn new(client: &Client, output: Output, fields: RecordFields) -> Result<Self, Failure> {
        let mut name = [0; 16];
        getrandom::fill(&mut name).map_err(|error| Failure::Failed(error.into()))?;
        Ok(Self {
            providers: Providers::new(LOG, client),
            output,
            fields,
            run_id: format!("append-{:032x}", u128::from_le_bytes(name)),
            batches: 0,
            recorded: 0,
            refused: 0,
            reported: (false, false),
            output_error: None,
            signals: Signals::new()?,
        })
    }

    /// Reports the first replaced and the first split line.
    fn report_conversions(&mut self, lines: &Lines) {
        if let Some(line) = lines.newly_replaced(self.reported.0) {
            notice!(
                "line {line} is not UTF-8: invalid bytes are recorded as U+FFFD, here and in later lines"
            );
            self.reported.0 = true;
        }
        if let Some(line) = lines.newly_split(self.reported.1) {
            notice!("line {line} is too long for a record: it is split, and so are later ones");
            self.reported.1 = true;
        }
    }

    /// Returns a batch of the lines read so far.
    fn next_batch(&mut self, lines: &mut Lines) -> Option<Batch> {
        let (mut body, mut pieces) = (Vec::new(), Vec::new());
        let time = rfc3339(SystemTime::now());
        while pieces.len() < LINES_MAX
            && body.len() < LINES_BYTES_MAX
            && let Some(piece) = lines.pop()
        {
            let record = Record { message: &piece.text, time: &time, fields: &self.fields };
            // Serialising into memory cannot fail.
            _ = serde_json::to_writer(&mut body, &record);
            body.push(b'\n');
            pieces.push(piece);
        }
        if pieces.is_empty() {
            return None;
        }
        self.batches += 1;
        Some(Batch { key: format!("{}-{}", self.run_id, self.batches), body: body.into(), pieces })
    }

    /// Sends a batch and retries until a node accepts it.
    ///
    /// # Errors
    /// A signal arrived, or the batch is refused for good.
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
                () = self.signals.grace_ended() => return Err(Failure::Refused("ended by a signal".into())),
            };
            let failure = match tried {
                Ok(answer) => {
                    if is_waiting {
                        notice!("{} answers; continuing", self.providers.url());
                    }
                    return self.handle_answer(batch, answer);
                }
                Err(PostError::Final(failure)) => return Err(failure),
                Err(PostError::Retryable(failure)) => failure,
            };
            if self.signals.first.is_some() {
                return Err(Failure::Refused(format!(
                    "ended by a signal while no log node accepted records ({failure})"
                )));
            }
            if !is_waiting {
                let problem = failure.to_string();
                notice!("no log node accepts records; waiting for one: {}", escaped(&problem));
                is_waiting = true;
            }
            tokio::select! {
                () = sleep(pause) => (),
                () = self.signals.next() => {
                    return Err(Failure::Refused(format!("ended by a signal while no log node accepted records ({failure})")));
                }
            }
            pause = (pause * 2).min(PAUSE_MAX);
            self.providers.refresh().await;
        }
    }

    /// Counts the records of an answered batch.
    fn handle_answer(&mut self, batch: &Batch, answer: Answer) -> Result<(), Failure> {
        let records = batch.pieces.len() as u64;
        match answer.status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return answer.expect_success().map(drop),
            status if status.is_success() => {
                let partial = (status == StatusCode::MULTI_STATUS)
                    .then(|| answer.json::<PartialAnswer>())
                    .transpose()?;
                let refused = partial.map(|partial| partial.refused).unwrap_or_default();
                self.recorded += records.saturating_sub(refused.len() as u64);
                for Refused { record, detail } in &refused {
                    let line = batch.pieces.get(*record).map_or(0, |piece| piece.line);
                    self.refuse(1, &format!("line {line} is refused: {detail}"));
                }
                if self.output.json
                    && self.output_error.is_none()
                    && let Err(failure) = self.output.json(&answer.body)
                {
                    // If the reader of the answers is gone, recording still continues.
                    self.output_error = Some(failure);
                }
            }
            // The node refuses the whole batch for good.
            _ => {
                let line_of = |piece: Option<&Piece>| piece.map_or(0, |piece| piece.line);
                let (first, last) = (line_of(batch.pieces.first()), line_of(batch.pieces.last()));
                self.refuse(records, &format!("lines {first} to {last} are refused: {}", answer.problem()));
            }
        }
        Ok(())
    }

    fn refuse(&mut self, records: u64, text: &str) {
        if self.refused < REFUSED_LISTED_MAX {
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
            (Some(error), _) => Err(Failure::Failed(anyhow!("cannot read standard input: {error}"))),
            (None, 0) => Ok(()),
            (None, refused) => Err(Failure::Refused(format!("{refused} records were refused"))),
        }
    }
}

/// Signals that end the command.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// Time of the first signal.
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

    /// Waits for the next signal.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => (),
            _ = self.terminate.recv() => (),
        }
        self.first.get_or_insert_with(Instant::now);
    }

    /// Waits until [`GRACE`] after the first signal, or for the second one.
    async fn grace_ended(&mut self) {
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
