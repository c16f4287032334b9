//! The guest's time-stamp counter on the vCPUs of this node.
//!
//! KVM takes a vCPU's rate and offset only while that vCPU is out of the guest, so its own thread sets
//! them: a new setting is published here, the vCPUs are kicked, and each takes it over before it
//! enters the guest again.

use std::os::fd::AsRawFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_device_attr};
use kvm_ioctls::VcpuFd;

use super::errors::KvmError;
use super::machine::lock;
use super::outside::VcpuId;

/// How KVM is to make the guest's counter of the host's.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TscSetting {
    /// The rate to ask for (`KVM_SET_TSC_KHZ`), or the host's own.
    pub khz: Option<u32>,
    /// What is added to the host's counter, scaled to that rate, modulo 2^64 (`KVM_VCPU_TSC_OFFSET`).
    pub offset: u64,
}

impl TscSetting {
    /// Puts the setting in force on a vCPU that is out of the guest.
    pub(super) fn apply(&self, vcpu: VcpuId, fd: &VcpuFd) -> Result<(), KvmError> {
        if let Some(khz) = self.khz {
            fd.set_tsc_khz(khz).map_err(KvmError::vcpu("KVM_SET_TSC_KHZ", vcpu))?;
        }
        // After the rate, which leaves the offset as it is and so makes the counter jump.
        set_offset(vcpu, fd, self.offset)
    }
}

/// Where the vCPUs of a machine look for the setting in force.
pub(super) struct TscBoard {
    setting: Mutex<TscSetting>,
    /// Rises with every setting.
    version: AtomicU32,
}

impl TscBoard {
    /// A board whose first setting the vCPUs have.
    pub(super) fn new(setting: TscSetting) -> Self {
        Self { setting: Mutex::new(setting), version: AtomicU32::new(0) }
    }

    /// Publishes a setting; the vCPUs are to be kicked then.
    pub(super) fn publish(&self, setting: TscSetting) {
        let mut current = lock(&self.setting);
        *current = setting;
        self.version.fetch_add(1, Ordering::SeqCst);
    }

    /// Puts the latest setting in force on a vCPU that is about to enter the guest and has the one of
    /// version `seen`.
    pub(super) fn look(&self, seen: &mut u32, vcpu: VcpuId, fd: &VcpuFd) -> Result<(), KvmError> {
        if self.version.load(Ordering::SeqCst) == *seen {
            return Ok(());
        }
        let setting = {
            let setting = lock(&self.setting);
            *seen = self.version.load(Ordering::SeqCst);
            *setting
        };
        setting.apply(vcpu, fd)
    }
}

/// `_IOW(KVMIO, 0xe1, struct kvm_device_attr)`.
const KVM_SET_DEVICE_ATTR: libc::c_ulong = 0x4018_aee1;

fn set_offset(vcpu: VcpuId, fd: &VcpuFd, offset: u64) -> Result<(), KvmError> {
    let attr = kvm_device_attr {
        flags: 0,
        group: KVM_VCPU_TSC_CTRL,
        attr: KVM_VCPU_TSC_OFFSET.into(),
        addr: &raw const offset as u64,
    };
    // SAFETY: `attr` and the eight bytes that it points to outlive the call, which only reads them.
    match unsafe { libc::ioctl(fd.as_raw_fd(), KVM_SET_DEVICE_ATTR, &raw const attr) } {
        0 => Ok(()),
        _ => Err(KvmError::vcpu("KVM_VCPU_TSC_OFFSET", vcpu)(std::io::Error::last_os_error())),
    }
}
