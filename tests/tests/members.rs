//! Tests that a copy of a node's identity never displaces the original, that failed members can be forgotten,
//! that nodes of other clusters are reported, and that SIGHUP reloads options.

// In a test, a failed unwrap is the failure.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use hearsay_tests::{Cluster as _, Host, Lab, NodeRef, scenario, sh};

const S: Duration = Duration::from_secs(1);
/// Exit code of a node whose key another process holds.
const KEY_IN_USE: i32 = 4;

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

/// Runs a command against the node on this host.
fn ask(lab: &Lab, on: &Host, arguments: &[&str]) -> (i32, String) {
    let output = lab.command(Some(on), "client", arguments).output().unwrap();
    (output.status.code().unwrap(), said(&output))
}

/// Starts copies one after another, as a supervisor does, and reads the members meanwhile. Returns the number
/// of reads, and of reads that listed the original.
fn restart_copies(lab: &Lab, on: &Host, arguments: &[&str], watcher: NodeRef) -> (u32, u32) {
    let (mut looks, mut listed) = (0, 0);
    for _ in 0..10 {
        let log = lab.dir().join("copy.log");
        let file = fs::File::create(&log).unwrap();
        let mut copy =
            lab.command(Some(on), "copy", arguments).stdout(Stdio::null()).stderr(file).spawn().unwrap();
        let start = Instant::now();
        let status = loop {
            looks += 1;
            let is_alive = lab.sees(watcher, "orig").as_deref() == Some("alive");
            listed += u32::from(is_alive && lab.providers(watcher) == ["orig"]);
            if let Some(status) = copy.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < 10 * S, "the copy runs: {}", fs::read_to_string(&log).unwrap());
            std::thread::sleep(Duration::from_millis(20));
        };
        let words = fs::read_to_string(&log).unwrap();
        assert_eq!(status.code(), Some(KEY_IN_USE), "{words}");
        assert!(words.contains("already runs under this node's key, at /ip4/10.77.1.2/tcp/7600"), "{words}");
        assert!(words.contains("--data-dir"), "{words}");
    }
    (looks, listed)
}

#[test]
fn a_copy_under_a_supervisor_never_takes_the_original_off_the_list() {
    scenario("a_copy_under_a_supervisor_never_takes_the_original_off_the_list", |lab| {
        let hosts = [lab.host(), lab.host(), lab.host()];
        let watcher = lab.start(Some(&hosts[0]), "watcher", 7500, &["--name", "watcher"]);
        let original = lab.grading(&hosts[1], "orig");
        lab.until(5 * S, "it is listed", |lab| lab.providers(watcher) == ["orig"]);
        lab.leave(original);
        sh(&format!("cp -r {0}/orig {0}/copy", lab.dir().display()));
        let original = lab.grading(&hosts[1], "orig");
        lab.until(5 * S, "it is listed again", |lab| lab.providers(watcher) == ["orig"]);
        // On another machine, on the watcher's machine, and where only a name leads to other nodes.
        let copies: [(&Host, &[&str]); 3] = [
            (&hosts[2], &["--role", "grading", "--name", "orig"]),
            (&hosts[0], &["--role", "grading", "--name", "orig"]),
            (&hosts[2], &["--role", "grading", "--name", "orig", "--no-mdns", "--join", "10.77.1.1"]),
        ];
        for (host, arguments) in copies {
            let (looks, listed) = restart_copies(lab, host, arguments, watcher);
            assert_eq!(looks, listed, "the original is listed in every look");
        }
        assert_eq!(lab.logged("member failed"), [""; 0]);
        assert!(!lab.log(original).contains("ERROR"), "{}", lab.log(original));
        // Once the original has left, the copy may take its place.
        lab.leave(original);
        let copy = lab.start(Some(&hosts[2]), "copy", 7500, &["--role", "grading", "--name", "orig"]);
        lab.until(10 * S, "the copy is listed", |lab| lab.providers(watcher) == ["orig"]);
        assert!(lab.get(copy, "/members").is_some());
    });
}

