//! Processors, interrupt controllers, and which node has what: MADT, SRAT and SLIT.

use acpi_tables::madt;
use acpi_tables::sdt::Sdt;
use acpi_tables::slit::SLIT;
use acpi_tables::srat::MemoryAffinity;

use super::platform::{Platform, Vcpu};
use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, bytes};
use crate::boot::layout::LAPIC_ADDRESS;

/// ACPI 6.5, section 5.2.12: version and length of the fields before the entries.
const MADT_REVISION: u8 = 5;
const MADT_LEN: u32 = 44;
const MADT_LAPIC_ADDRESS_AT: usize = 36;
const MADT_FLAGS_AT: usize = 40;
const MADT_PCAT_COMPAT: u32 = 1;
/// Entries that the crate has no type for.
const MADT_IRQ_OVERRIDE: u8 = 2;
const MADT_LAPIC_NMI: u8 = 4;
const MADT_X2APIC: u8 = 9;
const MADT_X2APIC_NMI: u8 = 10;
const ENABLED: u32 = 1;
/// NMIs come in by LINT1 of every local APIC, as in a PC.
const NMI_LINT: u8 = 1;
const ALL_PROCESSORS: u32 = u32::MAX;

/// ACPI 6.5, section 5.2.16.
const SRAT_REVISION: u8 = 3;
const SRAT_LEN: u32 = 48;
const SRAT_X2APIC: u8 = 2;

fn table(signature: &[u8; 4], len: u32, revision: u8) -> Sdt {
    Sdt::new(*signature, len, revision, OEM_ID, OEM_TABLE_ID, OEM_REVISION)
}

/// Whether the vCPU is described as one with an xAPIC. ACPI demands it for ids below 255, and Linux
/// ignores x2APIC entries of such ids beside others.
fn is_xapic(vcpu: &Vcpu) -> bool {
    vcpu.apic_id < 255
}

/// Interrupt controllers. A processor's UID is its APIC id.
pub(super) fn madt(platform: &Platform) -> Vec<u8> {
    let mut madt = table(b"APIC", MADT_LEN, MADT_REVISION);
    madt.write_u32(MADT_LAPIC_ADDRESS_AT, LAPIC_ADDRESS);
    madt.write_u32(MADT_FLAGS_AT, if platform.pic { MADT_PCAT_COMPAT } else { 0 });
    let mut entries = Vec::new();
    for vcpu in &platform.vcpus {
        entries.extend(processor(vcpu));
    }
    if let Some(ioapic) = &platform.ioapic {
        let entry = madt::IoApic::new(ioapic.id, ioapic.address, ioapic.gsi_base);
        entries.extend(bytes(&entry));
        for wired in &ioapic.overrides {
            // Bus 0 is ISA.
            entries.extend([MADT_IRQ_OVERRIDE, 10, 0, wired.irq]);
            entries.extend(wired.gsi.to_le_bytes());
            entries.extend(wired.flags.to_le_bytes());
        }
    }
    if platform.vcpus.iter().any(is_xapic) {
        entries.extend([MADT_LAPIC_NMI, 6, ALL_PROCESSORS as u8, 0, 0, NMI_LINT]);
    }
    if !platform.vcpus.iter().all(is_xapic) {
        entries.extend([MADT_X2APIC_NMI, 12, 0, 0]);
        entries.extend(ALL_PROCESSORS.to_le_bytes());
        entries.extend([NMI_LINT, 0, 0, 0]);
    }
    madt.append_slice(&entries);
    madt.as_slice().to_vec()
}

fn processor(vcpu: &Vcpu) -> Vec<u8> {
    if is_xapic(vcpu) {
        let id = vcpu.apic_id as u8;
        return bytes(&madt::ProcessorLocalApic::new(id, id, madt::EnabledStatus::Enabled));
    }
    let mut entry = vec![MADT_X2APIC, 16, 0, 0];
    for value in [vcpu.apic_id, ENABLED, vcpu.apic_id] {
        entry.extend(value.to_le_bytes());
    }
    entry
}

/// Which node has which vCPU and which memory.
pub(super) fn srat(platform: &Platform) -> Vec<u8> {
    let mut srat = table(b"SRAT", SRAT_LEN, SRAT_REVISION);
    // Reserved, and 1 for the sake of old readers.
    srat.write_u32(36, 1);
    let mut entries = Vec::new();
    for vcpu in &platform.vcpus {
        entries.extend([SRAT_X2APIC, 24, 0, 0]);
        // Domain, id, flags, clock domain, reserved.
        for value in [vcpu.node, vcpu.apic_id, ENABLED, 0, 0] {
            entries.extend(value.to_le_bytes());
        }
    }
    for range in &platform.memory {
        let entry = MemoryAffinity::new(range.node, range.start, range.len).enabled();
        entries.extend(bytes(&entry));
    }
    srat.append_slice(&entries);
    srat.as_slice().to_vec()
}

/// How far nodes are from each other: all pairs alike.
pub(super) fn slit(platform: &Platform) -> Vec<u8> {
    let nodes = platform.nodes();
    let mut slit = SLIT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, nodes as u32);
    for one in 0..nodes {
        for other in 0..one {
            slit.set_distance(one, other, platform.node_distance);
        }
    }
    bytes(&slit)
}
