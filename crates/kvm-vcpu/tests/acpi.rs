//! The ACPI tables, read back as a kernel reads them, and by `iasl`.
#![expect(clippy::unwrap_used, reason = "helpers of tests, outside of test functions")]

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;

use kvm_vcpu::acpi::{
    AcpiError, Ecam, IoApic, IrqOverride, MemoryRange, PciHost, Platform, Register, SerialPort,
    Sleep, Tables, Vcpu,
};
use kvm_vcpu::boot::layout::{IOAPIC_ADDRESS, Layout};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const RSDP: u64 = 0xe_0000;

fn platform() -> Platform {
    let layout = Layout::new(4 << 30).unwrap();
    let share = |node: u32| {
        let ranges = layout.ranges_of(u64::from(node) << 31, 1 << 31);
        ranges.into_iter().map(move |range| MemoryRange {
            start: range.start,
            len: range.len,
            node,
        })
    };
    Platform {
        vcpus: [(0, 0), (1, 1), (300, 1)].map(|(apic_id, node)| Vcpu { apic_id, node }).to_vec(),
        memory: share(0).chain(share(1)).collect(),
        node_distance: 40,
        ioapic: Some(IoApic {
            id: 7,
            address: IOAPIC_ADDRESS,
            gsi_base: 0,
            overrides: vec![IrqOverride { irq: 0, gsi: 2, flags: 0 }],
        }),
        pic: false,
        serial: Some(SerialPort { port: 0x3f8, irq: 4 }),
        i8042: true,
        rtc: false,
        pm_timer_port: Some(0x608),
        pci: Some(PciHost {
            ecam: Ecam { base: 0xe000_0000, bus_first: 0, bus_last: 255 },
            memory_start: 0xc000_0000,
            memory_len: 0x1000_0000,
        }),
        reset: Register { port: 0xcf9, value: 6 },
        sleep: Sleep { control_port: 0x600, status_port: 0x601 },
        devices: Vec::new(),
    }
}

fn number(bytes: &[u8], at: usize, len: usize) -> u64 {
    let mut value = [0; 8];
    value[..len].copy_from_slice(&bytes[at..at + len]);
    u64::from_le_bytes(value)
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
}

/// All tables by signature, found by the root pointer as a kernel does; checksums and lengths checked.
fn parse(tables: &Tables) -> BTreeMap<String, Vec<u8>> {
    let image = tables.bytes();
    let table = |address: u64| {
        assert_eq!(address % 16, 0);
        let from = usize::try_from(address - tables.rsdp()).unwrap();
        let bytes = &image[from..from + number(image, from + 4, 4) as usize];
        assert_eq!(sum(bytes), 0, "checksum of {:?}", &bytes[..4]);
        (String::from_utf8(bytes[..4].to_vec()).unwrap(), bytes.to_vec())
    };
    assert_eq!(tables.rsdp(), RSDP);
    assert_eq!(&image[..8], b"RSD PTR ");
    assert_eq!((sum(&image[..20]), sum(&image[..36]), image[15]), (0, 0, 2));
    let (name, xsdt) = table(number(image, 24, 8));
    assert_eq!(name, "XSDT");
    let mut all: BTreeMap<_, _> =
        xsdt[36..].chunks_exact(8).map(|address| table(number(address, 0, 8))).collect();
    let dsdt = number(&all["FACP"], 140, 8);
    assert_eq!(dsdt, number(&all["FACP"], 40, 4));
    all.extend([table(dsdt)]);
    all
}

/// The entries of a MADT or SRAT.
fn entries(table: &[u8], mut at: usize) -> Vec<&[u8]> {
    let mut entries = Vec::new();
    while at < table.len() {
        let len = usize::from(table[at + 1]);
        entries.push(&table[at..at + len]);
        at += len;
    }
    entries
}

#[test]
fn the_fixed_table_says_reset_sleep_and_hardware_reduced() {
    let tables = parse(&Tables::build(&platform()).unwrap());
    let fadt = &tables["FACP"];
    assert_eq!((fadt.len(), fadt[8]), (276, 6));
    let flags = number(fadt, 112, 4);
    for (bit, name) in [(0, "WBINVD"), (8, "TMR_VAL_EXT"), (10, "RESET_REG_SUP"), (20, "reduced")] {
        assert_eq!(flags >> bit & 1, 1, "{name}");
    }
    // An 8042; no VGA; no CMOS clock.
    assert_eq!(number(fadt, 109, 2), 0x26);
    // Address space, width, offset, access size, address.
    assert_eq!(fadt[116..128], [1, 8, 0, 1, 0xf9, 0x0c, 0, 0, 0, 0, 0, 0]);
    assert_eq!(fadt[128], 6);
    assert_eq!(fadt[244..256], [1, 8, 0, 1, 0x00, 0x06, 0, 0, 0, 0, 0, 0]);
    assert_eq!(fadt[256..268], [1, 8, 0, 1, 0x01, 0x06, 0, 0, 0, 0, 0, 0]);
    assert_eq!(fadt[208..220], [1, 32, 0, 3, 0x08, 0x06, 0, 0, 0, 0, 0, 0]);

    let without = Platform { pm_timer_port: None, rtc: true, i8042: false, ..platform() };
    let tables = parse(&Tables::build(&without).unwrap());
    let fadt = &tables["FACP"];
    assert_eq!((number(fadt, 109, 2), number(fadt, 112, 4) >> 8 & 1), (0x04, 0));
    assert_eq!(fadt[208..220], [0; 12]);
}

