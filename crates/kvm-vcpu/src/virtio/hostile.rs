//! A driver that does anything: no panic, no touch outside of the guest's memory, and no device that can't be reset.
#![allow(unsafe_code, reason = "guest memory between pages that can't be touched")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use vm_memory::mmap::{GuestRegionMmap, MmapRegionBuilder};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, MmapRegion};

use super::driver::{BAR, PATIENCE, STATUS, nothing};
use super::tests::Scratch;
use super::{BAR_BYTES, Model, VirtioPci, console, rng};
use crate::bus::Data;
use crate::chips::Message;
use crate::pci::Function;

const PAGE: usize = 4096;
const RAM_BYTES: usize = 16 * PAGE;

/// Guest memory at address 0, in the host between two pages that end the process when touched.
struct Guarded {
    memory: Arc<GuestMemoryMmap>,
    base: *mut libc::c_void,
}

impl Guarded {
    fn new() -> Self {
        let len = RAM_BYTES + 2 * PAGE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping; its inner pages are made usable before anyone has them.
        let (base, region): (_, MmapRegion) = unsafe {
            let base = libc::mmap(std::ptr::null_mut(), len, libc::PROT_NONE, flags, -1, 0);
            assert_ne!(base, libc::MAP_FAILED);
            let inner = base.byte_add(PAGE);
            let rights = libc::PROT_READ | libc::PROT_WRITE;
            assert_eq!(libc::mprotect(inner, RAM_BYTES, rights), 0);
            let region = MmapRegionBuilder::new(RAM_BYTES)
                .with_raw_mmap_pointer(inner.cast())
                .with_mmap_prot(rights)
                .with_mmap_flags(flags)
                .build();
            (base, region.unwrap())
        };
        let region = GuestRegionMmap::new(region, GuestAddress(0)).unwrap();
        let memory = Arc::new(GuestMemoryMmap::from_regions(vec![region]).unwrap());
        Self { memory, base }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`; the device and its threads are gone.
        unsafe { libc::munmap(self.base, RAM_BYTES + 2 * PAGE) };
    }
}

#[derive(Clone, Copy, Debug)]
enum Act {
    Config {
        at: u64,
        value: u64,
        len: usize,
    },
    Memory {
        at: u64,
        value: u64,
        len: usize,
    },
    Read {
        at: u64,
        len: usize,
    },
    /// A descriptor of queue 0.
    Descriptor {
        index: u16,
        address: u64,
        len: u32,
        flags: u16,
        next: u16,
    },
    /// Offers a chain in queue 0, as an honest driver would.
    Offer {
        head: u16,
    },
    /// Any value in the guest's memory.
    Poke {
        at: u64,
        value: u64,
    },
    /// Sets the device up as an honest driver would.
    SetUp {
        size_log: u32,
        features: u64,
    },
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![any::<u64>(), 0..16u64, Just(u64::MAX), 0..(2 * RAM_BYTES as u64)]
}

fn len() -> impl Strategy<Value = usize> {
    prop_oneof![Just(1), Just(2), Just(4), Just(8), 0..9usize]
}

/// Offsets in the memory range, registers more often than the rest.
fn offset() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0..0x40u64,
        1 => Just(STATUS),
        2 => 0x3000..0x3010u64,
        1 => 0x4000..0x4040u64,
        1 => 0..BAR_BYTES,
        1 => any::<u64>(),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    let address = prop_oneof![0..RAM_BYTES as u64, any::<u64>()];
    let size = prop_oneof![0..8192u32, any::<u32>()];
    prop_oneof![
        2 => (0..256u64, value(), len()).prop_map(|(at, value, len)| Act::Config { at, value, len }),
        4 => (offset(), value(), len()).prop_map(|(at, value, len)| Act::Memory { at, value, len }),
        1 => (offset(), len()).prop_map(|(at, len)| Act::Read { at, len }),
        6 => (0..8u16, address, size, 0..8u16, 0..9u16).prop_map(
            |(index, address, len, flags, next)| Act::Descriptor { index, address, len, flags, next }
        ),
        4 => (0..9u16).prop_map(|head| Act::Offer { head }),
        1 => (0..RAM_BYTES as u64 - 8, any::<u64>()).prop_map(|(at, value)| Act::Poke { at, value }),
        3 => (0..8u32, any::<u64>()).prop_map(
            |(size_log, features)| Act::SetUp { size_log, features }
        ),
    ]
}

/// Queue 0 of the driver that means no harm.
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;

fn write(device: &VirtioPci, at: u64, value: u64, len: usize) {
    device.memory_write(at, Data::from_u64(value, len));
}

fn carry_out(device: &VirtioPci, memory: &GuestMemoryMmap, act: Act, size: &mut u16) {
    match act {
        Act::Config { at, value, len } => device.config_write(at, Data::from_u64(value, len)),
        Act::Memory { at, value, len } => write(device, at, value, len),
        Act::Read { at, len } => {
            device.memory_read(at, len);
            device.config_read(at, len);
        }
        Act::Descriptor { index, address, len, flags, next } => {
            let at = DESCRIPTORS + 16 * u64::from(index);
            memory.write_obj(address, GuestAddress(at)).unwrap();
            memory.write_obj(len, GuestAddress(at + 8)).unwrap();
            memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
            memory.write_obj(next, GuestAddress(at + 14)).unwrap();
        }
        Act::Offer { head } => {
            let next: u16 = memory.read_obj(GuestAddress(AVAILABLE + 2)).unwrap();
            let slot = AVAILABLE + 4 + 2 * u64::from(next % *size);
            memory.write_obj(head, GuestAddress(slot)).unwrap();
            memory.write_obj(next.wrapping_add(1), GuestAddress(AVAILABLE + 2)).unwrap();
            write(device, 0x3000, 0, 2);
        }
        Act::Poke { at, value } => memory.write_obj(value, GuestAddress(at)).unwrap(),
        Act::SetUp { size_log, features } => {
            *size = 1 << size_log;
            set_up(device, *size, features);
        }
    }
}

fn set_up(device: &VirtioPci, size: u16, features: u64) {
    device.config_write(4, Data::from_u64(6, 2));
    device.config_write(0x10, Data::from_u64(BAR, 8));
    write(device, STATUS, 0, 1);
    write(device, STATUS, 3, 1);
    for select in [0, 1] {
        write(device, 0, select, 4);
        write(device, 8, select, 4);
        let offered = device.memory_read(4, 4).to_u64();
        let wanted = features >> (32 * select) | select;
        write(device, 0x0c, offered & wanted, 4);
    }
    write(device, STATUS, 11, 1);
    for queue in 0..2 {
        write(device, 0x16, queue, 2);
        write(device, 0x18, size.into(), 2);
        write(device, 0x20, DESCRIPTORS + 0x4000 * queue, 8);
        write(device, 0x28, AVAILABLE + 0x4000 * queue, 8);
        write(device, 0x30, USED + 0x4000 * queue, 8);
        write(device, 0x1c, 1, 2);
    }
    write(device, STATUS, 15, 1);
}

/// Does what is asked for, and then stops the device as a machine does.
fn survive(model: Model, acts: &[Act]) -> Result<(), TestCaseError> {
    let guarded = Guarded::new();
    let sent = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&sent);
    let sink = Arc::new(move |_: Message| _ = count.fetch_add(1, Ordering::Relaxed));
    let device = VirtioPci::new(model, BAR, Arc::clone(&guarded.memory), sink, &nothing()).unwrap();
    let mut size = 8;
    for &act in acts {
        carry_out(&device, &guarded.memory, act, &mut size);
    }
    // A thread that panicked would never be quiet.
    device.halt();
    prop_assert!(device.wait_quiet(PATIENCE));
    device.reset();
    set_up(&device, 8, u64::MAX);
    prop_assert_eq!(device.memory_read(STATUS, 1).to_u64() & 0xf, 15, "as good as new");
    device.halt();
    prop_assert!(device.wait_quiet(PATIENCE));
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn a_disk_survives_any_driver(acts in prop::collection::vec(act(), 1..60)) {
        let scratch = Scratch::new(64 << 10);
        survive(scratch.disk(false), &acts)?;
    }

    #[test]
    fn a_console_survives_any_driver(acts in prop::collection::vec(act(), 1..60)) {
        let (model, input) = console("console", Arc::new(|_: &[u8]| {})).unwrap();
        input.enqueue(&[b'x'; 5000]);
        survive(model, &acts)?;
    }

    #[test]
    fn a_source_of_random_numbers_survives_any_driver(acts in prop::collection::vec(act(), 1..60)) {
        survive(rng("rng"), &acts)?;
    }
}
