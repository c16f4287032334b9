//! The pages in which stand-ins live, outside of the guest's memory.
//!
//! A stand-in idles in a loop with interrupts enabled. Each vector of its interrupt table leads to
//! a stub that reports the vector by a port write and ends the interrupt. Nothing here is secret
//! from the guest, or trusted: a guest that writes to these pages harms its own interrupts only.

use std::sync::atomic::{Ordering, fence};

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};

use super::errors::KvmError;

/// Where the pages are in the guest's addresses: within the 2 MiB that the local APICs have.
pub(super) const START: u64 = 0xfef0_0000;
/// Their length.
pub(super) const LEN: usize = 0x10_0000;
/// The page at which a processor begins after a reset.
pub(super) const RESET_PAGE: u64 = 0xffff_f000;
/// Its length.
pub(super) const RESET_LEN: usize = 0x1000;

/// Where a stand-in reports a vector.
pub(super) const PORT_VECTOR: u16 = 0x5f0;
/// Where it says that it has nothing to do.
pub(super) const PORT_IDLE: u16 = 0x5f1;
/// Where a processor says that it begins after a reset.
pub(super) const PORT_RESET: u16 = 0x5f2;

/// Bytes of one stub, for the vectors in turn.
const STUB: u64 = 16;

// Layout, as offsets.
const GDT: usize = 0x2000;
const IDT: usize = 0x3000;
const TSS: usize = 0x4000;
const PML4: usize = 0x1_0000;
const PDPT: usize = 0x1_1000;
const PD: usize = 0x1_2000;
const CODE: usize = 0x2_0000;
const STACKS: usize = 0x8_0000;
const STACK_LEN: usize = 0x800;
/// Most stand-ins that have a stack.
pub(super) const STAND_INS_MAX: usize = (LEN - STACKS) / STACK_LEN;

const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TSS_SELECTOR: u16 = 0x28;

std::arch::global_asm!(
    ".pushsection .rodata.giantvm_stand_in, \"a\"",
    ".globl giantvm_stand_in_start",
    ".globl giantvm_stand_in_stubs",
    ".globl giantvm_stand_in_end",
    ".balign 16",
    "giantvm_stand_in_start:",
    // Software-enable the APIC: spurious vector 255 (SDM vol. 3, 11.9).
    "mov ecx, 0x80f",
    "mov eax, 0x1ff",
    "xor edx, edx",
    "wrmsr",
    "mov dx, 0x5f1",
    "sti",
    "nop",
    // No `sti` before this one: in its shadow, no interrupt could end an exit that idles.
    "2: out dx, al",
    "jmp 2b",
    // Not maskable: it is not the APIC's to end.
    "giantvm_stand_in_nmi:",
    "push rax",
    "push rdx",
    "mov dx, 0x5f0",
    "mov al, 2",
    "out dx, al",
    "pop rdx",
    "pop rax",
    "iretq",
    "giantvm_stand_in_common:",
    "push rdx",
    "push rcx",
    "mov dx, 0x5f0",
    "out dx, al",
    "xor eax, eax",
    "xor edx, edx",
    "mov ecx, 0x80b",
    "wrmsr",
    "pop rcx",
    "pop rdx",
    "pop rax",
    "iretq",
    ".balign 16",
    "giantvm_stand_in_stubs:",
    ".set giantvm_vector, 0",
    ".rept 256",
    ".balign 16",
    ".if giantvm_vector == 2",
    "jmp giantvm_stand_in_nmi",
    ".else",
    "push rax",
    "mov al, giantvm_vector",
    "jmp giantvm_stand_in_common",
    ".endif",
    ".set giantvm_vector, giantvm_vector + 1",
    ".endr",
    ".balign 16",
    "giantvm_stand_in_end:",
    ".popsection",
);

unsafe extern "C" {
    static giantvm_stand_in_start: u8;
    static giantvm_stand_in_stubs: u8;
    static giantvm_stand_in_end: u8;
}

/// The code, and where the stubs begin in it.
fn code() -> (&'static [u8], usize) {
    let start = &raw const giantvm_stand_in_start;
    let len = (&raw const giantvm_stand_in_end) as usize - start as usize;
    let stubs = (&raw const giantvm_stand_in_stubs) as usize - start as usize;
    // SAFETY: the labels bound read-only bytes of this program, in this order.
    (unsafe { std::slice::from_raw_parts(start, len) }, stubs)
}

/// Real-mode code for the reset page: `mov dx, PORT_RESET; out dx, al; jmp` to the `out`.
const RESET_CODE: [u8; 6] = [0xba, PORT_RESET as u8, (PORT_RESET >> 8) as u8, 0xee, 0xeb, 0xfd];

