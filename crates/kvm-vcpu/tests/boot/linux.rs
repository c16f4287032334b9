//! bzImage: placement, zero page, initrd; and real kernels.

use std::fs;

use kvm_vcpu::boot::{Boot, Entry, File, Format, load};

use crate::images::{BzImage, MIB, Machine, RSDP};

/// Entry, zero page, page tables.
fn entry(boot: Boot) -> (u64, u64, u64) {
    match boot.entry {
        Entry::Long64 { rip, rsi, cr3, .. } => (rip, rsi, cr3),
        other => panic!("not the 64-bit protocol: {other:?}"),
    }
}

#[test]
fn the_zero_page_has_the_header_the_map_and_the_addresses() {
    let machine = Machine::new(128 * MIB);
    let image = BzImage::default().build();
    let mut params = machine.params(&image);
    let initrd = vec![b'i'; 10_000];
    params.initrd = Some(File { name: "initrd", bytes: &initrd });
    let boot = load(&machine.memory, &params).unwrap();
    assert_eq!(boot.format, Format::Linux);
    let (rip, zero_page, _) = entry(boot);
    assert_eq!(rip, 16 * MIB + 0x200);
    assert_eq!(machine.bytes(16 * MIB, 1024), [b'c'; 1024]);

    let at = |offset: u64| zero_page + offset;
    assert_eq!(machine.bytes(at(0x202), 4), b"HdrS");
    assert_eq!(machine.get::<u8>(at(0x210)), 0xff, "type of loader");
    assert_eq!(machine.u32(at(0x214)), 16 * MIB, "code32_start");
    assert_eq!(machine.string(machine.u32(at(0x228))), "quiet");
    assert_eq!(machine.get::<u64>(at(0x70)), RSDP);
    assert_eq!(machine.bytes(at(0x26c), 16), [0; 16], "only the header is copied");
    assert_eq!(machine.bytes(at(0), 0x40), [0; 0x40], "no screen");

    let initrd_at = machine.u32(at(0x218));
    assert_eq!((initrd_at, machine.u32(at(0x21c))), (128 * MIB - 3 * 4096, 10_000));
    assert!(machine.bytes(initrd_at, 10_000) == initrd);

    let count = machine.get::<u8>(at(0x1e8));
    let entries: Vec<_> = (0..u64::from(count))
        .map(|index| at(0x2d0) + 20 * index)
        .map(|at| (machine.get::<u64>(at), machine.get::<u64>(at + 8), machine.u32(at + 16)))
        .collect();
    let map = machine.layout.map();
    let expected: Vec<_> = map.iter().map(|e| (e.start, e.len, e.kind as u64)).collect();
    assert_eq!(entries, expected);
}

#[test]
fn page_tables_map_four_gib_to_themselves() {
    let machine = Machine::new(64 * MIB);
    let (_, _, cr3) = entry(machine.load(&BzImage::default().build()).unwrap());
    let next = |table: u64, index: u64| {
        let entry = machine.get::<u64>(table + 8 * index);
        assert_eq!(entry & 0x83, 0x03, "a present, writable table: {entry:#x}");
        entry & !0xfff
    };
    for address in [0, 0x1234_5678, 3 << 30, (4 << 30) - 1u64] {
        let directory = next(next(cr3, 0), address >> 30);
        let leaf = machine.get::<u64>(directory + 8 * (address >> 21 & 511));
        assert_eq!(leaf & 0x83, 0x83, "a present, writable page of 2 MiB");
        assert_eq!((leaf & !0x1f_ffff) | (address & 0x1f_ffff), address);
    }
    assert_eq!(machine.get::<u64>(next(cr3, 0) + 32), 0, "no more than 4 GiB");
}

#[test]
fn the_initrd_stays_below_its_limit() {
    let machine = Machine::new(128 * MIB);
    let image = BzImage { initrd_addr_max: 0x3ff_ffff, ..BzImage::default() }.build();
    let mut params = machine.params(&image);
    params.initrd = Some(File { name: "initrd", bytes: &[1; 4096] });
    let (_, zero_page, _) = entry(load(&machine.memory, &params).unwrap());
    assert_eq!(machine.u32(zero_page + 0x218), 64 * MIB - 4096);

    let big = vec![1; 60 << 20];
    params.initrd = Some(File { name: "big.cpio", bytes: &big });
    let error = load(&machine.memory, &params).unwrap_err().to_string();
    assert!(error.contains("no room for big.cpio: 62914560 bytes"), "{error}");
}

