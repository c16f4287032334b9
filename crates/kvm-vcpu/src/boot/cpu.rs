//! The state in which the boot CPU starts.

use std::ops::Range;

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::GuestMemory;

use super::error::Fault;
use super::loader::{Loader, PAGE};
use crate::paging::{
    ACCESSED, CR0_PG, CR4_PAE, DIRTY, EFER_LMA, ENTRIES, LARGE, PRESENT, WRITABLE,
};

const CR0_PE: u64 = 1 << 0;
/// Always one on processors of today.
const CR0_ET: u64 = 1 << 4;
const EFER_LME: u64 = 1 << 8;
/// Bit 1 is always one.
const RFLAGS_RESET: u64 = 2;

/// `__BOOT_CS` and `__BOOT_DS` of boot.rst.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
/// Null, unused, code of 64 bits, data: flat, present, ring 0.
const GDT: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
const GDT_LEN: u64 = size_of_val(&GDT) as u64;

/// The first 4 GiB, in page directories of 1 GiB.
const DIRECTORIES: u64 = 4;

/// How the boot CPU enters the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// Protected mode of 32 bits, flat segments, no paging: PVH and Multiboot.
    Protected32 {
        /// Where to begin.
        eip: u32,
        /// Multiboot's magic; zero for PVH.
        eax: u32,
        /// Address of the start info or the Multiboot information.
        ebx: u32,
    },
    /// Long mode, the first 4 GiB mapped to themselves: Linux.
    Long64 {
        /// Where to begin.
        rip: u64,
        /// Address of the zero page.
        rsi: u64,
        /// Address of the page tables.
        cr3: u64,
        /// Address of the segment descriptors.
        gdt: u64,
    },
}

impl Entry {
    /// Sets all general registers, and all that matters of the special ones. What belongs to the
    /// interrupt controllers stays as it is: `apic_base`, `cr8` and `interrupt_bitmap`.
    pub fn set_registers(&self, regs: &mut kvm_regs, sregs: &mut kvm_sregs) {
        *regs = kvm_regs { rflags: RFLAGS_RESET, ..kvm_regs::default() };
        let long = match *self {
            Self::Protected32 { eip, eax, ebx } => {
                (regs.rip, regs.rax, regs.rbx) = (eip.into(), eax.into(), ebx.into());
                sregs.gdt = kvm_dtable::default();
                (sregs.cr0, sregs.cr3, sregs.cr4) = (CR0_PE | CR0_ET, 0, 0);
                sregs.efer = 0;
                false
            }
            Self::Long64 { rip, rsi, cr3, gdt } => {
                (regs.rip, regs.rsi) = (rip, rsi);
                sregs.gdt =
                    kvm_dtable { base: gdt, limit: GDT_LEN as u16 - 1, ..kvm_dtable::default() };
                (sregs.cr0, sregs.cr3, sregs.cr4) = (CR0_PE | CR0_ET | CR0_PG, cr3, CR4_PAE);
                sregs.efer = EFER_LME | EFER_LMA;
                true
            }
        };
        sregs.cr2 = 0;
        sregs.idt = kvm_dtable::default();
        sregs.cs = segment(CODE_SELECTOR, true, long);
        for register in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss]
        {
            *register = segment(DATA_SELECTOR, false, false);
        }
        // PVH: "a busy 32-bit TSS with base 0 and limit 0x67". Long mode's has the same type.
        sregs.tr = kvm_segment { limit: 0x67, type_: 0xb, present: 1, ..kvm_segment::default() };
        sregs.ldt = kvm_segment { unusable: 1, ..kvm_segment::default() };
    }
}

/// A flat segment of ring 0, already accessed.
fn segment(selector: u16, code: bool, long: bool) -> kvm_segment {
    kvm_segment {
        limit: u32::MAX,
        selector,
        type_: if code { 0xb } else { 0x3 },
        present: 1,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..kvm_segment::default()
    }
}

/// Places the segment descriptors that Linux expects to find loaded.
pub(super) fn write_gdt<M: GuestMemory + ?Sized>(
    loader: &mut Loader<'_, M>,
    within: Range<u64>,
) -> Result<u64, Fault> {
    let gdt = loader.claims.take_lowest(within, GDT_LEN, 16, "the segment descriptors")?;
    loader.write(gdt, &words(&GDT))?;
    Ok(gdt)
}

/// Places tables that map the first 4 GiB to themselves, with pages of 2 MiB, which every processor
/// has.
pub(super) fn write_page_tables<M: GuestMemory + ?Sized>(
    loader: &mut Loader<'_, M>,
    within: Range<u64>,
) -> Result<u64, Fault> {
    let len = (2 + DIRECTORIES) * PAGE;
    let top = loader.claims.take_lowest(within, len, PAGE, "the page tables")?;
    // The marks are set beforehand, so that the processor's walks need not write to the tables.
    let table = PRESENT | WRITABLE | ACCESSED;
    let directory = |index: u64| (top + (2 + index) * PAGE) | table;
    let page = |index: u64| (index << 21) | table | DIRTY | LARGE;

    let mut tables = vec![(top + PAGE) | table];
    tables.resize(ENTRIES, 0);
    tables.extend((0..DIRECTORIES).map(directory));
    tables.resize(2 * ENTRIES, 0);
    tables.extend((0..DIRECTORIES * ENTRIES as u64).map(page));
    loader.write(top, &words(&tables))?;
    Ok(top)
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
