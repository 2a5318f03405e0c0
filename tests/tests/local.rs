//! Tests of attacks by other users of a node's machine: they cannot read or change its data directory, or
//! keep a port from it (`docs/security.md`).

// In a test, a failed unwrap is the failure.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    net::SocketAddr,
    os::{
        linux::net::SocketAddrExt as _,
        unix::{
            fs::MetadataExt as _,
            net::{SocketAddr as UnixAddress, UnixListener},
        },
    },
    path::{Path, PathBuf},
    time::Duration,
};

use hearsay_tests::{Cluster as _, Lab, NodeRef, http::send, scenario, sh};
use rustix::{fs::Uid, thread::set_thread_res_uid};
use serde_json::json;

const S: Duration = Duration::from_secs(1);

/// Uid of the nodes' user, which owns nothing else.
const NODE: u32 = 65_534;
/// Another user of the machine.
const STRANGER: u32 = 65_533;

/// A folder in which the nodes' user may create directories, and nodes that run as that user with a
/// permissive umask.
fn machine(lab: &mut Lab) -> PathBuf {
    let machine = lab.dir().join("machine");
    fs::create_dir_all(&machine).unwrap();
    let (program, start) = (machine.join("node"), machine.join("start"));
    sh(&format!("cp \"$NODE_BIN\" {}", program.display()));
    let lines = format!(
        "#!/bin/sh\numask 000\nexec setpriv --reuid={NODE} --regid={NODE} --clear-groups {} \"$@\"\n",
        program.display()
    );
    fs::write(&start, lines).unwrap();
    sh(&format!("chmod 755 {} {}", program.display(), start.display()));
    lab.use_binary(start.as_os_str(), &[]);
    machine
}

/// Creates a directory of this user.
fn make_dir(dir: &Path, owner: u32, mode: &str) -> String {
    let dir = dir.display().to_string();
    sh(&format!("install -d -m {mode} -o {owner} -g {owner} {dir}"));
    dir
}

fn start(lab: &mut Lab, data_dir: &str) -> NodeRef {
    let arguments = ["--no-mdns", "--role", "grading,log", "--name", "m1", "--data-dir", data_dir];
    let node = lab.start(None, "m1", 7500, &arguments);
    lab.until(10 * S, "it answers", |lab| lab.get(node, "/members").is_some());
    node
}

/// Starts a node that refuses to run, and returns its error.
fn refused(lab: &mut Lab, data_dir: &str) -> String {
    let node = lab.start(None, "m2", 7500, &["--no-mdns", "--name", "m2", "--data-dir", data_dir]);
    assert_eq!(lab.ended(node, 10 * S).code(), Some(1), "{}", lab.log(node));
    let files: Vec<_> = fs::read_dir(data_dir).unwrap().flatten().map(|file| file.file_name()).collect();
    assert_eq!(files, [""; 0], "nothing was written");
    lab.log(node)
}

/// Returns the files of a tree that other users can read or write, if they can enter it at all.
fn open_to_others(dir: &Path) -> Vec<String> {
    let mut open = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        // A running node removes files meanwhile.
        let (path, Ok(found)) = (entry.path(), entry.metadata()) else { continue };
        if found.mode() & 0o077 != 0 {
            open.push(format!("{} {:o}", path.display(), found.mode() & 0o7777));
        }
        if found.is_dir() {
            open.extend(open_to_others(&path));
        }
    }
    open
}

fn can_read(user: u32, file: &Path) -> bool {
    let line =
        format!("setpriv --reuid={user} --regid={user} --clear-groups cat {} >/dev/null", file.display());
    std::process::Command::new("sh").args(["-c", &line]).output().unwrap().status.success()
}

#[test]
fn other_users_of_the_machine_read_nothing_and_change_nothing_of_a_data_dir() {
    scenario("other_users_of_the_machine_read_nothing_and_change_nothing_of_a_data_dir", |lab| {
        let machine = machine(lab);
        let by_hand = machine.join("by-hand");
        let dir = make_dir(&by_hand, NODE, "755");
        let node = start(lab, &dir);
        let student = json!({ "firstName": "Ann", "lastName": "Lee" }).to_string();
        let headers = [("content-type", "application/json")];
        let added = send(lab.address(node), "POST /students", &headers, &student, 8 * S).unwrap();
        assert_eq!(added.status, 201, "{}", added.body);
        let book = by_hand.join("journal/grading.db");
        assert!(can_read(NODE, &book) && !can_read(STRANGER, &book));
        assert_eq!(fs::metadata(&by_hand).unwrap().mode() & 0o7777, 0o700);
        lab.until_logged(5 * S, node, &["WARN", "other users could read the data directory", &dir]);
        assert_eq!(lab.logged("other users could read the data directory").len(), 1);
        lab.until(10 * S, "its events have a directory", |_| by_hand.join("events").is_dir());
        assert_eq!(open_to_others(&by_hand), [""; 0], "with the umask 000 at the start");
        lab.leave(node);

        let foreign = refused(lab, &make_dir(&machine.join("foreign"), STRANGER, "777"));
        assert!(
            foreign.contains("belongs to user 65533") && foreign.contains("runs as user 65534"),
            "{foreign}"
        );
        assert!(foreign.contains("--data-dir"), "{foreign}");
        for mode in ["777", "770", "1777"] {
            let writable = refused(lab, &make_dir(&machine.join("writable"), NODE, mode));
            assert!(writable.contains("can be written by other users"), "{writable}");
            assert!(writable.contains("chmod 700"), "{writable}");
        }
    });
}

