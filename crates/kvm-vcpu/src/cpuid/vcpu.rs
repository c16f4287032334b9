//! The leaves of one vCPU.

use kvm_bindings::kvm_cpuid_entry2;

use super::common::Common;
use super::leaves::{Leaves, Regs};
use crate::vm::VcpuId;

/// Which vCPUs are close to each other.
///
/// APIC ids are the vCPUs' numbers, and a package is an aligned power of two of them: the largest
/// with no package across nodes. Where every node has the same power of two of vCPUs, one after the
/// other, a package is a node; otherwise a node has several packages.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Topology {
    vcpus: u32,
    /// Bits of the APIC id that count within a package.
    shift: u32,
}

impl Topology {
    /// The topology for this placement: the node of each vCPU.
    pub fn new(node_of_vcpu: &[usize]) -> Self {
        let vcpus = u32::try_from(node_of_vcpu.len()).unwrap_or(u32::MAX);
        let together = |shift: u32| {
            let of_one_node =
                |package: &[usize]| package.iter().all(|n| Some(n) == package.first());
            node_of_vcpu.chunks(1 << shift).all(of_one_node)
        };
        let widest = vcpus.max(1).next_power_of_two().trailing_zeros().min(15);
        let shift = (0..=widest).rev().find(|&shift| together(shift)).unwrap_or(0);
        Self { vcpus, shift }
    }

    /// The x2APIC id of a vCPU.
    pub fn apic_id(&self, vcpu: VcpuId) -> u32 {
        vcpu.0
    }

    /// The package of a vCPU.
    pub fn package(&self, vcpu: VcpuId) -> u32 {
        vcpu.0 >> self.shift
    }

    /// Cores of the package of a vCPU.
    pub fn cores(&self, vcpu: VcpuId) -> u32 {
        let first = self.package(vcpu) << self.shift;
        self.vcpus.saturating_sub(first).clamp(1, self.ids())
    }

    /// APIC ids of a package.
    fn ids(&self) -> u32 {
        1 << self.shift
    }
}

/// `KVMKVMKVM`, as `Documentation/virt/kvm/x86/cpuid.rst` has it.
const KVM_SIGNATURE: Regs =
    Regs { eax: 0x4000_0001, ebx: 0x4b4d_564b, ecx: 0x564b_4d56, edx: 0x0000_004d };
/// `KVM_FEATURE_MSI_EXT_DEST_ID`: interrupts of devices reach APIC ids above 255.
const MSI_EXT_DEST_ID: u32 = 1 << 15;

/// The leaves of one vCPU, for `KVM_SET_CPUID2`.
pub fn for_vcpu(common: &Common, vcpu: VcpuId, topology: &Topology) -> Vec<kvm_cpuid_entry2> {
    let mut leaves = common.leaves.clone();
    processor(&mut leaves);
    package(&mut leaves, vcpu, topology);
    caches(&mut leaves, topology);
    // Reserved on Intel's.
    leaves.at(0x8000_0008, 0).ecx = 0;
    if common.amd {
        package_amd(&mut leaves, vcpu, topology);
    }
    // Of KVM's own leaves, only the signature (with which Linux keeps x2APIC without interrupt
    // remapping) and this feature. Clocks, steal time and the paravirtual interrupts live in one
    // kernel's memory, and know nothing of other nodes; a kick of PV_UNHALT would end in a stand-in.
    leaves.set(0x4000_0000, 0, KVM_SIGNATURE);
    leaves.set(0x4000_0001, 0, Regs { eax: MSI_EXT_DEST_ID, ..Regs::default() });
    leaves.to_entries()
}

