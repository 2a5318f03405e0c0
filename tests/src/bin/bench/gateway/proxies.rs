//! The same upstreams behind each proxy in turn. The proxy has a processor of its own; what loads it and what it passes requests to share the
//! other.

use std::{collections::BTreeMap, fs, net::Ipv4Addr, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use hearsay_tests::Swarms;
use serde_json::{Value, json};

use crate::{
    dialect::get,
    gateway::{Options, paced::Paced},
    machine::{self, first_line},
    server::{Plan, Server},
    statistics::Figure,
    usage::Reading,
    wrk::{Told, Wrk},
};

/// The proxy's processor, and everybody else's.
const PROXY: usize = 0;
const OTHERS: usize = 1;
/// Instances of the upstream.
const UPSTREAMS: usize = 2;
const UPSTREAM_PORT: u16 = 9001;
const PROXY_PORT: u16 = 8080;
/// What is asked for, from each. The gateway routes by the first segment; for the others it is just a path.
const SERVICE: &str = "upstream";
/// As many connections as the gateway, nginx and HAProxy keep to each upstream.
const MANY: usize = 64;
/// How much of what nginx can do is asked for at a pace: so little that whoever asks never waits for its processor.
pub(crate) const PACE: f64 = 0.2;
/// Before what counts.
const WARM_UP: Duration = Duration::from_secs(1);
/// How long it is waited for others to leave the machine alone, before each round.
const QUIET_MAX: Duration = Duration::from_secs(10);
/// The number of the gateway's node; its swarm port must differ from those of the announcing swarms.
const NODE: usize = 10;

/// How it is asked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Asking {
    /// Each of many connections asks again when it is answered: how much it can do.
    Many,
    /// Many connections ask at a pace that does not depend on answers: how long it takes where it can do what is asked.
    Paced,
    /// One connection, where nothing queues.
    One,
}

impl Asking {
    pub(crate) const ALL: [Self; 3] = [Self::Many, Self::Paced, Self::One];

    pub(crate) fn name(self) -> String {
        match self {
            Self::Many => format!("{MANY} connections, each asking again"),
            Self::Paced => format!("{MANY} connections, at a pace"),
            Self::One => "1 connection".into(),
        }
    }
}

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Proxy {
    /// The upstream itself.
    None,
    Hearsay,
    Nginx,
    Haproxy,
}

impl Proxy {
    pub(crate) const ALL: [Self; 4] = [Self::None, Self::Hearsay, Self::Nginx, Self::Haproxy];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "direct",
            Self::Hearsay => "hearsay",
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
        }
    }

    /// What it is told of its own version by.
    pub(crate) fn version(self) -> Option<String> {
        match self {
            Self::None | Self::Hearsay => None,
            Self::Nginx => first_line("nginx", &["-v"]),
            Self::Haproxy => first_line("haproxy", &["-v"]),
        }
    }

    /// Starts it; nobody where there is none.
    fn start(self, folder: &Path) -> Result<Option<Server>> {
        let folder = folder.join(self.name());
        fs::create_dir_all(&folder)?;
        match self {
            Self::None => Ok(None),
            Self::Hearsay => {
                // Who announces the upstreams is the first of the swarms.
                let options = ["--gateway", &format!("127.0.0.1:{PROXY_PORT}")];
                let plan = Plan::new(&folder, NODE, "gateway", &[0]).on(PROXY).ephemeral().with(&options);
                let mut node = plan.start()?;
                node.until("the gateway knows the upstreams", |node| {
                    let state =
                        node.ask("GET /gateway", &[], "").map(|reply| reply.json()).unwrap_or_default();
                    state["instances"].as_array().is_some_and(|all| {
                        all.iter().filter(|one| one["service"] == SERVICE).count() == UPSTREAMS
                    })
                })?;
                Ok(Some(node))
            }
            Self::Nginx => {
                let file = configured(&folder, "nginx.conf", &nginx_proxy())?;
                let arguments = ["-p", ".", "-c", &file];
                Ok(Some(Server::start("nginx", &arguments, PROXY_PORT, &folder, Some(PROXY))?))
            }
            Self::Haproxy => {
                let file = configured(&folder, "haproxy.cfg", &haproxy())?;
                Ok(Some(Server::start("haproxy", &["-db", "-f", &file], PROXY_PORT, &folder, Some(PROXY))?))
            }
        }
    }
}

fn configured(folder: &Path, name: &str, text: &str) -> Result<String> {
    let file = folder.join(name);
    fs::write(&file, text).with_context(|| file.display().to_string())?;
    Ok(file.display().to_string())
}

