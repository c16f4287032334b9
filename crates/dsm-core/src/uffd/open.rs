//! Getting a userfaultfd from the kernel: three ways, the best first.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use super::{abi, release};

const DEVICE: &str = "/dev/userfaultfd";
const FLAGS: libc::c_int = libc::O_CLOEXEC | libc::O_NONBLOCK;

/// Everything a region asks of the kernel.
const FEATURES: [(u64, &str); 6] = [
    (abi::FEATURE_PAGEFAULT_FLAG_WP, "PAGEFAULT_FLAG_WP"),
    (abi::FEATURE_MISSING_SHMEM, "MISSING_SHMEM"),
    (abi::FEATURE_THREAD_ID, "THREAD_ID"),
    (abi::FEATURE_MINOR_SHMEM, "MINOR_SHMEM"),
    (abi::FEATURE_WP_HUGETLBFS_SHMEM, "WP_HUGETLBFS_SHMEM"),
    (abi::FEATURE_POISON, "POISON"),
];

const FEATURES_ALL: u64 = {
    let (mut bits, mut i) = (0, 0);
    while i < FEATURES.len() {
        bits |= FEATURES[i].0;
        i += 1;
    }
    bits
};

/// Which faults the caller needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Those of the kernel too (system calls, KVM), or none at all.
    Full,
    /// Those of the kernel too if this user may have them.
    FullOrUserMode,
    /// Those of user code alone.
    UserMode,
}

/// Which faults a userfaultfd delivers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Privilege {
    /// All: the kernel's own accesses wait for the page as well.
    Full,
    /// Those of user code. A system call on a page that isn't there fails with `EFAULT`, and so
    /// would KVM.
    UserModeOnly,
}

/// Why there is no userfaultfd.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The kernel is too old.
    #[error("this kernel is Linux {found}; regions need Linux 6.6 or newer: run a newer kernel")]
    TooOld {
        /// The release that runs.
        found: String,
    },
    /// The kernel is new enough but lacks a part.
    #[error(
        "userfaultfd of this kernel (Linux {release}) lacks {missing}: run Linux 6.6 or newer, \
         built with CONFIG_SHMEM and CONFIG_PTE_MARKER_UFFD_WP, on x86-64 or arm64"
    )]
    Features {
        /// The release that runs.
        release: String,
        /// The features that are missing.
        missing: String,
    },
    /// The system call doesn't exist.
    #[error(
        "this kernel offers no userfaultfd (/dev/userfaultfd: {device}): run one built with \
         CONFIG_USERFAULTFD, outside of sandboxes that hide it"
    )]
    Absent {
        /// Why the device file didn't serve.
        device: String,
        /// Why the system call didn't.
        #[source]
        source: io::Error,
    },
    /// This user may not have one that delivers the kernel's faults.
    #[error(
        "this user may not catch page faults of the kernel (/dev/userfaultfd: {device}): give \
         read and write access to /dev/userfaultfd, or CAP_SYS_PTRACE, or set \
         vm.unprivileged_userfaultfd=1"
    )]
    Refused {
        /// Why the device file didn't serve.
        device: String,
        /// Why the system call didn't.
        #[source]
        source: io::Error,
    },
    /// This user may not have one at all.
    #[error(
        "userfaultfd is refused even for faults of user code alone: a seccomp filter or security \
         module forbids it; allow the system call userfaultfd in the container's profile"
    )]
    UserModeRefused {
        /// What the system call said.
        #[source]
        source: io::Error,
    },
    /// Something else failed.
    #[error("{call} failed while opening a userfaultfd")]
    System {
        /// The call that failed.
        call: &'static str,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

impl OpenError {
    /// Whether another user, or another sandbox on this machine, might succeed.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Absent { .. } | Self::Refused { .. } | Self::UserModeRefused { .. })
    }
}