#[test]
fn a_kernel_goes_where_it_wants_or_where_it_can() {
    let machine = Machine::new(64 * MIB);
    let rip = |image: BzImage| machine.load(&image.build()).map(|boot| entry(boot).0);
    // Aligned up from what it prefers.
    let image = BzImage { pref_address: 17 * MIB, alignment: 8 << 20, ..BzImage::default() };
    assert_eq!(rip(image).unwrap(), 24 * MIB + 0x200);
    // It cannot be moved: exactly there.
    let fixed = BzImage { relocatable: 0, ..image };
    assert_eq!(rip(fixed).unwrap(), 17 * MIB + 0x200);
    let error = rip(BzImage { pref_address: 63 * MIB, ..fixed }).unwrap_err().to_string();
    assert!(error.contains("0x3f00000..0x4300000, which is not all RAM"), "{error}");
    let error = rip(BzImage { init_size: 60 << 20, ..image }).unwrap_err().to_string();
    assert!(error.contains("no room for the kernel: 62914560 bytes"), "{error}");
    let error = rip(BzImage { alignment: 3, ..image }).unwrap_err().to_string();
    assert!(error.contains("alignment 0x3 is no power of two"), "{error}");
}

#[test]
fn a_command_line_may_have_as_many_bytes_as_the_kernel_takes() {
    let machine = Machine::new(64 * MIB);
    let image = BzImage { cmdline_size: 5, ..BzImage::default() }.build();
    machine.load(&image).unwrap();
    let mut params = machine.params(&image);
    params.cmdline = "quiet ";
    let error = load(&machine.memory, &params).unwrap_err().to_string();
    assert!(error.contains("6 bytes is too long: this kernel takes 5"), "{error}");
}

#[test]
fn the_kernel_is_told_of_the_time_stamp_counter_unless_it_was() {
    let machine = Machine::new(64 * MIB);
    let image = BzImage::default().build();
    let told = |cmdline: &str| {
        let mut params = machine.params(&image);
        params.cmdline = cmdline;
        params.tsc_khz = Some(2_300_000);
        let (_, zero_page, _) = entry(load(&machine.memory, &params).unwrap());
        machine.string(machine.u32(zero_page + 0x228))
    };
    assert_eq!(told("quiet"), "tsc_early_khz=2300000 tsc=reliable quiet");
    assert_eq!(told("quiet tsc_early_khz=5"), "tsc=reliable quiet tsc_early_khz=5");
    assert_eq!(told("tsc=unstable quiet"), "tsc_early_khz=2300000 tsc=unstable quiet");
    // What comes after two dashes is for init.
    let line = "quiet -- tsc_early_khz=5 tsc=nowatchdog";
    assert_eq!(told(line), format!("tsc_early_khz=2300000 tsc=reliable {line}"));
}

#[test]
fn a_real_kernel_loads() {
    let Some(path) = std::env::var_os("GIANTVM_TEST_KERNEL") else {
        println!("SKIPPED: GIANTVM_TEST_KERNEL names no kernel (a vmlinuz or vmlinux)");
        return;
    };
    let file = fs::read(&path).expect("GIANTVM_TEST_KERNEL can be read");
    let machine = Machine::new(256 * MIB);
    let boot = machine.load(&file).unwrap();
    println!("{} loads: {boot:x?}", path.display());
    match boot.entry {
        Entry::Long64 { rip, rsi, .. } => {
            assert_eq!(boot.format, Format::Linux);
            let code = (usize::from(file[0x1f1]) + 1) * 512;
            let len = 16 * machine.u32(rsi + 0x1f4) as usize;
            assert!(machine.bytes(rip - 0x200, len) == file[code..code + len]);
        }
        Entry::Protected32 { eip, ebx, .. } => {
            assert_eq!(boot.format, Format::Pvh);
            assert_ne!(machine.bytes(eip.into(), 16), [0; 16]);
            assert_eq!(machine.u32(ebx.into()), 0x336e_c578);
        }
    }
}
