//! Tests of `node grades import` and `export` against fake nodes: requests, output and exit codes. A file is
//! sent in parts, refused lines are reported with their numbers, and a lost part goes to another node.

#![allow(clippy::unwrap_used, reason = "in a test, an unwrap that fails is the test failing")]

mod server;

use std::{
    io::Write as _,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use server::{Reply, Server};

const BOOK: &str = "[]";
const TAKEN: &str = r#"{"students":1,"grades":1,"refused":0,"problems":[]}"#;
const NO_PROVIDER: &str = r#"{"services":{}}"#;

/// Returns the program with a clean environment.
fn node() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_node"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("HEARSAY_") {
            command.env_remove(name);
        }
    }
    command
}

fn finish(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn run(args: &[&str], server: &Server) -> (i32, String, String) {
    finish(node().args(args).args(["--node", &server.url]).output().unwrap())
}

/// Returns a fake node that has the grade book and lists no other provider.
fn book() -> Server {
    Server::start(&[
        ("GET /students?limit=1", Reply::ok(BOOK)),
        ("GET /services/grading", Reply::ok(NO_PROVIDER)),
    ])
}

fn providers(urls: &[&str]) -> Reply {
    let instances: Vec<_> =
        urls.iter().map(|url| format!(r#"{{"name":"grading","url":"{url}","health":"passing"}}"#)).collect();
    Reply::ok(&format!(r#"{{"services":{{"grading":[{}]}}}}"#, instances.join(",")))
}

fn csv(dir: &tempfile::TempDir, text: &str) -> String {
    let path = dir.path().join("students.csv");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn imported(server: &Server) -> Vec<String> {
    server.bodies().into_iter().filter(|body| !body.is_empty()).collect()
}

#[test]
fn a_file_is_sent_in_parts_and_refused_lines_have_the_numbers_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut text = "FirstName,LastName,Title,Type,Score\r\n\r\n".to_owned();
    // A name of two lines: later records have larger line numbers than record numbers.
    text += "\"Ada\r\nAugusta\",Lovelace,Essay,Homework,90\r\n";
    for number in 0..2499 {
        text += &format!("Name{number},Family,Essay,Homework,90\r\n");
    }
    let file = csv(&dir, &text);
    let server = book();
    let parts = [
        r#"{"students":999,"grades":999,"refused":1,"problems":[{"line":2,"problem":"FirstName: must not contain control characters"}]}"#,
        r#"{"students":998,"grades":998,"refused":2,"problems":[{"line":2,"problem":"second"},{"line":1001,"problem":"\u001b[2J"}]}"#,
        r#"{"students":500,"grades":500,"refused":0,"problems":[]}"#,
    ];
    parts.iter().for_each(|part| server.expect("POST /students/import", Reply::ok(part)));
    let (code, stdout, stderr) = run(&["grades", "import", &file], &server);
    assert_eq!(code, 1, "{stderr}");
    let lines: Vec<_> = stdout.lines().collect();
    assert!(lines[0].starts_with("LINE"), "{stdout}");
    assert!(lines[1].starts_with("3     FirstName: must not"), "{stdout}");
    // Record 1000 is on line 1003 of the file, record 2000 on line 2003.
    assert!(lines[2].starts_with("1004  second") && lines[3] == "2003  \\u001b[2J", "{stdout}");
    assert_eq!(lines[4], "lines: 2500, taken: 2497 (grades: 2497), refused: 3");
    assert!(stderr.contains("3 lines were refused"), "{stderr}");
    let bodies = imported(&server);
    let counts: Vec<_> = bodies.iter().map(|body| body.lines().count()).collect();
    assert_eq!(counts, [1002, 1001, 501]);
    assert!(bodies.iter().all(|b| b.starts_with("FirstName,LastName,Title,Type,Score,Occurrence\n")));
    let head = server.requests().into_iter().find(|head| head.starts_with("POST")).unwrap();
    assert!(head.to_lowercase().contains("content-type: text/csv"), "{head}");
}

#[test]
fn standard_input_is_read_and_equal_lines_are_counted_over_all_parts() {
    let server = book();
    (0..2).for_each(|_| server.expect("POST /students/import", Reply::ok(TAKEN)));
    let mut import = node()
        .args(["grades", "import", "-", "--json", "--node", &server.url])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = import.stdin.take().unwrap();
    stdin.write_all(b"FirstName,LastName,Title,Type,Score\n").unwrap();
    (0..1001).for_each(|_| stdin.write_all(b"Ada,Lovelace,Essay,Homework,90\n").unwrap());
    drop(stdin);
    let (code, stdout, stderr) = finish(import.wait_with_output().unwrap());
    assert_eq!((code, stderr.as_str()), (0, ""));
    let report: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((&report["lines"], &report["taken"]), (&1001.into(), &1001.into()));
    let bodies = imported(&server);
    assert!(bodies[0].ends_with("Ada,Lovelace,Essay,Homework,90,1000\n"), "{}", bodies[0].lines().count());
    assert!(bodies[1].ends_with("Score,Occurrence\nAda,Lovelace,Essay,Homework,90,1001\n"), "{}", bodies[1]);
}

#[test]
fn invalid_lines_are_not_sent_and_the_others_are() {
    let dir = tempfile::tempdir().unwrap();
    let mut text = "FirstName,LastName\nAda,Lovelace,x\n\"Grace,Hopper\n".to_owned();
    (0..10_000).for_each(|number| text += &format!("Name{number},Family\n"));
    let file = csv(&dir, &text);
    let server = book();
    (0..10).for_each(|_| server.expect("POST /students/import", Reply::ok(TAKEN)));
    let (code, stdout, stderr) = run(&["grades", "import", &file], &server);
    assert_eq!(code, 1, "{stderr}");
    let lines: Vec<_> = stdout.lines().collect();
    assert!(lines[1].starts_with("2     3 fields where the header has 2"), "{stdout}");
    assert!(lines[2].starts_with("3     ") && lines[2].contains("quotation mark"), "{stdout}");
    assert!(lines[3].starts_with("lines: 10002, taken: 10000 "), "{stdout}");
    assert_eq!(imported(&server).iter().map(|body| body.lines().count() - 1).sum::<usize>(), 10_000);
}

#[test]
fn a_file_of_a_spreadsheet_of_another_country_is_sent_as_any_node_reads_it() {
    let dir = tempfile::tempdir().unwrap();
    let text = "\u{feff}FirstName;LastName;Title;Type;Score;\r\nEva;Müller;T, U;Exam;92,5;\r\n;;;;;\r\n\"Tom;Neu;T;Exam;70\r\nLea;Neu;T;Exam;70\r\n";
    let path = dir.path().join("students.csv");
    std::fs::write(&path, text.encode_utf16().flat_map(u16::to_le_bytes).collect::<Vec<_>>()).unwrap();
    let server = book();
    server.expect("POST /students/import", Reply::ok(TAKEN));
    let (code, stdout, stderr) = run(&["grades", "import", path.to_str().unwrap()], &server);
    assert_eq!(code, 1, "{stderr}");
    let expected = "FirstName,LastName,Title,Type,Score,Occurrence\nEva,Müller,\"T, U\",Exam,92.5,1\nLea,Neu,T,Exam,70,1\n";
    assert_eq!(imported(&server), [expected]);
    assert!(stdout.contains("4     a quotation mark on this line is not closed"), "{stdout}");
    assert!(stdout.contains("lines: 3, taken: 2 (grades: 1), refused: 1"), "{stdout}");
}

#[test]
fn a_node_without_the_book_names_one_that_has_it_and_keeps_its_token_to_itself() {
    let dir = tempfile::tempdir().unwrap();
    let file = csv(&dir, "FirstName,LastName\nAda,Lovelace\n");
    let provider = Server::start(&[("POST /students/import", Reply::ok(TAKEN))]);
    let asked = Server::start(&[("GET /services/grading", providers(&[&provider.url]))]);
    let args = ["grades", "import", &file, "--node", &asked.url, "--token", "geheim"];
    let (code, stdout, stderr) = finish(node().args(args).output().unwrap());
    assert_eq!((code, stdout.as_str()), (0, "lines: 1, taken: 1 (grades: 1), refused: 0\n"), "{stderr}");
    assert_eq!(imported(&provider).len(), 1);
    assert!(!provider.requests().concat().contains("geheim") && asked.requests().concat().contains("geheim"));
}

#[test]
fn a_part_whose_answer_is_lost_goes_to_another_node() {
    let dir = tempfile::tempdir().unwrap();
    let file = csv(&dir, "FirstName,LastName\nAda,Lovelace\n");
    let full = Reply::status(507, r#"{"detail":"the disk is full"}"#);
    let other = Server::start(&[("POST /students/import", Reply::ok(TAKEN))]);
    let sick = Server::start(&[("POST /students/import", full)]);
    // The port is free again.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let asked = Server::start(&[
        ("GET /students?limit=1", Reply::ok(BOOK)),
        ("GET /services/grading", providers(&[&format!("http://{gone}"), &sick.url, &other.url])),
        // This node closes the connection within its answer.
        ("POST /students/import", Reply::raw("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")),
    ]);
    let (code, stdout, stderr) = run(&["grades", "import", &file], &asked);
    assert_eq!((code, stdout.as_str()), (0, "lines: 1, taken: 1 (grades: 1), refused: 0\n"), "{stderr}");
    let sent: Vec<_> = [&asked, &sick, &other].into_iter().flat_map(imported).collect();
    assert!(sent.len() == 3 && sent.windows(2).all(|pair| pair[0] == pair[1]), "{sent:?}");
}

#[test]
fn without_a_provider_the_code_shows_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let file = csv(&dir, "FirstName,LastName\nAda,Lovelace\n");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let url = format!("http://127.0.0.1:{port}");
    let (code, stdout, stderr) =
        finish(node().args(["grades", "import", &file, "--node", &url]).output().unwrap());
    assert_eq!((code, stdout.as_str()), (3, ""), "{stderr}");
    let (code, _, stderr) = finish(node().args(["grades", "export", "--node", &url]).output().unwrap());
    assert_eq!(code, 3, "{stderr}");
    // This node has no grade book and lists no node that has one.
    let (code, _, stderr) = run(&["grades", "import", &file], &Server::start(&[]));
    assert!(code == 2 && stderr.contains("--role grading"), "{code} {stderr}");
    // The node refuses the header.
    let server = book();
    let problem = Reply::status(400, r#"{"detail":"line 1: unknown column \"Nick\""}"#);
    server.expect("POST /students/import", problem);
    let (code, stdout, stderr) = run(&["grades", "import", &file], &server);
    assert!(code == 1 && stdout.is_empty() && stderr.contains("unknown column"), "{code} {stderr}");
    let (code, _, stderr) = run(&["grades", "import", "/nowhere.csv"], &server);
    assert!(code == 2 && stderr.contains("/nowhere.csv"), "{code} {stderr}");
    let (code, _, stderr) = run(&["grades", "import", &csv(&dir, "\n")], &server);
    assert!(code == 1 && stderr.contains("is empty"), "{code} {stderr}");
}

#[test]
fn an_interrupted_import_reports_the_lines_so_far() {
    let dir = tempfile::tempdir().unwrap();
    let text = format!("FirstName,LastName\n{}", "Ada,Lovelace\n".repeat(1500));
    let file = csv(&dir, &text);
    let server = book();
    server.expect("POST /students/import", Reply::ok(TAKEN));
    server.expect("POST /students/import", Reply::status(400, r#"{"detail":"no"}"#));
    let (code, stdout, stderr) = run(&["grades", "import", &file], &server);
    assert_eq!((code, stdout.as_str()), (1, "lines: 1000, taken: 1000 (grades: 1), refused: 0\n"));
    assert!(stderr.contains("after 1000 lines") && stderr.contains("run it again"), "{stderr}");
}

#[test]
fn an_export_replaces_a_file_only_when_all_of_it_has_come() {
    let dir = tempfile::tempdir().unwrap();
    let file = csv(&dir, "old");
    let names =
        || dir.path().read_dir().unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<PathBuf>>();
    let server = book();
    server.expect("GET /students/export", Reply::raw("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nID,F"));
    let (code, _, stderr) = run(&["grades", "export", &file], &server);
    assert_eq!(code, 3, "{stderr}");
    assert_eq!((std::fs::read_to_string(&file).unwrap().as_str(), names().len()), ("old", 1));
    let csv = "ID,FirstName,LastName,Title,Type,Score\n1,Ada,L\u{1b},,,\n";
    let server = book();
    server.expect("GET /students/export", Reply::ok(csv));
    let (code, stdout, stderr) = run(&["grades", "export", &file, "--json"], &server);
    assert_eq!(code, 0, "{stderr}");
    let told: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(told["bytes"], csv.len());
    assert_eq!((std::fs::read_to_string(&file).unwrap().as_str(), names().len()), (csv, 1));
    let server = book();
    server.expect("GET /students/export?excel", Reply::ok(csv));
    assert_eq!(run(&["grades", "export", "--excel"], &server).1, csv);
    // Without a file, the export goes to standard output unchanged.
    let server = book();
    server.expect("GET /students/export", Reply::ok(csv));
    assert_eq!(run(&["grades", "export"], &server), (0, csv.to_owned(), String::new()));
    let (code, _, stderr) = run(&["grades", "export", "--json"], &server);
    assert!(code == 2 && stderr.contains("name a file"), "{stderr}");
}