/// The calls that opening makes, so that tests can have them fail.
trait Kernel {
    fn release(&self) -> io::Result<String>;
    fn device(&self) -> io::Result<OwnedFd>;
    fn syscall(&self, flags: libc::c_int) -> io::Result<OwnedFd>;
    /// `UFFDIO_API`; returns the features that the kernel knows.
    fn handshake(&self, fd: &OwnedFd, features: u64) -> io::Result<u64>;
}

struct Host;

impl Kernel for Host {
    fn release(&self) -> io::Result<String> {
        release::release()
    }

    fn device(&self) -> io::Result<OwnedFd> {
        let device = OpenOptions::new().read(true).write(true).open(DEVICE)?;
        // SAFETY: the ioctl takes its flags by value and touches no memory of ours.
        owned(unsafe {
            libc::ioctl(device.as_raw_fd(), abi::USERFAULTFD_IOC_NEW as libc::Ioctl, FLAGS)
        })
    }

    fn syscall(&self, flags: libc::c_int) -> io::Result<OwnedFd> {
        // SAFETY: the call takes its flags by value and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        owned(libc::c_int::try_from(fd).unwrap_or(-1))
    }

    fn handshake(&self, fd: &OwnedFd, features: u64) -> io::Result<u64> {
        let mut api = abi::Api { api: abi::UFFD_API, features, ioctls: 0 };
        // SAFETY: `api` is the argument of UFFDIO_API and outlives the call.
        let status =
            unsafe { libc::ioctl(fd.as_raw_fd(), abi::UFFDIO_API as libc::Ioctl, &mut api) };
        if status < 0 { Err(io::Error::last_os_error()) } else { Ok(api.features) }
    }
}

fn owned(fd: libc::c_int) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made `fd` for this caller; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A userfaultfd with every feature a region needs, close-on-exec and non-blocking.
pub(super) fn open(mode: Mode) -> Result<(OwnedFd, Privilege), OpenError> {
    open_with(&Host, mode)
}

fn open_with(kernel: &impl Kernel, mode: Mode) -> Result<(OwnedFd, Privilege), OpenError> {
    let release = kernel.release().map_err(|source| OpenError::System { call: "uname", source })?;
    if release::version(&release).is_some_and(|found| found < release::RELEASE_MIN) {
        return Err(OpenError::TooOld { found: release });
    }
    let (fd, privilege) = obtain(kernel, mode)?;
    let offered = match kernel.handshake(&fd, FEATURES_ALL) {
        Ok(offered) => offered,
        // A kernel that lacks a feature refuses all of them; a second descriptor tells which.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let (probe, _) = obtain(kernel, mode)?;
            kernel.handshake(&probe, 0).map_err(handshake_failed)?
        }
        Err(source) => return Err(handshake_failed(source)),
    };
    let missing: Vec<&str> =
        FEATURES.iter().filter(|(bit, _)| offered & bit == 0).map(|(_, name)| *name).collect();
    if missing.is_empty() {
        Ok((fd, privilege))
    } else {
        Err(OpenError::Features { release, missing: missing.join(", ") })
    }
}

fn handshake_failed(source: io::Error) -> OpenError {
    OpenError::System { call: "UFFDIO_API", source }
}

fn obtain(kernel: &impl Kernel, mode: Mode) -> Result<(OwnedFd, Privilege), OpenError> {
    if mode == Mode::UserMode {
        return user_mode(kernel);
    }
    let device = match kernel.device() {
        Ok(fd) => return Ok((fd, Privilege::Full)),
        Err(error) => error,
    };
    let source = match kernel.syscall(FLAGS) {
        Ok(fd) => return Ok((fd, Privilege::Full)),
        Err(error) => error,
    };
    if source.raw_os_error() == Some(libc::ENOSYS) {
        return Err(OpenError::Absent { device: device.to_string(), source });
    }
    if !matches!(source.raw_os_error(), Some(libc::EPERM | libc::EACCES)) {
        return Err(OpenError::System { call: "userfaultfd", source });
    }
    if mode == Mode::FullOrUserMode {
        return user_mode(kernel);
    }
    Err(OpenError::Refused { device: device.to_string(), source })
}

