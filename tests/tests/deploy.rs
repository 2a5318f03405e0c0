//! Tests of the files in `deploy`: systemd is notified, only the unit's group reaches the socket, alert rules
//! and dashboards name metrics that exist, containers are limited, and the SBOM is complete.

// In a test, a failed unwrap is the failure.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    fs,
    os::unix::{fs::MetadataExt as _, net::UnixDatagram},
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use hearsay_tests::{Cluster as _, scenario, sh};
use serde_json::{Value, json};

const S: Duration = Duration::from_secs(1);

#[test]
fn systemd_hears_that_a_node_is_ready_that_it_lives_and_that_it_stops() {
    scenario("systemd_hears_that_a_node_is_ready_that_it_lives_and_that_it_stops", |lab| {
        let path = lab.dir().join("notify");
        let systemd = UnixDatagram::bind(&path).unwrap();
        systemd.set_read_timeout(Some(10 * S)).unwrap();
        let heard = || {
            let mut message = [0; 1024];
            let length = systemd.recv(&mut message).expect("it is told within ten seconds");
            String::from_utf8_lossy(&message[..length]).into_owned()
        };
        let binary = std::env::var_os("NODE_BIN").unwrap();
        lab.use_binary(&binary, &[("NOTIFY_SOCKET", path.to_str().unwrap()), ("WATCHDOG_USEC", "300000")]);
        let node = lab.start(None, "m1", 7500, &["--no-mdns", "--name", "m1"]);
        assert_eq!(heard(), "READY=1\nSTATUS=serves as m1\n");
        assert!(lab.get(node, "/members").is_some(), "ready is when it answers");
        for _ in 0..3 {
            assert_eq!(heard(), "WATCHDOG=1\n");
        }
        // A stopped node sends no watchdog notification, and its supervisor kills it.
        lab.signal(node, "STOP");
        systemd.set_nonblocking(true).unwrap();
        while systemd.recv(&mut [0; 1024]).is_ok() {}
        systemd.set_nonblocking(false).unwrap();
        systemd.set_read_timeout(Some(S)).unwrap();
        assert!(systemd.recv(&mut [0; 1024]).is_err(), "a sign of life of a node that stands still");
        lab.signal(node, "CONT");
        lab.signal(node, "TERM");
        systemd.set_read_timeout(Some(10 * S)).unwrap();
        while heard() != "STOPPING=1\nSTATUS=leaving\n" {}
        assert!(lab.ended(node, 15 * S).success());
    });
}

/// Reads a file of this repository.
fn project_file(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)).unwrap()
}

/// Reads a setting of the packaged unit.
fn setting(name: &str) -> String {
    let unit = project_file("deploy/systemd/hearsay@.service");
    let value = unit.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    value.unwrap_or_else(|| panic!("the unit does not set {name}")).to_owned()
}

/// Runs shell commands as a user in these groups, with `node` on the path.
fn as_user(bin: &Path, uid: u32, groups: &str, commands: &str) -> Output {
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("setpriv");
    command.args([&format!("--reuid={uid}"), &format!("--regid={uid}"), groups, "sh", "-euc", commands]);
    command.current_dir("/").env("PATH", path).env("HOME", "/nonexistent").env_remove("XDG_RUNTIME_DIR");
    command.env("NO_COLOR", "1").output().unwrap()
}

