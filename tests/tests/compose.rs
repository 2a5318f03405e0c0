//! `deploy/compose.yaml` in real containers: they find each other, survive failures, and lose no write.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use hearsay_tests::{Browser, Compose, Container, docker, get, http};
use serde_json::{Value, json};

const S: Duration = Duration::from_secs(1);
/// Largest size of the image.
const IMAGE_BYTES_MAX: u64 = 25_000_000;
/// Largest memory of an idle node.
const IDLE_KB_MAX: u64 = 20_000;
/// Services that all containers offer together.
const ALL: [(&str, usize); 5] = [("gateway", 1), ("grading", 3), ("log", 1), ("portal", 1), ("visits", 1)];

/// Returns the number of instances of each service that a node lists.
fn offered(node: SocketAddr) -> Option<BTreeMap<String, usize>> {
    let services = get(node, "/services")?["services"].take();
    let count = |(name, instances): (&String, &Value)| Some((name.clone(), instances.as_array()?.len()));
    services.as_object()?.iter().map(count).collect()
}

/// Returns whether every container's node lists all services, with this many instances of grading.
fn all_see_all(containers: &[Container], grading: usize) -> bool {
    let mut expected: BTreeMap<String, usize> =
        ALL.iter().map(|(n, count)| ((*n).to_owned(), *count)).collect();
    expected.insert("grading".to_owned(), grading);
    containers.iter().filter(|c| c.pid != 0).all(|c| c.http.and_then(offered).as_ref() == Some(&expected))
}

/// Returns the states in which a node sees the members of a role, sorted.
fn states(node: SocketAddr, role: &str) -> Vec<String> {
    let members = get(node, "/members").unwrap_or_default();
    let of_role = members["members"].as_array().into_iter().flatten().filter(|m| m["roles"] == json!([role]));
    let mut states: Vec<String> =
        of_role.map(|m| m["state"].as_str().unwrap_or_default().to_owned()).collect();
    states.sort();
    states
}

/// Returns the titles of a student's grades in the grade book.
fn titles(node: SocketAddr) -> Option<Vec<String>> {
    let student = get(node, "/students/3")?;
    Some(student["grades"].as_array()?.iter().filter_map(|g| g["title"].as_str().map(Into::into)).collect())
}

/// Reads and writes through the gateway, one request after another, until it is stopped.
#[derive(Default)]
struct Clients {
    stop: AtomicBool,
    reads: AtomicU32,
    failed: Mutex<Vec<String>>,
    acknowledged: Mutex<Vec<String>>,
}

impl Clients {
    fn read(&self, gateway: SocketAddr) {
        while !self.stop.load(Ordering::Relaxed) {
            let reply = http::send(gateway, "GET /students/3", &[], "", 5 * S);
            self.reads.fetch_add(1, Ordering::Relaxed);
            if !matches!(&reply, Ok(reply) if reply.status == 200) {
                self.failed.lock().expect("no panic before").push(format!("{reply:?}"));
            }
        }
    }

    fn write(&self, gateway: SocketAddr) {
        let mut number = 0;
        while !self.stop.load(Ordering::Relaxed) {
            number += 1;
            let title = format!("Grade {number}");
            let body = json!({ "title": title, "type": "Quiz", "score": 50 }).to_string();
            let headers = [("content-type", "application/json")];
            let reply = http::send(gateway, "POST /students/3/grades", &headers, &body, 5 * S);
            if reply.is_ok_and(|reply| reply.status == 201) {
                self.acknowledged.lock().expect("no panic before").push(title);
            }
        }
    }

    /// Stops the clients when this is dropped, also after a failed assertion.
    fn until_dropped(&self) -> impl Drop + use<'_> {
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        Stop(&self.stop)
    }

    fn acknowledged(&self) -> usize {
        self.acknowledged.lock().expect("no panic before").len()
    }
}

/// A person adds a grade on the published portal.
fn save_a_grade_by_hand(compose: &Compose) {
    if !Browser::is_there() {
        return;
    }
    let profile = std::env::temp_dir().join(format!("hearsay-compose-{}", std::process::id()));
    let mut browser = Browser::start(&profile);
    browser.view(1280, false);
    browser.go(&format!("http://{}/portal", compose.portal));
    browser.click("link", "Emma Stone");
    browser.until(5 * S, "her page", "document.querySelector('h1').textContent === 'Emma Stone'");
    browser.fill("Title", "By hand");
    browser.fill("Score 0 to 100", "91");
    browser.click("button", "Add grade");
    browser.until(5 * S, "it is saved", "document.body.innerText.includes('The grade is saved.')");
    drop(browser);
    _ = fs::remove_dir_all(profile);
    compose.until(5 * S, "it is on every grading node", |containers| {
        let grading = containers.iter().filter(|c| c.service == "grading");
        grading
            .filter_map(|c| titles(c.http?))
            .filter(|titles| titles.contains(&"By hand".to_owned()))
            .count()
            == 3
    });
}

