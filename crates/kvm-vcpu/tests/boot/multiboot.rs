//! Multiboot 1: ELF and flat files, the information structure, modules.

use kvm_vcpu::boot::{Boot, Entry, File, Format, Module, load};
use vm_memory::{Bytes, GuestAddress};

use crate::images::{MIB, Machine, Segment, elf, multiboot_header, pvh_kernel};

fn kernel(wide: bool) -> Vec<u8> {
    let mut code = multiboot_header(3, &[]);
    code.extend(b"multiboot code");
    // Linked high, loaded low: the entry is a virtual address.
    let mut segment = Segment::load(MIB, &code, 0x2000);
    segment.virtual_start = 0xc000_0000;
    elf(wide, if wide { 62 } else { 3 }, 0xc000_000c, &[segment])
}

fn information(boot: Boot) -> u64 {
    match boot.entry {
        Entry::Protected32 { eax: 0x2bad_b002, ebx, .. } => ebx.into(),
        other => panic!("not Multiboot: {other:?}"),
    }
}

#[test]
fn elf_of_both_classes_enters_at_the_physical_address() {
    for wide in [false, true] {
        let machine = Machine::new(64 * MIB);
        let boot = machine.load(&kernel(wide)).unwrap();
        assert_eq!(boot.format, Format::Multiboot);
        assert!(matches!(boot.entry, Entry::Protected32 { eip: 0x10_000c, .. }), "{boot:?}");
        assert_eq!(machine.bytes(MIB + 12, 15), b"multiboot code\0");
    }
}

#[test]
fn information_tells_of_memory_strings_and_modules() {
    let machine = Machine::new(64 * MIB);
    let kernel = kernel(false);
    let mut params = machine.params(&kernel);
    let one = File { name: "one", bytes: &[1; 4097] };
    let two = File { name: "two", bytes: &[2; 3] };
    let modules = [Module { file: one, cmdline: "one first" }, Module { file: two, cmdline: "" }];
    params.modules = &modules;
    let info = information(load(&machine.memory, &params).unwrap());

    assert_eq!(machine.u32(info), 1 << 0 | 1 << 2 | 1 << 3 | 1 << 6 | 1 << 9);
    assert_eq!((machine.u32(info + 4), machine.u32(info + 8)), (639, 63 * 1024));
    assert_eq!(machine.string(machine.u32(info + 16)), "quiet");
    assert_eq!(machine.string(machine.u32(info + 64)), "giantvm");

    assert_eq!(machine.u32(info + 20), 2);
    let list = machine.u32(info + 24);
    let (start, end) = (machine.u32(list), machine.u32(list + 4));
    assert_eq!((start % 4096, end - start), (0, 4097));
    assert!(start >= MIB + 0x2000, "not in the kernel's bss");
    assert_eq!(machine.bytes(start, 4097), [1; 4097]);
    assert_eq!(machine.string(machine.u32(list + 8)), "one first");
    let (start, end) = (machine.u32(list + 16), machine.u32(list + 20));
    assert_eq!((start % 4096, machine.bytes(start, (end - start) as usize)), (0, vec![2; 3]));
    assert_eq!(machine.string(machine.u32(list + 24)), "");

    // Entries are walked by their size field, as kernels do it.
    let (mut at, mut entries) = (machine.u32(info + 48), Vec::new());
    let end = at + machine.u32(info + 44);
    while at < end {
        let (start, len) = (machine.get::<u64>(at + 4), machine.get::<u64>(at + 12));
        entries.push((start, len, machine.u32(at + 20)));
        at += machine.u32(at) + 4;
    }
    assert_eq!(at, end);
    let map = machine.layout.map();
    let expected: Vec<_> = map.iter().map(|e| (e.start, e.len, e.kind as u64)).collect();
    assert_eq!(entries, expected);
}

/// Header at 16 of the file; the kernel is loaded from 8 of it to 1 MiB.
fn flat(load_end: u32, bss_end: u32, entry: u32) -> Vec<u8> {
    let load = 0x10_0000;
    let mut file = vec![0xaa; 16];
    file.extend(multiboot_header(1 << 16, &[load + 8, load, load_end, bss_end, entry]));
    file.resize(64, 0xbb);
    file
}

