//! Tests of `node run`, which registers a service while a command runs, and of `node register --hold`,
//! against a fake node: exit codes, signals, standard input and requests.

#![allow(clippy::unwrap_used, reason = "in a test, an unwrap that fails is the test failing")]

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write},
    net::TcpListener,
    os::unix::{net::UnixListener, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

/// Time limit for a fact; generous for slow machines.
const PATIENCE: Duration = Duration::from_secs(30);

/// An event at the fake node.
#[derive(Clone, PartialEq, Debug)]
enum Seen {
    /// A held registration.
    Held(Value),
    /// A DELETE of this path.
    Deleted(String),
    /// The connection of a held registration closed.
    Closed,
}

/// Answer of the fake node to `GET /services/{name}`.
type Services = Arc<Mutex<BTreeMap<String, String>>>;

/// A fake node at a Unix socket.
struct Node {
    dir: tempfile::TempDir,
    seen: Arc<Mutex<Vec<Seen>>>,
    services: Services,
    /// Error for registrations, if any.
    refusal: Arc<Mutex<Option<&'static str>>>,
    /// Held connections, to be closed when the node goes down.
    held: Arc<Mutex<Vec<std::os::unix::net::UnixStream>>>,
}

impl Node {
    fn start() -> Self {
        let node = Self {
            dir: tempfile::tempdir().unwrap(),
            seen: Arc::default(),
            services: Arc::default(),
            refusal: Arc::default(),
            held: Arc::default(),
        };
        let listener = UnixListener::bind(node.socket()).unwrap();
        let (seen, services) = (Arc::clone(&node.seen), Arc::clone(&node.services));
        let (refusal, held) = (Arc::clone(&node.refusal), Arc::clone(&node.held));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (seen, services) = (Arc::clone(&seen), Arc::clone(&services));
                let (refusal, held) = (Arc::clone(&refusal), Arc::clone(&held));
                thread::spawn(move || answer(stream, &seen, &services, &refusal, &held));
            }
        });
        node
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("test-7599.sock")
    }

    fn url(&self) -> String {
        format!("unix:{}", self.socket().display())
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// Waits for the n-th registration and returns its body.
    fn registration(&self, n: usize) -> Value {
        within("a registration", || {
            let held = self.seen().into_iter().filter_map(|seen| match seen {
                Seen::Held(body) => Some(body),
                _ => None,
            });
            held.into_iter().nth(n)
        })
    }

    /// Returns `node run` with this node.
    fn run(&self, args: &[&str]) -> Command {
        let mut command = node();
        command.args(["run", "--node", &self.url()]).args(args);
        command
    }
}

/// Answers a request. A registration is held until its connection closes.
fn answer(
    mut stream: std::os::unix::net::UnixStream,
    seen: &Mutex<Vec<Seen>>,
    services: &Mutex<BTreeMap<String, String>>,
    refusal: &Mutex<Option<&'static str>>,
    held: &Mutex<Vec<std::os::unix::net::UnixStream>>,
) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let head: Vec<String> =
        reader.by_ref().lines().map_while(Result::ok).take_while(|l| !l.is_empty()).collect();
    let Some(line) = head.first() else { return };
    let length =
        head.iter().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    reader.read_exact(&mut body).unwrap();
    let mut reply = |status: u16, body: &str| {
        let length = body.len();
        let text =
            format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}");
        _ = stream.write_all(text.as_bytes());
    };
    let words: Vec<_> = line.split(' ').collect();
    match (words[0], words[1]) {
        ("GET", "/readyz") => reply(200, "ok"),
        ("GET", path) if path.starts_with("/services/") => {
            let name = path["/services/".len()..].split('?').next().unwrap();
            match services.lock().unwrap().get(name) {
                Some(url) => {
                    reply(200, &format!(r#"{{"index":1,"services":{{"{name}":[{{"url":"{url}"}}]}}}}"#))
                }
                None => reply(404, "{}"),
            }
        }
        ("POST", "/services?hold") => {
            let refused = *refusal.lock().unwrap();
            let body: Value = serde_json::from_slice(&body).unwrap();
            if let Some(problem) = refused.filter(|part| body.to_string().contains(part)) {
                return reply(400, &format!(r#"{{"detail":"{problem} is refused"}}"#));
            }
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
            let event = "event: registered\ndata: {\"id\":\"w-1\",\"node\":\"a\",\"requires\":{}}\n\n";
            stream.write_all(format!("{head}{event}").as_bytes()).unwrap();
            held.lock().unwrap().push(stream.try_clone().unwrap());
            seen.lock().unwrap().push(Seen::Held(body));
            // Blocks until the connection ends.
            _ = reader.read(&mut [0]);
            seen.lock().unwrap().push(Seen::Closed);
        }
        ("DELETE", path) => {
            seen.lock().unwrap().push(Seen::Deleted(path.to_owned()));
            reply(200, "{}");
        }
        _ => reply(404, r#"{"detail":"not laid down"}"#),
    }
}

/// Returns the program with a clean environment.
fn node() -> Command {
    // Default signal handling, as from a supervisor: tests in the background may ignore signals, and ignored
    // signals are inherited.
    let mut command = Command::new("env");
    command.args(["--default-signal=HUP,INT,QUIT", env!("CARGO_BIN_EXE_node")]);
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("HEARSAY_") {
            command.env_remove(name);
        }
    }
    // No terminal, so that all signals are forwarded.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn within<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "{what} did not come about");
        thread::sleep(Duration::from_millis(10));
    }
}

fn end_of(child: &mut Child) -> ExitStatus {
    within("the end of the process", || child.try_wait().unwrap())
}

fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status().unwrap().success());
}

