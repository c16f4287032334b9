//! PVH: segments, start info, modules.

use kvm_vcpu::boot::{Boot, Entry, File, Format, Module, load};
use vm_memory::{Bytes, GuestAddress};

use crate::images::{MIB, Machine, RSDP, Segment, elf, pvh_kernel};

fn start_info(boot: Boot) -> u64 {
    match boot.entry {
        Entry::Protected32 { eax: 0, ebx, .. } => ebx.into(),
        other => panic!("not PVH: {other:?}"),
    }
}

#[test]
fn start_info_tells_of_memory_command_line_and_acpi() {
    let machine = Machine::new(64 * MIB);
    let boot = machine.load(&pvh_kernel()).unwrap();
    assert_eq!(boot.format, Format::Pvh);
    assert!(matches!(boot.entry, Entry::Protected32 { eip: 0x20_0004, .. }));
    assert_eq!(machine.bytes(2 * MIB, 9), b"pvh code\0");

    let info = start_info(boot);
    assert_eq!(machine.u32(info), 0x336e_c578);
    assert_eq!(machine.u32(info + 4), 1, "version");
    assert_eq!(machine.u32(info + 12), 0, "modules");
    assert_eq!(machine.string(machine.get(info + 24)), "quiet");
    assert_eq!(machine.get::<u64>(info + 32), RSDP);
    let (map, count) = (machine.get::<u64>(info + 40), machine.u32(info + 48));
    let entries: Vec<_> = (0..count)
        .map(|index| map + 24 * index)
        .map(|at| (machine.get::<u64>(at), machine.get::<u64>(at + 8), machine.u32(at + 16)))
        .collect();
    let expected: Vec<_> = machine
        .layout
        .map()
        .iter()
        .map(|entry| (entry.start, entry.len, entry.kind as u64))
        .collect();
    assert_eq!(entries, expected);
}

#[test]
fn initrd_and_modules_come_in_order_with_their_strings() {
    let machine = Machine::new(64 * MIB);
    let kernel = pvh_kernel();
    let mut params = machine.params(&kernel);
    params.initrd = Some(File { name: "initrd", bytes: &[b'i'; 5000] });
    let extra = File { name: "extra", bytes: b"extra" };
    let modules = [Module { file: extra, cmdline: "a=b" }];
    params.modules = &modules;
    let info = start_info(load(&machine.memory, &params).unwrap());
    assert_eq!(machine.u32(info + 12), 2);
    let list = machine.get::<u64>(info + 16);
    let initrd = machine.get::<u64>(list);
    assert_eq!((initrd % 4096, machine.get::<u64>(list + 8)), (0, 5000));
    assert_eq!(machine.bytes(initrd, 5000), [b'i'; 5000]);
    assert_eq!(machine.get::<u64>(list + 16), 0, "the initrd has no string");
    assert_eq!(machine.bytes(machine.get(list + 32), 5), b"extra");
    assert_eq!(machine.get::<u64>(list + 40), 5);
    assert_eq!(machine.string(machine.get(list + 48)), "a=b");
}

#[test]
fn a_second_load_leaves_what_the_first_did() {
    let machine = Machine::new(64 * MIB);
    let kernel = pvh_kernel();
    let first = machine.load(&kernel).unwrap();
    let low = machine.low();
    // The guest wrote to its bss, and over its parameters.
    machine.memory.write_slice(&[0xff; 0x3000], GuestAddress(2 * MIB)).unwrap();
    let info = start_info(first);
    machine.memory.write_slice(&[0xff; 64], GuestAddress(info)).unwrap();
    assert_eq!(machine.load(&kernel).unwrap(), first);
    assert!(machine.low() == low);
    assert_eq!(machine.bytes(2 * MIB + 8, 0x2ff8), [0; 0x2ff8]);
}

#[test]
fn notes_of_four_bytes_and_of_elf32_count() {
    let machine = Machine::new(64 * MIB);
    for wide in [false, true] {
        let segments = [Segment::pvh_note(MIB, 4), Segment::load(MIB, b"code", 4)];
        let boot = machine.load(&elf(wide, if wide { 62 } else { 3 }, 0, &segments)).unwrap();
        assert!(matches!(boot.entry, Entry::Protected32 { eip: 0x10_0000, .. }));
    }
}

#[test]
fn an_entry_outside_the_segments_is_refused() {
    let machine = Machine::new(64 * MIB);
    let segments = [Segment::pvh_note(2 * MIB, 8), Segment::load(MIB, b"code", 4)];
    let error = machine.load(&elf(true, 62, 0, &segments)).unwrap_err().to_string();
    assert!(error.contains("kernel.img: PVH header: the entry 0x200000"), "{error}");
}

#[test]
fn segments_above_four_gib_reach_that_memory() {
    let machine = Machine::new(4 << 30);
    let high = (4 << 30) + MIB;
    let segments =
        [Segment::load(MIB, b"low", 3), Segment::load(high, b"high", 4), Segment::pvh_note(MIB, 8)];
    machine.load(&elf(true, 62, 0, &segments)).unwrap();
    assert_eq!(machine.bytes(high, 4), b"high");
}
