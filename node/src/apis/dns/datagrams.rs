//! The datagram socket of DNS: a response leaves from the address that was asked.
//!
//! A socket at every address of the host sends from the address that the kernel prefers for the way to the
//! client. On a host with several addresses that may be another one than was asked, and clients drop such a
//! response (RFC 2181, section 4.1). So the kernel reports the address at which a request arrived (ip(7),
//! `IP_PKTINFO`; RFC 3542, section 6), and the response names it.

use std::{
    io::{self, IoSlice, IoSliceMut},
    net::SocketAddr,
    os::fd::AsRawFd as _,
};

use nix::{
    cmsg_space, libc,
    sys::socket::{
        ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, sendmsg, setsockopt, sockopt,
    },
};
use tokio::{io::Interest, net::UdpSocket};

/// A datagram socket that knows at which address a request arrived.
#[derive(Debug)]
pub(super) struct Datagrams(UdpSocket);

/// The address of this host at which a request arrived. The interface is left to the routes.
#[derive(Clone, Copy, Debug)]
enum Local {
    V4(libc::in_pktinfo),
    V6(libc::in6_pktinfo),
}

/// A request that was received.
#[derive(Clone, Copy, Debug)]
pub(super) struct Received {
    /// Its size, in bytes.
    pub(super) length: usize,
    /// The address that it came from.
    pub(super) client: SocketAddr,
    /// `None` where the socket has one address.
    local: Option<Local>,
}

impl Datagrams {
    /// Takes over a socket. At every address of the host, the kernel reports the address of each request.
    ///
    /// # Errors
    /// The socket cannot be used.
    pub(super) fn new(socket: std::net::UdpSocket) -> io::Result<Self> {
        let address = socket.local_addr()?;
        match address.ip().is_unspecified() {
            true if address.is_ipv4() => setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?,
            // Reports addresses of IPv4, too, in their form of IPv6.
            true => setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?,
            false => (),
        }
        Ok(Self(UdpSocket::from_std(socket)?))
    }

    /// Waits for a request.
    ///
    /// # Errors
    /// The system's. A later request can be received.
    pub(super) async fn receive(&self, request: &mut [u8]) -> io::Result<Received> {
        let mut control = cmsg_space!(libc::in6_pktinfo);
        self.0.async_io(Interest::READABLE, || receive_now(&self.0, request, &mut control)).await
    }

    /// Sends a response to the client of a request, from the address that it asked.
    ///
    /// # Errors
    /// The system's. A client repeats a request whose response is lost.
    pub(super) async fn send(&self, response: &[u8], to: &Received) -> io::Result<()> {
        let send = || send_now(&self.0, response, to);
        match self.0.try_io(Interest::WRITABLE, send) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.0.async_io(Interest::WRITABLE, send).await
            }
            sent => sent,
        }
    }
}

fn receive_now(socket: &UdpSocket, request: &mut [u8], control: &mut [u8]) -> io::Result<Received> {
    let mut parts = [IoSliceMut::new(request)];
    let flags = MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(control), flags)?;
    let local = message.cmsgs()?.find_map(|part| match part {
        ControlMessageOwned::Ipv4PacketInfo(info) => {
            Some(Local::V4(libc::in_pktinfo { ipi_ifindex: 0, ..info }))
        }
        ControlMessageOwned::Ipv6PacketInfo(info) => {
            Some(Local::V6(libc::in6_pktinfo { ipi6_ifindex: 0, ..info }))
        }
        _ => None,
    });
    let client = message.address.as_ref().and_then(socket_address);
    let client = client.ok_or_else(|| io::Error::other("a datagram without an address"))?;
    Ok(Received { length: message.bytes, client, local })
}

fn send_now(socket: &UdpSocket, response: &[u8], to: &Received) -> io::Result<()> {
    let client = SockaddrStorage::from(to.client);
    let local = to.local.as_ref().map(|local| match local {
        Local::V4(info) => ControlMessage::Ipv4PacketInfo(info),
        Local::V6(info) => ControlMessage::Ipv6PacketInfo(info),
    });
    let parts = [IoSlice::new(response)];
    sendmsg(socket.as_raw_fd(), &parts, local.as_slice(), MsgFlags::MSG_DONTWAIT, Some(&client))?;
    Ok(())
}

fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|address| SocketAddr::V4((*address).into()));
    v4.or_else(|| address.as_sockaddr_in6().map(|address| SocketAddr::V6((*address).into())))
}
