//! KVM on this host.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use kvm_bindings::{
    KVM_API_VERSION, KVM_CAP_ENFORCE_PV_FEATURE_CPUID, KVM_CAP_IMMEDIATE_EXIT, KVM_CAP_IRQ_ROUTING,
    KVM_CAP_SIGNAL_MSI, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_TSC_CONTROL, KVM_CAP_X2APIC_API,
    KVM_CAP_X86_DISABLE_EXITS, KVM_CAP_X86_MSR_FILTER, KVM_CAP_X86_USER_SPACE_MSR,
    KVM_MAX_CPUID_ENTRIES, KVM_X86_DISABLE_EXITS_HLT, kvm_cpuid_entry2,
};

use super::errors::KvmError;
use crate::time::Scaler;

/// What this host's KVM can do beyond what is needed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Most vCPUs of a virtual machine.
    pub vcpus_max: usize,
    /// A halted vCPU may stay in the guest. Without it, KVM takes the faults of a guest that has
    /// interrupts enabled in a thread of its own, and always as writes (DESIGN.md section 6).
    pub halt_in_guest: bool,
    /// The processor can run a guest's time-stamp counter at another rate.
    pub tsc_scaling: bool,
    /// KVM keeps features of its own from guests that CPUID does not offer them to.
    pub enforces_pv_cpuid: bool,
    /// An Intel processor marks pages of nested page tables as used, so that its walk of a guest's page
    /// table asks to write that (SDM vol. 3, 29.3.5). `kvm_intel.eptad=0` has it not do so.
    pub ept_marks_pages: bool,
    /// The processor's walks of a guest's page tables ask to write these, though they mostly store
    /// nothing: always with AMD's nested paging (APM vol. 2, 15.25.6), and where
    /// [`Limits::ept_marks_pages`].
    pub walks_write: bool,
}

/// Whether a parameter of a kernel module that may be absent is on.
fn is_on(parameter: &str) -> bool {
    std::fs::read_to_string(parameter).is_ok_and(|text| text.trim() == "Y")
}

/// KVM, opened and found fit.
#[derive(Debug)]
pub struct Kvm {
    pub(super) kvm: kvm_ioctls::Kvm,
    limits: Limits,
}