#[test]
fn members_of_the_group_reach_the_socket_of_a_packaged_node_and_others_do_not() {
    scenario("members_of_the_group_reach_the_socket_of_a_packaged_node_and_others_do_not", |lab| {
        const NODE: u32 = 65_001;
        const MEMBER: u32 = 65_002;
        const STRANGER: u32 = 65_003;
        let machine = lab.dir().join("machine");
        let bin = machine.join("bin");
        fs::create_dir_all(&bin).unwrap();
        // The state that the package and systemd create for the unit; /etc/group and /run are private to this
        // scenario.
        let (group, runtime, mode) =
            (setting("Group"), setting("RuntimeDirectory"), setting("RuntimeDirectoryMode"));
        // `process` checks also read /proc outside of /proc/PID, which this option hides.
        let unit = project_file("deploy/systemd/hearsay@.service");
        assert!(!unit.lines().any(|line| line.starts_with("ProcSubset=")));
        assert_eq!((setting("User"), runtime.as_str()), (group.clone(), "hearsay"));
        assert!(
            project_file("docs/production.md").contains(&format!("(mode {})", mode.trim_start_matches('0')))
        );
        let groups = machine.join("group").display().to_string();
        let state = machine.join("state").display().to_string();
        sh(&format!(
            "cp /etc/group {groups} && echo '{group}:x:{NODE}:' >>{groups} && mount --bind {groups} /etc/group"
        ));
        sh(&format!("mount -t tmpfs none /run && install -d -m {mode} -o {NODE} -g {NODE} /run/{runtime}"));
        sh(&format!(
            "install -d -m 700 -o {NODE} -g {NODE} {state} && cp \"$NODE_BIN\" {}/node",
            bin.display()
        ));
        let start = format!(
            "#!/bin/sh\numask {}\nexec setpriv --reuid={NODE} --regid={NODE} --clear-groups {}/node \"$@\"\n",
            setting("UMask"),
            bin.display()
        );
        fs::write(machine.join("start"), start).unwrap();
        sh(&format!("chmod 755 {}", machine.join("start").display()));
        lab.use_binary(machine.join("start").as_os_str(), &[]);
        let node = lab.start(None, "m1", 7500, &["--no-mdns", "--name", "m1", "--data-dir", &state]);
        lab.until(10 * S, "it answers", |lab| lab.get(node, "/members").is_some());
        let socket = Path::new("/run/hearsay/default-7500.sock");
        let file = fs::metadata(socket).unwrap();
        assert_eq!((file.mode() & 0o777, file.gid()), (0o660, NODE));
        // The commands of the page, by a member of the group.
        let page = project_file("docs/register.md");
        let section = page.split("## The Unix socket").nth(1).unwrap();
        let commands = section.split("```sh\n").nth(1).unwrap().split("```").next().unwrap();
        let member = format!("--groups={NODE}");
        let said = as_user(&bin, MEMBER, &member, commands);
        let words = String::from_utf8_lossy(&said.stdout);
        assert!(said.status.success() && words.matches("m1").count() >= 2, "{commands}\n{said:?}");
        // Over HTTP on loopback a `process` check is refused, so the command line used the socket.
        let registered = as_user(&bin, MEMBER, &member, "node register worker --check process=$$");
        assert!(registered.status.success(), "{registered:?}");
        assert!(!as_user(&bin, MEMBER, &member, "touch /run/hearsay/other.sock").status.success());
        let connect = format!("curl -sS --unix-socket {} http://localhost/livez", socket.display());
        let refused = as_user(&bin, STRANGER, "--clear-groups", &connect);
        assert!(!refused.status.success(), "{refused:?}");
        lab.leave(node);
        assert!(!socket.exists() && Path::new("/run/hearsay").is_dir());
    });
}

#[test]
fn the_package_ships_the_settings_of_tools_as_the_page_names_them() {
    let manifest = project_file("node/Cargo.toml");
    let assets = manifest.split("\nassets = [\n").nth(1).unwrap().split("\n]").next().unwrap();
    let page = project_file("docs/tools.md");
    assert!(assets.contains("[\"../docs/tools.md\", \"usr/share/doc/hearsay/\", \"644\"]"));
    assert!(page.contains("/usr/share/doc/hearsay"));
    for (folder, count) in [("dns", 6), ("envoy", 1), ("grpc", 1)] {
        let asset = format!("[\"../deploy/{folder}/*\", \"usr/share/doc/hearsay/{folder}/\", \"644\"]");
        assert!(assets.contains(&asset), "{asset}");
        assert!(
            project_file("deploy/check").contains(&format!("deploy/{folder}/*")),
            "the package is looked into"
        );
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy").join(folder);
        let files: Vec<_> = fs::read_dir(path).unwrap().map(|file| file.unwrap().file_name()).collect();
        assert!(files.len() >= count, "{files:?}");
        for file in files {
            let file = file.to_str().unwrap().to_owned();
            assert!(page.contains(&format!("deploy/{folder}/{file}")), "{file}");
        }
    }
}

/// Returns the names of a node's metrics in a text.
fn figures(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !(c.is_ascii_lowercase() || c == '_' || c == ':'));
    words.filter(|word| word.starts_with("hearsay_")).collect()
}

#[test]
fn what_is_watched_is_what_a_node_tells() {
    scenario("what_is_watched_is_what_a_node_tells", |lab| {
        let node = lab.start(None, "m1", 7500, &["--no-mdns", "--role", "log,grading,visits,portal,gateway"]);
        // The driver copies its counters once a second; HTTP may answer before the first copy.
        lab.until(5 * S, "its driver has told its counters", |lab| {
            lab.text(node, "/metrics").is_some_and(|metrics| metrics.contains("hearsay_lateness_seconds"))
        });
        let metrics = lab.text(node, "/metrics").unwrap();
        // Samples only: the help line of a counter leaves out the suffix of its name.
        let told: BTreeSet<&str> =
            metrics.lines().filter(|line| !line.starts_with('#')).flat_map(figures).collect();
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
        for file in ["prometheus/rules.yml", "prometheus/rules.test.yml", "grafana/dashboards/hearsay.json"] {
            let text = fs::read_to_string(deploy.join(file)).unwrap();
            let watched = figures(&text);
            assert!(watched.len() >= 10, "{file}: {watched:?}");
            let unknown: Vec<_> = watched.difference(&told).collect();
            assert!(unknown.is_empty(), "{file} asks for what no node tells: {unknown:?}");
        }
    });
}

