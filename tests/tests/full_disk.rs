//! Full disks: a node that starts on one is discovered, is read, and writes again when there is room.

#![allow(clippy::unwrap_used)]

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use hearsay_tests::{Cluster, Host, Lab, NodeRef, http::send, scenario, sh};
use rusqlite::config::DbConfig;
use serde_json::json;

const S: Duration = Duration::from_secs(1);

/// A node whose state is on a disk of 2 MB.
struct Small {
    host: Host,
    disk: PathBuf,
    node: NodeRef,
    /// Acknowledged students.
    written: usize,
}

impl Small {
    fn start(lab: &mut Lab, name: &str, roles: &str) -> Self {
        let host = lab.host();
        let disk = lab.dir().join(name);
        fs::create_dir_all(&disk).unwrap();
        sh(&format!("mount -t tmpfs -o size=2m none {}", disk.display()));
        let node = start(lab, &host, name, roles);
        let small = Self { host, disk, node, written: 0 };
        small.is_up(lab);
        small
    }

    fn is_up(&self, lab: &Lab) {
        lab.until(10 * S, "it is ready", |lab| {
            lab.text(self.node, "/readyz").is_some_and(|text| text.contains("ready"))
        });
    }

    fn restart(&mut self, lab: &mut Lab, roles: &str) {
        let name = lab.name_of(self.node);
        self.node = start(lab, &self.host, &name, roles);
        self.is_up(lab);
    }

    fn post(&self, lab: &Lab) -> u16 {
        let student = json!({ "firstName": "A", "lastName": format!("{}", self.written) }).to_string();
        let headers = [("content-type", "application/json")];
        send(lab.address(self.node), "POST /students", &headers, &student, 8 * S).unwrap().status
    }

    fn write(&mut self, lab: &Lab, count: usize) {
        for _ in 0..count {
            assert_eq!(self.post(lab), 201);
            self.written += 1;
        }
    }

    /// Returns the number of students that a node serves.
    fn served(&self, lab: &Lab, node: NodeRef) -> Option<usize> {
        let reply = send(lab.address(node), "GET /students/export", &[], "", 5 * S).ok()?;
        (reply.status == 200).then(|| reply.body.lines().count() - 1)
    }

    /// Fills the disk.
    fn fill(&self) {
        let mut ballast = File::options().create(true).append(true).open(self.disk.join("ballast")).unwrap();
        while ballast.write_all(&[0; 4096]).is_ok() {}
        let left = fs::write(self.disk.join("probe"), [0; 4096]);
        fs::remove_file(self.disk.join("probe")).unwrap();
        assert!(left.is_err(), "the disk is full");
    }

    fn make_room(&self) {
        fs::remove_file(self.disk.join("ballast")).unwrap();
    }

    fn file(&self, name: &str) -> PathBuf {
        self.disk.join("hearsay/default/0").join(name)
    }

    fn is_read_only(&self, lab: &Lab) -> Option<bool> {
        let metrics = lab.text(self.node, "/metrics")?;
        let line =
            metrics.lines().find_map(|l| l.strip_prefix("hearsay_journal_read_only{topic=\"grading\"} "))?;
        Some(line == "1")
    }

    /// The node is discovered and read, refuses writes, and accepts them again once there is room.
    fn serves_full_and_recovers(&mut self, lab: &mut Lab, other: NodeRef) {
        let name = lab.name_of(self.node);
        lab.until(10 * S, "others find it", |lab| lab.providers(other).contains(&name));
        assert_eq!(self.served(lab, self.node), Some(self.written), "{}", lab.log(self.node));
        assert_eq!(self.post(lab), 507);
        self.make_room();
        lab.until(10 * S, "it writes again", |lab| self.post(lab) == 201);
        self.written += 1;
        assert_eq!((self.served(lab, self.node), self.is_read_only(lab)), (Some(self.written), Some(false)));
    }

    /// Its databases verify afterwards.
    fn end(self, lab: &mut Lab) {
        lab.crash(self.node);
        let mut verify = lab.command(None, "verify", &["journal", "verify"]);
        let verified = verify.arg(self.file("journal")).output().unwrap();
        assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
        sh(&format!("umount -l {}", self.disk.display()));
    }
}

fn start(lab: &mut Lab, host: &Host, name: &str, roles: &str) -> NodeRef {
    lab.start(Some(host), name, 7500, &["--role", roles, "--name", name])
}

fn plain(lab: &mut Lab) -> NodeRef {
    let host = lab.host();
    lab.start(Some(&host), "plain", 7500, &["--name", "plain"])
}

#[test]
fn a_node_that_is_restarted_on_a_full_disk_is_found_read_and_writes_again_when_there_is_room() {
    scenario(
        "a_node_that_is_restarted_on_a_full_disk_is_found_read_and_writes_again_when_there_is_room",
        |lab| {
            let other = plain(lab);
            let mut small = Small::start(lab, "small", "grading");
            let mut incarnation = fs::read_to_string(small.file("incarnation")).unwrap();
            for signal in ["TERM", "KILL"] {
                small.write(lab, 20);
                lab.signal(small.node, signal);
                lab.ended(small.node, 5 * S);
                small.fill();
                small.restart(lab, "grading");
                // An earlier incarnation that returns must not use this number again.
                let now = fs::read_to_string(small.file("incarnation")).unwrap();
                assert!(now.trim().parse::<u64>().unwrap() > incarnation.trim().parse().unwrap());
                incarnation = now;
                small.serves_full_and_recovers(lab, other);
            }
            small.end(lab);
        },
    );
}

