//! Flooding process: holds connections to one address. It is separate from the test, so that a control group
//! limits it alone.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result};

/// Limit of one connect. The system repeats a lost SYN after 1 s.
const CONNECT_MAX: Duration = Duration::from_secs(2);
/// Connections opened between two checks of the held connections.
const BURST: usize = 16;
/// Pause after a burst, if no control group limits the process: leaves processor time to others.
const PAUSE: Duration = Duration::from_millis(2);

/// Floods until the process is killed: `ADDRESS CONNECTIONS [pause]`. Standard input has the first bytes of
/// each connection. Prints a line once it has tried to open all connections.
///
/// # Errors
/// The arguments are wrong, or standard input cannot be read.
pub fn run_flooder(arguments: &[String]) -> Result<()> {
    let usage = "usage: flooder ADDRESS CONNECTIONS [pause]";
    let to: SocketAddr = arguments.first().context(usage)?.parse().context(usage)?;
    let holding: usize = arguments.get(1).context(usage)?.parse().context(usage)?;
    let pause = if arguments.get(2).is_some_and(|word| word == "pause") { PAUSE } else { Duration::ZERO };
    let mut first = Vec::new();
    io::stdin().read_to_end(&mut first).context("standard input")?;
    let (mut held, mut opened): (Vec<TcpStream>, usize) = (Vec::new(), 0);
    loop {
        for _ in 0..BURST.min(holding - held.len()) {
            // A failed connect is tried again in the next burst.
            held.extend(open(to, &first).ok());
            opened += 1;
            if opened == holding {
                println!("opened");
            }
        }
        if held.len() == holding {
            held.retain_mut(is_open);
        }
        // Limits the rate of the flood if no control group does.
        std::thread::sleep(pause);
    }
}

fn open(to: SocketAddr, first: &[u8]) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&to, CONNECT_MAX)?;
    stream.set_nonblocking(true)?;
    // The send buffer of a new socket has room for these bytes.
    _ = stream.write(first)?;
    Ok(stream)
}

/// Returns whether the other end has left the connection open. Received bytes are discarded.
fn is_open(stream: &mut TcpStream) -> bool {
    loop {
        match stream.read(&mut [0; 1024]) {
            Ok(0) => return false,
            Ok(_) => {}
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
    }
}
