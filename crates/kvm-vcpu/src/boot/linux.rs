//! bzImage by the 64-bit boot protocol of Linux: Documentation/arch/x86/boot.rst.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use vm_memory::{ByteValued, GuestMemory};

use super::cpu::{self, Entry};
use super::error::Fault;
use super::image::{self, u16_at};
use super::layout::HIGH_MEMORY_START;
use super::loader::{FOUR_GIB, Loader, PAGE, STRUCTURES_START};
use super::{BootParams, Format};

/// Where the setup header begins, in the file and in the zero page.
const HEADER_START: usize = 0x1f1;
const MAGIC_AT: usize = 0x202;
const VERSION_AT: usize = 0x206;
/// First version with `xloadflags`, which tells whether there is a 64-bit entry.
const VERSION_MIN: u16 = 0x20c;
const BOOT_FLAG: u16 = 0xaa55;
const LOADED_HIGH: u8 = 1 << 0;
const XLF_KERNEL_64: u16 = 1 << 0;
/// A loader without a number of its own.
const LOADER_UNDEFINED: u8 = 0xff;
/// The 64-bit entry, from the start of the protected-mode code.
const ENTRY_64: u64 = 0x200;
/// First address that structures in conventional memory may not reach.
const CONVENTIONAL_END: u64 = 0xa_0000;

/// Whether the file has the header of a Linux kernel, of whatever version.
pub(super) fn is_linux(file: &[u8]) -> bool {
    file.get(MAGIC_AT..MAGIC_AT + 4) == Some(b"HdrS")
}

/// The kernel as the file has it.
struct Kernel<'a> {
    header: setup_header,
    code: &'a [u8],
}

impl<'a> Kernel<'a> {
    fn parse(file: &'a [u8]) -> Result<Self, Fault> {
        let not_this = |found| Fault::NotThisFormat { format: Format::Linux, found };
        if !is_linux(file) {
            return Err(not_this(image::describe(file)));
        }
        if u16_at(file, 0x1fe) != Some(BOOT_FLAG) {
            return Err(malformed("the boot flag 0xaa55 is missing".to_owned()));
        }
        let version = u16_at(file, VERSION_AT).unwrap_or(0);
        if version < VERSION_MIN {
            let (major, minor) = (version >> 8, version & 0xff);
            return Err(not_this(format!(
                "a bzImage of boot protocol {major}.{minor:02}; 2.12 or later is needed"
            )));
        }
        let header = read_header(file)?;
        let (loadflags, xloadflags) = (header.loadflags, header.xloadflags);
        if loadflags & LOADED_HIGH == 0 {
            return Err(not_this("a zImage, which loads below 1 MiB".to_owned()));
        }
        if xloadflags & XLF_KERNEL_64 == 0 {
            let found = "a bzImage without a 64-bit entry, such as a 32-bit kernel";
            return Err(not_this(found.to_owned()));
        }

        let setup_sectors = match header.setup_sects {
            0 => 4,
            sectors => u64::from(sectors),
        };
        let code_at = (setup_sectors + 1) * 512;
        let code_len = u64::from(header.syssize) * 16;
        // The last paragraph may be partly filled; Linux pads its file.
        let code = image::slice(file, code_at, code_len, "the protected-mode code")?;
        if code_len <= ENTRY_64 {
            return Err(malformed(format!("only {code_len} bytes of protected-mode code")));
        }
        Ok(Self { header, code })
    }

    /// Bytes from the load address that the kernel uses before it reads the memory map.
    fn memory_len(&self) -> u64 {
        u64::from(self.header.init_size).max(self.code.len() as u64)
    }
}

/// The header as far as this version of it goes: the byte before the magic is a jump over its rest.
fn read_header(file: &[u8]) -> Result<setup_header, Fault> {
    let jump = file.get(MAGIC_AT - 1).copied().unwrap_or(0);
    let end = MAGIC_AT + usize::from(jump);
    let mut header = setup_header::default();
    let len = (end - HEADER_START).min(header.as_slice().len());
    // Versions from 2.12 on have all up to `init_size` and `handover_offset`.
    const LEN_MIN: usize = 0x264 - HEADER_START;
    if len < LEN_MIN {
        return Err(malformed(format!("the setup header ends at {end:#x}, too early")));
    }
    let bytes = image::slice(file, HEADER_START as u64, len as u64, "the setup header")?;
    header.as_mut_slice()[..len].copy_from_slice(bytes);
    Ok(header)
}

fn malformed(what: String) -> Fault {
    Fault::Malformed { format: "bzImage", what }
}

