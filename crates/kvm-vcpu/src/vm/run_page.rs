//! The page that a vCPU shares with the kernel, `struct kvm_run`.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::kvm_run;

use super::errors::KvmError;
use super::outside::VcpuId;

/// A mapping of a vCPU's `kvm_run`: its thread has one to read exits, and whoever stops it another.
pub(super) struct RunPage {
    start: *mut u8,
    len: usize,
}

// SAFETY: the mapping belongs to this value alone, is never moved, and what threads share of it is
// accessed atomically (`immediate_exit`); the rest is read by the vCPU's own thread only.
unsafe impl Send for RunPage {}
// SAFETY: as above.
unsafe impl Sync for RunPage {}

/// One exit for an access to ports, as the kernel describes it.
#[derive(Clone, Copy, Debug)]
pub(super) struct PortExit {
    pub(super) write: bool,
    pub(super) size: usize,
    pub(super) port: u16,
    /// Where the data lies in the mapping.
    pub(super) data: (usize, usize),
}

impl RunPage {
    pub(super) fn new(vcpu: VcpuId, fd: RawFd, len: usize) -> Result<Self, KvmError> {
        // SAFETY: a new mapping at an address of the kernel's choice; `fd` is an open vCPU.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd,
                0,
            )
        };
        if start == libc::MAP_FAILED || len < size_of::<kvm_run>() {
            let source = std::io::Error::last_os_error();
            return Err(KvmError::Call { call: "mmap of kvm_run", vcpu: Some(vcpu), source });
        }
        Ok(Self { start: start.cast(), len })
    }

    /// Has the next entry to the guest, or the one under way once a signal comes, return at once.
    pub(super) fn set_immediate_exit(&self, on: bool) {
        let offset = std::mem::offset_of!(kvm_run, immediate_exit);
        // SAFETY: within the mapping (its length was checked), and a byte is always aligned; the
        // kernel only reads it.
        let flag = unsafe { AtomicU8::from_ptr(self.start.add(offset)) };
        flag.store(on.into(), Ordering::SeqCst);
    }

    /// The access that the vCPU's last exit, `KVM_EXIT_IO`, was for.
    pub(super) fn port_exit(&self) -> PortExit {
        // SAFETY: the mapping holds a `kvm_run`, and the vCPU is not in the kernel: this is its own
        // thread. For this exit the kernel has filled the member `io`.
        let io = unsafe { (*self.start.cast::<kvm_run>()).__bindgen_anon_1.io };
        let size = usize::from(io.size).clamp(1, 4);
        let len = size.saturating_mul(io.count as usize);
        let offset = usize::try_from(io.data_offset).unwrap_or(self.len);
        let offset = offset.min(self.len);
        PortExit {
            write: u32::from(io.direction) == kvm_bindings::KVM_EXIT_IO_OUT,
            size,
            port: io.port,
            data: (offset, len.min(self.len - offset)),
        }
    }

    /// The data of that access.
    pub(super) fn port_data(&mut self, exit: &PortExit) -> &mut [u8] {
        let (offset, len) = exit.data;
        let len = len.min(self.len.saturating_sub(offset));
        // SAFETY: within the mapping by the line above; `&mut self` is the only way to this slice,
        // and the kernel does not touch it before the vCPU enters again.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(offset.min(self.len)), len) }
    }
}

impl Drop for RunPage {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nothing refers to any more.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}
