//! A thin layer over userfaultfd: page faults of a range as messages, and the calls that end them.
//!
//! Nothing here knows of pages' states or of other nodes; [`crate::pages`] does.

mod abi;
mod fault;
mod open;
mod release;

use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

pub use fault::{Fault, FaultBuffer, FaultKind};
pub use open::{Mode, OpenError, Privilege};

use crate::types::Access;

/// How often a call that the kernel asks to repeat (`EAGAIN`) is repeated before that is an error.
/// The reasons are over in microseconds: a page table that another thread is just adding or
/// removing.
const RETRIES_MAX: u32 = 100_000;

/// A userfaultfd: a range registered with it delivers its page faults here.
///
/// All ranges are addresses of this process, whole pages, and not empty; the kernel refuses others
/// with `EINVAL`, and those outside of what is registered with `ENOENT`.
#[derive(Debug)]
pub struct Userfaultfd {
    fd: OwnedFd,
    privilege: Privilege,
}

/// How far a call over a range came.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Progress {
    /// The first pages are done: this many bytes, more than none.
    Done(usize),
    /// The first page is there already, and nothing was done.
    Exists,
    /// The first page has no frame, and nothing was done.
    NoFrame,
}

/// Whether threads that wait on the pages go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wake {
    /// They try again.
    Yes,
    /// They keep waiting, for a call that follows.
    No,
}

impl Userfaultfd {
    /// A new one, from `/dev/userfaultfd` or the system call.
    ///
    /// # Errors
    /// When the kernel is older than Linux 6.6, lacks a needed feature, or gives this user none.
    pub fn open(mode: Mode) -> Result<Self, OpenError> {
        let (fd, privilege) = open::open(mode)?;
        Ok(Self { fd, privilege })
    }

    /// Which faults it delivers.
    pub fn privilege(&self) -> Privilege {
        self.privilege
    }

    /// Has all faults of the shared-memory mapping `range` delivered here: pages without a frame,
    /// pages whose frame isn't mapped, and writes to write-protected pages.
    ///
    /// # Errors
    /// `EBUSY` if another userfaultfd has a part of it; `EINVAL` if it isn't a mapping of a memfd.
    pub fn register(&self, range: Range<usize>) -> io::Result<()> {
        let mode = abi::REGISTER_MODE_MISSING | abi::REGISTER_MODE_MINOR | abi::REGISTER_MODE_WP;
        let mut argument = abi::Register { range: span(&range), mode, ioctls: 0 };
        self.ioctl(abi::UFFDIO_REGISTER, &mut argument)?;
        if argument.ioctls & abi::RANGE_IOCTLS != abi::RANGE_IOCTLS {
            return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
        }
        Ok(())
    }

    /// Ends [`Userfaultfd::register`]: waiting threads go on, and the mapping is ordinary memory.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn unregister(&self, range: Range<usize>) -> io::Result<()> {
        self.ioctl(abi::UFFDIO_UNREGISTER, &mut span(&range))
    }

    /// Has the threads that wait on pages of `range` try again.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn wake(&self, range: Range<usize>) -> io::Result<()> {
        self.ioctl(abi::UFFDIO_WAKE, &mut span(&range))
    }

    /// Maps the frames of `range`, read-only or writable, as far as it gets, and wakes those who
    /// wait on them.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn map(&self, range: Range<usize>, access: Access) -> io::Result<Progress> {
        let mode = match access {
            Access::Read => abi::CONTINUE_MODE_WP,
            Access::Write => 0,
        };
        self.fill(abi::UFFDIO_CONTINUE, range, mode)
    }

    /// Has every access to `range` end in `SIGBUS`, and system calls on it in `EFAULT`, as far as
    /// it gets; wakes those who wait.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn poison(&self, range: Range<usize>) -> io::Result<Progress> {
        self.fill(abi::UFFDIO_POISON, range, 0)
    }

    /// Makes the mapped pages of `range` read-only. On return no CPU and no vCPU can write them.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn write_protect(&self, range: Range<usize>) -> io::Result<()> {
        self.set_protection(range, abi::WRITEPROTECT_MODE_WP)
    }

    /// Makes the mapped pages of `range` writable again. Pages that aren't mapped stay so.
    ///
    /// # Errors
    /// Those of the kernel.
    pub fn clear_write_protect(&self, range: Range<usize>, wake: Wake) -> io::Result<()> {
        let mode = match wake {
            Wake::Yes => 0,
            Wake::No => abi::WRITEPROTECT_MODE_DONTWAKE,
        };
        self.set_protection(range, mode)
    }

    /// The faults that have happened since, as many as `buffer` holds; none if there are none.
    ///
    /// # Errors
    /// Those of `read(2)`; not `EAGAIN` and `EINTR`.
    pub fn read_faults<'b>(&self, buffer: &'b mut FaultBuffer) -> io::Result<&'b [Fault]> {
        let size = size_of::<abi::Message>();
        let bytes = loop {
            let room = &mut buffer.messages;
            // SAFETY: the pointer and the length are those of `room`, which is borrowed mutably,
            // and any bytes are valid messages.
            let read = unsafe {
                libc::read(self.fd.as_raw_fd(), room.as_mut_ptr().cast(), room.len() * size)
            };
            match usize::try_from(read) {
                Ok(bytes) => break bytes,
                Err(_) => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error if error.kind() == io::ErrorKind::WouldBlock => break 0,
                    error => return Err(error),
                },
            }
        };
        Ok(buffer.decode(bytes / size))
    }

    fn fill(&self, request: u32, range: Range<usize>, mode: u64) -> io::Result<Progress> {
        let mut argument = abi::Fill { range: span(&range), mode, done: 0 };
        for _ in 0..RETRIES_MAX {
            argument.done = 0;
            let Err(error) = self.ioctl(request, &mut argument) else {
                return Ok(Progress::Done(range.len()));
            };
            // Part of the range done is `EAGAIN` as well.
            if let Some(done) = usize::try_from(argument.done).ok().filter(|&done| done > 0) {
                return Ok(Progress::Done(done));
            }
            match error.raw_os_error() {
                Some(libc::EEXIST) => return Ok(Progress::Exists),
                Some(libc::EFAULT) if request == abi::UFFDIO_CONTINUE => {
                    return Ok(Progress::NoFrame);
                }
                Some(libc::EAGAIN) => std::thread::yield_now(),
                _ => return Err(error),
            }
        }
        Err(io::Error::from_raw_os_error(libc::EAGAIN))
    }

    fn set_protection(&self, range: Range<usize>, mode: u64) -> io::Result<()> {
        let mut argument = abi::WriteProtect { range: span(&range), mode };
        for _ in 0..RETRIES_MAX {
            match self.ioctl(abi::UFFDIO_WRITEPROTECT, &mut argument) {
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {
                    std::thread::yield_now();
                }
                result => return result,
            }
        }
        Err(io::Error::from_raw_os_error(libc::EAGAIN))
    }

    fn ioctl<T>(&self, request: u32, argument: &mut T) -> io::Result<()> {
        // SAFETY: every caller pairs the request with its argument type, whose layout `abi` checks
        // against the number; the argument outlives the call. The kernel reads and writes no other
        // memory of ours: the calls change which pages of a registered range are mapped, never
        // their bytes.
        let status =
            unsafe { libc::ioctl(self.fd.as_raw_fd(), request as libc::Ioctl, argument as *mut T) };
        if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

fn span(range: &Range<usize>) -> abi::Span {
    abi::Span { start: range.start as u64, len: range.len() as u64 }
}

impl AsFd for Userfaultfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Userfaultfd {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
