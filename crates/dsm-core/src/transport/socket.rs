//! The system calls that a stream needs.

use std::io::{self, IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// A non-blocking byte stream to a peer.
pub trait Socket: AsFd + Send {
    /// Sends from `slices`, in order, and says how many bytes were taken.
    ///
    /// # Errors
    /// `WouldBlock` where nothing can be taken now, and what else can befall a socket; never a
    /// signal to the process.
    fn send(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Receives into `buffer` and says how many bytes; 0 is the end of the stream.
    ///
    /// # Errors
    /// `WouldBlock` where nothing is there, and what else can befall a socket.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize>;
}

/// Bytes that a Unix socket should hold: with less, a scan's grants wait for the peer to read.
const UNIX_BUFFER_LEN: usize = 4 << 20;

/// A connected Unix or TCP socket.
#[derive(Debug)]
pub struct Connection(socket2::Socket);

impl Connection {
    /// Takes over a connected stream socket: makes it non-blocking and, over TCP, turns Nagle's
    /// delay off. The congestion control stays the host's: who runs it knows the network.
    ///
    /// # Errors
    /// The socket refuses an option.
    pub fn new(socket: impl Into<socket2::Socket>) -> io::Result<Self> {
        let socket = socket.into();
        socket.set_nonblocking(true)?;
        if socket.local_addr()?.is_unix() {
            // The kernel takes what its limit allows, at least twice the default; TCP sizes its own.
            socket.set_send_buffer_size(UNIX_BUFFER_LEN)?;
        } else {
            socket.set_tcp_nodelay(true)?;
        }
        Ok(Self(socket))
    }

    /// Another descriptor for the same connection.
    pub(super) fn duplicate(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Socket for Connection {
    fn send(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        // Without the flag, a peer that has gone would end the process with SIGPIPE.
        retry(|| self.0.send_vectored_with_flags(slices, libc::MSG_NOSIGNAL))
    }

    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        retry(|| (&self.0).read(buffer))
    }
}

/// The process at the other end of a Unix socket, if this machine's kernel can name it.
pub(super) fn peer_process(socket: &socket2::Socket) -> Option<libc::pid_t> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the descriptor is borrowed for the call; the pointers are to locals, and `len` is the
    // size of what the first one points to.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut len,
        )
    };
    // 0 is a process of another namespace.
    (result == 0 && peer.pid > 0).then_some(peer.pid)
}

/// Repeats a call that a signal interrupted.
pub(super) fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}
