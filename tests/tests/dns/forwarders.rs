//! Tests that dnsmasq, unbound, BIND and systemd-resolved, which include the files of `deploy/dns` unchanged,
//! forward queries to a node, and show changes after the TTL.

use std::{fs, time::Duration};

use hearsay_tests::{
    Cluster as _, Host, Lab,
    registry::{plain, register},
    scenario, sh,
};

use crate::{Daemon, S, deregister, dig::Dig, has_programs, instance, shipped};

/// The port of the forwarder.
const PORT: u16 = 5301;
/// Seconds for which forwarders may keep a record.
const TTL: &str = "2";
/// How much later than by its lifetime a change may show: seconds are rounded, and the machine may be busy.
const SLACK: Duration = Duration::from_secs(3);

#[test]
fn dnsmasq_forwards() {
    forwards("forwarders::dnsmasq_forwards", "dnsmasq", |_, conf| {
        // Without the shipped exception, dnsmasq would drop private addresses.
        let text = format!(
            "port={PORT}\nlisten-address=127.0.0.1\nbind-interfaces\nno-resolv\nno-hosts\nuser=root\n\
             pid-file=\nstop-dns-rebind\nconf-file={}\n",
            shipped("dnsmasq.conf").display()
        );
        (text, vec!["--keep-in-foreground".into(), "--log-facility=-".into(), format!("--conf-file={conf}")])
    });
}

#[test]
fn unbound_forwards() {
    forwards("forwarders::unbound_forwards", "unbound", |_, conf| {
        // Without the shipped exceptions, unbound would drop private addresses, and ask the root servers for
        // proofs. The trust anchor is the root zone's of 2017.
        let text = format!(
            "server:\n  interface: 127.0.0.1\n  port: {PORT}\n  chroot: \"\"\n  username: \"\"\n  pidfile: \"\"\n  \
             do-daemonize: no\n  use-syslog: no\n  private-address: 10.0.0.0/8\n  \
             trust-anchor: \". DS 20326 8 2 E06D44B80B8F1D39A95C0B0D7C65D08458E880409BBC683457104237C7F8EC8D\"\n\
             include: \"{}\"\nremote-control:\n  control-enable: no\n",
            shipped("unbound.conf").display()
        );
        (text, vec!["-d".into(), "-c".into(), conf.into()])
    });
}

#[test]
fn bind_forwards() {
    forwards("forwarders::bind_forwards", "named", |lab, conf| {
        // With the exception that the shipped file names; validation is on.
        let text = format!(
            "options {{ directory \"{}\"; listen-on port {PORT} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};\n\
             pid-file none; session-keyfile none; recursion yes; dnssec-validation auto;\n\
             validate-except {{ \"hearsay\"; }}; }};\ncontrols {{ }};\ninclude \"{}\";\n",
            lab.dir().display(),
            shipped("named.conf").display()
        );
        (text, vec!["-g".into(), "-n".into(), "1".into(), "-c".into(), conf.into()])
    });
}

#[test]
fn systemd_resolved_forwards() {
    const TEST: &str = "forwarders::systemd_resolved_forwards";
    let Ok(resolved) = std::env::var("SYSTEMD_RESOLVED") else {
        println!("skipped: {TEST}: SYSTEMD_RESOLVED does not name the program; tests/run gets it on Debian");
        assert!(
            std::env::var("LAB").as_deref() != Ok("full"),
            "LAB=full, and {TEST} has no systemd-resolved"
        );
        return;
    };
    forwards(TEST, &resolved, |lab, _| {
        // The state that systemd creates for the unit, and the unit's user; private to this scenario.
        let dir = lab.dir().display();
        sh("mkdir -p /run/systemd && mount -t tmpfs none /run/systemd && \
            mkdir -p /run/systemd/resolved.conf.d && install -d -o 65010 -g 65010 /run/systemd/resolve");
        for (file, line) in [("passwd", "x:65010:65010::/:/bin/false"), ("group", "x:65010:")] {
            sh(&format!(
                "(grep -v ^systemd-resolve: /etc/{file}; echo systemd-resolve:{line}) >{dir}/{file} && \
                 mount --bind {dir}/{file} /etc/{file}"
            ));
        }
        sh(&format!(
            "cp {} /run/systemd/resolved.conf.d/hearsay.conf",
            shipped("systemd-resolved.conf").display()
        ));
        let own = format!("[Resolve]\nDNSStubListenerExtra=127.0.0.1:{PORT}\n");
        fs::write("/run/systemd/resolved.conf.d/lab.conf", own).unwrap();
        (String::new(), Vec::new())
    });
}