#[test]
fn flat_files_are_loaded_by_their_addresses() {
    let machine = Machine::new(64 * MIB);
    machine.memory.write_slice(&[0xff; 0x200], GuestAddress(MIB)).unwrap();
    let boot = machine.load(&flat(0, 0, 0x10_0010)).unwrap();
    assert_eq!(boot.format, Format::Multiboot);
    assert!(matches!(boot.entry, Entry::Protected32 { eip: 0x10_0010, .. }));
    assert_eq!(machine.bytes(MIB, 8), [0xaa; 8]);
    assert_eq!(machine.bytes(MIB + 40, 17), [&[0xbb; 16][..], &[0xff]].concat());

    machine.load(&flat(0x10_0030, 0x10_0100, 0x10_0010)).unwrap();
    let zeroed = [&[0xbb; 8][..], &[0; 0xd0], &[0xff]].concat();
    assert_eq!(machine.bytes(MIB + 40, 0xd9), zeroed);
}

#[test]
fn contradicting_addresses_are_refused() {
    let machine = Machine::new(64 * MIB);
    for (file, reason) in [
        (flat(0x0f_0000, 0, 0x10_0010), "load end 0xf0000 is below"),
        (flat(0x10_0039, 0, 0x10_0010), "cut short: what its Multiboot header loads"),
        (flat(0x10_0030, 0x10_0020, 0x10_0010), "bss end 0x100020 is below"),
        (flat(0, 0, 0x10_0038), "the entry 0x100038 is outside"),
        (flat(0, 0xffff_ffff, 0x10_0010), "not all RAM"),
    ] {
        let error = machine.load(&file).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn unknown_required_features_and_an_initrd_are_refused() {
    let machine = Machine::new(64 * MIB);
    let segments = [Segment::load(MIB, &multiboot_header(1 << 3, &[]), 12)];
    let error = machine.load(&elf(false, 3, MIB, &segments)).unwrap_err().to_string();
    assert!(error.contains("flags 0x8"), "{error}");
    // Optional ones are not.
    let segments = [Segment::load(MIB, &multiboot_header(1 << 17 | 4, &[]), 12)];
    machine.load(&elf(false, 3, MIB, &segments)).unwrap();

    let kernel = kernel(false);
    let mut params = machine.params(&kernel);
    params.initrd = Some(File { name: "initrd", bytes: b"x" });
    let error = load(&machine.memory, &params).unwrap_err().to_string();
    assert!(error.contains("give it as a module"), "{error}");
}

#[test]
fn the_header_counts_only_within_8_kib_and_on_a_word() {
    let machine = Machine::new(64 * MIB);
    let at = |padding: usize| {
        let mut code = vec![0; padding];
        code.extend(multiboot_header(0, &[]));
        let len = code.len() as u64;
        machine.load(&elf(false, 3, MIB, &[Segment::load(MIB, &code, len)]))
    };
    // The headers of the ELF take 84 bytes.
    at(8192 - 84 - 12).unwrap();
    at(8192 - 84 - 8).unwrap_err();
    at(2).unwrap_err();
}

#[test]
fn pvh_is_preferred_unless_multiboot_is_asked_for() {
    let machine = Machine::new(64 * MIB);
    let code = multiboot_header(0, &[]);
    let segments = [Segment::load(MIB, &code, 16), Segment::pvh_note(MIB + 12, 4)];
    let kernel = elf(true, 62, MIB + 13, &segments);
    assert_eq!(machine.load(&kernel).unwrap().format, Format::Pvh);
    let mut params = machine.params(&kernel);
    params.format = Some("multiboot".parse().unwrap());
    let boot = load(&machine.memory, &params).unwrap();
    assert!(matches!(boot.entry, Entry::Protected32 { eip: 0x10_000d, .. }), "{boot:?}");
    let pvh_only = pvh_kernel();
    params.kernel.bytes = &pvh_only;
    let error = load(&machine.memory, &params).unwrap_err().to_string();
    assert!(error.contains("without a header in its first 8 KiB"), "{error}");
}
