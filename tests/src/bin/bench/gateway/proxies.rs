//! Compares proxies in turn, with the same upstreams. The proxy has one processor; the client and the
//! upstreams share the other one.

use std::{collections::BTreeMap, fs, net::Ipv4Addr, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    gateway::{Options, paced::Paced},
    machine::{self, first_line},
    protocol::get,
    server::{Plan, Server},
    statistics::Figure,
    usage::Reading,
    wrk::{LoadReport, Wrk},
};

/// Processor of the proxy. All other programs have the processor [`OTHERS`].
const PROXY: usize = 0;
const OTHERS: usize = 1;
/// Number of upstream instances.
const UPSTREAMS: usize = 2;
const UPSTREAM_PORT: u16 = 9001;
const PROXY_PORT: u16 = 8080;
/// First segment of the requests' path. The gateway routes by it; for the other proxies it is only a path.
const SERVICE: &str = "upstream";
/// Connections of the load, except for [`LoadKind::One`].
const MANY: usize = 64;
/// Open-loop rate, as a fraction of nginx's maximum: so low that the client never waits for its processor.
pub(crate) const PACE: f64 = 0.2;
/// Time of load before measuring.
const WARM_UP: Duration = Duration::from_secs(1);
/// Longest wait for an idle machine, before each round.
const QUIET_MAX: Duration = Duration::from_secs(10);
/// Number of the gateway's node.
const NODE: usize = 10;

/// Kind of load.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum LoadKind {
    /// Closed loop over many connections, which measures the maximum rate.
    Many,
    /// Open loop over many connections, which measures the latency at a rate that the proxy sustains.
    Paced,
    /// One connection, so that no request waits for another.
    One,
}

impl LoadKind {
    pub(crate) const ALL: [Self; 3] = [Self::Many, Self::Paced, Self::One];

    pub(crate) fn name(self) -> String {
        match self {
            Self::Many => format!("{MANY} connections, each asking again"),
            Self::Paced => format!("{MANY} connections, at a pace"),
            Self::One => "1 connection".into(),
        }
    }
}

