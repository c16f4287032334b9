//! Multiboot 1: a header in the first 8 KiB, a 32-bit entry, and the information structure.
//! Multiboot Specification 0.6.96, sections 3.1 to 3.3.
//!
//! No video mode is set, whatever the header asks for (bit 2): there is no display, and bit 11 of the
//! information's flags says so. The boot device (bit 1) and symbols are not given either.

use vm_memory::GuestMemory;

use super::cpu::Entry;
use super::elf::Elf;
use super::error::Fault;
use super::image::{self, u32_at};
use super::layout::{HIGH_MEMORY_START, LOW_MEMORY_END};
use super::loader::{FOUR_GIB, Loader, PAGE, STRUCTURES_START, Strings};
use super::{BootParams, Format};

const HEADER_MAGIC: u32 = 0x1bad_b002;
/// What a kernel finds in EAX.
const LOADER_MAGIC: u32 = 0x2bad_b002;
const SEARCH_LEN: usize = 8192;
/// Header flags that a loader may not ignore and that are understood: modules on page boundaries,
/// memory information, video mode.
const REQUIRED_FLAGS_KNOWN: u32 = 0b111;
const REQUIRED_FLAGS: u32 = 0xffff;
const ADDRESSES_VALID: u32 = 1 << 16;

const INFO_LEN: usize = 116;
const INFO_MEMORY: u32 = 1 << 0;
const INFO_CMDLINE: u32 = 1 << 2;
const INFO_MODULES: u32 = 1 << 3;
const INFO_MAP: u32 = 1 << 6;
const INFO_LOADER_NAME: u32 = 1 << 9;
const MAP_ENTRY_LEN: usize = 24;
const MODULE_LEN: usize = 16;

/// A header whose checksum is right.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    /// Where in the file it is.
    at: usize,
    flags: u32,
    addresses: Option<Addresses>,
}

/// The address fields of section 3.1.3, for files that are not ELF.
#[derive(Clone, Copy, Debug)]
struct Addresses {
    header: u32,
    load: u32,
    load_end: u32,
    bss_end: u32,
    entry: u32,
}

impl Header {
    /// The first header in the file, if there is one.
    pub(super) fn find(file: &[u8]) -> Option<Self> {
        let file = &file[..file.len().min(SEARCH_LEN)];
        (0..file.len()).step_by(4).find_map(|at| {
            let word = |index: usize| u32_at(file, at + 4 * index);
            let (magic, flags, checksum) = (word(0)?, word(1)?, word(2)?);
            let sum = magic.wrapping_add(flags).wrapping_add(checksum);
            if magic != HEADER_MAGIC || sum != 0 {
                return None;
            }
            let addresses = || {
                let (header, load, load_end) = (word(3)?, word(4)?, word(5)?);
                Some(Addresses { header, load, load_end, bss_end: word(6)?, entry: word(7)? })
            };
            if flags & ADDRESSES_VALID == 0 {
                return Some(Self { at, flags, addresses: None });
            }
            Some(Self { at, flags, addresses: Some(addresses()?) })
        })
    }

    /// Whether it says where to load a file that is not ELF.
    pub(super) fn has_addresses(&self) -> bool {
        self.addresses.is_some()
    }
}

fn malformed(what: String) -> Fault {
    Fault::Malformed { format: "Multiboot", what }
}

pub(super) fn load<M: GuestMemory + ?Sized>(
    loader: &mut Loader<'_, M>,
    params: &BootParams<'_>,
    elf: Option<&Elf<'_>>,
) -> Result<Entry, Fault> {
    let file = params.kernel.bytes;
    let not_this = |found| Fault::NotThisFormat { format: Format::Multiboot, found };
    let Some(header) = Header::find(file) else {
        let found = image::describe(file);
        return Err(not_this(format!("{found}, without a header in its first 8 KiB")));
    };
    let unknown = header.flags & REQUIRED_FLAGS & !REQUIRED_FLAGS_KNOWN;
    if unknown != 0 {
        return Err(malformed(format!(
            "requires features with flags {unknown:#x}, which are not supported"
        )));
    }
    if params.initrd.is_some() {
        let advice = "give it as a module";
        return Err(Fault::NotTaken { format: Format::Multiboot, what: "initrd", advice });
    }

    // 3.1.3: the address fields are used even if the file is an ELF.
    let eip = match (header.addresses, elf) {
        (Some(addresses), _) => load_flat(loader, file, header.at, addresses)?,
        (None, Some(elf)) => load_elf(loader, elf)?,
        (None, None) => {
            let found = image::describe(file);
            return Err(not_this(format!("{found}, no ELF, whose header has no addresses")));
        }
    };

    let mut modules = Vec::new();
    // Above the kernel: small kernels take the memory from their end as free, or map only the lowest.
    let above = loader.claims.end().max(HIGH_MEMORY_START);
    for module in params.modules {
        let start = loader.place_lowest(above..FOUR_GIB, PAGE, &module.file)?;
        modules.push((start, start + module.file.bytes.len() as u64, module.cmdline));
    }

    let len = information(0, params, &modules).len() as u64;
    let within = STRUCTURES_START..FOUR_GIB;
    let base = loader.claims.take_lowest(within, len, 16, "the Multiboot information")?;
    loader.write(base, &information(base, params, &modules))?;
    // Its place ends below 4 GiB.
    Ok(Entry::Protected32 { eip, eax: LOADER_MAGIC, ebx: base as u32 })
}