/// What both configurations of nginx begin with: one process, which does nothing that it need not.
const NGINX: &str = "daemon off;\nmaster_process off;\nworker_processes 1;\npid nginx.pid;\nerror_log stderr crit;\n\
                     events { worker_connections 4096; multi_accept on; }\n";

fn nginx_upstream(port: u16) -> String {
    let body = "Nobody asks who answers, as long as somebody does. ".repeat(2);
    format!(
        "{NGINX}http {{ access_log off; keepalive_requests 1000000000; keepalive_timeout 1h; default_type text/plain;\n\
         server {{ listen 127.0.0.1:{port} backlog=4096; return 200 '{body}'; }} }}\n"
    )
}

fn nginx_proxy() -> String {
    let servers: String = upstreams().map(|port| format!("server 127.0.0.1:{port}; ")).collect();
    format!(
        "{NGINX}http {{ access_log off; keepalive_requests 1000000000; keepalive_timeout 1h;\n\
         upstream all {{ {servers}keepalive 128; keepalive_requests 1000000000; }}\n\
         server {{ listen 127.0.0.1:{PROXY_PORT} backlog=4096; location / {{ proxy_pass http://all; proxy_http_version 1.1;\n\
         proxy_set_header Connection ''; proxy_set_header Host $host; proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n\
         proxy_set_header X-Forwarded-Proto $scheme; }} }} }}\n"
    )
}

fn haproxy() -> String {
    let servers: String =
        upstreams().map(|port| format!("    server s{port} 127.0.0.1:{port} pool-max-conn 128\n")).collect();
    format!(
        "global\n    nbthread 1\n    maxconn 4096\n    tune.idle-pool.shared off\n\
         defaults\n    mode http\n    timeout client 1h\n    timeout server 1m\n    timeout connect 3s\n    option http-keep-alive\n\
         frontend front\n    bind 127.0.0.1:{PROXY_PORT}\n    option forwardfor\n    default_backend back\n\
         backend back\n    balance leastconn\n    http-reuse always\n{servers}"
    )
}

fn upstreams() -> impl Iterator<Item = u16> {
    (0..UPSTREAMS).map(|index| UPSTREAM_PORT + index as u16)
}

/// One round of a proxy.
#[derive(Clone, Debug)]
pub(crate) struct Round {
    pub(crate) told: Told,
    /// Of the proxy, for the time of the round.
    pub(crate) cpu_seconds: f64,
    pub(crate) seconds: f64,
}

/// What each proxy gave, however it was asked, round by round.
#[derive(Default)]
pub(crate) struct Figures {
    pub(crate) rounds: BTreeMap<(Asking, Proxy), Vec<Round>>,
    /// Requests a second, of whoever asks at a pace.
    pub(crate) pace: f64,
}

impl Figures {
    pub(crate) fn json(&self) -> Value {
        let round = |round: &Round| {
            json!({
                "perSecond": round.told.per_second, "p50Us": round.told.p50_us, "p99Us": round.told.p99_us, "maxUs": round.told.max_us,
                "errors": round.told.errors, "cpuSeconds": round.cpu_seconds, "seconds": round.seconds,
            })
        };
        let of = |((asking, proxy), rounds): (&(Asking, Proxy), &Vec<Round>)| {
            let rounds: Vec<_> = rounds.iter().map(round).collect();
            json!({ "proxy": proxy.name(), "asking": asking.name(), "rounds": rounds })
        };
        json!({ "pacePerSecond": self.pace, "figures": self.rounds.iter().map(of).collect::<Vec<_>>() })
    }

    /// The highest rate of all rounds: whatever else happens on the machine can only lower it.
    pub(crate) fn best(&self, asking: Asking, proxy: Proxy) -> f64 {
        let rounds = self.rounds.get(&(asking, proxy)).map(Vec::as_slice).unwrap_or_default();
        rounds.iter().map(|round| round.told.per_second).fold(0.0, f64::max)
    }

    /// The middle one of all rounds' figures.
    pub(crate) fn median(&self, asking: Asking, proxy: Proxy, of: impl Fn(&Round) -> f64) -> Option<f64> {
        let mut all: Vec<f64> = self.rounds.get(&(asking, proxy))?.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied()
    }
}

