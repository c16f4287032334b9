//! Why a file could not be loaded.

use std::ops::Range;

use vm_memory::GuestMemoryError;

use super::Format;

/// A file that could not be loaded, and why.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {fault}")]
pub struct BootError {
    /// The file as the caller named it.
    pub file: String,
    /// What is wrong.
    pub fault: Fault,
}

/// What is wrong with a file, or with loading it into this machine.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// None of the formats.
    #[error(
        "no kernel that can be loaded: this is {found}; looked for an ELF with a PVH note or a \
         Multiboot 1 header, and for a bzImage of boot protocol 2.12 or later"
    )]
    NotAKernel {
        /// What it seems to be.
        found: String,
    },
    /// Not of the format that was asked for.
    #[error("cannot be loaded as {format}: this is {found}")]
    NotThisFormat {
        /// What was asked for.
        format: Format,
        /// What it is, or what it lacks.
        found: String,
    },
    /// Something that the headers promise is not in the file.
    #[error("cut short: {what} ends at byte {end:#x}, the file at {len:#x}")]
    Truncated {
        /// What is missing in whole or in part.
        what: String,
        /// First byte after it.
        end: u64,
        /// Length of the file in bytes.
        len: u64,
    },
    /// Headers that contradict themselves or the specification.
    #[error("{format} header: {what}")]
    Malformed {
        /// Whose header.
        format: &'static str,
        /// What is wrong in it.
        what: String,
    },
    /// Something is to lie where there is no RAM.
    #[error(
        "{what} needs guest memory {start:#x}..{end:#x}, which is not all RAM \
         (RAM below 4 GiB ends at {low_end:#x}); give the machine more memory or link it elsewhere"
    )]
    OutsideRam {
        /// What is to lie there.
        what: String,
        /// First address.
        start: u64,
        /// First address after it.
        end: u64,
        /// End of the RAM below 4 GiB.
        low_end: u64,
    },
    /// Two things are to lie at the same place.
    #[error(
        "{what} at {:#x}..{:#x} overlaps {other} at {:#x}..{:#x}",
        place.start, place.end, other_place.start, other_place.end
    )]
    Overlap {
        /// The one that came second.
        what: String,
        /// Where it is to lie.
        place: Range<u64>,
        /// The one that came first.
        other: String,
        /// Where that lies.
        other_place: Range<u64>,
    },
    /// Not enough RAM in one piece where it is needed.
    #[error(
        "no room for {what}: {len} bytes of free guest RAM between {:#x} and {:#x} are needed; give \
         the machine more memory", within.start, within.end
    )]
    NoRoom {
        /// What was to be placed.
        what: String,
        /// Its length in bytes.
        len: u64,
        /// Where it may lie.
        within: Range<u64>,
    },
    /// More command line than the kernel takes.
    #[error("a command line of {len} bytes is too long: this kernel takes {max}")]
    CommandLineTooLong {
        /// Bytes asked for.
        len: usize,
        /// Bytes possible.
        max: usize,
    },
    /// A zero byte would end the command line early.
    #[error("the command line {cmdline:?} has a zero byte in it")]
    CommandLineZero {
        /// The command line.
        cmdline: String,
    },
    /// The format has no place for it.
    #[error("{format} kernels take no {what}; {advice}")]
    NotTaken {
        /// The kernel's format.
        format: Format,
        /// What was given.
        what: &'static str,
        /// What to do instead.
        advice: &'static str,
    },
    /// Guest memory could not be written.
    #[error("cannot write guest memory at {address:#x}: {reason}")]
    Memory {
        /// First address of the write.
        address: u64,
        /// What the memory said.
        reason: GuestMemoryError,
    },
}

impl Fault {
    /// Names the file.
    pub(super) fn of(self, file: &str) -> BootError {
        BootError { file: file.to_owned(), fault: self }
    }
}
