//! Name server (RFC 1035) that gives the same answer for every name: a list of IPv4 addresses that the test
//! sets.
//!
//! A scenario has a private mount namespace, so it can replace `/etc/resolv.conf`.

use std::{
    fs,
    net::{Ipv4Addr, UdpSocket},
    sync::{Arc, Mutex, PoisonError},
};

use crate::{Lab, sh};

/// Length of a query's header, in bytes.
const HEAD: usize = 12;
/// Record type of an IPv4 address.
const TYPE_A: [u8; 2] = [0, 1];

/// Name server of a scenario.
#[derive(Debug)]
pub struct NameServer {
    addresses: Arc<Mutex<Vec<Ipv4Addr>>>,
}

impl NameServer {
    /// Starts on loopback. All programs that the scenario starts later use this name server.
    pub fn start(lab: &Lab) -> Self {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 53)).expect("a namespace of its own");
        let addresses = Arc::<Mutex<Vec<Ipv4Addr>>>::default();
        let told = Arc::clone(&addresses);
        std::thread::spawn(move || {
            let mut query = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut query) {
                let addresses = told.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if let Some(answer) = answer(&query[..length], &addresses) {
                    // The resolver may be gone, so errors are ignored.
                    _ = socket.send_to(&answer, from);
                }
            }
        });
        let file = lab.dir().join("resolv.conf");
        fs::write(&file, "nameserver 127.0.0.1\n").expect("a place for the file");
        sh(&format!("mount --bind {} /etc/resolv.conf", file.display()));
        Self { addresses }
    }

    /// Sets the addresses that every name gets.
    pub fn lead_to(&self, addresses: &[Ipv4Addr]) {
        *self.addresses.lock().unwrap_or_else(PoisonError::into_inner) = addresses.to_vec();
    }
}

/// Builds the answer to a query with one question. For types other than A, it has no records.
fn answer(query: &[u8], addresses: &[Ipv4Addr]) -> Option<Vec<u8>> {
    let question = query.get(HEAD..)?;
    // The question is a list of labels with their lengths, up to the empty label, and then type and class.
    let mut end = 0;
    while *question.get(end)? != 0 {
        end += usize::from(question[end]) + 1;
    }
    let question = question.get(..end + 5)?;
    let addresses = if question[end + 1..end + 3] == TYPE_A { addresses } else { &[] };
    let count = u8::try_from(addresses.len()).ok()?;
    // The head has the query's id, the flags (response, recursion available), one question, and this number
    // of answers.
    let mut bytes = [&query[..2], &[0x81, 0x80, 0, 1, 0, count, 0, 0, 0, 0], question].concat();
    for address in addresses {
        // The record refers to the question's name, and has type A, class IN, TTL 0 and four bytes.
        bytes.extend([0xc0, HEAD as u8, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        bytes.extend(address.octets());
    }
    Some(bytes)
}
