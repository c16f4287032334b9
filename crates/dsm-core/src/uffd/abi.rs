//! The kernel's userfaultfd interface, from `include/uapi/linux/userfaultfd.h`, as far as it is used.
//!
//! Sizes, offsets and ioctl numbers are checked when this file is compiled.

use std::mem::{offset_of, size_of};

/// Version of the interface that `UFFDIO_API` asks for.
pub(super) const UFFD_API: u64 = 0xaa;
/// Flag of the system call: page faults of the kernel's own are not delivered.
pub(super) const UFFD_USER_MODE_ONLY: libc::c_int = 1;

pub(super) const FEATURE_PAGEFAULT_FLAG_WP: u64 = 1 << 0;
pub(super) const FEATURE_MISSING_SHMEM: u64 = 1 << 5;
pub(super) const FEATURE_THREAD_ID: u64 = 1 << 8;
pub(super) const FEATURE_MINOR_SHMEM: u64 = 1 << 10;
pub(super) const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
pub(super) const FEATURE_POISON: u64 = 1 << 14;

pub(super) const REGISTER_MODE_MISSING: u64 = 1 << 0;
pub(super) const REGISTER_MODE_WP: u64 = 1 << 1;
pub(super) const REGISTER_MODE_MINOR: u64 = 1 << 2;

pub(super) const WRITEPROTECT_MODE_WP: u64 = 1 << 0;
pub(super) const WRITEPROTECT_MODE_DONTWAKE: u64 = 1 << 1;
pub(super) const CONTINUE_MODE_WP: u64 = 1 << 1;

pub(super) const EVENT_PAGEFAULT: u8 = 0x12;
pub(super) const PAGEFAULT_FLAG_WRITE: u64 = 1 << 0;
pub(super) const PAGEFAULT_FLAG_WP: u64 = 1 << 1;
pub(super) const PAGEFAULT_FLAG_MINOR: u64 = 1 << 2;

/// Ioctls that a registered range must offer, as bits of [`Register::ioctls`].
pub(super) const RANGE_IOCTLS: u64 =
    1 << NR_WAKE | 1 << NR_WRITEPROTECT | 1 << NR_CONTINUE | 1 << NR_POISON;

const NR_REGISTER: u32 = 0x00;
const NR_UNREGISTER: u32 = 0x01;
const NR_WAKE: u32 = 0x02;
const NR_WRITEPROTECT: u32 = 0x06;
const NR_CONTINUE: u32 = 0x07;
const NR_POISON: u32 = 0x08;
const NR_API: u32 = 0x3f;

/// Argument of `UFFDIO_API`.
#[repr(C)]
pub(super) struct Api {
    pub(super) api: u64,
    /// In: what to switch on. Out: what the kernel knows.
    pub(super) features: u64,
    pub(super) ioctls: u64,
}

/// Argument of `UFFDIO_UNREGISTER` and `UFFDIO_WAKE`; first part of the others.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Span {
    pub(super) start: u64,
    pub(super) len: u64,
}

/// Argument of `UFFDIO_REGISTER`.
#[repr(C)]
pub(super) struct Register {
    pub(super) range: Span,
    pub(super) mode: u64,
    /// Out: which ioctls work on the range.
    pub(super) ioctls: u64,
}

/// Argument of `UFFDIO_WRITEPROTECT`.
#[repr(C)]
pub(super) struct WriteProtect {
    pub(super) range: Span,
    pub(super) mode: u64,
}

/// Argument of `UFFDIO_CONTINUE` and `UFFDIO_POISON`, which differ in the name of the last field only.
#[repr(C)]
pub(super) struct Fill {
    pub(super) range: Span,
    pub(super) mode: u64,
    /// Out: bytes dealt with, or a negated errno if there were none.
    pub(super) done: i64,
}

/// What `read(2)` returns, in its page-fault form.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Message {
    pub(super) event: u8,
    pub(super) reserved1: u8,
    pub(super) reserved2: u16,
    pub(super) reserved3: u32,
    pub(super) flags: u64,
    pub(super) address: u64,
    pub(super) thread: u32,
    pub(super) reserved4: u32,
}

impl Message {
    pub(super) const EMPTY: Self = Self {
        event: 0,
        reserved1: 0,
        reserved2: 0,
        reserved3: 0,
        flags: 0,
        address: 0,
        thread: 0,
        reserved4: 0,
    };
}

const DIR_NONE: u32 = 0;
const DIR_READ: u32 = 2;
const DIR_BOTH: u32 = 3;

/// `_IOC()` of `asm-generic/ioctl.h`: the layout on x86-64 and arm64.
const fn ioc(direction: u32, number: u32, size: usize) -> u32 {
    direction << 30 | (size as u32) << 16 | 0xaa << 8 | number
}

/// On `/dev/userfaultfd`: makes a userfaultfd; the argument is its flags.
pub(super) const USERFAULTFD_IOC_NEW: u32 = ioc(DIR_NONE, 0, 0);
pub(super) const UFFDIO_API: u32 = ioc(DIR_BOTH, NR_API, size_of::<Api>());
pub(super) const UFFDIO_REGISTER: u32 = ioc(DIR_BOTH, NR_REGISTER, size_of::<Register>());
pub(super) const UFFDIO_UNREGISTER: u32 = ioc(DIR_READ, NR_UNREGISTER, size_of::<Span>());
pub(super) const UFFDIO_WAKE: u32 = ioc(DIR_READ, NR_WAKE, size_of::<Span>());
pub(super) const UFFDIO_WRITEPROTECT: u32 =
    ioc(DIR_BOTH, NR_WRITEPROTECT, size_of::<WriteProtect>());
pub(super) const UFFDIO_CONTINUE: u32 = ioc(DIR_BOTH, NR_CONTINUE, size_of::<Fill>());
pub(super) const UFFDIO_POISON: u32 = ioc(DIR_BOTH, NR_POISON, size_of::<Fill>());

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("check the ioctl numbers and the page size of this architecture first");

const _: () = {
    assert!(size_of::<Api>() == 24);
    assert!(offset_of!(Api, features) == 8);
    assert!(size_of::<Span>() == 16);
    assert!(size_of::<Register>() == 32);
    assert!(offset_of!(Register, mode) == 16 && offset_of!(Register, ioctls) == 24);
    assert!(size_of::<WriteProtect>() == 24);
    assert!(offset_of!(WriteProtect, mode) == 16);
    assert!(size_of::<Fill>() == 32);
    assert!(offset_of!(Fill, mode) == 16 && offset_of!(Fill, done) == 24);
    assert!(size_of::<Message>() == 32);
    assert!(offset_of!(Message, flags) == 8 && offset_of!(Message, address) == 16);
    assert!(offset_of!(Message, thread) == 24);

    assert!(USERFAULTFD_IOC_NEW == 0x0000_aa00);
    assert!(UFFDIO_API == 0xc018_aa3f);
    assert!(UFFDIO_REGISTER == 0xc020_aa00);
    assert!(UFFDIO_UNREGISTER == 0x8010_aa01);
    assert!(UFFDIO_WAKE == 0x8010_aa02);
    assert!(UFFDIO_WRITEPROTECT == 0xc018_aa06);
    assert!(UFFDIO_CONTINUE == 0xc020_aa07);
    assert!(UFFDIO_POISON == 0xc020_aa08);
};