fn user_mode(kernel: &impl Kernel) -> Result<(OwnedFd, Privilege), OpenError> {
    match kernel.syscall(FLAGS | abi::UFFD_USER_MODE_ONLY) {
        Ok(fd) => Ok((fd, Privilege::UserModeOnly)),
        Err(source) => match source.raw_os_error() {
            Some(libc::ENOSYS) => Err(OpenError::Absent { device: "not tried".into(), source }),
            Some(libc::EPERM | libc::EACCES) => Err(OpenError::UserModeRefused { source }),
            _ => Err(OpenError::System { call: "userfaultfd", source }),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::fs::File;

    use super::*;

    /// A kernel with a fault in each call, as errno numbers; 0 works.
    struct Broken {
        release: &'static str,
        device: i32,
        syscall: i32,
        user_mode: i32,
        handshake: i32,
        features: u64,
        calls: RefCell<Vec<&'static str>>,
    }

    fn sound() -> Broken {
        Broken {
            release: "6.6.0",
            device: 0,
            syscall: 0,
            user_mode: 0,
            handshake: 0,
            features: FEATURES_ALL | 1 << 40,
            calls: RefCell::new(Vec::new()),
        }
    }

    fn answer(errno: i32) -> io::Result<OwnedFd> {
        if errno == 0 {
            Ok(File::open("/dev/null")?.into())
        } else {
            Err(io::Error::from_raw_os_error(errno))
        }
    }

    impl Kernel for Broken {
        fn release(&self) -> io::Result<String> {
            Ok(self.release.into())
        }

        fn device(&self) -> io::Result<OwnedFd> {
            self.calls.borrow_mut().push("device");
            answer(self.device)
        }

        fn syscall(&self, flags: libc::c_int) -> io::Result<OwnedFd> {
            assert_eq!(flags & !abi::UFFD_USER_MODE_ONLY, libc::O_CLOEXEC | libc::O_NONBLOCK);
            if flags & abi::UFFD_USER_MODE_ONLY != 0 {
                self.calls.borrow_mut().push("user mode");
                answer(self.user_mode)
            } else {
                self.calls.borrow_mut().push("syscall");
                answer(self.syscall)
            }
        }

        fn handshake(&self, _: &OwnedFd, features: u64) -> io::Result<u64> {
            if features & !self.features != 0 {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
            answer(self.handshake).map(|_| self.features)
        }
    }

    fn privilege(kernel: &Broken, mode: Mode) -> Result<Privilege, OpenError> {
        open_with(kernel, mode).map(|(_, privilege)| privilege)
    }

    #[test]
    fn the_device_comes_first() {
        let kernel = Broken { syscall: libc::EPERM, ..sound() };
        assert_eq!(privilege(&kernel, Mode::Full).unwrap(), Privilege::Full);
        assert_eq!(*kernel.calls.borrow(), ["device"]);
    }

    #[test]
    fn without_the_device_file_the_system_call_serves() {
        for device in [libc::ENOENT, libc::EACCES, libc::EPERM] {
            let kernel = Broken { device, user_mode: libc::EPERM, ..sound() };
            assert_eq!(privilege(&kernel, Mode::FullOrUserMode).unwrap(), Privilege::Full);
            assert_eq!(*kernel.calls.borrow(), ["device", "syscall"]);
        }
    }

    #[test]
    fn without_rights_user_mode_serves_those_who_allow_it() {
        let kernel = Broken { device: libc::EACCES, syscall: libc::EPERM, ..sound() };
        assert_eq!(privilege(&kernel, Mode::FullOrUserMode).unwrap(), Privilege::UserModeOnly);
        assert_eq!(*kernel.calls.borrow(), ["device", "syscall", "user mode"]);
    }

    #[test]
    fn without_rights_full_mode_is_refused_with_advice() {
        let kernel = Broken { device: libc::EACCES, syscall: libc::EPERM, ..sound() };
        let error = privilege(&kernel, Mode::Full).unwrap_err();
        assert!(matches!(error, OpenError::Refused { .. }) && error.is_refusal());
        let text = error.to_string();
        assert!(text.contains("Permission denied") && text.contains("CAP_SYS_PTRACE"), "{text}");
        assert_eq!(*kernel.calls.borrow(), ["device", "syscall"]);
    }

    #[test]
    fn user_mode_can_be_asked_for() {
        let kernel = sound();
        assert_eq!(privilege(&kernel, Mode::UserMode).unwrap(), Privilege::UserModeOnly);
        assert_eq!(*kernel.calls.borrow(), ["user mode"]);
    }

    #[test]
    fn a_seccomp_filter_is_named() {
        let kernel = Broken {
            device: libc::ENOENT,
            syscall: libc::EPERM,
            user_mode: libc::EPERM,
            ..sound()
        };
        let error = privilege(&kernel, Mode::FullOrUserMode).unwrap_err();
        assert!(matches!(error, OpenError::UserModeRefused { .. }) && error.is_refusal());
        assert!(error.to_string().contains("seccomp"), "{error}");
    }

    #[test]
    fn a_kernel_without_userfaultfd_is_named() {
        for mode in [Mode::Full, Mode::FullOrUserMode, Mode::UserMode] {
            let kernel = Broken {
                device: libc::ENOENT,
                syscall: libc::ENOSYS,
                user_mode: libc::ENOSYS,
                ..sound()
            };
            let error = privilege(&kernel, mode).unwrap_err();
            assert!(matches!(error, OpenError::Absent { .. }) && error.is_refusal());
            assert!(error.to_string().contains("CONFIG_USERFAULTFD"), "{error}");
        }
    }

    #[test]
    fn running_out_of_descriptors_is_not_a_refusal() {
        let kernel = Broken { device: libc::EMFILE, syscall: libc::EMFILE, ..sound() };
        let error = privilege(&kernel, Mode::FullOrUserMode).unwrap_err();
        assert!(matches!(error, OpenError::System { call: "userfaultfd", .. }), "{error}");
        assert!(!error.is_refusal());
    }

    #[test]
    fn an_old_kernel_is_refused_with_both_versions() {
        let kernel = Broken { release: "6.1.0-32-amd64", ..sound() };
        let text = privilege(&kernel, Mode::Full).unwrap_err().to_string();
        assert!(text.contains("6.1.0-32-amd64") && text.contains("6.6"), "{text}");
        assert!(kernel.calls.borrow().is_empty());
    }

    #[test]
    fn an_unreadable_release_leaves_it_to_the_features() {
        let kernel = Broken { release: "custom", ..sound() };
        assert_eq!(privilege(&kernel, Mode::Full).unwrap(), Privilege::Full);
        let kernel = Broken { release: "custom", features: 0, ..sound() };
        assert!(matches!(privilege(&kernel, Mode::Full), Err(OpenError::Features { .. })));
    }

    #[test]
    fn each_missing_feature_is_named() {
        for (bit, name) in FEATURES {
            let kernel = Broken { features: FEATURES_ALL & !bit, ..sound() };
            match privilege(&kernel, Mode::Full).unwrap_err() {
                OpenError::Features { release, missing } => {
                    assert_eq!((release.as_str(), missing.as_str()), ("6.6.0", name));
                }
                other => panic!("{other}"),
            }
        }
    }

    #[test]
    fn a_failing_handshake_is_reported() {
        let kernel = Broken { handshake: libc::ENOMEM, ..sound() };
        let error = privilege(&kernel, Mode::Full).unwrap_err();
        assert!(matches!(error, OpenError::System { call: "UFFDIO_API", .. }), "{error}");
    }
}