/// # Errors
/// A proxy that is installed does not start.
pub(crate) fn measure(
    options: &Options,
    folder: &Path,
    skipped: &mut Vec<String>,
) -> Result<Option<Figures>> {
    let mut skip = |what: &str, why: &str| {
        eprintln!("skipped: {what}: {why}");
        skipped.push(format!("{what}: {why}"));
    };
    let needed = [
        ("wrk", first_line("wrk", &["-v"]).is_some()),
        ("nginx, which is the upstream", Proxy::Nginx.version().is_some()),
        ("taskset", first_line("taskset", &["--version"]).is_some()),
    ];
    if let Some((what, _)) = needed.iter().find(|(_, is_there)| !is_there) {
        skip("proxies", &format!("{what}, is not installed"));
        return Ok(None);
    }
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        skip("proxies", "it takes two processors");
        return Ok(None);
    }
    let mut proxies = Proxy::ALL.to_vec();
    if Proxy::Haproxy.version().is_none() {
        skip("haproxy", "it is not installed");
        proxies.retain(|proxy| *proxy != Proxy::Haproxy);
    }
    let mut servers = Vec::new();
    let (mut swarms, mut contacts) = (Swarms::new()?, Vec::new());
    for port in upstreams() {
        let place = folder.join(format!("upstream-{port}"));
        fs::create_dir_all(&place)?;
        let file = configured(&place, "nginx.conf", &nginx_upstream(port))?;
        servers.push(Server::start("nginx", &["-p", ".", "-c", &file], port, &place, Some(OTHERS))?);
        // Registration of foreign programs does not exist yet; a node that speaks for an address does.
        let address = (Ipv4Addr::LOCALHOST, port).into();
        contacts.push(swarms.announce(&format!("u{port}"), SERVICE, address, &contacts)?);
    }
    let mut figures = Figures { pace: pace(folder)?, ..Figures::default() };
    for round in 0..options.rounds {
        for proxy in &proxies {
            let server = proxy.start(folder).with_context(|| proxy.name())?;
            let port = if server.is_some() { PROXY_PORT } else { UPSTREAM_PORT };
            wrk(port, MANY, WARM_UP)?;
            for asking in Asking::ALL {
                machine::wait_until_idle(QUIET_MAX);
                let look = || Reading::take(server.iter().map(|server| server.process.pid()));
                let first = look()?;
                let told = match asking {
                    Asking::Many => wrk(port, MANY, options.time),
                    Asking::Paced => paced(port, figures.pace, options.time),
                    Asking::One => wrk(port, 1, options.time),
                }?;
                let cpu_seconds = look()?.cpu_seconds_since(&first);
                let (number, name, how) = (round + 1, proxy.name(), asking.name());
                eprintln!(
                    "round {number}: {name}, {how}: {:.0}/s, p99 {:.0} µs",
                    told.per_second, told.p99_us
                );
                let round = Round { told, cpu_seconds, seconds: options.time.as_secs_f64() };
                figures.rounds.entry((asking, *proxy)).or_default().push(round);
            }
        }
    }
    Ok(Some(figures))
}

/// How many requests a second whoever asks at a pace asks for: of what nginx can do on this machine, with what is measured beside it.
fn pace(folder: &Path) -> Result<f64> {
    let _nginx = Proxy::Nginx.start(folder)?;
    wrk(PROXY_PORT, MANY, WARM_UP)?;
    let most = wrk(PROXY_PORT, MANY, WARM_UP)?.per_second;
    Ok((most * PACE / 1000.0).round().max(1.0) * 1000.0)
}

/// Asks at a pace.
fn paced(port: u16, per_second: f64, time: Duration) -> Result<Told> {
    let request = get(&format!("/{SERVICE}/"));
    let to = (Ipv4Addr::LOCALHOST, port).into();
    let answered = Paced { to, request, connections: MANY, per_second, time }.run(OTHERS)?;
    let (requests, per_second, errors) =
        (answered.times_us.len() as u64, answered.per_second(), answered.bad);
    ensure!(requests > 0, "nothing was answered");
    let times = answered.times();
    let us = |percent| match times.percentile(percent) {
        Figure::Micros(us) => us as f64,
        Figure::None | Figure::Over(_) => f64::INFINITY,
    };
    Ok(Told { per_second, requests, p50_us: us(50), p99_us: us(99), max_us: us(100), errors })
}

/// Runs `wrk` with one thread.
fn wrk(port: u16, connections: usize, time: Duration) -> Result<Told> {
    let url = format!("http://127.0.0.1:{port}/{SERVICE}/");
    Wrk { url: &url, threads: 1, connections, time, processor: Some(OTHERS) }.run()
}
