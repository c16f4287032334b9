//! The DSDT: what there is beside what the fixed tables say.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Arg, BufferData, Device, EISAName, Equal, IO, If,
    Interrupt, Memory32Fixed, Method, Name, Package, Path, ResourceTemplate, Return, Scope, Uuid,
    ZERO,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};

use super::platform::{PciHost, Platform, SerialPort};
use crate::pci::{CONFIG_PORTS, CONFIG_PORTS_START};

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, SLEEP_TYPE_S5, bytes};

const HEADER_LEN: u32 = 36;
/// From 2 on, integers have 64 bits.
const DSDT_REVISION: u8 = 2;
const SERIAL_PORTS: u8 = 8;

/// Functions of PCI's `_DSM` (PCI Firmware 3.3, section 4.6): which there are, and whether the guest
/// may configure anew what it finds.
const PCI_DSM: &str = "e5c937d0-3553-4d7a-9117-ea4d19c3434d";
const PCI_DSM_FUNCTIONS: u8 = 0;
const PCI_DSM_CONFIGURE: u8 = 5;

/// Terms that are AML already.
struct Raw<'a>(&'a [u8]);

impl Aml for Raw<'_> {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(self.0);
    }
}

pub(super) fn dsdt(platform: &Platform) -> Vec<u8> {
    let mut dsdt =
        Sdt::new(*b"DSDT", HEADER_LEN, DSDT_REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let s5 = Package::new(vec![&SLEEP_TYPE_S5, &ZERO, &ZERO, &ZERO]);
    dsdt.append_slice(&bytes(&Name::new(Path::new("\\_S5_"), &s5)));

    let mut devices = platform.serial.as_ref().map(serial).unwrap_or_default();
    devices.extend(platform.pci.as_ref().map(pci).unwrap_or_default());
    devices.extend_from_slice(&platform.devices);
    if !devices.is_empty() {
        let devices = Raw(&devices);
        dsdt.append_slice(&bytes(&Scope::new(Path::new("\\_SB_"), vec![&devices])));
    }
    dsdt.as_slice().to_vec()
}

/// A 16550 as kernels know it from PCs.
fn serial(serial: &SerialPort) -> Vec<u8> {
    let ports = IO::new(serial.port, serial.port, 1, SERIAL_PORTS);
    let irq = Interrupt::new(true, true, false, false, serial.irq);
    let resources = ResourceTemplate::new(vec![&ports, &irq]);
    let hid = Name::new(Path::new("_HID"), &EISAName::new("PNP0501"));
    let uid = Name::new(Path::new("_UID"), &ZERO);
    let ddn = Name::new(Path::new("_DDN"), &"COM1");
    let crs = Name::new(Path::new("_CRS"), &resources);
    bytes(&Device::new(Path::new("COM1"), vec![&hid, &uid, &ddn, &crs]))
}

/// The host bridge, and the reservation of its configuration space, which the bridge itself must not
/// claim (PCI Firmware 3.3, section 4.1.2).
fn pci(host: &PciHost) -> Vec<u8> {
    let buses =
        AddressSpace::new_bus_number(u16::from(host.ecam.bus_first), u16::from(host.ecam.bus_last));
    let ports = IO::new(CONFIG_PORTS_START, CONFIG_PORTS_START, 1, CONFIG_PORTS as u8);
    let last = host.memory_start + (host.memory_len - 1);
    let cacheable = AddressSpaceCacheable::NotCacheable;
    let memory = AddressSpace::new_memory(cacheable, true, host.memory_start, last, None);
    let hid = Name::new(Path::new("_HID"), &EISAName::new("PNP0A08"));
    let cid = Name::new(Path::new("_CID"), &EISAName::new("PNP0A03"));
    let uid = Name::new(Path::new("_UID"), &ZERO);
    let segment = Name::new(Path::new("_SEG"), &ZERO);
    let bus = Name::new(Path::new("_BBN"), &host.ecam.bus_first);
    let resources = ResourceTemplate::new(vec![&buses, &ports, &memory]);
    let crs = Name::new(Path::new("_CRS"), &resources);
    let dsm = Raw(&pci_dsm());
    let bridge = Device::new(Path::new("PCI0"), vec![&hid, &cid, &uid, &segment, &bus, &crs, &dsm]);

    let ecam_len = (u32::from(host.ecam.bus_last) - u32::from(host.ecam.bus_first) + 1) << 20;
    let ecam = Memory32Fixed::new(true, host.ecam.base as u32, ecam_len);
    let resources = ResourceTemplate::new(vec![&ecam]);
    let hid = Name::new(Path::new("_HID"), &EISAName::new("PNP0C02"));
    let crs = Name::new(Path::new("_CRS"), &resources);
    let reserved = Device::new(Path::new("ECAM"), vec![&hid, &uid, &crs]);
    [bytes(&bridge), bytes(&reserved)].concat()
}

/// `_DSM` of the bridge: addresses are to stay as they are.
fn pci_dsm() -> Vec<u8> {
    let known = BufferData::new(vec![1 << PCI_DSM_FUNCTIONS | 1 << PCI_DSM_CONFIGURE]);
    let none = BufferData::new(vec![0]);
    let (known, none) = (Return::new(&known), Return::new(&none));
    let keep = Return::new(&ZERO);
    let uuid = Uuid::new(PCI_DSM);
    let (asks, configures) =
        (Equal::new(&Arg(2), &PCI_DSM_FUNCTIONS), Equal::new(&Arg(2), &PCI_DSM_CONFIGURE));
    let (asked, configured) = (If::new(&asks, vec![&known]), If::new(&configures, vec![&keep]));
    let is_pci = Equal::new(&Arg(0), &uuid);
    let answers = If::new(&is_pci, vec![&asked, &configured]);
    bytes(&Method::new(Path::new("_DSM"), 4, false, vec![&answers, &none]))
}