#[test]
fn a_failed_member_is_forgotten_on_every_node_and_comes_back_if_it_lives() {
    scenario("a_failed_member_is_forgotten_on_every_node_and_comes_back_if_it_lives", |lab| {
        let hosts = [lab.host(), lab.host(), lab.host()];
        let nodes: Vec<NodeRef> =
            hosts.iter().enumerate().map(|(i, host)| lab.grading(host, &format!("m{}", i + 1))).collect();
        lab.until(5 * S, "all list all", |lab| lab.all_list_all(&nodes) && lab.agree(&nodes));
        let (code, words) = ask(lab, &hosts[0], &["forget", "m3"]);
        assert!(code == 1 && words.contains("m3") && words.contains("alive"), "{code} {words}");
        let (code, words) = ask(lab, &hosts[0], &["forget", "unknown"]);
        assert!(code == 2 && words.contains("unknown"), "{code} {words}");
        lab.crash(nodes[2]);
        let rest = &nodes[..2];
        lab.until(3 * S, "the crash is known", |lab| {
            rest.iter().all(|node| lab.sees(*node, "m3").as_deref() == Some("failed"))
        });
        let (code, words) = ask(lab, &hosts[0], &["forget", "m3"]);
        assert!(code == 0 && words.contains("m3 is forgotten"), "{code} {words}");
        assert_eq!(lab.sees(nodes[0], "m3"), None, "at once where it was said");
        lab.until(2 * S, "it is forgotten everywhere", |lab| lab.sees(nodes[1], "m3").is_none());
        lab.until(5 * S, "all agree", |lab| lab.agree(rest));
        let again = lab.grading(&hosts[2], "m3");
        let all = [nodes[0], nodes[1], again];
        lab.until(5 * S, "it is back", |lab| lab.all_list_all(&all) && lab.agree(&all));
    });
}

#[test]
fn nodes_of_another_key_or_cluster_are_told_on_both_sides() {
    scenario("nodes_of_another_key_or_cluster_are_told_on_both_sides", |lab| {
        let key = |lab: &Lab, name: &str| {
            let output = lab.command(None, "keys", &["keygen"]).output().unwrap();
            let path = lab.dir().join(name);
            fs::write(&path, output.stdout).unwrap();
            sh(&format!("chmod 600 {}", path.display()));
            path.to_str().unwrap().to_owned()
        };
        let (ours, theirs) = (key(lab, "ours.key"), key(lab, "theirs.key"));
        let hosts: Vec<Host> = (0..5).map(|_| lab.host()).collect();
        let mut start = |i: usize, name: &str, rest: &[&str]| {
            lab.start(Some(&hosts[i]), name, 7500, &[&["--name", name], rest].concat())
        };
        let a = start(0, "a", &["--key-file", &ours]);
        let b = start(1, "b", &["--key-file", &ours]);
        let c = start(2, "c", &["--key-file", &theirs]);
        let d = start(3, "d", &[]);
        let e = start(4, "e", &["--cluster", "shop"]);
        lab.until(10 * S, "a and b see each other", |lab| lab.sees(a, "b").as_deref() == Some("alive"));
        let warned = |lab: &Lab, by: NodeRef, of: usize, words: &str| {
            let address = format!("10.77.1.{of}");
            lab.log(by)
                .lines()
                .filter(|l| l.contains("WARN") && l.contains(&address) && l.contains(words))
                .count()
        };
        let (key_words, cluster_words) = ("another cluster key or none", "belongs to another cluster");
        // Twice, if it connected in vain before mDNS announced it: then only its host was known.
        lab.until(30 * S, "each side is warned", |lab| {
            warned(lab, a, 3, key_words) >= 1
                && warned(lab, b, 3, key_words) >= 1
                && warned(lab, c, 1, key_words) >= 1
                && warned(lab, a, 4, key_words) >= 1
                && warned(lab, d, 1, key_words) >= 1
                && warned(lab, d, 5, cluster_words) >= 1
                && warned(lab, e, 4, cluster_words) >= 1
        });
        assert_eq!(warned(lab, a, 2, ""), 0, "a member is no outsider: {}", lab.log(a));
        lab.until(10 * S, "they are counted", |lab| {
            let metrics = lab.text(a, "/metrics").unwrap_or_default();
            metrics.lines().any(|line| line == "hearsay_outsiders 3" || line == "hearsay_outsiders 3.0")
        });
        let (_, words) = ask(lab, &hosts[0], &["doctor"]);
        assert!(words.contains("3 nodes on this network use another key or none: "), "{words}");
        assert!(words.contains("10.77.1.3:7600") && words.contains("multicast works: heard from"), "{words}");
        let (code, words) = ask(lab, &hosts[3], &["doctor"]);
        assert_eq!(code, 1, "it is alone, and this is why: {words}");
        assert!(
            words.contains("belongs to the cluster \"shop\", this node to \"default\": 10.77.1.5"),
            "{words}"
        );
        // After the fix, the warning is gone.
        lab.leave(c);
        let c = lab.start(Some(&hosts[2]), "c", 7500, &["--name", "c", "--key-file", &ours]);
        lab.until(10 * S, "c is a member", |lab| lab.sees(a, "c").as_deref() == Some("alive"));
        lab.until(10 * S, "c is no outsider", |lab| {
            let network = lab.get(a, "/network").unwrap_or_default();
            !network["outsiders"].to_string().contains("10.77.1.3") && lab.get(c, "/members").is_some()
        });
    });
}