fn load_elf<M: GuestMemory + ?Sized>(
    loader: &mut Loader<'_, M>,
    elf: &Elf<'_>,
) -> Result<u32, Fault> {
    let entry = elf.physical_entry();
    let eip = u32::try_from(entry).ok().filter(|_| elf.loads(entry)).ok_or_else(|| {
        malformed(format!("the entry {entry:#x} of the ELF is not in a segment below 4 GiB"))
    })?;
    loader.load_segments(elf)?;
    Ok(eip)
}

/// Loads a file by the addresses in its header.
fn load_flat<M: GuestMemory + ?Sized>(
    loader: &mut Loader<'_, M>,
    file: &[u8],
    header_at: usize,
    addresses: Addresses,
) -> Result<u32, Fault> {
    let Addresses { header, load, load_end, bss_end, entry } = addresses;
    let before_header = u64::from(header).checked_sub(u64::from(load));
    let Some(from) = before_header.and_then(|before| (header_at as u64).checked_sub(before)) else {
        return Err(malformed(format!(
            "header address {header:#x} and load address {load:#x} do not fit a header at \
             {header_at:#x} of the file"
        )));
    };
    // Zero: to the end of the file.
    let len = match load_end {
        0 => file.len() as u64 - from,
        end => u64::from(end).checked_sub(u64::from(load)).ok_or_else(|| {
            malformed(format!("load end {end:#x} is below the load address {load:#x}"))
        })?,
    };
    let bytes = image::slice(file, from, len, "what its Multiboot header loads")?;
    let bytes_end = u64::from(load) + len;
    // Zero: no bss.
    let end = if bss_end == 0 { bytes_end } else { u64::from(bss_end) };
    if end < bytes_end {
        return Err(malformed(format!("bss end {end:#x} is below the load end {bytes_end:#x}")));
    }
    if !(u64::from(load)..end).contains(&u64::from(entry)) {
        return Err(malformed(format!("the entry {entry:#x} is outside {load:#x}..{end:#x}")));
    }
    loader.claims.take(load.into(), end - u64::from(load), "the kernel")?;
    loader.write(load.into(), bytes)?;
    loader.zero(bytes_end..end)?;
    Ok(entry)
}

/// The information structure of section 3.3, its lists and its strings, to lie at `base`, below 4 GiB.
fn information(base: u64, params: &BootParams<'_>, modules: &[(u64, u64, &str)]) -> Vec<u8> {
    let map = params.layout.map();
    let map_at = base + INFO_LEN as u64;
    let map_len = map.len() * MAP_ENTRY_LEN;
    let modules_at = map_at + map_len as u64;
    let mut strings = Strings::new(modules_at + (modules.len() * MODULE_LEN) as u64);

    let mut info = [0; INFO_LEN];
    let mut set = |at: usize, value: u64| {
        info[at..at + 4].copy_from_slice(&(value as u32).to_le_bytes());
    };
    let flags = INFO_MEMORY | INFO_CMDLINE | INFO_MODULES | INFO_MAP | INFO_LOADER_NAME;
    set(0, flags.into());
    set(4, LOW_MEMORY_END / 1024);
    set(8, (params.layout.low_end() - HIGH_MEMORY_START) / 1024);
    set(16, strings.add(params.cmdline));
    set(20, modules.len() as u64);
    set(24, modules_at);
    set(44, map_len as u64);
    set(48, map_at);
    set(64, strings.add("giantvm"));

    let mut bytes = info.to_vec();
    for entry in map {
        // The size does not count itself.
        bytes.extend_from_slice(&(MAP_ENTRY_LEN as u32 - 4).to_le_bytes());
        bytes.extend_from_slice(&entry.start.to_le_bytes());
        bytes.extend_from_slice(&entry.len.to_le_bytes());
        bytes.extend_from_slice(&(entry.kind as u32).to_le_bytes());
    }
    for &(start, end, cmdline) in modules {
        for value in [start, end, strings.add(cmdline), 0] {
            bytes.extend_from_slice(&(value as u32).to_le_bytes());
        }
    }
    bytes.extend_from_slice(strings.bytes());
    bytes
}
