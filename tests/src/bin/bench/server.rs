//! [`Server`]: starts a server that is measured (Hearsay or another system), and sends it requests. [`Plan`]:
//! options of one Hearsay node. [`Folder`]: temporary folder for their data.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use hearsay_tests::http::{Reply, send};
use rustix::process::Signal;

use crate::{
    hearsay,
    process::{Process, bound},
    system::{control_port, swarm_port},
};

/// Time within which a server must start, and within which nodes must see each other.
const BOUND: Duration = Duration::from_secs(30);
/// Pause between two checks of a fact.
pub(crate) const LOOK: Duration = Duration::from_millis(1);
/// Limit of an answer.
const ANSWER_BOUND: Duration = Duration::from_secs(5);

/// Server process with its address.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
}

impl Server {
    /// Starts a program and waits until it accepts connections.
    ///
    /// # Errors
    /// The program cannot be run, ends, or does not listen in time.
    pub(crate) fn start(
        program: &str,
        arguments: &[&str],
        port: u16,
        folder: &Path,
        processor: Option<usize>,
    ) -> Result<Self> {
        Self::start_before(program, arguments, port, folder, processor, None)
    }

    /// Starts a program with a library that is loaded before all others, and waits until it accepts
    /// connections.
    ///
    /// # Errors
    /// The program cannot be run, ends, or does not listen in time.
    #[allow(clippy::too_many_arguments, reason = "the parts of a command")]
    pub(crate) fn start_before(
        program: &str,
        arguments: &[&str],
        port: u16,
        folder: &Path,
        processor: Option<usize>,
        library: Option<&Path>,
    ) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let mut command = bound(program, processor);
        command.args(arguments).current_dir(folder);
        command.envs(library.map(|library| ("LD_PRELOAD", library)));
        let name = Path::new(program).file_name().unwrap_or_default().to_string_lossy();
        let process = Process::spawn(command, &folder.join(format!("{name}.out")))?;
        let mut server = Self { process, address: (Ipv4Addr::LOCALHOST, port).into() };
        server.until(&format!("{program} listens"), |server| TcpStream::connect(server.address).is_ok())?;
        Ok(server)
    }

    /// Waits until a fact holds.
    ///
    /// # Errors
    /// The process ends, or the bound passes.
    pub(crate) fn until(&mut self, what: &str, mut holds: impl FnMut(&Self) -> bool) -> Result<()> {
        let begin = Instant::now();
        while !holds(self) {
            ensure!(!self.process.has_ended(), "it has ended, and not: {what}");
            ensure!(begin.elapsed() < BOUND, "not within {} s: {what}", BOUND.as_secs());
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Sends a request over a new connection. Returns `None` without an answer.
    pub(crate) fn ask(&self, request: &str, headers: &[(&str, &str)], body: &str) -> Option<Reply> {
        send(self.address, request, headers, body, ANSWER_BOUND).ok()
    }

    /// Returns whether a GET is answered with 200.
    pub(crate) fn answers(&self, path: &str) -> bool {
        self.ask(&format!("GET {path}"), &[], "").is_some_and(|reply| reply.status == 200)
    }

    /// Returns the value of a metric in `/metrics`, summed over all labels; `None` without this metric.
    pub(crate) fn metric(&self, name: &str) -> Option<u64> {
        let metrics = self.ask("GET /metrics", &[], "")?.body;
        let is_of_name =
            |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
        let values = metrics
            .lines()
            .filter(is_of_name)
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok());
        values.reduce(|sum, value| sum + value)
    }

    /// Returns the number of members that the node sees alive, itself included.
    pub(crate) fn members(&self) -> usize {
        let Some(reply) = self.ask("GET /members", &[], "") else { return 0 };
        let members = reply.json();
        let members = members["members"].as_array().map(Vec::as_slice).unwrap_or_default();
        members.iter().filter(|member| member["state"] == "alive").count()
    }
}

/// Options of a node. A node can be started with them any number of times.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) index: usize,
    /// Folder of the node's data.
    pub(crate) folder: PathBuf,
    pub(crate) options: Vec<String>,
    pub(crate) processor: Option<usize>,
    keeps_data: bool,
    library: Option<PathBuf>,
}

