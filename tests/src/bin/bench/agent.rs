//! `bench agent`: a minimal program around a membership library, so that foca and chitchat are measured as
//! processes, like the other systems.
//!
//! An agent prints a line for each event of its library, `MICROSECONDS alive|failed|changed NAME`. It reads
//! commands from standard input, one in each line: `change` or `leave`. It ends at the end of its input, so
//! it does not outlive the benchmark.

mod chitchat;
mod foca;

use std::{io::BufRead as _, process::Command, thread};

use anyhow::{Context as _, Result, bail};
use tokio::sync::mpsc;

use crate::{
    clock::Moment,
    process::bound,
    sighting::{self, Sighting, What},
    system::Start,
};

/// Commands that may wait for an agent. The benchmark sends one every few seconds.
const WORDS_MAX: usize = 8;

/// Command that the benchmark sends to an agent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum AgentCommand {
    /// Change the state of the agent's member.
    Change,
    /// Leave the cluster, then end.
    Leave,
    /// End without leaving.
    Stop,
}

/// Builds the command line of an agent.
pub(crate) fn command(start: &Start, library: &str, settings: &str) -> Command {
    let mut command = bound(std::env::current_exe().unwrap_or_else(|_| "bench".into()), None);
    command.args(["agent", library, settings, &start.index.to_string(), &start.size.to_string()]);
    command.args(start.seeds.iter().map(ToString::to_string));
    command
}

/// Runs an agent with the arguments that [`command`] builds.
///
/// # Errors
/// The arguments are wrong, or its port is taken.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let [library, settings, index, size, seeds @ ..] = arguments else {
        bail!("usage: bench agent foca|chitchat SETTINGS INDEX SIZE SEED…");
    };
    let seeds = seeds.iter().map(|seed| seed.parse()).collect::<Result<_, _>>().context("seeds")?;
    let start = Start { index: index.parse()?, size: size.parse()?, seeds };
    let is_fast = settings == "fast";
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match library.as_str() {
        "foca" => runtime.block_on(foca::run(&start, is_fast, words())),
        "chitchat" => runtime.block_on(chitchat::run(&start, is_fast, words())),
        other => bail!("no agent around {other}"),
    }
}

/// Returns the commands from standard input, which a separate thread reads. The last is
/// [`AgentCommand::Stop`].
fn words() -> mpsc::Receiver<AgentCommand> {
    let (to, words) = mpsc::channel(WORDS_MAX);
    thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            let word = match line.trim() {
                "change" => AgentCommand::Change,
                "leave" => AgentCommand::Leave,
                _ => continue,
            };
            if to.blocking_send(word).is_err() {
                return;
            }
        }
        // The agent may already have ended.
        _ = to.blocking_send(AgentCommand::Stop);
    });
    words
}

/// Prints an event of the library.
fn tell(what: What, subject: usize) {
    let word = match what {
        What::Alive => "alive",
        What::Failed => "failed",
        What::Left => "left",
        What::Changed => "changed",
    };
    println!("{} {word} {}", Moment::now().0, sighting::name(subject));
}

/// Parses a line that [`tell`] printed.
pub(crate) fn read(line: &str) -> Option<Sighting> {
    let mut words = line.split(' ');
    let at = Moment(words.next()?.parse().ok()?);
    let what = match words.next()? {
        "alive" => What::Alive,
        "failed" => What::Failed,
        "left" => What::Left,
        "changed" => What::Changed,
        _ => return None,
    };
    Some(Sighting { at, subject: sighting::index(words.next()?)?, what })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_agents_are_read() {
        let seen = |subject, what| Some(Sighting { at: Moment(12), subject, what });
        assert_eq!(read("12 alive n3"), seen(3, What::Alive));
        assert_eq!(read("12 failed n30"), seen(30, What::Failed));
        assert_eq!(read("12 changed n0"), seen(0, What::Changed));
        assert_eq!(read("12 confused n0"), None);
        assert_eq!(read("alive n3"), None);
    }
}