/// Memory of the machine's own.
pub(super) struct Private {
    start: *mut u8,
}

// SAFETY: the mapping belongs to this value; it is written before any vCPU runs, and not after.
unsafe impl Send for Private {}
// SAFETY: as above.
unsafe impl Sync for Private {}

impl Private {
    pub(super) fn new() -> Result<Self, KvmError> {
        let len = LEN + RESET_LEN;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(KvmError::call("mmap of private pages")(std::io::Error::last_os_error()));
        }
        // SAFETY: just mapped, this long and zero; nothing else knows of it.
        let bytes = unsafe { std::slice::from_raw_parts_mut(start.cast::<u8>(), len) };
        fill(bytes);
        fence(Ordering::Release);
        Ok(Self { start: start.cast() })
    }

    /// Where the stand-ins' pages and the reset page are mapped.
    pub(super) fn addresses(&self) -> (u64, u64) {
        (self.start as u64, self.start as u64 + LEN as u64)
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        // SAFETY: our own mapping; the machine that used it is gone.
        unsafe { libc::munmap(self.start.cast(), LEN + RESET_LEN) };
    }
}

fn fill(bytes: &mut [u8]) {
    let mut put = |at: usize, value: u64| {
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    };
    // Present, writable, accessed, dirty; the last one large.
    put(PML4, (START + PDPT as u64) | 0x63);
    put(PDPT + 8 * (START >> 30) as usize, (START + PD as u64) | 0x63);
    put(PD + 8 * (START >> 21 & 511) as usize, (START & !0x1f_ffff) | 0xe3);
    put(GDT + usize::from(CODE_SELECTOR), 0x00af_9b00_0000_ffff);
    put(GDT + usize::from(DATA_SELECTOR), 0x00cf_9300_0000_ffff);
    let tss = START + TSS as u64;
    let low = 0x67 | (tss & 0xff_ffff) << 16 | 0x8b << 40 | (tss >> 24 & 0xff) << 56;
    put(GDT + usize::from(TSS_SELECTOR), low);
    put(GDT + usize::from(TSS_SELECTOR) + 8, tss >> 32);
    let (code, stubs) = code();
    for vector in 0..256 {
        let stub = START + CODE as u64 + stubs as u64 + STUB * vector;
        // An interrupt gate of ring 0.
        let low = stub & 0xffff
            | u64::from(CODE_SELECTOR) << 16
            | 0x8e << 40
            | (stub >> 16 & 0xffff) << 48;
        put(IDT + 16 * vector as usize, low);
        put(IDT + 16 * vector as usize + 8, stub >> 32);
    }
    bytes[CODE..CODE + code.len()].copy_from_slice(code);
    let reset = LEN + 0xff0;
    bytes[reset..reset + RESET_CODE.len()].copy_from_slice(&RESET_CODE);
}

/// The state of stand-in `index` when it begins.
pub(super) fn start(index: usize, sregs: &mut kvm_sregs) -> kvm_regs {
    sregs.cr0 = 0x8005_0033;
    sregs.cr2 = 0;
    sregs.cr3 = START + PML4 as u64;
    sregs.cr4 = 0x620;
    sregs.efer = 0xd00;
    sregs.gdt.base = START + GDT as u64;
    sregs.gdt.limit = TSS_SELECTOR + 15;
    sregs.idt.base = START + IDT as u64;
    sregs.idt.limit = 0xfff;
    let flat = kvm_segment { limit: 0xffff_ffff, present: 1, s: 1, g: 1, ..Default::default() };
    sregs.cs = kvm_segment { selector: CODE_SELECTOR, type_: 11, l: 1, ..flat };
    let data = kvm_segment { selector: DATA_SELECTOR, type_: 3, db: 1, ..flat };
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *segment = data;
    }
    sregs.tr = kvm_segment {
        base: START + TSS as u64,
        limit: 0x67,
        selector: TSS_SELECTOR,
        present: 1,
        type_: 11,
        ..Default::default()
    };
    sregs.ldt = kvm_segment { unusable: 1, ..Default::default() };
    sregs.interrupt_bitmap = [0; 4];
    kvm_regs {
        rflags: 2,
        rip: START + CODE as u64,
        rsp: START + (STACKS + STACK_LEN * (index % STAND_INS_MAX) + STACK_LEN) as u64,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_vector_has_a_stub_of_its_own() {
        let (code, stubs) = code();
        assert_eq!(code.len(), stubs + 256 * STUB as usize);
        for vector in (0..=255u8).filter(|&vector| vector != 2) {
            let stub = &code[stubs + 16 * usize::from(vector)..];
            assert_eq!(stub[..3], [0x50, 0xb0, vector]);
        }
        assert!(CODE + code.len() <= STACKS);
    }
}
