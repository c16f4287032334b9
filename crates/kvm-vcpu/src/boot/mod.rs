//! Loaders of kernels, and the state in which they start.
//!
//! | format | files | modules |
//! |---|---|---|
//! | [`Format::Pvh`] | ELF with Xen's PVH note: Linux' `vmlinux`, FreeBSD, unikernels | the initrd, then modules |
//! | [`Format::Multiboot`] | ELF32, ELF64 or flat files with a Multiboot 1 header | modules |
//! | [`Format::Linux`] | bzImage of boot protocol 2.12 or later, 64-bit | the initrd |
//!
//! Every file is taken for hostile: what it says is checked before it is used, and what it loads
//! stays within RAM and apart from everything else. The same call loads the kernel again for a reset
//! of the guest.

mod claims;
mod cpu;
mod elf;
mod error;
mod image;
pub mod layout;
mod linux;
mod loader;
mod multiboot;
mod pvh;

use std::fmt;
use std::str::FromStr;

use vm_memory::GuestMemory;

pub use cpu::Entry;
pub use error::{BootError, Fault};
use layout::{LOW_MEMORY_END, Layout};
use loader::Loader;

/// How a kernel is loaded and entered.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Format {
    /// ELF with a note of Xen's PVH.
    Pvh,
    /// Multiboot 1.
    Multiboot,
    /// bzImage by the 64-bit boot protocol.
    Linux,
}

impl Format {
    const NAMES: [(Self, &str); 3] =
        [(Self::Pvh, "pvh"), (Self::Multiboot, "multiboot"), (Self::Linux, "linux")];
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Pvh => "PVH",
            Self::Multiboot => "Multiboot",
            Self::Linux => "Linux",
        })
    }
}

/// A word that names no format.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("unknown kernel format {0:?}: \"pvh\", \"multiboot\" or \"linux\"")]
pub struct UnknownFormat(pub String);

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        let named = Self::NAMES.iter().find(|(_, known)| *known == name);
        named.map(|(format, _)| *format).ok_or_else(|| UnknownFormat(name.to_owned()))
    }
}

/// A file in memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct File<'a> {
    /// For messages.
    pub name: &'a str,
    /// All its bytes.
    pub bytes: &'a [u8],
}

/// A file that is loaded beside the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Module<'a> {
    /// The file.
    pub file: File<'a>,
    /// The string that the kernel gets with it.
    pub cmdline: &'a str,
}

/// What to load, and into what machine.
#[derive(Clone, Copy, Debug)]
pub struct BootParams<'a> {
    /// The format, or `None` to tell by the file.
    pub format: Option<Format>,
    /// The kernel.
    pub kernel: File<'a>,
    /// Its command line, without the kernel's name.
    pub cmdline: &'a str,
    /// The initial RAM disk: for Linux.
    pub initrd: Option<File<'a>>,
    /// Modules, in the order in which the kernel is told of them: for PVH and Multiboot.
    pub modules: &'a [Module<'a>],
    /// Where RAM is.
    pub layout: &'a Layout,
    /// Address of ACPI's root pointer, if there is one.
    pub rsdp: Option<u64>,
    /// Rate of the guest's time-stamp counter, if it is known and all processors count alike. Linux is
    /// told so by its command line (`tsc_early_khz=`, `tsc=reliable`), unless that says something of its
    /// own: over exits to a timer it would measure the rate wrongly or not at all, a processor need not
    /// tell, and there may be no other clock to compare the counter with.
    pub tsc_khz: Option<u32>,
}

/// A kernel that is in guest memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Boot {
    /// How it was loaded.
    pub format: Format,
    /// How the boot CPU enters it.
    pub entry: Entry,
}

/// Tells by a file's headers how it is to be loaded. Of an ELF with both, the PVH note is preferred.
///
/// # Errors
/// If it is none of the formats, says what it seems to be instead.
pub fn detect(kernel: File<'_>) -> Result<Format, BootError> {
    detect_format(kernel.bytes).map_err(|fault| fault.of(kernel.name))
}

fn detect_format(file: &[u8]) -> Result<Format, Fault> {
    let header = multiboot::Header::find(file);
    if file.starts_with(elf::MAGIC) {
        let elf = elf::Elf::parse(file)?;
        if elf.pvh_entry.is_some() {
            return Ok(Format::Pvh);
        }
        if header.is_some() {
            return Ok(Format::Multiboot);
        }
        let found = format!("{} with neither", image::describe(file));
        return Err(Fault::NotAKernel { found });
    }
    if linux::is_linux(file) {
        return Ok(Format::Linux);
    }
    if header.is_some_and(|header| header.has_addresses()) {
        return Ok(Format::Multiboot);
    }
    let mut found = image::describe(file);
    if header.is_some() {
        found += ", with a Multiboot header that has no addresses";
    }
    Err(Fault::NotAKernel { found })
}

/// Loads a kernel with all that belongs to it. May be repeated into the same memory for a reset: all
/// that the kernel expects to be zero is zeroed again.
///
/// # Errors
/// [`BootError`], with the name of the file and what is wrong with it; memory may be partly written.
pub fn load<M: GuestMemory + ?Sized>(
    memory: &M,
    params: &BootParams<'_>,
) -> Result<Boot, BootError> {
    load_kernel(memory, params).map_err(|fault| fault.of(params.kernel.name))
}

fn load_kernel<M: GuestMemory + ?Sized>(
    memory: &M,
    params: &BootParams<'_>,
) -> Result<Boot, Fault> {
    let file = params.kernel.bytes;
    for cmdline in params.modules.iter().map(|module| module.cmdline).chain([params.cmdline]) {
        if cmdline.contains('\0') {
            return Err(Fault::CommandLineZero { cmdline: cmdline.to_owned() });
        }
    }
    let format = match params.format {
        Some(format) => format,
        None => detect_format(file)?,
    };
    let elf = match format {
        Format::Linux => None,
        _ if file.starts_with(elf::MAGIC) => Some(elf::Elf::parse(file)?),
        _ => None,
    };
    let mut loader = Loader::new(memory, params.layout);
    let entry = match (format, &elf) {
        (Format::Linux, _) => linux::load(&mut loader, params)?,
        (Format::Multiboot, elf) => multiboot::load(&mut loader, params, elf.as_ref())?,
        (Format::Pvh, Some(elf)) => pvh::load(&mut loader, params, elf)?,
        (Format::Pvh, None) => {
            return Err(Fault::NotThisFormat { format, found: image::describe(file) });
        }
    };
    write_bios_data(&loader)?;
    Ok(Boot { format, entry })
}

/// The two words of the BIOS data area that kernels look at: where the EBDA is, which is where they
/// look for tables, and how much conventional memory there is.
fn write_bios_data<M: GuestMemory + ?Sized>(loader: &Loader<'_, M>) -> Result<(), Fault> {
    loader.zero(0x400..0x500)?;
    loader.write(0x40e, &((LOW_MEMORY_END >> 4) as u16).to_le_bytes())?;
    loader.write(0x413, &((LOW_MEMORY_END >> 10) as u16).to_le_bytes())
}
