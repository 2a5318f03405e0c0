//! Programs of users that a test runs on the lab's hosts ([`Program`]), and HTTP requests from these hosts.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::fd::AsFd as _,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::Duration,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{
    Host,
    http::{self, Reply},
};

/// Limit of every request.
const REQUEST_MAX: Duration = Duration::from_secs(10);

impl Host {
    /// Runs a closure on a thread inside the host's namespace.
    pub fn enter<R: Send>(&self, act: impl FnOnce() -> R + Send) -> R {
        let namespace = File::open(Path::new("/run/netns").join(&self.name)).expect("the host is there");
        std::thread::scope(|scope| {
            let inside = || {
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("root");
                act()
            };
            scope.spawn(inside).join().expect("no panic inside")
        })
    }

    /// Sends a request from this host to its own loopback. A non-empty body is sent as JSON.
    pub fn send(&self, port: u16, request: &str, body: &str) -> Reply {
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let headers: &[(&str, &str)] =
            if body.is_empty() { &[] } else { &[("content-type", "application/json")] };
        self.enter(|| http::send(to, request, headers, body, REQUEST_MAX)).unwrap_or_else(|silence| {
            panic!("{request} on {}: {silence:?}", self.name);
        })
    }

    /// Opens a connection to loopback on this host, sends a request, and reads until `wanted` has arrived.
    /// The caller holds the connection.
    pub fn hold(&self, port: u16, request: &str, body: &str, wanted: &str) -> TcpStream {
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        self.enter(|| {
            let mut stream = TcpStream::connect(to).expect("the node listens");
            stream.set_read_timeout(Some(REQUEST_MAX)).expect("a timeout");
            let length = body.len();
            write!(
                stream,
                "{request} HTTP/1.1\r\nhost: {to}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
            )
            .expect("the node reads");
            let (mut answer, mut buffer) = (String::new(), [0; 4096]);
            while !answer.contains(wanted) {
                let read = stream.read(&mut buffer).expect("the node answers");
                assert!(read > 0, "the node closed: {answer}");
                answer.push_str(&String::from_utf8_lossy(&buffer[..read]));
            }
            stream
        })
    }
}

/// Program on a host that listens on a port.
#[derive(Debug)]
pub struct Program {
    /// Port of the program.
    pub port: u16,
    host: Host,
    child: Child,
}

impl Program {
    /// Starts a program and waits until it listens. `binary` is the binary `program` of this crate.
    pub fn start(binary: &str, host: &Host, port: u16) -> Self {
        Self::start_with(binary, host, port, &[])
    }

    /// Starts a program with further arguments.
    pub fn start_with(binary: &str, host: &Host, port: u16, more: &[&str]) -> Self {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &host.name, binary, &port.to_string()]).args(more);
        Self::spawn(command, host, port)
    }

    /// Runs a command that becomes or starts the binary `program`. Waits until it listens.
    pub fn spawn(mut command: Command, host: &Host, port: u16) -> Self {
        let mut child =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("the program starts");
        let output = child.stdout.take().expect("a pipe");
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).expect("it says that it listens");
        assert_eq!(line.trim(), "listening");
        Self { port, host: host.clone(), child }
    }

    /// Returns the program's process id. (`ip netns exec` replaces itself by the program.)
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns the id of the child process: the command that `node run` started.
    pub fn child_pid(&self) -> u32 {
        let pids = fs::read_dir("/proc").expect("procfs").flatten();
        let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.find(|pid| parent_of(*pid) == Some(self.pid())).expect("it has a child")
    }

    /// Kills the program's process.
    pub fn kill(&mut self) {
        self.child.kill().expect("it runs");
        self.child.wait().expect("a child");
    }

    /// Sends SIGTERM to the program and waits until it ends.
    pub fn terminate(&mut self) -> ExitStatus {
        crate::sh(&format!("kill -TERM {}", self.pid()));
        self.wait()
    }

    /// Waits until the program ends.
    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().expect("a child")
    }

    /// Sends a request to the program from its own host.
    pub fn send(&self, request: &str) -> Reply {
        self.host.send(self.port, request, "")
    }

    /// Returns the received requests with a method other than GET, one in each line.
    pub fn received(&self) -> Vec<String> {
        self.send("GET /received").body.lines().map(str::to_owned).collect()
    }

    /// Returns the number of all other requests that the program has received.
    pub fn count(&self) -> usize {
        self.send("GET /count").body.parse().expect("a number")
    }
}

/// Returns the parent of a process: the second field after the name in `/proc/PID/stat`.
fn parent_of(pid: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

impl Drop for Program {
    fn drop(&mut self) {
        // The process may already have ended.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
