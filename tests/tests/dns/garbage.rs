//! Tests of the DNS server against garbage and floods: it answers each query once and never a response, still
//! works afterwards, and limits the rate of other hosts only.

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use hearsay_tests::{
    Cluster as _,
    registry::{plain, register},
    scenario,
};

use crate::{S, dig::Dig, has_programs, instance};

/// Datagrams of garbage.
const GARBAGE: usize = 1_000_000;
/// Datagrams of which the node's queue takes more.
const AT_ONCE: usize = 50;
/// The size of a message's header. Shorter datagrams are no messages.
const HEADER_BYTES: usize = 12;
/// The bit of a message's third byte that marks a response.
const RESPONSE: u8 = 0x80;
/// The bit of a message's third byte that marks a truncated one.
const TRUNCATED: u8 = 0x02;

/// A question for the A records of `web.service.hearsay`, with EDNS or not.
fn question(id: u16, with_edns: bool) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    let mut bytes = vec![high, low, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(with_edns)];
    bytes.extend(b"\x03web\x07service\x07hearsay\0\0\x01\0\x01");
    if with_edns {
        // OPT (RFC 6891, section 6.1.2) with 1,232 bytes and no options.
        bytes.extend([0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0]);
    }
    bytes
}

/// Whether these bytes answer the question with this id, with one record.
fn is_answer(bytes: &[u8], id: u16) -> bool {
    bytes.starts_with(&id.to_be_bytes())
        && bytes.len() > HEADER_BYTES
        && bytes[2] & RESPONSE != 0
        && bytes[6..8] == [0, 1]
}

/// A socket on loopback of this thread's host, whose reads end after a while.
fn client() -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    socket.set_read_timeout(Some(5 * S)).unwrap();
    socket
}

/// Asks the question, and waits for its answer. Returns the other datagrams that arrive before.
fn probe(socket: &UdpSocket, node: SocketAddr, id: u16) -> Vec<Vec<u8>> {
    socket.send_to(&question(id, false), node).unwrap();
    let (mut others, mut buffer) = (Vec::new(), [0; 65_536]);
    loop {
        let length = socket.recv(&mut buffer).expect("the node answers a question after garbage");
        if is_answer(&buffer[..length], id) {
            return others;
        }
        others.push(buffer[..length].to_vec());
    }
}

#[test]
fn garbage_is_no_loop_and_no_end() {
    const TEST: &str = "garbage::garbage_is_no_loop_and_no_end";
    scenario(TEST, |lab| {
        let host = lab.host();
        let node = plain(lab, &host, 0, &[]);
        lab.until(10 * S, "it answers", |lab| lab.get(node, "/services").is_some());
        register(&host, &instance("web", "web-1", "10.77.9.1", 8001));
        let seed = std::env::var("LAB_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
        println!("seed {seed}");
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, 7553));
        let counted = host.enter(|| throw(to, seed));
        println!("{counted:?}");
        assert!(counted.questions > GARBAGE / 4 && counted.responses > GARBAGE / 4, "{counted:?}");
        assert_eq!(counted.answers, counted.questions, "each question has one answer");
        host.enter(|| {
            let socket = client();
            for n in 0..10_000_u16 {
                let mut bytes = question(n, n % 2 == 0);
                bytes[2] |= RESPONSE;
                socket.send_to(&bytes, to).unwrap();
                if usize::from(n) % AT_ONCE == 0 {
                    assert_eq!(probe(&socket, to, 0xffff), [[0_u8; 0]; 0], "a response was answered");
                }
            }
            socket.set_read_timeout(Some(S / 2)).unwrap();
            assert!(socket.recv(&mut [0; 512]).is_err(), "a response was answered");
        });
        let log = lab.log(node);
        assert!(!log.contains("panicked"), "{log}");
        assert!(lab.get(node, "/services").is_some());
    });
}

/// Datagrams that were sent, and answers to them.
#[derive(Default, Debug)]
struct Counted {
    /// Those that are at least a header.
    questions: usize,
    responses: usize,
    answers: usize,
}

