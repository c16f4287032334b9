//! Listens for other nodes.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use socket2::{Domain, SockAddr, Socket, Type};

use super::socket::{peer_process, retry};
use super::{Address, Connection, Incoming, dial};

/// Connections that may wait to be accepted: every channel of 63 peers at once, and more.
const BACKLOG: i32 = 4096;

/// Why a node cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Something else listens there.
    #[error(
        "cannot listen on {address}: another process listens there; end it, or choose another \
         address for this node"
    )]
    Busy {
        /// The address.
        address: Address,
    },
    /// The path of the socket is taken by a file of another kind.
    #[error(
        "cannot listen on {address}: a file that is not a socket is there; choose another path"
    )]
    NotASocket {
        /// The address.
        address: Address,
    },
    /// The directory of the socket is missing.
    #[error("cannot listen on {address}: the directory {} does not exist; create it", .directory.display())]
    NoDirectory {
        /// The address.
        address: Address,
        /// The directory.
        directory: PathBuf,
    },
    /// No right to listen there.
    #[error(
        "cannot listen on {address}: permission denied; choose a directory that this user may \
         write to, or a port above 1023"
    )]
    Denied {
        /// The address.
        address: Address,
    },
    /// The address is not one of this machine, or means nothing.
    #[error("cannot listen on {address}: it is not an address of this machine; check the host")]
    NotHere {
        /// The address.
        address: Address,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Anything else.
    #[error("cannot listen on {address}")]
    Io {
        /// The address.
        address: Address,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A listening socket; a Unix socket's file goes when it is dropped.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    address: Address,
    /// Device and inode of the Unix socket's file.
    file: Option<(u64, u64)>,
}

impl Listener {
    /// Listens. A Unix socket is open to this user only, and replaces one that a dead process left
    /// at its path; a port 0 becomes one that is free.
    ///
    /// # Errors
    /// The address is taken, may not be used, or is none of this machine's.
    pub fn bind(address: &Address) -> Result<Self, BindError> {
        match address {
            Address::Unix(path) => bind_unix(address, path),
            Address::Tcp { .. } => bind_tcp(address),
        }
    }

    /// Where it listens, with the port that was chosen.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Readable when a peer has called.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Takes the next call, whose handshake must be done by `deadline`; `None` if there is none.
    /// Does not block.
    ///
    /// # Errors
    /// A failed system call, such as too many open files; the listener stays of use.
    pub fn accept(&self, deadline: Instant) -> io::Result<Option<Incoming>> {
        match retry(|| self.socket.accept()) {
            Ok((socket, from)) => {
                let peer = match (from.as_socket(), peer_process(&socket)) {
                    (Some(from), _) => format!("tcp:{from}"),
                    (None, Some(process)) => format!("process {process} at {}", self.address),
                    (None, None) => format!("a caller of {}", self.address),
                };
                // A caller that is already gone fails here; that is its own affair.
                Ok(Connection::new(socket).ok().map(|it| Incoming::new(it, peer, deadline)))
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted => Ok(None),
                _ => Err(error),
            },
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let (Address::Unix(path), Some(file)) = (&self.address, self.file) else { return };
        // Only its own file: another node may have replaced it meanwhile.
        if fs::symlink_metadata(path).is_ok_and(|now| (now.dev(), now.ino()) == file)
            && let Err(error) = fs::remove_file(path)
        {
            log::warn!("cannot remove the socket {}: {error}", path.display());
        }
    }
}

fn bind_tcp(address: &Address) -> Result<Listener, BindError> {
    let not_here = |source| BindError::NotHere { address: address.clone(), source };
    let mut last = not_here(io::ErrorKind::AddrNotAvailable.into());
    for candidate in dial::resolve(address).map_err(not_here)? {
        match bind_tcp_at(&candidate) {
            Ok(socket) => {
                let local = socket.local_addr().ok().and_then(|local| local.as_socket());
                let address = match (address, local) {
                    (Address::Tcp { host, .. }, Some(local)) => {
                        Address::Tcp { host: host.clone(), port: local.port() }
                    }
                    _ => address.clone(),
                };
                return Ok(Listener { socket, address, file: None });
            }
            Err(error) => last = explain(address, error),
        }
    }
    Err(last)
}

fn bind_tcp_at(address: &SockAddr) -> io::Result<Socket> {
    let socket = Socket::new(address.domain(), Type::STREAM, None)?;
    // A restarted node must not wait for the old connections' last packets.
    socket.set_reuse_address(true)?;
    if address.domain() == Domain::IPV6 {
        socket.set_only_v6(true)?;
    }
    listen(socket, address)
}

fn listen(socket: Socket, address: &SockAddr) -> io::Result<Socket> {
    socket.bind(address)?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn bind_unix(address: &Address, path: &Path) -> Result<Listener, BindError> {
    let failed = |error| explain(address, error);
    // Between looking at a dead process's socket and replacing it, another node could do the same;
    // and a live one that does not listen yet looks dead. The lock ends with the descriptor.
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let lock = File::open(directory).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            BindError::NoDirectory { address: address.clone(), directory: directory.into() }
        }
        _ => failed(error),
    })?;
    lock.lock().map_err(failed)?;
    remove_dead(address, path)?;

    let local = SockAddr::unix(path).map_err(failed)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(failed)?;
    let socket = restrict(socket).and_then(|socket| listen(socket, &local)).map_err(failed)?;
    let file = fs::symlink_metadata(path).map_err(failed)?;
    Ok(Listener { socket, address: address.clone(), file: Some((file.dev(), file.ino())) })
}

/// Lets only this user connect. Linux gives the file the mode that the socket had before `bind`.
fn restrict(socket: Socket) -> io::Result<Socket> {
    let socket = File::from(std::os::fd::OwnedFd::from(socket));
    socket.set_permissions(fs::Permissions::from_mode(0o600))?;
    Ok(Socket::from(std::os::fd::OwnedFd::from(socket)))
}

/// Removes the socket of a process that has ended.
fn remove_dead(address: &Address, path: &Path) -> Result<(), BindError> {
    let Ok(file) = fs::symlink_metadata(path) else { return Ok(()) };
    if !file.file_type().is_socket() {
        return Err(BindError::NotASocket { address: address.clone() });
    }
    match connect_at_once(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            log::info!("replacing {}, which a process that has ended left", path.display());
            fs::remove_file(path).map_err(|error| explain(address, error))
        }
        _ => Err(BindError::Busy { address: address.clone() }),
    }
}

fn connect_at_once(path: &Path) -> io::Result<()> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)
}

fn explain(address: &Address, source: io::Error) -> BindError {
    let address = address.clone();
    match source.kind() {
        io::ErrorKind::AddrInUse => BindError::Busy { address },
        io::ErrorKind::PermissionDenied => BindError::Denied { address },
        io::ErrorKind::AddrNotAvailable => BindError::NotHere { address, source },
        _ => BindError::Io { address, source },
    }
}