#[test]
fn doctor_claims_nothing_of_multicast_before_it_has_heard_another_host() {
    scenario("doctor_claims_nothing_of_multicast_before_it_has_heard_another_host", |lab| {
        let host = lab.host();
        let node = lab.grading(&host, "m1");
        lab.until(5 * S, "it answers", |lab| lab.sees(node, "m1").is_some());
        // Two nodes on one host hear each other, which proves nothing about the network.
        let other = lab.start(Some(&host), "m2", 7501, &["--name", "m2"]);
        lab.until(5 * S, "they see each other", |lab| lab.sees(other, "m1").as_deref() == Some("alive"));
        let (_, words) = ask(lab, &host, &["doctor"]);
        assert!(!words.contains("multicast works") && words.contains("can multicast"), "{words}");
    });
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
}

#[test]
fn sighup_reads_the_options_again_and_says_what_has_to_wait() {
    scenario("sighup_reads_the_options_again_and_says_what_has_to_wait", |lab| {
        let (h1, h2) = (lab.host(), lab.host());
        let file = lab.dir().join("node.toml");
        write(&file, "no-mdns = true\n");
        let other = lab.start(Some(&h2), "m2", 7500, &["--name", "m2", "--no-mdns"]);
        let node = lab.start(
            Some(&h1),
            "m1",
            7500,
            &["--name", "m1", "--role", "grading", "--config", file.to_str().unwrap()],
        );
        lab.until(5 * S, "it answers", |lab| lab.providers(node) == ["m1"]);
        let tags = |lab: &Lab| {
            lab.get(node, "/services/grading").unwrap_or_default()["services"]["grading"][0]["tags"]
                .to_string()
        };
        // A wrong file changes nothing, and the error names it and its key.
        write(&file, "no-mdns = true\njoin = ['10.77.1.2']\ntag = ['blue']\nclustr = 'x'\n");
        lab.signal(node, "HUP");
        lab.until_logged(5 * S, node, &["clustr", "nothing was changed"]);
        assert!(!tags(lab).contains("blue"));
        // A bad tag is found before anything changes, too.
        write(&file, &format!("no-mdns = true\ntag = [{}]\n", "'x', ".repeat(65)));
        lab.signal(node, "HUP");
        lab.until_logged(5 * S, node, &["tag: has 65 tags"]);
        assert_eq!(lab.sees(other, "m1"), None);
        write(
            &file,
            "no-mdns = true\njoin = ['10.77.1.2']\ntag = ['blue']\nzone = 'z'\ncluster = 'shop'\nhttp = 7600\n",
        );
        lab.signal(node, "HUP");
        lab.until(10 * S, "it joins what the file names", |lab| {
            lab.sees(other, "m1").as_deref() == Some("alive")
        });
        lab.until(5 * S, "it has the tag", |lab| tags(lab).contains("blue"));
        lab.until_logged(5 * S, node, &["need a restart", "cluster, http"]);
        // A list that does not admit the other node.
        let allow = lab.dir().join("allow");
        write(&allow, "# no node\n");
        write(&file, &format!("no-mdns = true\nallow = '{}'\n", allow.display()));
        lab.signal(node, "HUP");
        lab.until(10 * S, "it parts from the other", |lab| {
            let metrics = lab.text(node, "/metrics").unwrap_or_default();
            metrics.lines().any(|line| line == "hearsay_neighbours 0.0" || line == "hearsay_neighbours 0")
        });
        lab.leave(node);
    });
}