#[test]
fn processors_and_interrupt_controllers_are_listed() {
    let tables = parse(&Tables::build(&platform()).unwrap());
    let madt = &tables["APIC"];
    assert_eq!((number(madt, 36, 4), number(madt, 40, 4)), (0xfee0_0000, 0));
    let expected: [&[u8]; 7] = [
        &[0, 8, 0, 0, 1, 0, 0, 0],
        &[0, 8, 1, 1, 1, 0, 0, 0],
        &[9, 16, 0, 0, 0x2c, 1, 0, 0, 1, 0, 0, 0, 0x2c, 1, 0, 0],
        &[1, 12, 7, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0],
        &[2, 10, 0, 0, 2, 0, 0, 0, 0, 0],
        &[4, 6, 0xff, 0, 0, 1],
        &[10, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0],
    ];
    assert_eq!(entries(madt, 44), expected);

    let small =
        Platform { ioapic: None, pic: true, vcpus: platform().vcpus[..2].to_vec(), ..platform() };
    let tables = parse(&Tables::build(&small).unwrap());
    assert_eq!(number(&tables["APIC"], 40, 4), 1, "PCAT_COMPAT");
    let kinds: Vec<_> = entries(&tables["APIC"], 44).iter().map(|entry| entry[0]).collect();
    assert_eq!(kinds, [0, 0, 4]);
}

#[test]
fn each_node_has_its_processors_and_memory() {
    let tables = parse(&Tables::build(&platform()).unwrap());
    let srat = &tables["SRAT"];
    assert_eq!((srat[8], number(srat, 36, 4)), (3, 1));
    let (mut processors, mut memory) = (Vec::new(), Vec::new());
    for entry in entries(srat, 48) {
        match (entry[0], entry.len()) {
            (2, 24) => {
                assert_eq!(number(entry, 12, 4), 1, "enabled");
                processors.push((number(entry, 8, 4), number(entry, 4, 4)));
            }
            (1, 40) => {
                assert_eq!(number(entry, 28, 4), 1, "enabled");
                let range = (number(entry, 8, 8), number(entry, 16, 8));
                memory.push((range, number(entry, 2, 4)));
            }
            other => panic!("unexpected entry {other:?}"),
        }
    }
    assert_eq!(processors, [(0, 0), (1, 1), (300, 1)]);
    let gib = 1 << 30;
    let expected = [((0, 2 * gib), 0), ((2 * gib, gib), 1), ((4 * gib, gib), 1)];
    assert_eq!(memory, expected);

    let slit = &tables["SLIT"];
    assert_eq!((number(slit, 36, 8), &slit[44..]), (2, &[10, 40, 40, 10][..]));
}

#[test]
fn the_configuration_space_is_listed_where_there_is_one() {
    let tables = parse(&Tables::build(&platform()).unwrap());
    let mcfg = &tables["MCFG"];
    assert_eq!((mcfg.len(), number(mcfg, 44, 8)), (60, 0xe000_0000));
    assert_eq!((number(mcfg, 52, 2), mcfg[54], mcfg[55]), (0, 0, 255));
    let without = Tables::build(&Platform { pci: None, ..platform() }).unwrap();
    assert!(!parse(&without).contains_key("MCFG"));
    let name = b"PCI0";
    let has_bridge =
        |tables: &BTreeMap<String, Vec<u8>>| tables["DSDT"].windows(4).any(|window| window == name);
    assert!(has_bridge(&tables) && !has_bridge(&parse(&without)));
}

#[test]
fn devices_of_others_stand_beside_the_serial_port() {
    // Device (DEV0) {}
    let devices = b"\x5b\x82\x05DEV0".to_vec();
    let tables = parse(&Tables::build(&Platform { devices, ..platform() }).unwrap());
    let dsdt = &tables["DSDT"];
    let find = |needle: &[u8]| dsdt.windows(needle.len()).position(|window| window == needle);
    assert!(find(b"_SB_").unwrap() < find(b"COM1").unwrap());
    assert!(find(b"COM1").unwrap() < find(b"DEV0").unwrap());
    assert!(find(b"_S5_").is_some());

    let bare = Tables::build(&Platform { serial: None, pci: None, ..platform() }).unwrap();
    assert!(!parse(&bare)["DSDT"].windows(4).any(|name| name == b"COM1" || name == b"_SB_"));
}

