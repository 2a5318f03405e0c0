//! Measures five nodes with one grade book: a grade is saved at one node and read at the other four at the
//! same time.

use std::{path::Path, time::Instant};

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use serde_json::{Value, json};

use crate::{
    load::{ANSWER_BOUND, Connection, runtime},
    protocol::{WireProtocol, get_with, post},
    server::cluster,
    statistics::{Events, Times},
};

/// Number of nodes with the role.
pub(crate) const NODES: usize = 5;
/// Grades of a student before the next student is added, so that answers stay small.
const GRADES_OF_ONE: usize = 20;

/// Figures of all grades.
pub(crate) struct Figures {
    /// Times until the writer's node has answered.
    pub(crate) answered: Times,
    /// Times until each other node has shown the grade.
    pub(crate) shown: Events,
}

impl Figures {
    pub(crate) fn json(&self) -> Value {
        json!({ "shown": self.shown, "answeredP50": self.answered.percentile(50).to_string() })
    }
}

/// # Errors
/// A node does not start, refuses a grade, or does not show it.
pub(crate) fn measure(grades: usize, folder: &Path) -> Result<Figures> {
    let nodes = cluster(&folder.join("grades"), 0, NODES, "grading")?;
    let bound_s = ANSWER_BOUND.as_secs();
    let (mut answered, mut shown) = (Vec::new(), Events::new(bound_s));
    // All clients run in one thread. While they wait, they take no processor time from the servers.
    runtime()?.block_on(async {
        let open = |(number, node): (usize, &crate::server::Server)| {
            Connection::open(node.address, WireProtocol::Http, number)
        };
        let mut connections = try_join_all(nodes.iter().enumerate().map(open)).await?;
        let mut student = 0;
        for number in 0..grades {
            let writer = number % NODES;
            if number % GRADES_OF_ONE == 0 {
                let body = json!({ "firstName": "Ada", "lastName": format!("Number {number}") }).to_string();
                let (reply, token) = write(&mut connections[writer], "/students?ack=majority", &body).await?;
                student = reply["id"].as_u64().context("a student without an id")?;
                // The student must be on all nodes before the first grade.
                for connection in &mut connections {
                    read(connection, student, &token).await?;
                }
            }
            let title = format!("Essay {number}");
            let body = json!({ "title": title, "type": "Homework", "score": 90 }).to_string();
            let begin = Instant::now();
            let path = format!("/students/{student}/grades");
            let (_, token) = write(&mut connections[writer], &path, &body).await?;
            answered.push(Some(micros(begin)));
            let token = &token;
            let title = &title;
            let others = connections.iter_mut().enumerate().filter(|(other, _)| *other != writer);
            let times = others.map(|(_, connection)| async move {
                let seen = read(connection, student, token).await?;
                let micros = micros(begin);
                ensure!(seen.contains(title.as_str()), "{title} is not in {seen}");
                Ok(Some(micros))
            });
            shown.times_us.push(try_join_all(times).await?);
        }
        anyhow::Ok(())
    })?;
    Ok(Figures { answered: Times::new(answered, bound_s), shown })
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Sends a write. Returns the body of the answer, and the token of the write.
async fn write(connection: &mut Connection, path: &str, body: &str) -> Result<(Value, String)> {
    let good = connection.ask(&post(path, "application/json", body)).await?;
    let reply = String::from_utf8_lossy(connection.body()).into_owned();
    ensure!(good, "{path}: {reply}");
    let token = connection.header("hearsay-token").context("no token")?;
    Ok((serde_json::from_str(&reply)?, token))
}

/// Reads a student, including the writes of the token.
async fn read(connection: &mut Connection, student: u64, token: &str) -> Result<String> {
    let request = get_with(&format!("/students/{student}"), &format!("hearsay-token: {token}\r\n"));
    let good = connection.ask(&request).await?;
    let reply = String::from_utf8_lossy(connection.body()).into_owned();
    ensure!(good, "student {student}: {reply}");
    Ok(reply)
}
