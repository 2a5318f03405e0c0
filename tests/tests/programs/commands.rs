//! `exec` checks: commands come from files only, where the node allows it, and only from files that no other
//! user may write.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt as _, chown},
    path::Path,
    process::Command,
};

use hearsay_tests::{
    Cluster as _, Lab, NodeRef,
    registry::{cluster, instances, passing},
    scenario,
};

use crate::S;

/// Another user than the node's.
const OTHER_USER: u32 = 65534;

/// Writes a file with a check whose command passes and leaves a mark each time.
fn write(dir: &Path, id: &str, mark: &Path) {
    let command = format!("['touch', '{}']", mark.display());
    let text = format!(
        "[service]\nname = 'job'\nid = '{id}'\nport = 1\n[service.check]\nexec = {command}\ninterval = '500ms'\n"
    );
    fs::write(dir.join(format!("{id}.toml")), text).unwrap();
}

/// Returns the reason why a file is not in effect, from `/registrations`.
fn problem(lab: &Lab, node: NodeRef, file: &str) -> Option<String> {
    let files = lab.get(node, "/registrations")?["files"].as_array().cloned()?;
    let file = files.iter().find(|one| one["path"].as_str().is_some_and(|path| path.ends_with(file)))?;
    Some(file["error"].as_str().unwrap_or_default().to_owned())
}

/// Returns the number of files that are not in effect, from the metrics.
fn failing(lab: &Lab, node: NodeRef) -> Option<u64> {
    let metrics = lab.text(node, "/metrics")?;
    metrics.lines().find_map(|line| line.strip_prefix("hearsay_registration_files_failing ")?.parse().ok())
}

/// Waits until a file is refused and every place that reports it does.
fn is_refused(lab: &Lab, node: NodeRef, file: &str, words: &str) {
    lab.until(10 * S, &format!("{file} is refused: {words}"), |lab| {
        // The line of the log may follow the status.
        let is_logged = lab.log(node).lines().any(|line| line.contains(file) && line.contains(words));
        problem(lab, node, file).is_some_and(|problem| problem.contains(words))
            && failing(lab, node) == Some(1)
            && is_logged
    });
}

fn is_in_effect(lab: &Lab, node: NodeRef, file: &str, service: &str) {
    lab.until(10 * S, &format!("{file} is in effect"), |lab| {
        problem(lab, node, file).as_deref() == Some("")
            && failing(lab, node) == Some(0)
            && passing(lab, node, service) == 1
    });
}

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn commands_run_only_from_files_that_no_other_user_may_write() {
    scenario("commands::commands_run_only_from_files_that_no_other_user_may_write", |lab| {
        let (dir, mark) = (lab.dir().join("services.d"), lab.dir().join("mark"));
        fs::create_dir_all(&dir).unwrap();
        mode(&dir, 0o755);
        let options = ["--services-dir", dir.to_str().unwrap()];
        let (_, off) = cluster(lab, 1, &options);
        write(&dir, "job-1", &mark);
        is_refused(lab, off[0], "job-1.toml", "--allow-exec-checks");
        assert!(instances(lab, off[0], "job").is_empty() && !mark.exists());
        lab.leave(off[0]);

        let host = lab.host();
        let allowed = [&options[..], &["--name", "m1", "--allow-exec-checks"]].concat();
        let file = dir.join("job-1.toml");
        for (what, place, wrong, right) in [
            ("file", &file, 0o664, 0o644),
            ("file", &file, 0o646, 0o644),
            ("directory", &dir, 0o775, 0o755),
            ("directory", &dir, 0o757, 0o755),
        ] {
            println!("a {what} of mode {wrong:o}");
            mode(place, wrong);
            let node = lab.start(Some(&host), "m1", 7500, &allowed);
            is_refused(lab, node, "job-1.toml", place.to_str().unwrap());
            assert!(instances(lab, node, "job").is_empty() && !mark.exists());
            // After its permissions are fixed, it is read without being written again.
            mode(place, right);
            is_in_effect(lab, node, "job-1.toml", "job");
            lab.until(10 * S, "the command runs", |_| mark.exists());
            lab.leave(node);
            fs::remove_file(&mark).unwrap();
        }
        for place in [&file, &dir] {
            chown(place, Some(OTHER_USER), None).unwrap();
            let node = lab.start(Some(&host), "m1", 7500, &allowed);
            is_refused(lab, node, "job-1.toml", place.to_str().unwrap());
            assert!(!mark.exists());
            chown(place, Some(0), None).unwrap();
            is_in_effect(lab, node, "job-1.toml", "job");
            lab.leave(node);
            fs::remove_file(&mark).unwrap();
        }
        let node = lab.start(Some(&host), "m1", 7500, &allowed);
        is_in_effect(lab, node, "job-1.toml", "job");
        // A new version that other users could have written: the last good one stays.
        let (other, new) = (lab.dir().join("other"), dir.join("job-1.new"));
        fs::write(
            &new,
            fs::read_to_string(&file).unwrap().replace(mark.to_str().unwrap(), other.to_str().unwrap()),
        )
        .unwrap();
        mode(&new, 0o666);
        fs::rename(&new, &file).unwrap();
        is_refused(lab, node, "job-1.toml", file.to_str().unwrap());
        assert!(passing(lab, node, "job") == 1 && !other.exists());
        // A file without a command may be writable by any user.
        fs::write(&file, "[service]\nname = 'job'\nid = 'job-1'\nport = 1\n").unwrap();
        is_in_effect(lab, node, "job-1.toml", "job");
        // Over HTTP no command is taken, even from this machine.
        let body = r#"{"name":"job","id":"job-2","port":1,"check":{"exec":["touch","/tmp/x"]}}"#;
        let reply = host.send(7500, "POST /services", body);
        assert!(reply.status == 400 && reply.body.contains("exec"), "{reply:?}");
        let socket = format!("unix:{}", lab.socket(node).display());
        let check = ["register", "job", "--port", "1", "--check", "exec=true", "--node", &socket];
        let refused: Command = lab.command(Some(&host), "register", &check);
        assert!(!{ refused }.output().unwrap().status.success());
    });
}
