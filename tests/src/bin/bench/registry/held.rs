//! Measures ten thousand registrations that end with their connections: the time to open them, the node's
//! idle cost, and the time until they are gone there and on another node.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    load::runtime,
    machine::allow_files,
    protocol::post,
    server::{LOOK, Server, cluster},
    usage::{Idle, Reading},
};

/// Number of connections, all to one node.
pub(crate) const CONNECTIONS: usize = 10_000;
/// Number of connections that are opened at the same time.
const AT_A_TIME: usize = 64;
/// Measured time.
const TIME: Duration = Duration::from_secs(10);

/// Figures of the held registrations.
pub(crate) struct Figures {
    /// Time until all programs were registered.
    pub(crate) opened: Duration,
    /// Usage while all registrations are held.
    pub(crate) idle: Idle,
    /// Time from the first close until the holder lists no instance.
    pub(crate) gone_here: Duration,
    pub(crate) gone_there: Duration,
}

impl Figures {
    pub(super) fn json(&self) -> Value {
        json!({
            "openedS": self.opened.as_secs_f64(), "node": self.idle,
            "goneHereS": self.gone_here.as_secs_f64(), "goneThereS": self.gone_there.as_secs_f64(),
        })
    }
}

/// # Errors
/// A node does not start, or refuses a registration.
pub(super) fn measure(folder: &Path) -> Result<Figures> {
    // The limit applies to this process and to the nodes, which inherit it.
    allow_files(CONNECTIONS as u64 * 2 + 1024)?;
    let mut nodes = cluster(&folder.join("held"), 0, 2, "")?;
    let runtime = runtime()?;
    let begun = Instant::now();
    let to = nodes[0].address;
    let held: Vec<TcpStream> = runtime.block_on(async {
        let hold = |first: usize| async move {
            let mut held = Vec::new();
            for number in (first..CONNECTIONS).step_by(AT_A_TIME) {
                held.push(hold(to, number).await.with_context(|| format!("connection {number}"))?);
            }
            anyhow::Ok(held)
        };
        anyhow::Ok(try_join_all((0..AT_A_TIME).map(hold)).await?.into_iter().flatten().collect())
    })?;
    let opened = begun.elapsed();
    eprintln!("{CONNECTIONS} connections held after {:.1} s", opened.as_secs_f64());
    nodes[1].until("the other node lists all", |node| listed(node) == Some(CONNECTIONS as u64))?;
    let look = || Reading::take([nodes[0].process.pid()].into_iter());
    let first = look()?;
    thread::sleep(TIME);
    let idle = look()?.since(&first, TIME);
    let begun = Instant::now();
    drop(held);
    let mut gone = Vec::new();
    for node in &mut nodes {
        node.until("it lists none", |node| listed(node) == Some(0))?;
        gone.push(begun.elapsed());
    }
    Ok(Figures { opened, idle, gone_here: gone[0], gone_there: gone[1] })
}

/// Returns the number of instances that a node lists.
fn listed(node: &Server) -> Option<u64> {
    thread::sleep(LOOK);
    node.metric("hearsay_instances")
}

/// Opens a connection that holds a registration.
async fn hold(to: std::net::SocketAddr, number: usize) -> Result<TcpStream> {
    let mut stream = TcpStream::connect(to).await?;
    let body =
        json!({ "name": "held", "id": format!("held-{number}"), "address": "10.77.0.5", "port": 8000 });
    stream.write_all(&post("/services?hold", "application/json", &body.to_string())).await?;
    let mut answer = Vec::new();
    loop {
        ensure!(stream.read_buf(&mut answer).await? > 0, "closed: {}", String::from_utf8_lossy(&answer));
        let text = String::from_utf8_lossy(&answer);
        if text.contains("event: registered") {
            return Ok(stream);
        }
        ensure!(text.starts_with("HTTP/1.1 200"), "refused: {text}");
    }
}