#[test]
fn contradicting_machines_are_refused() {
    let vcpus = |ids: &[u32]| ids.iter().map(|&apic_id| Vcpu { apic_id, node: 0 }).collect();
    let refused = |platform: Platform| Tables::build(&platform).unwrap_err();
    let error = refused(Platform { vcpus: vcpus(&[]), ..platform() });
    assert_eq!(error, AcpiError::NoVcpus);
    let error = refused(Platform { vcpus: vcpus(&[3, 3]), ..platform() });
    assert_eq!(error, AcpiError::ApicId { apic_id: 3 });
    let error = refused(Platform { vcpus: vcpus(&[u32::MAX]), ..platform() });
    assert_eq!(error, AcpiError::ApicId { apic_id: u32::MAX });
    let error = refused(Platform { node_distance: 10, ..platform() });
    assert_eq!(error, AcpiError::Distance { distance: 10 });
    let sparse = vec![Vcpu { apic_id: 0, node: 5 }];
    let error = refused(Platform { vcpus: sparse, ..platform() });
    assert_eq!(error, AcpiError::Nodes { node: 5, nodes: 3 });
    let many: Vec<u32> = (0..4000).collect();
    let error = refused(Platform { vcpus: vcpus(&many), memory: Vec::new(), ..platform() });
    assert!(matches!(error, AcpiError::TooLarge { len_max: 0x1_fff0, .. }));
}

#[test]
fn a_thousand_vcpus_on_64_nodes_fit() {
    let vcpus = (0..1024).map(|id| Vcpu { apic_id: id, node: id / 16 }).collect();
    let tables = Tables::build(&Platform { vcpus, ..platform() }).unwrap();
    assert_eq!(number(&parse(&tables)["SLIT"], 36, 8), 64);
}

#[test]
fn the_tables_and_the_reset_code_lie_at_their_addresses() {
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
    let tables = Tables::build(&platform()).unwrap();
    tables.write(&memory).unwrap();
    let mut bytes = vec![0; tables.bytes().len()];
    memory.read_slice(&mut bytes, GuestAddress(RSDP)).unwrap();
    assert_eq!(bytes, tables.bytes());

    // mov al, 6; mov dx, 0xcf9; out dx, al; hlt; jmp $-1
    let mut code = [0; 9];
    memory.read_slice(&mut code, GuestAddress(0xf_fff0)).unwrap();
    assert_eq!(code, [0xb0, 6, 0xba, 0xf9, 0x0c, 0xee, 0xf4, 0xeb, 0xfd]);
    let small = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
    assert!(tables.write(&small).is_err());
}

#[test]
fn iasl_understands_every_table() {
    if Command::new("iasl").arg("-v").output().is_err() {
        println!("SKIPPED: no iasl (Debian package acpica-tools)");
        return;
    }
    let directory = std::env::temp_dir().join(format!("giantvm-acpi-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    for (name, bytes) in parse(&Tables::build(&platform()).unwrap()) {
        let file = directory.join(format!("{name}.aml"));
        fs::write(&file, bytes).unwrap();
        let output = Command::new("iasl").arg("-d").arg(&file).output().unwrap();
        let said = [output.stderr, output.stdout].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(output.status.success(), "{name}: {said}");
        let text = fs::read_to_string(file.with_extension("dsl")).unwrap();
        for word in ["Invalid", "Error", "Unknown", "incorrect", "**"] {
            let bad = |text: &str| text.lines().any(|line| line.contains(word));
            assert!(!bad(&text) && !bad(&said), "{name}: {word} in\n{text}\n{said}");
        }
        if name == "DSDT" {
            for hid in ["PNP0501", "PNP0A08", "PNP0C02"] {
                assert!(text.contains(&format!("EisaId (\"{hid}\")")), "{hid} in {text}");
            }
            // The bridge's memory, and what it says of keeping addresses.
            for line in ["0xC0000000,", "0xCFFFFFFF,", "If ((Arg2 == 0x05))"] {
                assert!(text.contains(line), "{line} in {text}");
            }
            // The source that iasl made of it must compile again.
            let output = Command::new("iasl").arg(file.with_extension("dsl")).output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(said.contains("0 Errors, 0 Warnings"), "{said}\n{text}");
        }
    }
    fs::remove_dir_all(&directory).unwrap();
}