/// Sends random bytes and mutated questions, and a valid question after every few.
fn throw(node: SocketAddr, seed: u64) -> Counted {
    let socket = client();
    let (mut random, mut counted) = (fastrand::Rng::with_seed(seed), Counted::default());
    for n in 0..GARBAGE {
        // The ids of garbage are below 0x8000, those of valid questions above.
        let id = random.u16(..0x8000);
        let mut bytes = question(id, random.bool());
        match random.u8(..4) {
            0 => {
                bytes = (0..random.usize(..600)).map(|_| random.u8(..)).collect();
                if let Some(first) = bytes.first_mut() {
                    *first &= 0x7f;
                }
            }
            1 => bytes.truncate(random.usize(..bytes.len())),
            _ => (0..random.usize(1..8)).for_each(|_| {
                let at = random.usize(2..bytes.len());
                bytes[at] = random.u8(..);
            }),
        }
        if random.u8(..3) == 0 && bytes.len() > 2 {
            bytes[2] |= RESPONSE;
        }
        match bytes.get(2).is_some_and(|flags| flags & RESPONSE != 0) {
            true => counted.responses += 1,
            false => counted.questions += usize::from(bytes.len() >= HEADER_BYTES),
        }
        socket.send_to(&bytes, node).unwrap();
        if n % AT_ONCE == AT_ONCE - 1 {
            counted.answers += probe(&socket, node, random.u16(0x8000..)).len();
        }
    }
    // What several threads of the node answer may arrive in another order.
    socket.set_read_timeout(Some(2 * S)).unwrap();
    while socket.recv(&mut [0; 65_536]).is_ok() {
        counted.answers += 1;
    }
    counted
}

#[test]
fn the_rate_limit_holds_for_other_hosts_only() {
    const TEST: &str = "garbage::the_rate_limit_holds_for_other_hosts_only";
    const REQUESTS: usize = 8000;
    if !has_programs(TEST, &["dig"]) {
        return;
    }
    scenario(TEST, |lab| {
        let hosts = [lab.host(), lab.host()];
        let node = plain(lab, &hosts[0], 0, &["--dns", "0.0.0.0:7553"]);
        lab.until(10 * S, "it answers", |lab| lab.get(node, "/services").is_some());
        register(&hosts[0], &instance("web", "web-1", "10.77.9.1", 8001));
        let remote = SocketAddr::new(hosts[0].ip.parse().unwrap(), 7553);
        let (full, cut, took) = hosts[1].enter(|| ask_fast(remote, REQUESTS));
        println!("{full} answers with a record, {cut} with TC, in {took:?}");
        // 2,000 at once, and 1,000 a second.
        let allowed = 2000.0 + 1000.0 * took.as_secs_f64() + 1.0;
        assert!((2000.0..=allowed).contains(&(full as f64)), "{full} of at most {allowed}");
        assert!(cut > 0 && full + cut == REQUESTS, "{cut}");
        let over_tcp = Dig::at(&hosts[1], &hosts[0].ip, 7553, "web.service.hearsay A");
        assert_eq!(over_tcp.data(), ["10.77.9.1"], "{over_tcp:?}");
        let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 7553));
        let (full, cut, _) = hosts[0].enter(|| ask_fast(local, REQUESTS));
        assert_eq!((full, cut), (REQUESTS, 0), "loopback has no limit");
        let metrics = lab.text(node, "/metrics").unwrap();
        let limited = metrics.lines().find(|line| line.starts_with("hearsay_dns_limited_total "));
        assert!(limited.is_some_and(|line| !line.ends_with(" 0")), "{limited:?}");
    });
}

/// Asks so often, and waits for every answer. Returns the number of those with a record, that of those with
/// TC and none, and the time that it took.
fn ask_fast(node: SocketAddr, requests: usize) -> (usize, usize, Duration) {
    let (socket, begun) = (client(), Instant::now());
    let (mut full, mut cut, mut buffer) = (0, 0, [0; 512]);
    for _ in 0..requests / AT_ONCE {
        (0..AT_ONCE).for_each(|n| _ = socket.send_to(&question(n as u16, false), node).unwrap());
        for _ in 0..AT_ONCE {
            let length = socket.recv(&mut buffer).expect("every request has an answer");
            match (&buffer[6..8], buffer[2] & TRUNCATED != 0) {
                ([0, 1], false) => full += 1,
                // As small as the question.
                ([0, 0], true) if length <= question(0, false).len() => cut += 1,
                other => panic!("{other:?}"),
            }
        }
    }
    (full, cut, begun.elapsed())
}
