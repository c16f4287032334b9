//! No file can make a loader panic, or write outside the places it may use.

use kvm_vcpu::boot::{Entry, Format, load};
use proptest::prelude::*;

use crate::images::{BzImage, MIB, Machine, Segment, elf, multiboot_header, pvh_kernel};

fn seeds() -> Vec<Vec<u8>> {
    let code = multiboot_header(0x1_0003, &[0x10_0054, 0x10_0000, 0, 0, 0x10_0000]);
    let flat = [vec![0; 0x54], code].concat();
    let segments = [Segment::load(MIB, &multiboot_header(3, &[]), 0x1000)];
    vec![pvh_kernel(), BzImage::default().build(), flat, elf(false, 3, MIB, &segments)]
}

/// A value that is likely to break arithmetic, or any other.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0u32..64).prop_map(|bit| 1 << bit),
        (0u32..64).prop_map(|bit| (1u64 << bit).wrapping_sub(1)),
        (0u64..0x100).prop_map(|below| below.wrapping_neg()),
        Just(MIB),
        0u64..0x2000,
    ]
}

/// Positions mostly within headers: those of ELF and Multiboot, or that of Linux.
fn position() -> impl Strategy<Value = usize> {
    prop_oneof![4 => 0usize..0xc0, 2 => 0x1f0usize..0x270, 1 => 0usize..0x800]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn changed_headers_load_or_are_refused(
        seed in 0usize..4,
        changes in prop::collection::vec((position(), value(), 1usize..=8), 1..6),
        cut in prop::option::of(0usize..2100),
        format in prop::option::of(prop::sample::select(vec![
            Format::Pvh, Format::Multiboot, Format::Linux,
        ])),
    ) {
        let mut file = seeds().swap_remove(seed);
        for (at, value, width) in changes {
            let bytes = value.to_le_bytes();
            for (to, from) in file.iter_mut().skip(at).zip(&bytes[..width]) {
                *to = *from;
            }
        }
        file.truncate(cut.unwrap_or(usize::MAX));
        let machine = Machine::new(16 * MIB);
        let mut params = machine.params(&file);
        params.format = format;
        if let Ok(boot) = load(&machine.memory, &params) {
            let (entry, data) = match boot.entry {
                Entry::Protected32 { eip, ebx, .. } => (eip.into(), ebx.into()),
                Entry::Long64 { rip, rsi, .. } => (rip, rsi),
            };
            prop_assert!(entry < 16 * MIB && data < 16 * MIB, "{boot:x?}");
        }
        // The adapter window and the place of ACPI's tables belong to others.
        prop_assert!(machine.bytes(0x9_fc00, 0x6_0400).iter().all(|&byte| byte == 0));
    }

    #[test]
    fn any_bytes_load_or_are_refused(
        bytes in prop::collection::vec(any::<u8>(), 0..2048),
        magic in prop::sample::select(vec![&b""[..], b"\x7fELF\x01\x01", b"\x7fELF\x02\x01"]),
    ) {
        let machine = Machine::new(2 * MIB);
        let _ = machine.load(&[magic, &bytes].concat());
    }
}
