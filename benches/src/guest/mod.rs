//! Virtual machines: one guest (`guests/tests/bench.c`), run by giantvm and by floors.
//!
//! The guest times itself by its TSC, and takes its batches from a device. Whoever runs it is a
//! process of its own, which gets the length of a batch over its standard input and answers with the
//! microseconds of each sample; between batches the guest's vCPUs are halted or wait for the device.

mod process;
mod suite;
mod turns;

use std::env;
use std::path::{Path, PathBuf};

pub(crate) use process::{Guest, serve};
pub(crate) use suite::{
    compute_scaling, ipi_local, ipi_remote, mmio_remote, pio_local, pio_remote, read_fault,
    write_fault,
};
pub(crate) use turns::Turns;

/// What the guest and its host agree on; see `guests/tests/bench.c`.
pub(crate) mod registers {
    /// Read: the length of the next batch.
    pub(crate) const NEXT: u16 = 0x5c0;
    /// Write: samples.
    pub(crate) const SAMPLES: u16 = 0x5c4;
    /// Write: what was computed.
    pub(crate) const SUM: u16 = 0x5c8;
    /// Write: an interrupt for another machine.
    pub(crate) const HOP: u16 = 0x5cc;
    /// Read: the register of `pio`.
    pub(crate) const TARGET_PORT: u16 = 0x5d0;
    /// Read: the register of `mmio`.
    pub(crate) const TARGET_ADDRESS: u64 = 0xd000_2000;
    /// The vector of interrupts from another machine.
    pub(crate) const VECTOR: u32 = 0x70;
    /// Most samples of a batch, and pages of a guest.
    pub(crate) const BATCH_MAX: usize = 1024;
}

/// Bytes of the guest's RAM.
pub(crate) const RAM_BYTES: usize = 64 << 20;

/// The guest's image, or why virtual machines can't be measured here.
pub(crate) fn image() -> Result<PathBuf, String> {
    let kvm = Path::new("/dev/kvm");
    if !kvm.exists() {
        return Err("this machine has no /dev/kvm".into());
    }
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/guests/guest.elf");
    let image = env::var_os("GIANTVM_GUEST").map_or(built, PathBuf::from);
    if !image.exists() {
        return Err(format!("{} is not built; run make guests", image.display()));
    }
    Ok(image)
}