#[test]
fn a_database_that_cannot_be_opened_for_writing_is_read_and_passed_on_until_there_is_room() {
    scenario(
        "a_database_that_cannot_be_opened_for_writing_is_read_and_passed_on_until_there_is_room",
        |lab| {
            let other = plain(lab);
            let mut small = Small::start(lab, "small", "grading");
            let log = small.file("journal/grading.db-wal");
            for is_in_log in [true, false] {
                small.write(lab, 20);
                if !is_in_log {
                    lab.until(20 * S, "the log is empty", |_| log.metadata().unwrap().len() == 0);
                }
                lab.crash(small.node);
                assert_eq!(log.metadata().unwrap().len() > 0, is_in_log);
                // The state that a node leaves when it closes its database.
                fs::remove_file(small.file("journal/grading.db-shm")).unwrap();
                small.fill();
                small.restart(lab, "grading");
                assert_eq!(small.is_read_only(lab), Some(true), "{}", lab.log(small.node));
                // A replica with room gets all entries.
                let name = format!("twin-{is_in_log}");
                let host = lab.host();
                let twin = start(lab, &host, &name, "grading");
                lab.until(20 * S, "the other replica has all", |lab| {
                    small.served(lab, twin) == Some(small.written)
                });
                lab.leave(twin);
                lab.until(10 * S, "it is alone again", |lab| lab.providers(small.node) == ["small"]);
                small.serves_full_and_recovers(lab, other);
            }
            small.end(lab);
        },
    );
}

#[test]
fn a_topic_without_a_database_waits_for_room_and_holds_up_nothing_else() {
    scenario("a_topic_without_a_database_waits_for_room_and_holds_up_nothing_else", |lab| {
        let other = plain(lab);
        let mut small = Small::start(lab, "small", "grading");
        small.write(lab, 20);
        lab.crash(small.node);
        small.fill();
        small.restart(lab, "grading,log");
        let text = [("content-type", "text/plain")];
        let log = |lab: &Lab, request: &str, body: &str| {
            send(lab.address(small.node), request, &text, body, 8 * S).unwrap()
        };
        assert_eq!(log(lab, "POST /log", "hello").status, 507);
        let page = log(lab, "GET /log", "");
        assert!(page.status == 503 && page.body.contains("full"), "{}", page.body);
        small.serves_full_and_recovers(lab, other);
        let log = |lab: &Lab, request: &str, body: &str| {
            send(lab.address(small.node), request, &text, body, 8 * S).unwrap()
        };
        lab.until(10 * S, "the log is there", |lab| log(lab, "POST /log", "hello").status < 300);
        assert!(log(lab, "GET /log", "").body.contains("hello"));
        small.end(lab);
    });
}

#[test]
fn tables_of_an_earlier_version_are_rebuilt_once_there_is_room() {
    scenario("tables_of_an_earlier_version_are_rebuilt_once_there_is_room", |lab| {
        let other = plain(lab);
        let mut small = Small::start(lab, "small", "grading");
        small.write(lab, 20);
        lab.crash(small.node);
        // The change stays in the write-ahead log: pages in the file have checksums, which only a node
        // writes.
        let db = rusqlite::Connection::open(small.file("journal/grading.db")).unwrap();
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).unwrap();
        db.execute("UPDATE journal_meta SET value = 0 WHERE name = 'projection'", []).unwrap();
        drop(db);
        small.fill();
        small.restart(lab, "grading");
        lab.until(10 * S, "others find it", |lab| lab.providers(other).contains(&"small".to_owned()));
        let book = send(lab.address(small.node), "GET /students", &[], "", 5 * S).unwrap();
        assert!(book.status == 503 && book.body.contains("once there is room"), "{}", book.body);
        assert_eq!((small.post(lab), small.is_read_only(lab)), (507, Some(true)));
        small.make_room();
        lab.until(10 * S, "the book is back", |lab| small.served(lab, small.node) == Some(small.written));
        small.write(lab, 1);
        small.end(lab);
    });
}

#[test]
fn a_first_start_on_a_full_disk_names_the_path_and_what_to_do() {
    scenario("a_first_start_on_a_full_disk_names_the_path_and_what_to_do", |lab| {
        let disk: &Path = &lab.dir().join("full");
        fs::create_dir_all(disk).unwrap();
        sh(&format!("mount -t tmpfs -o size=64k none {}", disk.display()));
        let mut ballast = File::create(disk.join("ballast")).unwrap();
        while ballast.write_all(&[0; 4096]).is_ok() {}
        let mut node =
            lab.command(None, "full", &["--role", "grading", "--http", "127.0.0.1:0", "--data-dir"]);
        let ended = node.arg(disk.join("data")).output().unwrap();
        let told = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{told}");
        assert!(told.contains(&disk.join("data/node.key").display().to_string()), "{told}");
        assert!(told.contains("what to do: free some space") && told.contains("--data-dir"), "{told}");
        sh(&format!("umount -l {}", disk.display()));
    });
}
