//! Files that are no kernels for this machine: what was found is said, with the file's name.

use kvm_vcpu::boot::layout::Layout;
use kvm_vcpu::boot::{File, Format, Module, detect, load};

use crate::images::{BzImage, MIB, Machine, Segment, elf, multiboot_header, pvh_kernel};

fn refusal(file: &[u8]) -> String {
    let message = Machine::new(64 * MIB).load(file).unwrap_err().to_string();
    assert!(message.starts_with("kernel.img: "), "{message}");
    message
}

#[track_caller]
fn refused(file: &[u8], reason: &str) {
    let message = refusal(file);
    assert!(message.contains(reason), "{message}");
}

#[test]
fn other_files_are_named() {
    refused(b"", "this is an empty file");
    refused(b"\x1f\x8b\x08\0", "this is a gzip file: unpack it first (4 bytes)");
    refused(b"070701", "a cpio archive, such as an initrd (6 bytes)");
    refused(&[7; 100], "a file of 100 bytes that begins with 07 07 07 07 07 07 07 07");
    refused(&multiboot_header(0, &[]), "with a Multiboot header that has no addresses");
    assert!(refusal(b"x").contains("looked for an ELF with a PVH note or a Multiboot 1 header"));
}

#[test]
fn other_elf_files_are_named() {
    let segments = [Segment::load(MIB, b"code", 4)];
    let good = elf(true, 62, MIB, &segments);
    refused(&good, "an ELF64 for x86-64 of 124 bytes with neither");
    refused(&elf(true, 183, MIB, &segments), "an ELF64 for aarch64");
    refused(&elf(false, 40, MIB, &segments), "an ELF32 for ARM");
    refused(&elf(true, 4242, MIB, &segments), "for machine type 4242");
    let patched = |at: usize, byte: u8| {
        let mut file = good.clone();
        file[at] = byte;
        file
    };
    refused(&patched(16, 1), "an ELF64 object file for x86-64");
    refused(&patched(4, 9), "an ELF of unknown class");
    let mut big_endian = patched(5, 2);
    (big_endian[18], big_endian[19]) = (0, 22);
    refused(&big_endian, "an ELF64 for S/390");
}

#[test]
fn other_linux_kernels_are_named() {
    let image = BzImage::default();
    refused(&BzImage { version: 0x205, ..image }.build(), "protocol 2.05; 2.12 or later is needed");
    refused(&BzImage { loadflags: 0, ..image }.build(), "a zImage");
    refused(&BzImage { xloadflags: 0, ..image }.build(), "without a 64-bit entry");
    let mut early_end = image.build();
    early_end[0x201] = 0x20;
    refused(&early_end, "the setup header ends at 0x222, too early");
}

#[test]
fn cut_files_are_refused_at_every_length() {
    let machine = Machine::new(64 * MIB);
    let multiboot = [Segment::load(MIB, &multiboot_header(0, &[]), 12)];
    for file in [pvh_kernel(), BzImage::default().build(), elf(false, 3, MIB, &multiboot)] {
        machine.load(&file).unwrap();
        for len in 0..file.len() {
            assert!(machine.load(&file[..len]).is_err(), "{len} of {}", file.len());
        }
    }
    let file = pvh_kernel();
    refused(&file[..file.len() - 1], "cut short: segment 1 ends at byte");
    refused(&BzImage::default().build()[..2000], "cut short: the protected-mode code ends at");
}

#[test]
fn segments_outside_ram_or_on_top_of_each_other_are_refused() {
    let with = |segment: Segment| {
        let segments = [Segment::load(MIB, b"code", 0x1000), segment, Segment::pvh_note(MIB, 8)];
        elf(true, 62, 0, &segments)
    };
    refused(
        &with(Segment::load(MIB + 0xfff, b"", 1)),
        "load segment 1 at 0x100fff..0x101000 overl",
    );
    refused(&with(Segment::load(64 * MIB - 1, b"", 2)), "0x3ffffff..0x4000001, which is not all");
    refused(&with(Segment::load(0xa_0000, b"x", 1)), "not all RAM");
    refused(&with(Segment::load(u64::MAX, b"x", 1)), "not all RAM");
    refused(&with(Segment::load(0x400, b"x", 1)), "overlaps the BIOS data area");
    refused(
        &with(Segment::load(2 * MIB, b"xyz", 2)),
        "has 0x3 bytes in the file, and room for 0x2",
    );
}

#[test]
fn a_file_of_another_format_than_asked_for_is_refused() {
    let machine = Machine::new(64 * MIB);
    let (elf, linux) = (pvh_kernel(), BzImage::default().build());
    for (format, file, reason) in [
        (Format::Pvh, &linux, "cannot be loaded as PVH: this is a Linux kernel of 2048 bytes"),
        (Format::Linux, &elf, "cannot be loaded as Linux: this is an ELF64 for x86-64"),
        (Format::Multiboot, &linux, "without a header in its first 8 KiB"),
    ] {
        let mut params = machine.params(file);
        params.format = Some(format);
        let error = load(&machine.memory, &params).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
    assert_eq!("elf".parse::<Format>().unwrap_err().0, "elf");
}

#[test]
fn strings_with_zeroes_and_modules_for_linux_are_refused() {
    let machine = Machine::new(64 * MIB);
    let image = BzImage::default().build();
    let mut params = machine.params(&image);
    params.cmdline = "a\0b";
    let error = load(&machine.memory, &params).unwrap_err().to_string();
    assert!(error.contains(r#"the command line "a\0b" has a zero byte"#), "{error}");
    params.cmdline = "";
    params.modules = &[Module { file: File { name: "m", bytes: b"m" }, cmdline: "" }];
    let error = load(&machine.memory, &params).unwrap_err().to_string();
    assert!(error.contains("put the files into the initrd"), "{error}");
}

#[test]
fn memory_that_is_smaller_than_its_layout_is_an_error() {
    let machine = Machine::new(2 * MIB);
    let layout = Layout::new(64 * MIB).unwrap();
    let kernel = pvh_kernel();
    let mut params = machine.params(&kernel);
    params.layout = &layout;
    let error = load(&machine.memory, &params).unwrap_err().to_string();
    assert!(error.contains("cannot write guest memory at 0x200000"), "{error}");
}

#[test]
fn detection_needs_no_memory() {
    let format = |bytes: &[u8]| detect(File { name: "k", bytes }).map_err(|error| error.file);
    assert_eq!(format(&pvh_kernel()), Ok(Format::Pvh));
    assert_eq!(format(&BzImage::default().build()), Ok(Format::Linux));
    assert_eq!(format(b"?"), Err("k".to_owned()));
}
