//! The ACPI tables of the machine: hardware-reduced ACPI (ACPI 6.5, section 4.1), so that kernels
//! need no SCI, no PM1 registers, no 8259 and no 8254.
//!
//! Linux then leaves out the 8259 and the PIT, finds the serial port by the DSDT, and powers off by
//! the sleep control register. Windows would want more; it is not supported.

mod aml;
mod platform;
mod topology;

use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryError};

use crate::boot::layout::ACPI_START;
pub use platform::{
    AcpiError, Ecam, IoApic, IrqOverride, MemoryRange, PciHost, Platform, Register, SerialPort,
    Sleep, Vcpu,
};

const OEM_ID: [u8; 6] = *b"GIANTV";
const OEM_TABLE_ID: [u8; 8] = *b"GIANTVM ";
const OEM_REVISION: u32 = 1;
/// Tables begin at multiples of this.
const ALIGN: usize = 16;

/// `SLP_TYPx` of S5, soft-off, in this machine's `\_S5`.
const SLEEP_TYPE_S5: u8 = 5;
/// What a guest writes to the sleep control register to power off: the type, and SLP_EN
/// (ACPI 6.5, section 4.8.3.7).
pub const SLEEP_CONTROL_S5: u8 = SLEEP_TYPE_S5 << 2 | 1 << 5;
/// WAK_STS of the sleep status register: ACPICA waits for it after a write to the control register,
/// and writes it to clear it.
pub const SLEEP_STATUS_WAKE: u8 = 1 << 7;

/// Fixed hardware features that only the IA-PC boot flags tell (ACPI 6.5, table 5.11).
const BOOT_8042: u16 = 1 << 1;
const BOOT_NO_VGA: u16 = 1 << 2;
const BOOT_NO_CMOS_RTC: u16 = 1 << 5;

/// Where a processor in real mode begins after a reset, f000:fff0.
const RESET_VECTOR: u64 = 0xf_fff0;

/// All tables, as they are to lie in guest memory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Tables {
    bytes: Vec<u8>,
    reset_code: [u8; 9],
}

impl Tables {
    /// Builds the tables of a machine.
    ///
    /// # Errors
    /// [`AcpiError`], if the description contradicts itself or the tables outgrow their place.
    pub fn build(platform: &Platform) -> Result<Self, AcpiError> {
        platform.check()?;
        let mut image = Image { bytes: vec![0; Rsdp::len()] };
        let dsdt = image.add(&aml::dsdt(platform));
        let mut tables = vec![
            image.add(&fadt(platform, dsdt)),
            image.add(&topology::madt(platform)),
            image.add(&topology::srat(platform)),
            image.add(&topology::slit(platform)),
        ];
        if let Some(ecam) = platform.pci.as_ref().map(|pci| &pci.ecam) {
            let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
            mcfg.add_ecam(ecam.base, 0, ecam.bus_first, ecam.bus_last);
            tables.push(image.add(&bytes(&mcfg)));
        }
        let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
        tables.into_iter().for_each(|table| xsdt.add_entry(table));
        let xsdt = image.add(&bytes(&xsdt));
        image.bytes[..Rsdp::len()].copy_from_slice(&bytes(&Rsdp::new(OEM_ID, xsdt)));

        let len_max = RESET_VECTOR - ACPI_START;
        if image.bytes.len() as u64 > len_max {
            return Err(AcpiError::TooLarge { len: image.bytes.len() as u64, len_max });
        }
        Ok(Self { bytes: image.bytes, reset_code: reset_code(platform.reset) })
    }

    /// Guest-physical address of the root pointer (RSDP): for
    /// [`BootParams::rsdp`](crate::boot::BootParams::rsdp). A kernel that looks for it itself finds it, too.
    pub fn rsdp(&self) -> u64 {
        ACPI_START
    }

    /// What lies at [`rsdp`](Self::rsdp): the root pointer, and the tables behind it.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Writes the tables to guest memory, and at the reset vector f000:fff0 code that resets the
    /// machine; again, after a reset.
    ///
    /// # Errors
    /// If there is no memory at their place.
    pub fn write<M: GuestMemory + ?Sized>(&self, memory: &M) -> Result<(), GuestMemoryError> {
        memory.write_slice(&self.bytes, GuestAddress(ACPI_START))?;
        memory.write_slice(&self.reset_code, GuestAddress(RESET_VECTOR))
    }
}

/// Code of real mode that writes the reset register.
///
/// Linux wants to reboot by EFI where ACPI is hardware-reduced, unless `reboot=` says otherwise, and
/// where there is no EFI it jumps to the reset vector (`efi_reboot_required`, `machine_real_restart`).
fn reset_code(reset: Register) -> [u8; 9] {
    let [low, high] = reset.port.to_le_bytes();
    // mov al, value; mov dx, port; out dx, al; hlt; jmp to the hlt
    [0xb0, reset.value, 0xba, low, high, 0xee, 0xf4, 0xeb, 0xfd]
}

/// The tables so far; the first is at [`ACPI_START`].
struct Image {
    bytes: Vec<u8>,
}

impl Image {
    /// Adds a table, and says at which address.
    fn add(&mut self, table: &[u8]) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
        let address = ACPI_START + self.bytes.len() as u64;
        self.bytes.extend_from_slice(table);
        address
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn port(bits: u8, access: AccessSize, port: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, bits, 0, access, port.into())
}

/// The fixed description: ACPI 6.5, section 5.2.9.
fn fadt(platform: &Platform, dsdt: u64) -> Vec<u8> {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::Wbinvd)
        // No buttons that would raise an SCI, and no RTC wake-up as a fixed feature.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup)
        .flag(Flags::HwReducedAcpi)
        .dsdt_64(dsdt);
    // Tables lie below 1 MiB. Both fields may be set if they agree, and old readers want the first.
    fadt.dsdt = (dsdt as u32).into();
    fadt.reset_reg = port(8, AccessSize::ByteAccess, platform.reset.port);
    fadt.reset_value = platform.reset.value;
    fadt.sleep_control_reg = port(8, AccessSize::ByteAccess, platform.sleep.control_port);
    fadt.sleep_status_reg = port(8, AccessSize::ByteAccess, platform.sleep.status_port);

    let mut boot_flags = BOOT_NO_VGA;
    boot_flags |= if platform.i8042 { BOOT_8042 } else { 0 };
    boot_flags |= if platform.rtc { 0 } else { BOOT_NO_CMOS_RTC };
    fadt.iapc_boot_arch = boot_flags.into();

    if let Some(timer) = platform.pm_timer_port {
        // Not a part of hardware-reduced ACPI, but Linux takes the port wherever it finds it.
        fadt = fadt.flag(Flags::TmrValExt);
        fadt.pm_tmr_blk = u32::from(timer).into();
        fadt.pm_tmr_len = 4;
        fadt.x_pm_tmr_blk = port(32, AccessSize::DwordAccess, timer);
    }
    bytes(&fadt.finalize())
}