/// Runs a forwarder with a configuration, given as its text and the program's arguments, and asks it.
fn forwards(test: &str, program: &str, configure: impl FnOnce(&Lab, &str) -> (String, Vec<String>)) {
    if !has_programs(test, &["dig", program]) {
        return;
    }
    scenario(test, |lab| {
        let host = lab.host();
        let node = plain(lab, &host, 0, &["--dns-ttl", TTL]);
        lab.until(10 * S, "it answers", |lab| lab.get(node, "/services").is_some());
        register(&host, &instance("web", "web-1", &host.ip, 8001));
        let conf = lab.dir().join("forwarder.conf");
        let (text, arguments) = configure(lab, conf.to_str().unwrap());
        fs::write(&conf, text).unwrap();
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let _daemon = Daemon::start(lab, &host, program, &arguments);
        let ask = |arguments: &str| Dig::at(&host, "127.0.0.1", PORT, arguments);
        lab.until(20 * S, &format!("{program} resolves a service"), |_| {
            ask("web.service.hearsay A").data() == [host.ip.as_str()]
        });
        let srv = ask("web.service.hearsay SRV");
        let target = Dig::node(&host, "web.service.hearsay SRV").data();
        assert_eq!((srv.data(), target.len()), (target, 1), "{srv:?}");
        let name = srv.data()[0].split(' ').nth(3).unwrap().to_owned();
        assert_eq!(ask(&format!("{name} A")).data(), [host.ip.as_str()]);
        assert_eq!(ask("m0.node.hearsay A").data(), [host.ip.as_str()]);
        assert_eq!(ask("_services._dns-sd._udp.hearsay PTR").data(), ["_web._tcp.hearsay."]);
        let none = ask("web.service.hearsay AAAA");
        assert_eq!((none.status.as_str(), none.answers.len()), ("NOERROR", 0), "{none:?}");
        assert_many_pass(lab, &host);
        assert_changes_show(lab, &host);
    });
}

/// An answer that no datagram takes passes whole, by TCP on both ways.
fn assert_many_pass(lab: &Lab, host: &Host) {
    const MANY: usize = 60;
    for n in 1..=MANY {
        register(host, &instance("many", &format!("many-{n}"), &format!("10.77.20.{n}"), 8000));
    }
    lab.until(5 * S, "an answer over TCP passes", |_| {
        Dig::at(host, "127.0.0.1", PORT, "many.service.hearsay SRV +noedns").answers.len() == MANY
    });
}

/// A new service, and a deregistration, show once the lifetime of what is kept has passed.
fn assert_changes_show(lab: &Lab, host: &Host) {
    let ask = |arguments: &str| Dig::at(host, "127.0.0.1", PORT, arguments);
    let missing = ask("late.service.hearsay A");
    assert_eq!(missing.status, "NXDOMAIN", "{missing:?}");
    let kept = missing.authorities.iter().filter_map(|soa| soa.split(' ').nth(1)?.parse::<u32>().ok());
    assert!(kept.clone().count() == 1 && kept.max() <= Some(1), "{missing:?}");
    register(host, &instance("late", "late-1", "10.77.9.2", 8002));
    assert_eq!(Dig::node(host, "late.service.hearsay A").data(), ["10.77.9.2"]);
    lab.until(S + SLACK, "a new service shows", |_| ask("late.service.hearsay A").data() == ["10.77.9.2"]);
    let kept = ask("late.service.hearsay A");
    let ttl: u32 = kept.answers[0].split(' ').nth(1).unwrap().parse().unwrap();
    assert!(ttl <= TTL.parse().unwrap(), "{kept:?}");
    deregister(host, "late-1");
    assert_eq!(Dig::node(host, "late.service.hearsay A").status, "NXDOMAIN");
    lab.until(2 * S + SLACK, "a deregistration shows", |_| {
        ask("late.service.hearsay A").status == "NXDOMAIN"
    });
}