fn is_alive(pid: u32) -> bool {
    // A zombie counts as ended; its state follows its name.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, fields)| !fields.trim_start().starts_with('Z'))
}

/// Returns a shell that prints its pid and then runs this.
fn shell(script: &str) -> [String; 4] {
    trapping("", script)
}

/// A shell that says its id once it has set its traps.
fn trapping(traps: &str, script: &str) -> [String; 4] {
    ["--".into(), "sh".into(), "-c".into(), format!("{traps} echo $$; {script}")]
}

fn first_line(child: &mut Child) -> String {
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    line.trim().to_owned()
}

/// Returns a server that listens at `$PORT` and accepts no connection, in an available language.
const LISTEN: &str = "exec python3 -c 'import os,socket,time\ns=socket.create_server((\"127.0.0.1\",int(os.environ[\"PORT\"])))\ntime.sleep(600)'";

#[test]
fn the_exit_code_is_that_of_the_command() {
    let node = Node::start();
    let not_executable = node.dir.path().join("file");
    std::fs::write(&not_executable, "x").unwrap();
    for (command, code) in [
        (&["sh", "-c", "exit 0"][..], 0),
        (&["sh", "-c", "exit 7"], 7),
        (&["sh", "-c", "kill -TERM $$"], 128 + 15),
        (&["sh", "-c", "kill -KILL $$"], 128 + 9),
        (&["/nowhere/program"], 127),
        (&[not_executable.to_str().unwrap()], 126),
    ] {
        let output = node.run(&[&["--service", "w", "--"], command].concat()).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{command:?}: {stderr}");
    }
    let output = node.run(&["--service", "w", "--check", "ftp", "--", "true"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "wrong usage");
}

#[test]
fn a_command_has_the_standard_input_and_its_environment() {
    let node = Node::start();
    node.services.lock().unwrap().insert("data-base".into(), "http://10.0.0.7:5432".into());
    let script = "read line; echo \"$line $PORT $HEARSAY_NODE $HEARSAY_DATA_BASE_URL\"";
    let args = ["--service", "w", "--port", "auto", "--requires", "data-base", "--", "sh", "-c", script];
    let mut child = node.run(&args).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"hello\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let line = String::from_utf8(output.stdout).unwrap();
    let words: Vec<_> = line.split_whitespace().collect();
    assert!(words.len() == 4 && words[1].parse::<u16>().is_ok(), "{line}");
    assert_eq!((words[0], words[2], words[3]), ("hello", "http://127.0.0.1:7599", "http://10.0.0.7:5432"));
    assert_eq!(node.seen(), [], "a command that does not listen is no service");
}

#[test]
fn it_is_registered_when_its_port_listens_and_gone_when_it_ends() {
    let node = Node::start();
    let args = ["--service", "web", "--port", "auto", "--tag", "a", "--check", "http=/health"];
    let mut child = node.run(&args).args(shell(LISTEN)).spawn().unwrap();
    let pid: u32 = first_line(&mut child).parse().unwrap();
    let body = node.registration(0);
    assert_eq!((&body["name"], &body["tags"][0]), (&"web".into(), &"a".into()));
    assert_eq!(body["checks"][0], serde_json::json!({"http": "/health"}));
    assert_eq!(body["checks"][1], serde_json::json!({"process": {"pid": pid}}));
    let port = u16::try_from(body["port"].as_u64().unwrap()).unwrap();
    std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    // The command ends on its own, without output.
    signal(pid, "KILL");
    assert_eq!(end_of(&mut child).code(), Some(128 + 9));
    within("the end of the connection", || node.seen().contains(&Seen::Closed).then_some(()));
}

#[test]
fn a_term_deregisters_drains_and_then_ends_the_command() {
    let node = Node::start();
    let command = trapping("trap 'echo got term; exit 5' TERM;", "while :; do sleep 0.05; done");
    let mut child = node.run(&["--service", "w", "--drain", "700ms"]).args(command).spawn().unwrap();
    node.registration(0);
    let start = Instant::now();
    signal(child.id(), "TERM");
    within("the deregistration", || {
        node.seen().contains(&Seen::Deleted("/services/w-1".into())).then_some(())
    });
    assert_eq!(end_of(&mut child).code(), Some(5));
    assert!(start.elapsed() >= Duration::from_millis(700), "it was drained for {:?}", start.elapsed());
    let mut stdout = String::new();
    child.stdout.unwrap().read_to_string(&mut stdout).unwrap();
    assert!(stdout.ends_with("got term\n"), "{stdout}");
    assert_eq!(node.seen().iter().filter(|seen| matches!(seen, Seen::Held(_))).count(), 1);
}

#[test]
fn other_signals_go_to_the_command_and_a_kill_ends_it() {
    let node = Node::start();
    let traps = "trap 'echo usr1' USR1; trap 'echo hup' HUP; trap 'echo int' INT;";
    let command = trapping(traps, "while :; do sleep 0.05; done");
    let mut child = node.run(&["--service", "w"]).args(command).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let pid: u32 = lines.next().unwrap().parse().unwrap();
    node.registration(0);
    for (name, said) in [("USR1", "usr1"), ("HUP", "hup"), ("INT", "int")] {
        signal(child.id(), name);
        assert_eq!(lines.next().as_deref(), Some(said));
    }
    assert!(is_alive(pid));
    signal(child.id(), "KILL");
    assert_eq!(end_of(&mut child).signal(), Some(9));
    within("the end of the command", || (!is_alive(pid)).then_some(()));
    within("the end of the connection", || node.seen().contains(&Seen::Closed).then_some(()));
}

#[test]
fn a_node_that_restarts_does_not_disturb_the_command() {
    let node = Node::start();
    let mut child = node.run(&["--service", "w"]).args(shell("exec sleep 600")).spawn().unwrap();
    let pid: u32 = first_line(&mut child).parse().unwrap();
    let first = node.registration(0);
    node.held.lock().unwrap().drain(..).for_each(|held| held.shutdown(std::net::Shutdown::Both).unwrap());
    assert_eq!(node.registration(1), first, "it is registered again");
    assert!(is_alive(pid));
    signal(pid, "TERM");
    assert_eq!(end_of(&mut child).code(), Some(128 + 15));
}

#[test]
fn a_refusal_ends_the_command_and_one_of_its_process_alone_does_not() {
    let node = Node::start();
    *node.refusal.lock().unwrap() = Some("process");
    let mut child = node.run(&["--service", "w"]).args(shell("exec sleep 600")).spawn().unwrap();
    assert_eq!(node.registration(0)["checks"], Value::Null, "without the check that was refused");
    signal(child.id(), "TERM");
    assert_eq!(end_of(&mut child).code(), Some(128 + 15));
    *node.refusal.lock().unwrap() = Some("name");
    let output = node.run(&["--service", "w", "--", "sleep", "600"]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("name is refused"), "{stderr}");
}

#[test]
fn a_command_that_does_not_listen_in_time_is_ended_and_a_taken_port_is_named() {
    let node = Node::start();
    let args = ["--service", "w", "--port", "auto", "--start-timeout", "300ms", "--", "sleep", "600"];
    let output = node.run(&args).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("does not listen") && stderr.contains("--start-timeout"), "{stderr}");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let output = node.run(&["--service", "w", "--port", &port, "--", "true"]).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let (code, named) = (output.status.code(), format!("by process {}", std::process::id()));
    assert!(code == Some(1) && stderr.contains(&port) && stderr.contains(&named), "{stderr}");
    assert_eq!(node.seen(), []);
}