/// Features that follow from how the machine is built, not from the processor.
fn processor(leaves: &mut Leaves) {
    let basic = leaves.at(0, 0);
    basic.eax = basic.eax.max(0xb);
    let features = leaves.at(1, 0);
    // x2APIC, TSC deadline timer, hypervisor.
    features.ecx |= 1 << 21 | 1 << 24 | 1 << 31;
    // MONITOR (a store by another node would not end the wait), DS-CPL, VMX, SMX, EIST, TM2, DCA;
    // OSXSAVE follows CR4, and KVM keeps it.
    features.ecx &= !(1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 18 | 1 << 27);
    // TSC, APIC; no serial number, debug store or thermal monitor.
    features.edx |= 1 << 4 | 1 << 9;
    features.edx &= !(1 << 18 | 1 << 21 | 1 << 22 | 1 << 29);
    // ARAT: the APIC timer runs in every state. Nothing else of power management.
    leaves.set(6, 0, Regs { eax: 1 << 2, ..Regs::default() });
    if leaves.has(7, 0) {
        let structured = leaves.at(7, 0);
        // TSC_ADJUST: the hosts keep the guest's clock, and a guest that moves it at one processor
        // would see time go back at another. Linux also looks at that register whenever it idles,
        // and at jiffies for that: two hosts would pass that page back and forth.
        structured.ebx &= !(1 << 1);
        // OSPKE follows CR4, and KVM keeps it.
        structured.ecx &= !(1 << 4);
    }
    let extended = leaves.at(0x8000_0000, 0);
    extended.eax = extended.eax.max(0x8000_0008);
    // SVM, IBS, SKINIT, watchdog timer, LWP, MWAITX.
    leaves.at(0x8000_0001, 0).ecx &= !(1 << 2 | 1 << 10 | 1 << 12 | 1 << 13 | 1 << 15 | 1 << 29);
    // Invariant TSC: one clock for all nodes is what this machine promises.
    leaves.set(0x8000_0007, 0, Regs { edx: 1 << 8, ..Regs::default() });
}

/// Leaves 1, 0xB and 0x1F (SDM 2A; SDM 3A, 10.9).
fn package(leaves: &mut Leaves, vcpu: VcpuId, topology: &Topology) {
    let id = topology.apic_id(vcpu);
    let (ids, cores) = (topology.ids(), topology.cores(vcpu));
    let features = leaves.at(1, 0);
    features.ebx = features.ebx & 0xffff | ids.min(255) << 16 | (id & 0xff) << 24;
    // HTT: a package has more than one APIC id.
    features.edx = features.edx & !(1 << 28) | u32::from(ids > 1) << 28;
    const THREADS: u32 = 1 << 8;
    const CORES: u32 = 2 << 8;
    let levels = [
        Regs { eax: 0, ebx: 1, ecx: THREADS, edx: id },
        Regs { eax: topology.shift, ebx: cores, ecx: 1 | CORES, edx: id },
        Regs { eax: 0, ebx: 0, ecx: 2, edx: id },
    ];
    let both = if leaves.get(0, 0).eax >= 0x1f { &[0xb, 0x1f][..] } else { &[0xb] };
    for &function in both {
        for (index, level) in (0..).zip(levels) {
            leaves.set(function, index, level);
        }
    }
}

/// Leaves 4 and 0x8000001D: the last level is shared by a package, the others by nobody.
fn caches(leaves: &mut Leaves, topology: &Topology) {
    let ids_less_one = topology.ids() - 1;
    for (function, _, regs) in leaves.iter_mut() {
        let (kind, level) = (regs.eax & 0x1f, (regs.eax >> 5) & 0x7);
        if !matches!(function, 4 | 0x8000_001d) || kind == 0 {
            continue;
        }
        let shared = if level >= 3 { ids_less_one.min(0xfff) } else { 0 };
        regs.eax = regs.eax & 0x3fff | shared << 14;
        if function == 4 {
            regs.eax |= ids_less_one.min(0x3f) << 26;
        }
    }
}

/// What AMD's processors say in leaves of their own (APM 3, E.4.7, E.4.15, E.4.17).
fn package_amd(leaves: &mut Leaves, vcpu: VcpuId, topology: &Topology) {
    let cores_less_one = topology.cores(vcpu) - 1;
    leaves.at(0x8000_0008, 0).ecx = cores_less_one.min(0xff) | topology.shift << 12;
    let extended = leaves.at(0x8000_0001, 0);
    // CmpLegacy: what HTT counts are cores.
    extended.ecx = extended.ecx & !(1 << 1) | u32::from(topology.ids() > 1) << 1;
    if extended.ecx & 1 << 22 == 0 {
        return;
    }
    let id = topology.apic_id(vcpu);
    let core = id & (topology.ids() - 1);
    let node = topology.package(vcpu);
    // One thread a core, one node a package.
    let regs = Regs { eax: id, ebx: core & 0xff, ecx: node & 0xff, edx: 0 };
    leaves.set(0x8000_001e, 0, regs);
    let highest = leaves.at(0x8000_0000, 0);
    highest.eax = highest.eax.max(0x8000_001e);
}
