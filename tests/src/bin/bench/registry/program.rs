//! `bench program`: a program that registers itself. It is a separate process, so that it can be killed.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::{process::bound, protocol::post};

/// First word of the program's output when it listens. The id and the port follow.
const LISTENS: &str = "listens";

/// Runs the process: listens on the port in `PORT`, or on any free port, and answers every request with 200.
/// `hold ADDRESS BODY` registers the program for as long as it runs. `PORT` in the body is replaced by the
/// program's port.
///
/// # Errors
/// The system refuses.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let port = std::env::var("PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(0);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    let port = listener.local_addr()?.port();
    let _held = match arguments {
        [] => None,
        [hold, node, body] if hold == "hold" => {
            let mut held = TcpStream::connect(node)?;
            let body = body.replace("PORT", &port.to_string());
            held.write_all(&post("/services?hold", "application/json", &body))?;
            Some(held)
        }
        _ => bail!("program [hold ADDRESS BODY]"),
    };
    println!("{LISTENS} {} {port}", std::process::id());
    for stream in listener.incoming() {
        let mut stream = stream?;
        std::thread::spawn(move || {
            let mut request = [0; 4096];
            while stream.read(&mut request).is_ok_and(|length| length > 0) {
                // The client may already be gone.
                _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
            }
        });
    }
    Ok(())
}

/// Running program.
#[derive(Debug)]
pub(super) struct Program {
    child: Child,
    /// Id of the program's own process, which another command may have started.
    pid: u32,
    pub(super) port: u16,
}

impl Program {
    /// Starts a program with these arguments, and waits until it listens. If `under` is given, the program is
    /// the command of that one.
    ///
    /// # Errors
    /// The program does not listen.
    pub(super) fn start(under: Option<&Command>, arguments: &[&str]) -> Result<Self> {
        let this = std::env::current_exe()?;
        let mut command = match under {
            Some(under) => {
                let mut command = bound(under.get_program(), None);
                command.args(under.get_args()).arg("--").arg(this);
                command
            }
            None => bound(this, None),
        };
        command.arg("program").args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        let output = child.stdout.take().context("its output")?;
        let mut lines = BufReader::new(output).lines().map_while(Result::ok);
        let said = lines.find_map(|line| line.strip_prefix(LISTENS).map(str::to_owned));
        let said = said.context("the program does not listen")?;
        let mut words = said.split_whitespace().map(str::parse);
        let (Some(Ok(pid)), Some(Ok(port))) = (words.next(), words.next()) else { bail!("no port: {said}") };
        Ok(Self { child, pid, port: u16::try_from(port)? })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    /// Kills the process of the program itself.
    ///
    /// # Errors
    /// The process has ended.
    pub(super) fn kill(&self) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid)?).context("a process id")?;
        Ok(kill_process(pid, Signal::KILL)?)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // The process may already have ended. Under another command, the program ends together with that one.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