/// Proxy that is measured.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Proxy {
    /// No proxy: the load goes to an upstream directly.
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

    /// Returns the version that the installed proxy prints; `None` if it is not installed.
    pub(crate) fn version(self) -> Option<String> {
        match self {
            Self::None | Self::Hearsay => None,
            Self::Nginx => first_line("nginx", &["-v"]),
            Self::Haproxy => first_line("haproxy", &["-v"]),
        }
    }

    /// Starts the proxy; `None` without a proxy.
    fn start(self, folder: &Path) -> Result<Option<Server>> {
        let folder = folder.join(self.name());
        fs::create_dir_all(&folder)?;
        match self {
            Self::None => Ok(None),
            Self::Hearsay => {
                let options = ["--gateway", &format!("127.0.0.1:{PROXY_PORT}")];
                let plan = Plan::new(&folder, NODE, "gateway", &[0]).on(PROXY).ephemeral().with(&options);
                let mut node = plan.start()?;
                // The upstreams listen on loopback, which a gateway reaches only for registrations with its
                // own node.
                node.until("the node takes the upstreams", |node| {
                    upstreams().all(|port| register(node, port))
                })?;
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

fn register(node: &Server, port: u16) -> bool {
    let instance =
        json!({ "name": SERVICE, "id": format!("{SERVICE}-{port}"), "address": "127.0.0.1", "port": port });
    let json = [("content-type", "application/json")];
    node.ask("POST /services", &json, &instance.to_string()).is_some_and(|reply| reply.status == 200)
}

fn configured(folder: &Path, name: &str, text: &str) -> Result<String> {
    let file = folder.join(name);
    fs::write(&file, text).with_context(|| file.display().to_string())?;
    Ok(file.display().to_string())
}

/// Common beginning of both nginx configurations: one process without unneeded features.
const NGINX: &str = "daemon off;\nmaster_process off;\nworker_processes 1;\npid nginx.pid;\nerror_log stderr crit;\n\
                     events { worker_connections 4096; multi_accept on; }\n";

fn nginx_upstream(port: u16) -> String {
    let body = "Clients need an answer, whichever instance sends it. ".repeat(2);
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

/// Figures of one proxy in one round.
#[derive(Clone, Debug)]
pub(crate) struct Round {
    pub(crate) told: LoadReport,
    /// Processor time of the proxy during the round.
    pub(crate) cpu_seconds: f64,
    pub(crate) seconds: f64,
}

/// Figures of each proxy for each kind of load, round by round.
#[derive(Default)]
pub(crate) struct Figures {
    pub(crate) rounds: BTreeMap<(LoadKind, Proxy), Vec<Round>>,
    /// Rate of the open-loop load, in requests a second.
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
        let of = |((asking, proxy), rounds): (&(LoadKind, Proxy), &Vec<Round>)| {
            let rounds: Vec<_> = rounds.iter().map(round).collect();
            json!({ "proxy": proxy.name(), "asking": asking.name(), "rounds": rounds })
        };
        json!({ "pacePerSecond": self.pace, "figures": self.rounds.iter().map(of).collect::<Vec<_>>() })
    }

    /// Highest rate of all rounds. Foreign load can only lower a rate.
    pub(crate) fn best(&self, asking: LoadKind, proxy: Proxy) -> f64 {
        let rounds = self.rounds.get(&(asking, proxy)).map(Vec::as_slice).unwrap_or_default();
        rounds.iter().map(|round| round.told.per_second).fold(0.0, f64::max)
    }

    /// Median of all rounds' figures.
    pub(crate) fn median(&self, asking: LoadKind, proxy: Proxy, of: impl Fn(&Round) -> f64) -> Option<f64> {
        let mut all: Vec<f64> = self.rounds.get(&(asking, proxy))?.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied()
    }
}

/// # Errors
/// An installed proxy does not start.
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
    for port in upstreams() {
        let place = folder.join(format!("upstream-{port}"));
        fs::create_dir_all(&place)?;
        let file = configured(&place, "nginx.conf", &nginx_upstream(port))?;
        servers.push(Server::start("nginx", &["-p", ".", "-c", &file], port, &place, Some(OTHERS))?);
    }
    let mut figures = Figures { pace: pace(folder)?, ..Figures::default() };
    for round in 0..options.rounds {
        for proxy in &proxies {
            let server = proxy.start(folder).with_context(|| proxy.name())?;
            let port = if server.is_some() { PROXY_PORT } else { UPSTREAM_PORT };
            wrk(port, MANY, WARM_UP)?;
            for asking in LoadKind::ALL {
                machine::wait_until_idle(QUIET_MAX);
                let look = || Reading::take(server.iter().map(|server| server.process.pid()));
                let first = look()?;
                let told = match asking {
                    LoadKind::Many => wrk(port, MANY, options.time),
                    LoadKind::Paced => paced(port, figures.pace, options.time),
                    LoadKind::One => wrk(port, 1, options.time),
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

/// Returns the open-loop rate, in requests a second: a fraction of nginx's maximum on this machine, in the
/// same run.
fn pace(folder: &Path) -> Result<f64> {
    let _nginx = Proxy::Nginx.start(folder)?;
    wrk(PROXY_PORT, MANY, WARM_UP)?;
    let most = wrk(PROXY_PORT, MANY, WARM_UP)?.per_second;
    Ok((most * PACE / 1000.0).round().max(1.0) * 1000.0)
}

/// Runs the open-loop load.
fn paced(port: u16, per_second: f64, time: Duration) -> Result<LoadReport> {
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
    Ok(LoadReport { per_second, requests, p50_us: us(50), p99_us: us(99), max_us: us(100), errors })
}

/// Runs `wrk` with one thread.
fn wrk(port: u16, connections: usize, time: Duration) -> Result<LoadReport> {
    let url = format!("http://127.0.0.1:{port}/{SERVICE}/");
    Wrk { url: &url, threads: 1, connections, time, processor: Some(OTHERS) }.run()
}