/// What a virtual machine can't do without: capability, its name, what for.
const NEEDED: [(u32, &str, &str); 7] = [
    (KVM_CAP_SPLIT_IRQCHIP, "KVM_CAP_SPLIT_IRQCHIP", "to keep local APICs in the kernel"),
    (KVM_CAP_X2APIC_API, "KVM_CAP_X2APIC_API", "for APIC ids of 32 bits"),
    (KVM_CAP_SIGNAL_MSI, "KVM_CAP_SIGNAL_MSI", "to inject interrupts"),
    (KVM_CAP_IRQ_ROUTING, "KVM_CAP_IRQ_ROUTING", "for level-triggered interrupts"),
    (KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT", "to stop vCPUs"),
    (KVM_CAP_X86_USER_SPACE_MSR, "KVM_CAP_X86_USER_SPACE_MSR", "to notice a change of APIC mode"),
    (KVM_CAP_X86_MSR_FILTER, "KVM_CAP_X86_MSR_FILTER", "to notice a change of APIC mode"),
];

/// Refuses a kernel that lacks something; `extension` is what it says of a capability.
fn check_needed(extension: impl Fn(u32) -> i32) -> Result<(), KvmError> {
    match NEEDED.into_iter().find(|&(number, _, _)| extension(number) <= 0) {
        Some((_, capability, purpose)) => Err(KvmError::Capability { capability, purpose }),
        None => Ok(()),
    }
}

/// Whether the processor is AMD's, or Hygon's, which is built after those.
fn is_amd() -> bool {
    let leaf = core::arch::x86_64::__cpuid(0);
    let vendor = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat();
    vendor == b"AuthenticAMD" || vendor == b"HygonGenuine"
}

/// KVM's parameter `tsc_tolerance_ppm`.
fn tolerance_ppm() -> u32 {
    let text = std::fs::read_to_string("/sys/module/kvm/parameters/tsc_tolerance_ppm");
    text.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(Scaler::TOLERANCE_PPM)
}

impl Kvm {
    /// Where KVM is by default.
    pub const PATH: &'static str = "/dev/kvm";

    /// Opens KVM by its device file.
    ///
    /// # Errors
    /// [`KvmError`]; each says what to do.
    pub fn open(path: &Path) -> Result<Self, KvmError> {
        let owned = || PathBuf::from(path);
        let name = CString::new(path.as_os_str().as_bytes()).map_err(|error| KvmError::Open {
            path: owned(),
            source: io::Error::new(io::ErrorKind::InvalidInput, error),
        })?;
        let kvm = kvm_ioctls::Kvm::new_with_path(name).map_err(|error| match error.errno() {
            libc::ENOENT | libc::ENODEV | libc::ENXIO => KvmError::Missing { path: owned() },
            libc::EACCES | libc::EPERM => KvmError::NoRights { path: owned() },
            _ => KvmError::Open { path: owned(), source: error.into() },
        })?;
        match kvm.get_api_version() {
            found if found == KVM_API_VERSION as i32 => {}
            found if found < 0 => {
                // Any other file: it knows no ioctl of KVM.
                let source = io::Error::from_raw_os_error(libc::ENOTTY);
                return Err(KvmError::Open { path: owned(), source });
            }
            found => return Err(KvmError::ApiVersion { path: owned(), found }),
        }
        check_needed(|number| kvm.check_extension_raw(number.into()))?;
        let has = |number: u32| kvm.check_extension_raw(number.into()).max(0);
        let ept_marks_pages = is_on("/sys/module/kvm_intel/parameters/eptad");
        let limits = Limits {
            vcpus_max: kvm.get_max_vcpus().min(kvm.get_max_vcpu_id()),
            halt_in_guest: has(KVM_CAP_X86_DISABLE_EXITS) & KVM_X86_DISABLE_EXITS_HLT as i32 != 0,
            tsc_scaling: has(KVM_CAP_TSC_CONTROL) != 0,
            enforces_pv_cpuid: has(KVM_CAP_ENFORCE_PV_FEATURE_CPUID) != 0,
            ept_marks_pages,
            walks_write: ept_marks_pages || is_on("/sys/module/kvm_amd/parameters/npt"),
        };
        Ok(Self { kvm, limits })
    }

    /// What it can do.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Rate at which a guest's time-stamp counter runs on this host, in thousand ticks a second.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn tsc_khz(&self) -> Result<u32, KvmError> {
        let vm = self.kvm.create_vm().map_err(KvmError::call("KVM_CREATE_VM"))?;
        let vcpu = vm.create_vcpu(0).map_err(KvmError::call("KVM_CREATE_VCPU"))?;
        vcpu.get_tsc_khz().map_err(KvmError::call("KVM_GET_TSC_KHZ"))
    }

    /// How this host's processor scales a guest's time-stamp counter; `None` if it doesn't. `host_khz` is
    /// [`Kvm::tsc_khz`].
    pub fn scaler(&self, host_khz: u32) -> Option<Scaler> {
        self.limits.tsc_scaling.then(|| Scaler {
            host_khz,
            fraction_bits: if is_amd() { Scaler::AMD_BITS } else { Scaler::INTEL_BITS },
            tolerance_ppm: tolerance_ppm(),
        })
    }

    /// The CPUID leaves that it can give to a guest.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn supported_cpuid(&self) -> Result<Vec<kvm_cpuid_entry2>, KvmError> {
        let supported = self.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
        let supported = supported.map_err(KvmError::call("KVM_GET_SUPPORTED_CPUID"))?;
        Ok(supported.as_slice().to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_lacks_a_capability_is_refused_by_its_name() {
        assert!(check_needed(|_| 1).is_ok());
        for (missing, name, _) in NEEDED {
            for says in [0, -1] {
                let error = check_needed(|number| if number == missing { says } else { 1 });
                let text = error.unwrap_err().to_string();
                assert!(
                    text.contains(name) && text.contains("Linux 6.6 or newer has it"),
                    "{text}"
                );
            }
        }
    }

    #[test]
    fn a_parameter_is_on_where_its_file_says_so() {
        let file = std::env::temp_dir().join(format!("giantvm-parameter-{}", std::process::id()));
        let name = file.to_str().unwrap();
        for (text, on) in [("Y\n", true), ("N\n", false)] {
            std::fs::write(&file, text).unwrap();
            assert_eq!(is_on(name), on, "{text:?}");
        }
        std::fs::remove_file(&file).unwrap();
        assert!(!is_on(name), "it is absent");
    }
}