#[test]
fn a_held_registration_prints_its_id_and_goes_with_the_command() {
    let held = Node::start();
    let mut child = node();
    let mut child = child.args(["register", "w", "--hold", "--node", &held.url()]).spawn().unwrap();
    assert_eq!(first_line(&mut child), "w-1");
    assert_eq!(held.registration(0), serde_json::json!({"name": "w"}));
    signal(child.id(), "INT");
    assert_eq!(end_of(&mut child).code(), Some(0));
    within("the end of the connection", || held.seen().contains(&Seen::Closed).then_some(()));
    assert!(held.seen().contains(&Seen::Deleted("/services/w-1".into())));
}

#[test]
fn the_default_socket_is_preferred() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = dir.path().join("hearsay");
    std::fs::create_dir(&runtime).unwrap();
    // The test is skipped if a node of this machine may have a socket in the system's directory, which is
    // preferred.
    if Path::new("/run/hearsay").exists() {
        return;
    }
    let listener = UnixListener::bind(runtime.join("default-7500.sock")).unwrap();
    let asked = thread::spawn(move || {
        // The first connection only tests the socket.
        for stream in listener.incoming().map_while(Result::ok) {
            let mut reader = BufReader::new(&stream);
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            if !line.is_empty() {
                let body = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";
                (&stream).write_all(body.as_bytes()).unwrap();
                return line;
            }
        }
        String::new()
    });
    let output =
        node().arg("health").env("XDG_RUNTIME_DIR", dir.path()).env("TMPDIR", dir.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(asked.join().unwrap().starts_with("GET /readyz "));
}
