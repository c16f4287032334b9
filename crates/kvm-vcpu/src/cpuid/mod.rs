//! What a processor says of itself, the same on every node.
//!
//! Each node sends what its KVM supports ([`Supported`]) to the node that decides; [`common`] is what
//! all of them support, [`Common::without`] hides what is known to be faulty, and [`for_vcpu`] makes
//! of it the leaves of one vCPU.
//!
//! Sources: Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E; Linux `arch/x86/kvm/cpuid.c` and
//! `Documentation/virt/kvm/x86/cpuid.rst`.

mod common;
mod features;
mod leaves;
mod supported;
mod vcpu;
mod xsave;

#[cfg(test)]
mod tests;

pub use common::{Common, CpuidError, common};
pub use features::{Feature, UnknownFeature};
pub use supported::{DecodeError, Supported};
pub use vcpu::{Topology, for_vcpu};