#[test]
fn a_node_makes_its_directory_inside_a_volume_whose_root_is_open() {
    scenario("a_node_makes_its_directory_inside_a_volume_whose_root_is_open", |lab| {
        let machine = machine(lab);
        // The volume that Kubernetes prepares for `fsGroup`, as in the manifests.
        let volume = machine.join("volume");
        sh(&format!("install -d -m 2775 -o 0 -g {NODE} {}", volume.display()));
        let state = volume.join("state");
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/kubernetes/hearsay.yaml");
        let manifest = fs::read_to_string(manifest).unwrap();
        assert!(manifest.contains("HEARSAY_DATA_DIR, value: /var/lib/hearsay/state"));
        assert!(manifest.contains("mountPath: /var/lib/hearsay}"));
        for _ in 0..2 {
            let node = start(lab, &state.display().to_string());
            assert_eq!(fs::metadata(&state).unwrap().mode() & 0o777, 0o700);
            lab.leave(node);
        }
        assert_eq!(lab.logged("data directory"), [""; 0]);
        assert_eq!(open_to_others(&state), [""; 0]);
        let root = lab.start(None, "m2", 7500, &["--data-dir", &volume.display().to_string()]);
        assert!(!lab.ended(root, 10 * S).success());
        assert!(lab.log(root).contains("/volume/state"), "it says what to do: {}", lab.log(root));

        // The image: the node's user owns the state home, which all users can read; each container takes a
        // slot in it.
        let home = lab.dir().join("m3");
        make_dir(&home, NODE, "755");
        let node = lab.start(None, "m3", 7500, &["--no-mdns", "--name", "m3"]);
        lab.until(10 * S, "it answers", |lab| lab.get(node, "/members").is_some());
        let slot = home.join("hearsay/default/0");
        assert_eq!(fs::metadata(&slot).unwrap().mode() & 0o7777, 0o700);
        assert_eq!(open_to_others(&home), [""; 0]);
        lab.leave(node);
    });
}

/// Claims the abstract socket names of a swarm port, as another user.
fn claim_all(port: u16, user: u32) -> Vec<UnixListener> {
    let names = (0..).map(move |n| match n {
        0 => format!("hearsay/swarm/{port}"),
        n => format!("hearsay/swarm/{port}/{n}"),
    });
    // Credentials of a thread: the kernel records them when it listens.
    let claims = std::thread::spawn(move || {
        let user = Uid::from_raw(user);
        set_thread_res_uid(user, user, user).unwrap();
        let claim =
            |name: String| UnixListener::bind_addr(&UnixAddress::from_abstract_name(name).unwrap()).unwrap();
        names.take(20).map(claim).collect()
    });
    claims.join().unwrap()
}

#[test]
fn claims_of_another_user_keep_no_port_from_a_node() {
    scenario("claims_of_another_user_keep_no_port_from_a_node", |lab| {
        let _claims: Vec<_> = (7600..7604).flat_map(|port| claim_all(port, STRANGER)).collect();
        let swarm = |lab: &Lab, node, name: &str| {
            let members = lab.get(node, "/members")?;
            let own = members["members"].as_array()?.iter().find(|member| member["name"] == name)?;
            Some(own["addresses"].to_string())
        };
        let chosen = lab.start(None, "m1", 7500, &["--no-mdns", "--name", "m1", "--swarm", "127.0.0.1:7600"]);
        lab.until(10 * S, "it answers", |lab| lab.get(chosen, "/members").is_some());
        assert_eq!(lab.logged("the port is taken"), [""; 0]);
        let next = lab.start(None, "m2", 7501, &["--no-mdns", "--name", "m2"]);
        lab.until(10 * S, "the second one is on the next rung", |lab| {
            swarm(lab, next, "m2").is_some_and(|addresses| addresses.contains("/7601"))
        });
        // The error for a port in use names the port's user.
        let taken: SocketAddr = "127.0.0.1:7603".parse().unwrap();
        let _listener = std::net::TcpListener::bind(taken).unwrap();
        let late = lab.start(None, "m3", 7502, &["--no-mdns", "--name", "m3", "--swarm", "127.0.0.1:7603"]);
        assert!(!lab.ended(late, 10 * S).success());
        assert!(lab.log(late).contains("the port is taken by a program of user 0"), "{}", lab.log(late));
        // So does the error for a port of another node of the same user.
        let again = lab.start(None, "m4", 7502, &["--no-mdns", "--name", "m4", "--swarm", "127.0.0.1:7600"]);
        assert!(!lab.ended(again, 10 * S).success());
        assert!(lab.log(again).contains("user 0"), "{}", lab.log(again));
    });
}
