//! ELF files of 32 and 64 bits, as far as a loader needs them: segments, entry, the note of PVH.
//! Tool Interface Standard ELF 1.2; System V ABI, AMD64 supplement.

use super::error::Fault;
use super::image::{slice, u16_at, u32_at, u64_at};

/// The first four bytes.
pub(super) const MAGIC: &[u8] = b"\x7fELF";

const CLASS_32: u8 = 1;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const TYPE_EXECUTABLE: u16 = 2;
const TYPE_SHARED: u16 = 3;
const MACHINE_386: u16 = 3;
const MACHINE_X86_64: u16 = 62;
const SEGMENT_LOAD: u32 = 1;
const SEGMENT_NOTE: u32 = 4;
/// `XEN_ELFNOTE_PHYS32_ENTRY` of Xen's public/elfnote.h.
const XEN_PHYS32_ENTRY: u32 = 18;

/// A part of the file that goes to guest memory.
#[derive(Debug)]
pub(super) struct Segment<'a> {
    /// Its bytes; what is left of `memory_len` is zero.
    pub(super) bytes: &'a [u8],
    pub(super) virtual_start: u64,
    pub(super) start: u64,
    pub(super) memory_len: u64,
}

/// A checked ELF file for x86.
#[derive(Debug)]
pub(super) struct Elf<'a> {
    pub(super) entry: u64,
    pub(super) segments: Vec<Segment<'a>>,
    /// The physical address at which PVH starts the kernel.
    pub(super) pvh_entry: Option<u64>,
}

/// Says in a few words what an ELF file is for.
pub(super) fn describe(bytes: &[u8]) -> String {
    let class = match bytes.get(4) {
        Some(&CLASS_32) => "ELF32",
        Some(&CLASS_64) => "ELF64",
        _ => return "an ELF of unknown class".to_owned(),
    };
    let big_endian = bytes.get(5) == Some(&2);
    let half = |at| u16_at(bytes, at).map(|half| if big_endian { half.swap_bytes() } else { half });
    let Some(machine) = half(18) else {
        return format!("an {class} cut off within its header");
    };
    let kind = match half(16) {
        Some(1) => " object file",
        Some(TYPE_SHARED) => " shared object",
        Some(4) => " core dump",
        _ => "",
    };
    let name = match machine {
        MACHINE_386 => "x86",
        MACHINE_X86_64 => "x86-64",
        8 => "MIPS",
        20 => "PowerPC",
        21 => "64-bit PowerPC",
        22 => "S/390",
        40 => "ARM",
        183 => "aarch64",
        243 => "RISC-V",
        258 => "LoongArch",
        other => return format!("an {class}{kind} for machine type {other}"),
    };
    format!("an {class}{kind} for {name}")
}

fn malformed(what: impl Into<String>) -> Fault {
    Fault::Malformed { format: "ELF", what: what.into() }
}

/// Where the fields of a program header are, by class.
struct Fields<'a> {
    wide: bool,
    bytes: &'a [u8],
}

impl Fields<'_> {
    /// A field at one offset in an ELF32 and another in an ELF64, of the width of an address.
    fn address(&self, narrow: usize, wide: usize) -> u64 {
        let value = if self.wide {
            u64_at(self.bytes, wide)
        } else {
            u32_at(self.bytes, narrow).map(u64::from)
        };
        value.unwrap_or(0)
    }

    fn half(&self, narrow: usize, wide: usize) -> u16 {
        u16_at(self.bytes, if self.wide { wide } else { narrow }).unwrap_or(0)
    }
}