pub(super) fn load<M: GuestMemory + ?Sized>(
    loader: &mut Loader<'_, M>,
    params: &BootParams<'_>,
) -> Result<Entry, Fault> {
    let kernel = Kernel::parse(params.kernel.bytes)?;
    if !params.modules.is_empty() {
        let advice = "put the files into the initrd";
        return Err(Fault::NotTaken { format: Format::Linux, what: "modules", advice });
    }
    let text = command_line(params);
    let (len, max) = (text.len(), kernel.header.cmdline_size as usize);
    if len > max {
        return Err(Fault::CommandLineTooLong { len, max });
    }

    let start = place_kernel(loader, &kernel)?;
    let mut header = kernel.header;
    // Places are below 4 GiB: what follows fits 32 bits.
    header.code32_start = start as u32;
    header.type_of_loader = LOADER_UNDEFINED;
    if let Some(initrd) = params.initrd.as_ref().filter(|initrd| !initrd.bytes.is_empty()) {
        let end = (u64::from(header.initrd_addr_max) + 1).min(FOUR_GIB);
        header.ramdisk_image = loader.place_highest(HIGH_MEMORY_START..end, PAGE, initrd)? as u32;
        header.ramdisk_size = initrd.bytes.len() as u32;
    }

    let conventional = STRUCTURES_START..CONVENTIONAL_END;
    let gdt = cpu::write_gdt(loader, conventional.clone())?;
    let page_tables = cpu::write_page_tables(loader, conventional.clone())?;
    let cmdline = cstring(&text);
    let cmdline_len = cmdline.len() as u64;
    let cmdline_at =
        loader.claims.take_lowest(conventional.clone(), cmdline_len, 16, "the command line")?;
    loader.write(cmdline_at, &cmdline)?;
    header.cmd_line_ptr = cmdline_at as u32;

    let zero_page = loader.claims.take_lowest(conventional, PAGE, PAGE, "the zero page")?;
    loader.write(zero_page, boot_parameters(params, header).as_slice())?;
    Ok(Entry::Long64 { rip: start + ENTRY_64, rsi: zero_page, cr3: page_tables, gdt })
}

/// Puts the kernel at its preferred address, or, if it can be moved, at the next that has room.
fn place_kernel<M: GuestMemory + ?Sized>(
    loader: &mut Loader<'_, M>,
    kernel: &Kernel<'_>,
) -> Result<u64, Fault> {
    let preferred = kernel.header.pref_address;
    let align = u64::from(kernel.header.kernel_alignment);
    let movable = kernel.header.relocatable_kernel != 0;
    if movable && !align.is_power_of_two() {
        return Err(malformed(format!("kernel alignment {align:#x} is no power of two")));
    }
    let len = kernel.memory_len();
    // A kernel moves itself up to its preferred address if it is loaded below.
    let start = if movable {
        loader.claims.take_lowest(preferred..FOUR_GIB, len, align, "the kernel")?
    } else {
        if preferred >= FOUR_GIB {
            return Err(malformed(format!("its only address {preferred:#x} is above 4 GiB")));
        }
        loader.claims.take(preferred, len, "the kernel")?;
        preferred
    };
    loader.write(start, kernel.code)?;
    Ok(start)
}

/// The command line, with what the kernel is told of its time-stamp counter: in front, for `--` ends
/// the kernel's part. What the line says itself counts.
fn command_line(params: &BootParams<'_>) -> String {
    const RATE: &str = "tsc_early_khz=";
    const TRUST: &str = "tsc=";
    let Some(khz) = params.tsc_khz else { return params.cmdline.to_owned() };
    let words = || params.cmdline.split_ascii_whitespace().take_while(|&word| word != "--");
    let told = |name: &str| words().any(|word| word.starts_with(name));
    let rate = if told(RATE) { String::new() } else { format!("{RATE}{khz} ") };
    let trust = if told(TRUST) { "" } else { "tsc=reliable " };
    format!("{rate}{trust}{}", params.cmdline)
}

fn cstring(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

/// The zero page: all that is not set is zero, among it the absence of a screen.
fn boot_parameters(params: &BootParams<'_>, header: setup_header) -> boot_params {
    let mut zero_page = boot_params {
        acpi_rsdp_addr: params.rsdp.unwrap_or(0),
        hdr: header,
        ..boot_params::default()
    };
    let mut table = zero_page.e820_table;
    let map = params.layout.map();
    for (slot, entry) in table.iter_mut().zip(&map) {
        let (addr, size, type_) = (entry.start, entry.len, entry.kind as u32);
        *slot = boot_e820_entry { addr, size, r#type: type_ };
    }
    zero_page.e820_table = table;
    zero_page.e820_entries = map.len().min(table.len()) as u8;
    zero_page
}