/// Returns the named blocks of a YAML mapping under a key. Sufficient for files of this repository, which are
/// indented by two.
fn blocks_under(text: &str, key: &str) -> Vec<(String, String)> {
    let body = text.split(&format!("\n{key}:\n")).nth(1).unwrap();
    let mut blocks: Vec<(String, String)> = Vec::new();
    for line in body.lines().take_while(|line| line.is_empty() || line.starts_with(' ')) {
        match line.strip_prefix("  ").filter(|rest| !rest.starts_with([' ', '#'])) {
            Some(name) => blocks.push((name.trim_end_matches(':').to_owned(), String::new())),
            None => {
                if let Some((_, block)) = blocks.last_mut() {
                    block.push_str(line);
                    block.push('\n');
                }
            }
        }
    }
    blocks
}

#[test]
fn every_container_is_bounded_and_may_do_no_more_than_it_has_to() {
    let file = project_file("deploy/compose.yaml");
    let services = blocks_under(&file, "services");
    let names: Vec<_> = services.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["log", "grading", "visits", "portal", "gateway", "prometheus", "grafana"]);
    let node = file.split("\nx-node: &node\n").nth(1).unwrap().split("\n\n").next().unwrap();
    let hardened = file.split("\nx-hardened: &hardened\n").nth(1).unwrap().split("\n\n").next().unwrap();
    for line in ["read_only: true", "cap_drop: [ALL]", "security_opt: [\"no-new-privileges:true\"]"] {
        assert!(hardened.contains(line), "{line}");
    }
    for (name, block) in &services {
        let own = if block.contains("<<: *node") { format!("{block}{node}") } else { block.clone() };
        for line in ["<<: *hardened", "mem_limit: ${", "pids_limit: "] {
            assert!(own.contains(line), "{name} has no {line}");
        }
    }
    let (_, grafana) = services.last().unwrap();
    for line in
        ["DISABLE_INITIAL_ADMIN_CREATION: \"true\"", "BASIC_ENABLED: \"false\"", "LOGIN_FORM: \"true\""]
    {
        assert!(grafana.contains(line), "{line}");
    }
}

#[test]
fn the_bill_of_materials_lists_what_the_node_is_made_of() {
    if !Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success()) {
        println!("skipped: the bill of materials needs python3");
        assert!(std::env::var("LAB").as_deref() != Ok("full"), "LAB=full, and there is no python3");
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let write = || {
        let output = Command::new("deploy/sbom").current_dir(&root).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    let text = write();
    assert_eq!(text, write(), "equal trees make equal files");
    let bom: Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(
        (&bom["bomFormat"], &bom["specVersion"], &bom["version"]),
        (&json!("CycloneDX"), &json!("1.5"), &json!(1))
    );
    let serial = bom["serialNumber"].as_str().unwrap();
    assert!(serial.starts_with("urn:uuid:") && serial.len() == 45, "{serial}");
    let node = &bom["metadata"]["component"];
    assert_eq!((&node["type"], &node["name"]), (&json!("application"), &json!("hearsay-node")));
    let components = bom["components"].as_array().unwrap();
    let mut references = BTreeSet::from([node["bom-ref"].as_str().unwrap()]);
    for component in components {
        let (name, version) = (component["name"].as_str().unwrap(), component["version"].as_str().unwrap());
        assert_eq!(component["type"], "library", "{name}");
        assert_eq!(component["purl"], format!("pkg:cargo/{name}@{version}"));
        assert!(component["licenses"][0]["expression"].is_string(), "{name} has no licence");
        assert!(references.insert(component["bom-ref"].as_str().unwrap()), "{name} {version} twice");
        let is_ours = name.starts_with("hearsay-");
        let hash = component["hashes"][0]["content"].as_str().unwrap_or_default();
        let is_hash = hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        assert!(is_hash != is_ours, "{name} {version}: {hash:?}");
    }
    let scope =
        |name: &str| components.iter().find(|c| c["name"] == name).map(|c| c["scope"].as_str().unwrap());
    for name in ["libp2p", "tokio", "rusqlite", "hearsay-protocol", "hearsay-services", "hearsay-gateway"] {
        assert_eq!(scope(name), Some("required"), "{name}");
    }
    assert_eq!(scope("paste"), Some("excluded"), "as deny.toml says");
    assert_eq!(scope("chitchat"), None, "what only tests use");
    let dependencies = bom["dependencies"].as_array().unwrap();
    assert_eq!(dependencies.len(), references.len());
    for dependency in dependencies {
        let others = dependency["dependsOn"].as_array().unwrap().iter();
        let all: Vec<_> = others.chain([&dependency["ref"]]).filter_map(Value::as_str).collect();
        assert!(all.iter().all(|reference| references.contains(reference)), "{dependency}");
    }
}