impl<'a> Elf<'a> {
    /// Reads the headers of an ELF for x86; nothing of it is beyond the end of the file.
    pub(super) fn parse(bytes: &'a [u8]) -> Result<Self, Fault> {
        let unfit = || Fault::NotAKernel { found: super::image::describe(bytes) };
        let wide = match bytes.get(4) {
            Some(&CLASS_32) => false,
            Some(&CLASS_64) => true,
            _ => return Err(unfit()),
        };
        let header_len = if wide { 64 } else { 52 };
        let header = Fields { wide, bytes: slice(bytes, 0, header_len, "the ELF header")? };
        let machine = header.half(18, 18);
        let executable = matches!(header.half(16, 16), TYPE_EXECUTABLE | TYPE_SHARED);
        let x86 = machine == MACHINE_X86_64 || (machine == MACHINE_386 && !wide);
        if bytes.get(5) != Some(&LITTLE_ENDIAN) || !executable || !x86 {
            return Err(unfit());
        }

        let (table, count) = (header.address(28, 32), header.half(44, 56));
        let entry_len = header.half(42, 54);
        let entry_len_min = if wide { 56 } else { 32 };
        if count == 0 {
            return Err(malformed("there is no program header, so nothing to load"));
        }
        if count == u16::MAX || entry_len < entry_len_min {
            return Err(malformed(format!(
                "{count} program headers of {entry_len} bytes; fewer than 65535 of at least \
                 {entry_len_min} were expected"
            )));
        }
        let table_len = u64::from(count) * u64::from(entry_len);
        let table = slice(bytes, table, table_len, "the table of program headers")?;
        let mut elf = Self { entry: header.address(24, 24), segments: Vec::new(), pvh_entry: None };
        for (index, bytes_of_entry) in table.chunks_exact(usize::from(entry_len)).enumerate() {
            elf.add(bytes, index, &Fields { wide, bytes: bytes_of_entry })?;
        }
        if elf.segments.is_empty() {
            return Err(malformed("no program header says what to load"));
        }
        Ok(elf)
    }

    fn add(&mut self, file: &'a [u8], index: usize, header: &Fields<'_>) -> Result<(), Fault> {
        let kind = u32_at(header.bytes, 0).unwrap_or(0);
        if kind != SEGMENT_LOAD && kind != SEGMENT_NOTE {
            return Ok(());
        }
        let what = format!("segment {index}");
        let bytes = slice(file, header.address(4, 8), header.address(16, 32), &what)?;
        if kind == SEGMENT_NOTE {
            // A note segment's alignment is 4, or 8 for the notes of newer tools.
            let align = if header.address(28, 48) == 8 { 8 } else { 4 };
            self.pvh_entry = match pvh_note(bytes, align) {
                Some(entry) => Some(entry?),
                None => self.pvh_entry,
            };
            return Ok(());
        }
        let memory_len = header.address(20, 40);
        if (bytes.len() as u64) > memory_len {
            return Err(malformed(format!(
                "{what} has {:#x} bytes in the file, and room for {memory_len:#x} in memory",
                bytes.len()
            )));
        }
        if memory_len > 0 {
            let (virtual_start, start) = (header.address(8, 16), header.address(12, 24));
            self.segments.push(Segment { bytes, virtual_start, start, memory_len });
        }
        Ok(())
    }

    /// The physical address of the entry: `e_entry` is virtual where the segments' addresses differ.
    pub(super) fn physical_entry(&self) -> u64 {
        let virtually = |segment: &&Segment<'_>| {
            self.entry.wrapping_sub(segment.virtual_start) < segment.memory_len
        };
        match self.segments.iter().find(virtually) {
            Some(segment) => (self.entry - segment.virtual_start).wrapping_add(segment.start),
            None => self.entry,
        }
    }

    /// Whether the physical address is in a segment.
    pub(super) fn loads(&self, address: u64) -> bool {
        self.segments.iter().any(|segment| address.wrapping_sub(segment.start) < segment.memory_len)
    }
}

/// The entry of PVH, if the note is among these.
fn pvh_note(mut notes: &[u8], align: usize) -> Option<Result<u64, Fault>> {
    loop {
        let name_len = usize::try_from(u32_at(notes, 0)?).ok()?;
        let value_len = usize::try_from(u32_at(notes, 4)?).ok()?;
        let kind = u32_at(notes, 8)?;
        let value_at = 12usize.checked_add(name_len)?.checked_next_multiple_of(align)?;
        let value_end = value_at.checked_add(value_len)?;
        let value = notes.get(value_at..value_end)?;
        if kind == XEN_PHYS32_ENTRY && notes.get(12..12 + name_len)? == b"Xen\0" {
            let entry = match value_len {
                4 => u32_at(value, 0).map(u64::from),
                8 => u64_at(value, 0),
                _ => None,
            };
            let bad = || malformed(format!("a PVH note of {value_len} bytes: 4 or 8 expected"));
            return Some(entry.ok_or_else(bad));
        }
        notes = notes.get(value_end.checked_next_multiple_of(align)?..)?;
    }
}
