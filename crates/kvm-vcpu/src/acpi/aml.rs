//! The DSDT: what there is beside what the fixed tables say.

use acpi_tables::aml::{
    Device, EISAName, IO, Interrupt, Name, Package, Path, ResourceTemplate, Scope, ZERO,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};

use super::platform::{Platform, SerialPort};
use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, SLEEP_TYPE_S5, bytes};

const HEADER_LEN: u32 = 36;
/// From 2 on, integers have 64 bits.
const DSDT_REVISION: u8 = 2;
const SERIAL_PORTS: u8 = 8;

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
