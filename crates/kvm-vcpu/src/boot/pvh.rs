//! PVH direct boot: an ELF whose Xen note names a 32-bit entry, and `hvm_start_info` in memory.
//! Xen: docs/misc/pvh.pandoc, public/arch-x86/hvm/start_info.h.

use linux_loader::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{ByteValued, GuestMemory};

use super::cpu::Entry;
use super::elf::Elf;
use super::error::Fault;
use super::loader::{FOUR_GIB, Loader, PAGE, STRUCTURES_START, Strings};
use super::{BootParams, Format};

/// A module in guest memory.
struct Loaded<'a> {
    start: u64,
    len: u64,
    cmdline: &'a str,
}

pub(super) fn load<M: GuestMemory + ?Sized>(
    loader: &mut Loader<'_, M>,
    params: &BootParams<'_>,
    elf: &Elf<'_>,
) -> Result<Entry, Fault> {
    let found = || "an ELF without a PVH note".to_owned();
    let entry = elf
        .pvh_entry
        .ok_or_else(|| Fault::NotThisFormat { format: Format::Pvh, found: found() })?;
    let eip = u32::try_from(entry).ok().filter(|_| elf.loads(entry)).ok_or_else(|| {
        let what = format!("the entry {entry:#x} of its note is not in a segment below 4 GiB");
        Fault::Malformed { format: "PVH", what }
    })?;
    loader.load_segments(elf)?;

    // Linux takes the first module for its initrd.
    let initrd = params.initrd.iter().map(|file| (file, ""));
    let modules = params.modules.iter().map(|module| (&module.file, module.cmdline));
    let mut loaded = Vec::new();
    for (file, cmdline) in initrd.chain(modules) {
        let start = loader.place_highest(0..FOUR_GIB, PAGE, file)?;
        loaded.push(Loaded { start, len: file.bytes.len() as u64, cmdline });
    }

    let len = start_info(0, params, &loaded).len() as u64;
    let within = STRUCTURES_START..FOUR_GIB;
    let base = loader.claims.take_lowest(within, len, 16, "the PVH start info")?;
    loader.write(base, &start_info(base, params, &loaded))?;
    // Its place ends below 4 GiB.
    Ok(Entry::Protected32 { eip, eax: 0, ebx: base as u32 })
}

/// The structure, its lists and its strings, to lie at `base`.
fn start_info(base: u64, params: &BootParams<'_>, modules: &[Loaded<'_>]) -> Vec<u8> {
    let map = params.layout.map();
    let modules_at = base + size_of::<hvm_start_info>() as u64;
    let map_at = modules_at + (modules.len() * size_of::<hvm_modlist_entry>()) as u64;
    let strings_at = map_at + (map.len() * size_of::<hvm_memmap_table_entry>()) as u64;
    let mut strings = Strings::new(strings_at);

    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: 1,
        nr_modules: modules.len() as u32,
        modlist_paddr: if modules.is_empty() { 0 } else { modules_at },
        cmdline_paddr: strings.add(params.cmdline),
        rsdp_paddr: params.rsdp.unwrap_or(0),
        memmap_paddr: map_at,
        memmap_entries: map.len() as u32,
        ..hvm_start_info::default()
    };
    let mut bytes = info.as_slice().to_vec();
    for module in modules {
        let cmdline_paddr = if module.cmdline.is_empty() { 0 } else { strings.add(module.cmdline) };
        let (paddr, size) = (module.start, module.len);
        let entry = hvm_modlist_entry { paddr, size, cmdline_paddr, reserved: 0 };
        bytes.extend_from_slice(entry.as_slice());
    }
    for entry in map {
        let (addr, size, type_) = (entry.start, entry.len, entry.kind as u32);
        let entry = hvm_memmap_table_entry { addr, size, type_, reserved: 0 };
        bytes.extend_from_slice(entry.as_slice());
    }
    bytes.extend_from_slice(strings.bytes());
    bytes
}