/// A grading container is killed while clients read and write through the gateway.
fn kill_one(compose: &Compose) {
    let clients = Clients::default();
    std::thread::scope(|scope| {
        let _stop = clients.until_dropped();
        scope.spawn(|| clients.read(compose.gateway));
        scope.spawn(|| clients.write(compose.gateway));
        compose.until(10 * S, "they are at it", |_| clients.acknowledged() >= 20);
        let victim = compose.of("grading").pop().expect("there are three");
        docker(&["kill", &victim.name]);
        let (reads, writes) = (clients.reads.load(Ordering::Relaxed), clients.acknowledged());
        compose.until(10 * S, "they go on", |_| {
            clients.reads.load(Ordering::Relaxed) > reads + 200 && clients.acknowledged() > writes + 20
        });
    });
    let failed = clients.failed.into_inner().expect("no panic before");
    assert!(failed.is_empty(), "of {:?} reads failed: {failed:?}", clients.reads);
    let acknowledged = clients.acknowledged.into_inner().expect("no panic before");
    println!("{:?} reads, none failed; {} grades acknowledged", clients.reads, acknowledged.len());
    compose.scale("grading", 3);
    compose.until(10 * S, "all three have every grade", |containers| {
        let all = |titles: Vec<String>| acknowledged.iter().all(|title| titles.contains(title));
        let grading = containers.iter().filter(|c| c.service == "grading");
        grading.filter_map(|c| titles(c.http?)).filter(|titles| all(titles.clone())).count() == 3
    });
}

/// A container loses its network and gets it back.
fn cut_off(compose: &Compose) {
    let away = compose.of("grading").pop().expect("there are three");
    let log = compose.of("log").pop().and_then(|c| c.http).expect("it has an address");
    docker(&["network", "disconnect", &compose.network(), &away.name]);
    compose.until(5 * S, "it is missed", |_| states(log, "grading").contains(&"failed".to_owned()));
    docker(&["network", "connect", &compose.network(), &away.name]);
    compose.until(10 * S, "all see all again", |containers| all_see_all(containers, 3));
    compose.until(10 * S, "all know the same", |containers| {
        let root = |c: &Container| Some(get(c.http?, "/members")?["rootHash"].to_string());
        let roots: Vec<Option<String>> = containers.iter().map(root).collect();
        roots.iter().all(|root| root.is_some() && *root == roots[0])
    });
}

/// No container was restarted, none logged an error, and all were healthy.
fn nothing_went_wrong(compose: &Compose) {
    for container in compose.containers() {
        assert_eq!(container.restarts, 0, "{}", container.name);
        let log = compose.log(&container);
        let errors: Vec<&str> = log.lines().filter(|line| line.contains("\"level\":\"ERROR\"")).collect();
        assert!(errors.is_empty(), "{}: {errors:#?}", container.name);
    }
}

#[test]
fn containers_find_each_other_by_mdns_and_lose_nothing() {
    if !Compose::is_there("containers_find_each_other_by_mdns_and_lose_nothing") {
        return;
    }
    let compose = Compose::up(&["compose.yaml"]);
    compose.until(10 * S, "all see all", |containers| containers.len() == 7 && all_see_all(containers, 3));
    compose.until(20 * S, "all are healthy", |containers| containers.iter().all(|c| c.is_healthy));
    for container in compose.containers() {
        let status = fs::read_to_string(format!("/proc/{}/status", container.pid)).expect("it runs here");
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let resident = resident.and_then(|kb| kb.trim().trim_end_matches(" kB").parse::<u64>().ok());
        let resident = resident.expect("the kernel tells");
        assert!(resident < IDLE_KB_MAX, "{}: {resident} kB", container.name);
        assert!(status.contains("\nUid:\t65532\t"), "{} runs as another user", container.name);
    }
    let image = std::env::var("HEARSAY_IMAGE").expect("looked for before");
    let size: u64 =
        docker(&["image", "inspect", "--format", "{{.Size}}", &image]).trim().parse().expect("a number");
    assert!(size < IMAGE_BYTES_MAX, "the image has {size} bytes");
    let published = compose.containers().into_iter().map(|c| docker(&["port", &c.name]));
    assert_eq!(
        published.filter(|ports| !ports.is_empty()).count(),
        2,
        "the portal's and the gateway's ports"
    );

    save_a_grade_by_hand(&compose);
    kill_one(&compose);
    compose.scale("grading", 6);
    compose.until(10 * S, "six of grading", |containers| all_see_all(containers, 6));
    compose.scale("grading", 3);
    compose.until(10 * S, "three of grading", |containers| all_see_all(containers, 3));
    let log = compose.of("log").pop().and_then(|c| c.http).expect("it has an address");
    compose.until(5 * S, "those that are gone said so", |_| {
        states(log, "grading") == ["alive", "alive", "alive", "left", "left", "left"]
    });
    cut_off(&compose);

    compose.run(&["stop", "grading", "visits"]);
    let gone = |role| states(log, role).iter().all(|state| state == "left");
    compose.until(5 * S, "a stopping container says so", |_| gone("grading") && gone("visits"));
    compose.run(&["stop"]);
    for container in compose.containers() {
        assert_eq!(container.exit_code, 0, "{} did not leave: {}", container.name, compose.log(&container));
    }
    nothing_went_wrong(&compose);
}

#[test]
fn containers_find_each_other_by_name() {
    if !Compose::is_there("containers_find_each_other_by_name") {
        return;
    }
    let compose = Compose::up(&["compose.yaml", "compose.join.yaml"]);
    compose.until(10 * S, "all see all", |containers| containers.len() == 7 && all_see_all(containers, 3));
    nothing_went_wrong(&compose);
}
