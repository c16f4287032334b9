use kvm_bindings::{CpuId, kvm_cpuid_entry2};

use super::leaves::{Leaves, Regs};
use super::*;
use crate::vm::VcpuId;

/// A table of leaves: function, index, EAX, EBX, ECX, EDX.
type Table = Vec<(u32, u32, [u32; 4])>;

const LEAF_1: usize = 1;
const LEAF_7: usize = 2;
const EXTENDED: usize = 8;

fn amd() -> Table {
    vec![
        (0, 0, [0x10, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
        // Everything in leaf 1 but MONITOR cleared nowhere: what must go, must be taken out.
        (1, 0, [0x00a0_0f11, 0x0002_0800, 0xffff_ffff, 0xefff_ffff]),
        (7, 0, [1, 0x219c_07ab, 0x0040_069c, 0x0000_0010]),
        (7, 1, [0x10, 0, 0, 0]),
        (0xd, 0, [0x207, 0x988, 0x988, 0]),
        (0xd, 1, [0xf, 0x348, 0x1800, 0]),
        (0xd, 2, [256, 576, 0, 0]),
        (0xd, 9, [8, 2432, 0, 0]),
        (0x8000_0001, 0, [0x00a0_0f11, 0x4000_0000, 0x75c2_37ff, 0x2fd3_fbff]),
        (0x8000_0000, 0, [0x8000_0021, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
        (0x8000_0008, 0, [0x0000_3930, 0x0111_f205, 0x0000_703f, 0]),
        (0x8000_001d, 0, [0x0000_4121, 0x01c0_003f, 0x3f, 0]),
        (0x8000_001d, 3, [0x0003_c163, 0x03c0_003f, 0x7fff, 1]),
        (0x8000_000a, 0, [1, 8, 0, 0xff]),
        (0x4000_0000, 0, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
        (0x4000_0001, 0, [0x0100_7efb, 0, 0, 0]),
    ]
}

fn intel() -> Table {
    let vendor = [0x756e_6547, 0x6c65_746e, 0x4965_6e69];
    let mut table = amd();
    table.retain(|leaf| leaf.0 != 0x8000_001d);
    table[0].2 = [0x1f, vendor[0], vendor[1], vendor[2]];
    table[EXTENDED].2[2] &= !(1 << 22);
    table.push((4, 0, [0xfc00_4121, 0x01c0_003f, 0x3f, 0]));
    table.push((4, 3, [0xfc03_c163, 0x03c0_003f, 0x7fff, 4]));
    table
}

fn supported(table: &Table) -> Supported {
    let entry = |&(function, index, [eax, ebx, ecx, edx]): &(u32, u32, [u32; 4])| {
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
    };
    Supported::new(table.iter().map(entry).collect()).unwrap()
}

fn of_two(change: impl FnOnce(&mut Table)) -> Result<Common, CpuidError> {
    let mut other = amd();
    change(&mut other);
    common(&[supported(&amd()), supported(&other)])
}

fn vcpu(common: &Common, vcpu: u32, placement: &[usize]) -> Leaves {
    Leaves::from_entries(&for_vcpu(common, VcpuId(vcpu), &Topology::new(placement)))
}

fn feature(name: &str) -> Feature {
    name.parse().unwrap()
}

#[test]
fn features_are_those_of_all_nodes() {
    let both = of_two(|other| {
        other[LEAF_1].2[2] &= !(1 << 13);
        other[LEAF_7].2[1] &= !(1 << 8);
    })
    .unwrap();
    assert!(!both.has(feature("cx16")));
    assert!(!both.has(feature("bmi2")));
    assert!(both.has(feature("avx2")) && both.has(feature("bmi1")));
}

#[test]
fn a_feature_goes_with_what_it_needs() {
    let both = of_two(|other| other[LEAF_1].2[2] &= !(1 << 28)).unwrap();
    for name in ["avx", "avx2", "fma", "f16c", "vaes", "avx_vnni"] {
        assert!(!both.has(feature(name)), "{name}");
    }
    assert!(both.has(feature("xsave")) && both.has(feature("pku")));
    let leaves = vcpu(&both, 0, &[0]);
    assert_eq!(leaves.get(0xd, 0).eax, 0x203);
    assert!(!leaves.has(0xd, 2));
}

#[test]
fn the_oldest_processor_gives_the_version() {
    // Family 0x17 is below 0x19, though the number is not below in the low bits.
    let older = of_two(|other| other[LEAF_1].2[0] = 0x0083_0f12).unwrap();
    assert_eq!(vcpu(&older, 0, &[0]).get(1, 0).eax, 0x0083_0f12);
    let newer = of_two(|other| other[LEAF_1].2[0] = 0x00a1_0f00).unwrap();
    assert_eq!(vcpu(&newer, 0, &[0]).get(1, 0).eax, 0x00a0_0f11);
}

#[test]
fn limits_are_the_smallest() {
    let both = of_two(|other| {
        other[0].2[0] = 0xd;
        other[10].2[0] = 0x0000_302e;
    })
    .unwrap();
    let leaves = vcpu(&both, 0, &[0]);
    assert_eq!(leaves.get(0, 0).eax, 0xd);
    assert_eq!(leaves.get(0x8000_0008, 0).eax, 0x302e);
}

#[test]
fn what_a_processor_no_longer_does_none_does() {
    let both = of_two(|other| other[LEAF_7].2[1] |= 1 << 6 | 1 << 13).unwrap();
    assert_eq!(vcpu(&both, 0, &[0]).get(7, 0).ebx & (1 << 6 | 1 << 13), 1 << 6 | 1 << 13);
}

#[test]
fn a_leaf_that_a_node_lacks_is_dropped() {
    let both = of_two(|other| other.retain(|leaf| (leaf.0, leaf.1) != (7, 1))).unwrap();
    assert!(!vcpu(&both, 0, &[0]).has(7, 1));
}

#[test]
fn another_vendor_is_refused_with_both_names() {
    let error = common(&[supported(&amd()), supported(&amd()), supported(&intel())]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "node 0 has a processor of AuthenticAMD, node 2 one of GenuineIntel; all processors must \
         be of one vendor"
    );
    assert_eq!(common(&[]), Err(CpuidError::NoNodes));
}

#[test]
fn too_little_in_common_is_refused() {
    let error = of_two(|other| other[EXTENDED].2[3] &= !(1 << 29)).unwrap_err();
    assert_eq!(error, CpuidError::Needed { feature: "long mode" });
}

#[test]
fn a_component_in_another_place_goes_with_its_feature() {
    // PKRU is at 832 on Zen 3, at 2432 on Zen 4.
    let both = of_two(|other| other[7].2[1] = 832).unwrap();
    assert!(!both.has(feature("pku")) && both.has(feature("avx")));
    let leaves = vcpu(&both, 0, &[0]);
    assert_eq!(leaves.get(0xd, 0), Regs { eax: 7, ebx: 576, ecx: 832, edx: 0 });
    assert!(!leaves.has(0xd, 9));
}

#[test]
fn the_sizes_of_the_xsave_area_follow_its_components() {
    let leaves = vcpu(&of_two(|_| {}).unwrap(), 0, &[0]);
    assert_eq!(leaves.get(0xd, 0), Regs { eax: 0x207, ebx: 576, ecx: 2440, edx: 0 });
    // Compacted: no gap before PKRU. CET's components have no leaf here, so they are not there.
    assert_eq!(leaves.get(0xd, 1), Regs { eax: 0xf, ebx: 840, ecx: 0, edx: 0 });
}

#[test]
fn hiding_xsave_hides_what_needs_it_and_its_leaf() {
    let hidden = of_two(|_| {}).unwrap().without(&[feature("xsave"), feature("cx16")]);
    for name in ["xsave", "cx16", "avx", "avx2", "fma", "f16c", "pku", "vaes", "xsaves"] {
        assert!(!hidden.has(feature(name)), "{name}");
    }
    assert!(hidden.has(feature("bmi2")) && hidden.has(feature("sse4_2")));
    let leaves = vcpu(&hidden, 0, &[0]);
    assert!(!leaves.has(0xd, 0) && !leaves.has(0xd, 1) && !leaves.has(0xd, 2));
    assert_eq!(leaves.get(1, 0).ecx & (1 << 27), 0, "OSXSAVE");
}

#[test]
fn what_no_guest_may_see_is_gone_and_what_each_has_is_there() {
    let both = of_two(|_| {}).unwrap();
    assert!(both.has(feature("tsc_adjust")));
    let leaves = vcpu(&both, 0, &[0]);
    assert_eq!(leaves.get(7, 0).ebx & 1 << 1, 0, "TSC_ADJUST");
    let one = leaves.get(1, 0);
    assert_eq!(one.ecx & (1 << 3 | 1 << 5 | 1 << 27), 0, "MONITOR, VMX, OSXSAVE");
    assert_eq!(one.ecx >> 21 & 1, 1, "x2APIC");
    assert_eq!(one.ecx >> 24 & 1, 1, "TSC deadline");
    assert_eq!(one.ecx >> 31, 1, "hypervisor");
    assert_eq!(leaves.get(0x8000_0001, 0).ecx & (1 << 2 | 1 << 29), 0, "SVM, MWAITX");
    assert!(!leaves.has(0x8000_000a, 0));
    assert_eq!(leaves.get(6, 0).eax, 1 << 2, "ARAT");
    assert_eq!(leaves.get(0x8000_0007, 0).edx, 1 << 8, "invariant TSC");
    assert_eq!(leaves.get(0x4000_0000, 0).ebx.to_le_bytes(), *b"KVMK");
    assert_eq!(leaves.get(0x4000_0001, 0), Regs { eax: 1 << 15, ..Regs::default() });
}

#[test]
fn packages_are_nodes_where_apic_ids_allow_it() {
    let both = of_two(|_| {}).unwrap();
    let leaves = vcpu(&both, 5, &[0, 0, 0, 0, 1, 1, 1]);
    let one = leaves.get(1, 0);
    assert_eq!(one.ebx, 5 << 24 | 4 << 16 | 0x0800);
    assert_eq!(one.edx >> 28 & 1, 1, "HTT");
    assert_eq!(leaves.get(0xb, 0), Regs { eax: 0, ebx: 1, ecx: 0x100, edx: 5 });
    assert_eq!(leaves.get(0xb, 1), Regs { eax: 2, ebx: 3, ecx: 0x201, edx: 5 });
    assert_eq!(leaves.get(0xb, 2), Regs { eax: 0, ebx: 0, ecx: 2, edx: 5 });
    assert_eq!(leaves.get(0x8000_0008, 0).ecx, 2 << 12 | 2);
    assert_eq!(leaves.get(0x8000_001e, 0), Regs { eax: 5, ebx: 1, ecx: 1, edx: 0 });
    assert_eq!(leaves.get(0x8000_001d, 0).eax >> 14 & 0xfff, 0, "L1 is one core's");
    assert_eq!(leaves.get(0x8000_001d, 3).eax >> 14 & 0xfff, 3, "L3 is the package's");
}

#[test]
fn intel_has_its_own_leaves_for_caches_and_none_of_amds() {
    let both = common(&[supported(&intel()), supported(&intel())]).unwrap();
    let leaves = vcpu(&both, 3, &[0, 0, 1, 1]);
    assert_eq!(leaves.get(4, 0).eax, 1 << 26 | 0x121, "L1: not shared, 2 ids a package");
    assert_eq!(leaves.get(4, 3).eax, 1 << 26 | 1 << 14 | 0x163, "L3: shared by 2");
    assert_eq!(leaves.get(0x1f, 1), leaves.get(0xb, 1));
    assert_eq!(leaves.get(0x8000_0008, 0).ecx, 0, "that is topology of AMD");
    assert!(!leaves.has(0x8000_001e, 0));
}

#[test]
fn no_package_spans_nodes_whatever_the_placement() {
    for placement in [&[0, 0, 0, 1, 1, 1][..], &[0, 1, 0, 1], &[0], &[0, 0, 1], &[0, 0, 0, 0, 1, 2]]
    {
        let topology = Topology::new(placement);
        for (a, node_a) in (0..).map(VcpuId).zip(placement) {
            for (b, node_b) in (0..).map(VcpuId).zip(placement) {
                let same = topology.package(a) == topology.package(b);
                assert!(!same || node_a == node_b, "{placement:?}: {a}, {b}");
            }
        }
    }
    let packages = |placement: &[usize]| Topology::new(placement).package(VcpuId(2));
    assert_eq!(packages(&[0, 0, 0]), 0, "one node is one package");
    assert_eq!(packages(&[0, 0, 1, 1]), 1);
}

#[test]
fn kvm_takes_the_result() {
    let Ok(kvm) = kvm_ioctls::Kvm::new() else {
        eprintln!("SKIPPED: no /dev/kvm that can be opened");
        return;
    };
    let entries = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES).unwrap();
    let node = Supported::new(entries.as_slice().to_vec()).unwrap();
    let machine = kvm.create_vm().unwrap();
    let all = common(&[node.clone(), node]).unwrap();
    let topology = Topology::new(&[0, 0, 1, 1]);
    let hidden: Vec<_> = ["xsave", "cx16"].map(feature).to_vec();
    for (id, all) in (0..).zip([all.clone(), all.without(&hidden)]) {
        let made = for_vcpu(&all, VcpuId(id), &topology);
        let vcpu = machine.create_vcpu(id.into()).unwrap();
        vcpu.set_cpuid2(&CpuId::from_entries(&made).unwrap()).unwrap();
        let kept = vcpu.get_cpuid2(kvm_bindings::KVM_MAX_CPUID_ENTRIES).unwrap();
        let kept = Leaves::from_entries(kept.as_slice());
        assert_eq!(kept.get(0xb, 1), Regs { eax: 1, ebx: 2, ecx: 0x201, edx: id });
        assert_eq!(kept.get(0x4000_0001, 0).eax, 1 << 15);
    }
}
