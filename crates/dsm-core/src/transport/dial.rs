//! Calls a node.

use std::io;
use std::net::ToSocketAddrs;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use super::{Address, Connection, Options, SetupError, Stream, handshake};
use crate::wire::Hello;

/// Connects to the node at `address` and completes the handshake; returns the connection and what
/// the node said about itself. Blocks until the deadline at most, the look-up of a name aside.
///
/// # Errors
/// Nobody listens there, the deadline passes, or one side refuses the other.
pub fn dial(
    address: &Address,
    hello: &Hello,
    deadline: Instant,
    options: Options,
) -> Result<(Stream, Hello), SetupError> {
    let peer = address.to_string();
    let connect_error = |source| SetupError::Connect { peer: peer.clone(), source };
    let mut last = io::ErrorKind::AddrNotAvailable.into();
    for candidate in
        resolve(address).map_err(|source| SetupError::Resolve { peer: peer.clone(), source })?
    {
        match connect(&candidate, deadline).and_then(Connection::new) {
            Ok(socket) => return handshake::call(socket, &peer, hello, deadline, options),
            Err(error) => last = error,
        }
    }
    Err(connect_error(last))
}

/// The socket addresses that an address stands for.
pub(super) fn resolve(address: &Address) -> io::Result<Vec<SockAddr>> {
    match address {
        Address::Unix(path) => Ok(vec![SockAddr::unix(path)?]),
        Address::Tcp { host, port } => {
            let addresses = (host.as_str(), *port).to_socket_addrs()?;
            // Who was told "loopback only" must not depend on what the name means today.
            let local_only = address.is_loopback();
            Ok(addresses
                .filter(|found| !local_only || found.ip().to_canonical().is_loopback())
                .map(SockAddr::from)
                .collect())
        }
    }
}

fn connect(address: &SockAddr, deadline: Instant) -> io::Result<Socket> {
    // Zero would mean for ever.
    let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    let socket = Socket::new(address.domain(), Type::STREAM, None)?;
    if address.domain() == Domain::UNIX {
        // A Unix socket connects at once or waits for room in the backlog, for as long as a send
        // may take.
        socket.set_write_timeout(Some(left))?;
        super::socket::retry(|| socket.connect(address))?;
    } else {
        socket.connect_timeout(address, left)?;
    }
    Ok(socket)
}
