//! The state of the boot CPU.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use kvm_vcpu::boot::Entry;

use crate::images::{BzImage, MIB, Machine};

/// Registers as a guest may have left them.
fn used() -> (kvm_regs, kvm_sregs) {
    let regs = kvm_regs { rax: 1, rbx: 2, rsp: 3, r15: 4, rflags: 0x246, ..Default::default() };
    let segment = kvm_segment { base: 5, dpl: 3, unusable: 1, ..Default::default() };
    let mut sregs = kvm_sregs { cr0: !0, cr2: 6, cr3: 7, cr4: !0, efer: !0, ..Default::default() };
    (sregs.cs, sregs.ss, sregs.tr) = (segment, segment, segment);
    (sregs.apic_base, sregs.cr8) = (0xfee0_0d00, 9);
    (regs, sregs)
}

fn flat(segment: kvm_segment) -> bool {
    segment.base == 0
        && segment.limit == u32::MAX
        && (segment.g, segment.s, segment.present) == (1, 1, 1)
        && (segment.dpl, segment.unusable) == (0, 0)
}

#[test]
fn protected_mode_is_flat_and_without_paging() {
    let (mut regs, mut sregs) = used();
    let entry = Entry::Protected32 { eip: 0x10_0000, eax: 0x2bad_b002, ebx: 0x1000 };
    entry.set_registers(&mut regs, &mut sregs);
    let expected =
        kvm_regs { rip: 0x10_0000, rax: 0x2bad_b002, rbx: 0x1000, rflags: 2, ..Default::default() };
    assert_eq!(regs, expected);
    assert_eq!((sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer), (0x11, 0, 0, 0));
    assert!(flat(sregs.cs) && (sregs.cs.type_, sregs.cs.db, sregs.cs.l) == (0xb, 1, 0));
    for data in [sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss] {
        assert!(flat(data) && (data.type_, data.db) == (3, 1));
    }
    // Xen, pvh.pandoc: "tr: must be a 32-bit TSS (active) with a base of '0' and a limit of '0x67'".
    assert_eq!((sregs.tr.type_, sregs.tr.limit, sregs.tr.s), (0xb, 0x67, 0));
    assert_eq!((sregs.apic_base, sregs.cr8), (0xfee0_0d00, 9), "not the loader's");
}

#[test]
fn long_mode_has_the_descriptors_that_its_segments_name() {
    let machine = Machine::new(64 * MIB);
    let boot = machine.load(&BzImage::default().build()).unwrap();
    let (mut regs, mut sregs) = used();
    boot.entry.set_registers(&mut regs, &mut sregs);
    let Entry::Long64 { rip, rsi, cr3, .. } = boot.entry else { panic!("{boot:?}") };
    assert_eq!(regs, kvm_regs { rip, rsi, rflags: 2, ..Default::default() });
    assert_eq!((sregs.cr0, sregs.cr3, sregs.cr4), (0x8000_0011, cr3, 0x20));
    assert_eq!(sregs.efer, 0x500);
    for segment in [sregs.cs, sregs.ds, sregs.ss] {
        assert!(flat(segment));
        assert!(segment.selector + 7 <= sregs.gdt.limit);
        let descriptor = machine.get::<u64>(sregs.gdt.base + u64::from(segment.selector));
        let bit = |at: u32| (descriptor >> at & 1) as u8;
        assert_eq!((descriptor >> 40 & 0xf) as u8, segment.type_);
        assert_eq!((bit(44), bit(47)), (1, 1), "a present code or data segment");
        assert_eq!((bit(53), bit(54), bit(55)), (segment.l, segment.db, segment.g));
        assert_eq!(descriptor & 0xffff, 0xffff);
        assert_eq!(descriptor >> 48 & 0xf, 0xf);
    }
    assert_eq!((sregs.cs.selector, sregs.ds.selector), (0x10, 0x18));
    assert_eq!((sregs.cs.l, sregs.cs.db), (1, 0));
}