impl Plan {
    /// Describes a node with these roles, which joins these others. Without a role it is an agent.
    pub(crate) fn new(folder: &Path, index: usize, roles: &str, join: &[usize]) -> Self {
        let mut options = Vec::new();
        if !roles.is_empty() {
            options.extend(["--role".to_owned(), roles.to_owned()]);
        }
        for other in join {
            options.extend(["--join".to_owned(), format!("127.0.0.1:{}", swarm_port(*other))]);
        }
        Self {
            index,
            folder: folder.join(format!("node-{index}")),
            options,
            processor: None,
            keeps_data: true,
            library: None,
        }
    }

    /// Adds command-line options.
    pub(crate) fn with(mut self, options: &[&str]) -> Self {
        self.options.extend(options.iter().map(ToString::to_string));
        self
    }

    /// Removes the node's data, and so its identity, before each start.
    pub(crate) fn ephemeral(mut self) -> Self {
        self.keeps_data = false;
        self.with(&["--ephemeral"])
    }

    /// Binds the node to one processor.
    pub(crate) fn on(mut self, processor: usize) -> Self {
        self.processor = Some(processor);
        self
    }

    /// Loads a library before all others.
    pub(crate) fn before(mut self, library: Option<&Path>) -> Self {
        self.library = library.map(Path::to_owned);
        self
    }

    /// Starts the node without waiting.
    ///
    /// # Errors
    /// The node cannot be run.
    pub(crate) fn spawn(&self) -> Result<Server> {
        fs::create_dir_all(&self.folder).with_context(|| self.folder.display().to_string())?;
        let mut command = hearsay::node(self.index, self.processor);
        if self.keeps_data {
            command.arg("--data-dir").arg(&self.folder);
        }
        command.args(&self.options);
        command.envs(self.library.iter().map(|library| ("LD_PRELOAD", library)));
        let process = Process::spawn(command, &self.folder.join("node.out"))?;
        Ok(Server { process, address: (Ipv4Addr::LOCALHOST, control_port(self.index)).into() })
    }

    /// Starts the node and waits until it is ready.
    ///
    /// # Errors
    /// The node cannot be run, ends, or is not ready in time.
    pub(crate) fn start(&self) -> Result<Server> {
        let mut server = self.spawn()?;
        server
            .until("the node is ready", |server| server.answers("/readyz"))
            .with_context(|| fs::read_to_string(self.folder.join("node.out")).unwrap_or_default())?;
        Ok(server)
    }
}

/// Starts nodes of a role that all see each other. Without a role they are agents.
///
/// # Errors
/// A node does not start or does not see the others.
pub(crate) fn cluster(folder: &Path, first: usize, count: usize, role: &str) -> Result<Vec<Server>> {
    let mut nodes = Vec::new();
    for index in first..first + count {
        let join: Vec<usize> = (first..index).take(1).collect();
        nodes.push(Plan::new(folder, index, role, &join).start()?);
    }
    for node in &mut nodes {
        node.until("it sees all others", |node| node.members() == count)?;
    }
    Ok(nodes)
}

/// Sends a signal to a process, and waits until it ends.
///
/// # Errors
/// The process had already ended, or does not end.
pub(crate) fn stop(server: &mut Server, signal: Signal) -> Result<()> {
    server.process.signal(signal)?;
    let begin = Instant::now();
    while !server.process.has_ended() {
        if begin.elapsed() > BOUND {
            bail!("a process goes on after a signal");
        }
        thread::sleep(LOOK);
    }
    Ok(())
}

/// Folder for the data of servers, which is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Folder(PathBuf);

impl Folder {
    /// Creates a folder in `below`.
    ///
    /// # Errors
    /// The system refuses.
    pub(crate) fn new(below: &Path, name: &str) -> Result<Self> {
        let path = below.join(format!("{name}-{}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path.canonicalize()?))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // If the folder cannot be removed, no measurement is affected.
        _ = fs::remove_dir_all(&self.0);
    }
}