#[test]
fn a_node_that_was_told_to_ignore_sighup_goes_on() {
    scenario("a_node_that_was_told_to_ignore_sighup_goes_on", |lab| {
        let file = lab.dir().join("node.toml");
        write(&file, "no-mdns = true\n");
        let plain = lab.command(None, "m1", &[]);
        let line = format!(
            "exec nohup {} --name m1 --role grading --config {}",
            Path::new(plain.get_program()).display(),
            file.display()
        );
        let mut command = Command::new("sh");
        command.args(["-c", &line]).env("XDG_STATE_HOME", lab.dir().join("m1"));
        let mut node =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let http = "127.0.0.1:7500".parse().unwrap();
        let tags = || hearsay_tests::get(http, "/services").unwrap_or_default()["services"].to_string();
        lab.until(10 * S, "it answers", |_| tags().contains("grading"));
        write(&file, "no-mdns = true\ntag = ['blue']\n");
        sh(&format!("kill -HUP {}", node.id()));
        lab.throughout(2 * S, "it goes on as it was", |_| {
            tags().contains("grading") && !tags().contains("blue")
        });
        sh(&format!("kill -TERM {}", node.id()));
        assert!(node.wait().unwrap().success());
    });
}

#[test]
fn a_node_whose_terminal_is_gone_leaves() {
    scenario("a_node_whose_terminal_is_gone_leaves", |lab| {
        if !Path::new("/usr/bin/script").exists() {
            println!("skipped: a_node_whose_terminal_is_gone_leaves: needs script(1) for a terminal");
            assert!(std::env::var("LAB").as_deref() != Ok("full"), "LAB=full, and there is no script(1)");
            return;
        }
        let watcher =
            lab.start(None, "watcher", 7510, &["--http", "127.0.0.1:7510", "--name", "watcher", "--no-mdns"]);
        lab.until(5 * S, "it answers", |lab| lab.sees(watcher, "watcher").is_some());
        let state = lab.dir().join("m1");
        let plain = lab.command(None, "m1", &[]);
        let line = format!(
            "{} --name m1 --no-mdns --data-dir {}",
            Path::new(plain.get_program()).display(),
            state.display()
        );
        let mut command = Command::new("script");
        command.args(["-qec", &line, "/dev/null"]);
        let mut terminal =
            command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        lab.until(10 * S, "they see each other", |lab| lab.sees(watcher, "m1").as_deref() == Some("alive"));
        let pid = fs::read_to_string(state.join("lock")).unwrap();
        sh(&format!("kill -HUP {}", pid.trim()));
        lab.until(5 * S, "it has left", |lab| lab.sees(watcher, "m1").as_deref() == Some("left"));
        assert!(terminal.wait().unwrap().success(), "it ended well");
    });
}
