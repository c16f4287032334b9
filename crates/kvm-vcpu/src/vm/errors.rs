//! Why there is no virtual machine.

use std::path::PathBuf;

use super::outside::VcpuId;

/// Why KVM can't be used, or refused something.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// The device file is not there.
    #[error(
        "{} does not exist: load kvm_intel or kvm_amd, and check that virtualization is enabled in \
         the firmware, or that this machine may nest it", path.display()
    )]
    Missing {
        /// The device file.
        path: PathBuf,
    },
    /// This process may not open it.
    #[error("no permission to open {}: run as root, or join the group kvm", path.display())]
    NoRights {
        /// The device file.
        path: PathBuf,
    },
    /// It can't be opened, or isn't KVM.
    #[error("{} can't be used as KVM", path.display())]
    Open {
        /// The device file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// Another interface than the one all kernels have had since 2.6.22.
    #[error("{} speaks version {found} of the KVM interface, 12 is needed", path.display())]
    ApiVersion {
        /// The device file.
        path: PathBuf,
        /// The version found.
        found: i32,
    },
    /// The kernel lacks something.
    #[error("this kernel's KVM lacks {capability}, needed {purpose}; Linux 6.6 or newer has it")]
    Capability {
        /// Its name in <linux/kvm.h>.
        capability: &'static str,
        /// What for.
        purpose: &'static str,
    },
    /// More vCPUs than KVM takes.
    #[error("{asked} vCPUs; this host's KVM takes at most {most}")]
    TooManyVcpus {
        /// vCPUs asked for.
        asked: usize,
        /// What KVM takes.
        most: usize,
    },
    /// A machine needs at least one vCPU.
    #[error("a virtual machine needs at least one vCPU")]
    NoVcpus,
    /// A call failed.
    #[error("{call} failed{}", vcpu.map_or(String::new(), |vcpu| format!(" for vCPU {vcpu}")))]
    Call {
        /// The ioctl or system call.
        call: &'static str,
        /// The vCPU it was for.
        vcpu: Option<VcpuId>,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The thread of a vCPU can't be pinned.
    #[error("vCPU {vcpu} can't be pinned to processor {processor} of this host")]
    Pin {
        /// The vCPU.
        vcpu: VcpuId,
        /// The processor.
        processor: usize,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// KVM takes fewer of the interrupts' routes.
    #[error("{asked} interrupt routes; KVM takes at most 4096, for GSI below 4096")]
    Routes {
        /// Routes asked for.
        asked: usize,
    },
}

impl KvmError {
    /// For `map_err`: a call that concerns the whole machine.
    pub(crate) fn call<E: Into<std::io::Error>>(call: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Call { call, vcpu: None, source: error.into() }
    }

    /// For `map_err`: a call that concerns a vCPU.
    pub(crate) fn vcpu<E: Into<std::io::Error>>(
        call: &'static str,
        vcpu: VcpuId,
    ) -> impl FnOnce(E) -> Self {
        move |error| Self::Call { call, vcpu: Some(vcpu), source: error.into() }
    }
}

/// An error and what caused it.
pub(super) fn report(error: &KvmError) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}
