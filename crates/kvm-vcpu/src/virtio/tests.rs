//! Devices, as a driver that keeps to the specification sees them.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::driver::{
    BAR, Buffer, CHANGES, Driver, EVENT_IDX, NEEDS_RESET, PATIENCE, QUEUE_ENABLE, QUEUE_SELECT,
    QUEUE_SIZE, STATUS, VERSION_1,
};
use super::{Disk, Model, console, rng};
use crate::bus::Data;
use crate::devices::lock;
use crate::pci::Function;

/// A file that goes with the test.
pub(super) struct Scratch(pub(super) PathBuf);

impl Scratch {
    pub(super) fn new(len: u64) -> Self {
        static LAST: AtomicU32 = AtomicU32::new(0);
        let number = LAST.fetch_add(1, Ordering::Relaxed);
        let name = format!("giantvm-virtio-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        File::create(&path).unwrap().set_len(len).unwrap();
        Self(path)
    }

    pub(super) fn disk(&self, read_only: bool) -> Model {
        Disk::open(&self.0, read_only).unwrap().model("disk0")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

const DISK_BYTES: u64 = 1 << 20;

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let mut header = kind.to_le_bytes().to_vec();
    header.extend([0; 4]);
    header.extend(sector.to_le_bytes());
    header
}

/// Status and data of a request to read.
fn read(driver: &mut Driver, sector: u64, len: u32) -> (u8, Vec<u8>) {
    let mut answer =
        driver.ask(0, &[Buffer::Read(&header(0, sector)), Buffer::Write(len), Buffer::Write(1)]);
    (answer.pop().unwrap(), answer)
}

fn write(driver: &mut Driver, sector: u64, bytes: &[u8]) -> u8 {
    let buffers = [Buffer::Read(&header(1, sector)), Buffer::Read(bytes), Buffer::Write(1)];
    driver.ask(0, &buffers)[0]
}

fn flush(driver: &mut Driver) -> u8 {
    driver.ask(0, &[Buffer::Read(&header(4, 0)), Buffer::Write(1)])[0]
}

#[test]
fn a_device_says_what_it_is_and_where_its_parts_are() {
    let scratch = Scratch::new(DISK_BYTES);
    let driver = Driver::new(scratch.disk(false));
    assert_eq!((driver.config(2, 2), driver.config(8, 1)), (0x1042, 1));
    assert_eq!(driver.config(0x10, 4), BAR | 4);
    assert_eq!(driver.config(0x3c, 2), 0, "no pin");
    let kinds: Vec<u8> = driver.parts.keys().copied().collect();
    assert_eq!(kinds, [1, 2, 3, 4, 5], "common, notify, ISR, device, configuration access");
    assert_eq!(driver.parts[&1].1, 0x38);
    let features = driver.features();
    // SEG_MAX, BLK_SIZE, FLUSH, and of the transport EVENT_IDX and VERSION_1.
    assert_eq!(features, 1 << 2 | 1 << 6 | 1 << 9 | EVENT_IDX | VERSION_1);
    assert_eq!((driver.device_config(0, 8), driver.device_config(12, 4)), (2048, 126));
    assert_eq!(driver.device_config(20, 4), 512);
    assert_eq!((driver.common(0x12, 2), driver.common(0x10, 2)), (1, 0xffff));
    driver.common_write(QUEUE_SELECT, 7, 2);
    assert_eq!(driver.common(QUEUE_SIZE, 2), 0, "no such queue");
}

#[test]
fn features_are_agreed_on_or_refused() {
    let driver = Driver::new(rng("rng"));
    for wrong in [0, EVENT_IDX, VERSION_1 | 1 << 34, VERSION_1 | 1] {
        driver.set_status(0);
        driver.set_status(3);
        driver.accept(wrong);
        driver.set_status(11);
        assert_eq!(driver.status(), 3, "{wrong:#x}");
        driver.set_status(15);
        assert_eq!(driver.status(), 3, "not ready without features");
    }
    driver.set_status(0);
    driver.accept(VERSION_1);
    driver.set_status(11);
    assert_eq!(driver.status(), 11);
    driver.accept(VERSION_1 | 1);
    driver.set_status(1);
    assert_eq!(driver.status(), 11, "what was said stays, and so do the features");
    driver.common_write(8, 0, 4);
    assert_eq!(driver.common(0x0c, 4), 0);
}

#[test]
fn a_queue_is_set_up_until_it_is_enabled() {
    let driver = Driver::new(rng("rng"));
    driver.common_write(QUEUE_SELECT, 0, 2);
    for (size, is) in [(48, 64), (128, 64), (0, 64), (32, 32)] {
        driver.common_write(QUEUE_SIZE, size, 2);
        assert_eq!(driver.common(QUEUE_SIZE, 2), is);
    }
    driver.common_write(0x20, 0x1_2345_6780, 8);
    driver.common_write(0x2c, 7, 4);
    assert_eq!((driver.common(0x20, 8), driver.common(0x28, 8)), (0x1_2345_6780, 7 << 32));
    // Other widths than a register's own are no accesses.
    driver.common_write(0x20, 0, 2);
    driver.common_write(0x1c, 1, 4);
    driver.common_write(0x22, 0, 4);
    assert_eq!((driver.common(0x20, 8), driver.common(QUEUE_ENABLE, 2)), (0x1_2345_6780, 0));
    driver.common_write(0x1a, 9, 2);
    assert_eq!(driver.common(0x1a, 2), 0xffff, "no such vector");
    driver.common_write(QUEUE_ENABLE, 1, 2);
    driver.common_write(QUEUE_ENABLE, 0, 2);
    driver.common_write(0x20, 0, 8);
    assert_eq!((driver.common(0x20, 8), driver.common(QUEUE_ENABLE, 2)), (0x1_2345_6780, 1));
}

#[test]
fn a_disk_reads_and_writes_its_file() {
    let scratch = Scratch::new(DISK_BYTES);
    let file = File::options().read(true).write(true).open(&scratch.0).unwrap();
    file.write_all_at(b"from the host", 512).unwrap();
    let mut driver = Driver::new(scratch.disk(false));
    for features in [VERSION_1 | EVENT_IDX, VERSION_1] {
        driver.start(features);
        let (status, data) = read(&mut driver, 1, 1024);
        assert_eq!((status, data.len(), &data[..13]), (0, 1024, &b"from the host"[..]));
        let bytes: Vec<u8> = (0..300 * 512).map(|at: u32| (at % 251) as u8).collect();
        assert_eq!(write(&mut driver, 1000, &bytes), 0);
        assert_eq!(flush(&mut driver), 0);
        let mut there = vec![0; bytes.len()];
        file.read_exact_at(&mut there, 1000 * 512).unwrap();
        assert_eq!(there, bytes);
        assert_eq!(read(&mut driver, 1000, 300 * 512), (0, bytes));
    }
    // Past more than one turn of the ring.
    driver.start(VERSION_1 | EVENT_IDX);
    for turn in 0..300 {
        assert_eq!(write(&mut driver, turn, &[turn as u8; 512]), 0);
    }
    assert_eq!(read(&mut driver, 299, 512), (0, vec![43; 512]));
    assert_eq!(driver.status(), 15);
}

#[test]
fn a_request_may_be_cut_into_any_buffers() {
    let scratch = Scratch::new(DISK_BYTES);
    let mut driver = Driver::new(scratch.disk(false));
    driver.start(VERSION_1 | EVENT_IDX);
    let bytes: Vec<u8> = (0..1024).map(|at: u32| (at % 253) as u8).collect();
    let all = [header(1, 3), bytes.clone()].concat();
    let mut buffers: Vec<Buffer<'_>> = all.chunks(7).take(100).map(Buffer::Read).collect();
    buffers.push(Buffer::Read(&all[700..]));
    buffers.push(Buffer::Write(1));
    assert_eq!(driver.ask(0, &buffers), [0]);
    // The status is the last byte, wherever its buffer begins.
    let answer = driver.ask(
        0,
        &[Buffer::Read(&header(0, 3)), Buffer::Write(1000), Buffer::Write(0), Buffer::Write(25)],
    );
    assert_eq!((&answer[..1024], answer[1024]), (&bytes[..], 0));
}

#[test]
fn what_a_disk_can_not_do_it_says() {
    let scratch = Scratch::new(DISK_BYTES);
    let mut driver = Driver::new(scratch.disk(false));
    driver.start(VERSION_1 | EVENT_IDX);
    let last = DISK_BYTES / 512 - 1;
    assert_eq!(read(&mut driver, last, 512).0, 0);
    assert_eq!(read(&mut driver, last, 1024).0, 1, "beyond the end");
    assert_eq!(read(&mut driver, u64::MAX, 512).0, 1);
    assert_eq!(write(&mut driver, u64::MAX - 1, &[0; 1024]), 1);
    assert_eq!(write(&mut driver, 0, &[0; 100]), 1, "half a sector");
    let unknown = driver.ask(0, &[Buffer::Read(&header(99, 0)), Buffer::Write(1)]);
    assert_eq!(unknown, [2]);
    let id = driver.ask(0, &[Buffer::Read(&header(8, 0)), Buffer::Write(20), Buffer::Write(1)]);
    assert_eq!((&id[..6], id[20]), (&b"disk0\0"[..], 0));
    assert_eq!(driver.status(), 15);
}

#[test]
fn a_read_only_disk_stays_as_it_is() {
    let scratch = Scratch::new(DISK_BYTES);
    let mut driver = Driver::new(scratch.disk(true));
    assert_eq!(driver.features() & 1 << 5, 1 << 5, "RO");
    driver.start(VERSION_1 | EVENT_IDX | 1 << 5);
    assert_eq!(write(&mut driver, 0, &[7; 512]), 1);
    assert_eq!(read(&mut driver, 0, 512), (0, vec![0; 512]));
    assert_eq!(flush(&mut driver), 0);
}

#[test]
fn a_file_that_shrinks_is_an_error_of_the_request() {
    let scratch = Scratch::new(DISK_BYTES);
    let mut driver = Driver::new(scratch.disk(false));
    driver.start(VERSION_1 | EVENT_IDX);
    File::options().write(true).open(&scratch.0).unwrap().set_len(512).unwrap();
    assert_eq!(read(&mut driver, 0, 512).0, 0);
    assert_eq!(read(&mut driver, 1, 512).0, 1);
    assert_eq!(driver.status(), 15);
}

#[test]
fn random_bytes_fill_a_buffer() {
    let mut driver = Driver::new(rng("rng"));
    driver.start(VERSION_1 | EVENT_IDX);
    let first = driver.ask(0, &[Buffer::Write(64)]);
    let second = driver.ask(0, &[Buffer::Write(64)]);
    assert!(first != second && first != [0; 64]);
    let request = driver.send(0, &[Buffer::Write(100_000)]);
    assert_eq!(driver.wait(0), (request.head, 4096), "no more than that at a time");
}

/// A console whose output is kept.
fn kept() -> (Driver, super::ConsoleInput, Arc<Mutex<Vec<u8>>>) {
    let output = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&output);
    let sink = move |bytes: &[u8]| lock(&kept).extend_from_slice(bytes);
    let (model, input) = console("hvc", Arc::new(sink)).unwrap();
    (Driver::new(model), input, output)
}

#[test]
fn a_console_carries_bytes_both_ways() {
    let (mut driver, input, output) = kept();
    assert_eq!(input.enqueue(b"early"), 5, "kept until the guest reads");
    driver.start(VERSION_1 | EVENT_IDX);
    let long = vec![b'x'; 10_000];
    driver.ask(1, &[Buffer::Read(b"login: "), Buffer::Read(&long)]);
    assert_eq!(*lock(&output), [b"login: ", &long[..]].concat());
    let request = driver.send(0, &[Buffer::Write(3)]);
    let (_, len) = driver.wait(0);
    assert_eq!(&driver.written(&request, len), b"ear");
    let request = driver.send(0, &[Buffer::Write(4096)]);
    let (_, len) = driver.wait(0);
    assert_eq!(&driver.written(&request, len)[..len as usize], b"ly");
    // A buffer that was there before the input is.
    let request = driver.send(0, &[Buffer::Write(4096)]);
    assert_eq!(input.enqueue(b"root\n"), 5);
    let (_, len) = driver.wait(0);
    assert_eq!(&driver.written(&request, len)[..len as usize], b"root\n");
}

#[test]
fn a_console_that_nobody_reads_takes_only_so_much() {
    let (_driver, input, _) = kept();
    assert_eq!(input.enqueue(&vec![0; 1 << 20]), 64 << 10);
    assert_eq!(input.enqueue(b"more"), 0);
}

#[test]
fn interrupts_wait_while_they_are_masked() {
    let mut driver = Driver::new(rng("rng"));
    driver.start(VERSION_1 | EVENT_IDX);
    let at = driver.capabilities[&0x11];
    let (table, pending) = (driver.config(at + 4, 4), driver.config(at + 8, 4));
    driver.device.memory_write(table + 16 + 12, Data::from_u64(1, 4));
    driver.send(0, &[Buffer::Write(16)]);
    let bits = || driver.device.memory_read(pending, 8).to_u64();
    while bits() == 0 {
        std::thread::yield_now();
    }
    assert_eq!((bits(), driver.vectors()), (2, vec![]));
    driver.device.memory_write(table + 16 + 12, Data::from_u64(0, 4));
    assert_eq!((driver.next_vector(), bits()), (1, 0));
    assert_eq!(driver.isr(), 0, "queues are not in the ISR status with MSI-X");
}

#[test]
fn without_messages_the_status_tells_of_queues() {
    let mut driver = Driver::new(rng("rng"));
    driver.start(VERSION_1);
    driver.config_write(driver.capabilities[&0x11] + 2, 0, 2);
    driver.send(0, &[Buffer::Write(16)]);
    while driver.isr() != 1 {
        std::thread::yield_now();
    }
    assert_eq!(driver.isr(), 0, "read once");
    assert!(driver.vectors().is_empty());
}

#[test]
fn a_reset_forgets_everything() {
    let scratch = Scratch::new(DISK_BYTES);
    let mut driver = Driver::new(scratch.disk(false));
    for _ in 0..3 {
        driver.start(VERSION_1 | EVENT_IDX);
        assert_eq!(read(&mut driver, 0, 512).0, 0);
        driver.reset();
        driver.common_write(QUEUE_SELECT, 0, 2);
        assert_eq!((driver.common(QUEUE_ENABLE, 2), driver.common(0x20, 8)), (0, 0));
        assert_eq!((driver.common(0x1a, 2), driver.common(0x10, 2)), (0xffff, 0xffff));
        assert!(driver.device.wait_quiet(Duration::ZERO));
        driver.kick(0);
    }
}

#[test]
fn what_no_driver_may_do_breaks_the_device_until_its_reset() {
    let scratch = Scratch::new(DISK_BYTES);
    let mut driver = Driver::new(scratch.disk(false));
    let (next, write, indirect) = (1, 2, 4);
    let end = super::driver::MEMORY_BYTES as u64;
    /// Address, length, flags, next.
    type Descriptor = (u64, u32, u16, u16);
    let chains: [(&str, &[Descriptor]); 12] = [
        ("a ring of descriptors", &[(0x20_0000, 16, next, 0)]),
        ("a next descriptor that is none", &[(0x20_0000, 16, next, 500)]),
        ("memory that is none", &[(end, 16, next, 1), (0x20_0000, 1, write, 0)]),
        ("memory that ends", &[(end - 8, 16, next, 1), (0x20_0000, 1, write, 0)]),
        ("memory that wraps", &[(u64::MAX - 3, 16, next, 1), (0x20_0000, 1, write, 0)]),
        ("a buffer to read last", &[(0x20_0000, 1, next | write, 1), (0x20_0000, 16, 0, 0)]),
        ("no header", &[(0x20_0000, 15, next, 1), (0x20_0000, 1, write, 0)]),
        ("no status", &[(0x20_0000, 16, 0, 0)]),
        ("a status of no length", &[(0x20_0000, 16, next, 1), (0x20_0000, 0, write, 0)]),
        ("an odd indirect table", &[(0x20_0000, 17, indirect, 0)]),
        ("an indirect table that is not in memory", &[(end, 64, indirect, 0)]),
        ("an indirect table of no length", &[(0x20_0000, 0, indirect, 0)]),
    ];
    for (what, chain) in chains {
        driver.start(VERSION_1 | EVENT_IDX);
        assert_eq!(read(&mut driver, 0, 512).0, 0, "before {what}");
        driver.vectors();
        for (index, &(address, len, flags, next)) in (10..).zip(chain) {
            let next = if next < 100 { next + 10 } else { next };
            driver.descriptor(0, index, (address, len), (flags, next));
        }
        driver.offer(0, 10);
        driver.wait_broken();
        assert!(!driver.has_used(0), "{what}");
        assert!(driver.device.wait_quiet(PATIENCE), "{what}");
        assert_eq!(driver.isr(), 2, "a change of the configuration");
    }
    // A head beyond the queue, and more requests than it has room for.
    driver.start(VERSION_1);
    driver.offer(0, 128);
    driver.wait_broken();
    driver.start(VERSION_1);
    driver.put(200u16, driver.descriptors(0) + 0x4002);
    driver.kick(0);
    driver.wait_broken();
    driver.start(VERSION_1);
    assert_eq!(read(&mut driver, 0, 512).0, 0, "as good as new");
}

#[test]
fn queues_outside_of_memory_break_the_device() {
    let mut driver = Driver::new(rng("rng"));
    let end = super::driver::MEMORY_BYTES as u64;
    for (register, address) in
        [(0x20, end), (0x28, end - 2), (0x30, u64::MAX - 3), (0x20, 8), (0x28, 1), (0x30, 2)]
    {
        driver.start(VERSION_1);
        driver.reset();
        driver.set_status(3);
        driver.accept(VERSION_1);
        driver.set_status(11);
        driver.common_write(0x10, CHANGES.into(), 2);
        driver.common_write(QUEUE_SELECT, 0, 2);
        driver.common_write(0x20, 0x1000, 8);
        driver.common_write(0x28, 0x2000, 8);
        driver.common_write(0x30, 0x3000, 8);
        driver.common_write(register, address, 8);
        driver.common_write(QUEUE_ENABLE, 1, 2);
        driver.set_status(15);
        assert_eq!(driver.status(), 15 | NEEDS_RESET, "{register:#x} at {address:#x}");
        driver.wait_broken();
    }
}

#[test]
fn a_device_without_bus_mastering_leaves_memory_alone() {
    let mut driver = Driver::new(rng("rng"));
    driver.start(VERSION_1);
    driver.ask(0, &[Buffer::Write(16)]);
    driver.config_write(4, 2, 2);
    assert_eq!(driver.status(), 15 | NEEDS_RESET);
    assert!(driver.device.wait_quiet(PATIENCE));
    driver.send(0, &[Buffer::Write(16)]);
    driver.config_write(4, 6, 2);
    driver.kick(0);
    assert!(!driver.has_used(0));
    driver.start(VERSION_1);
    driver.ask(0, &[Buffer::Write(16)]);
}

#[test]
fn a_device_of_a_machine_that_stops_starts_no_more() {
    let mut driver = Driver::new(rng("rng"));
    driver.start(VERSION_1);
    driver.device.halt();
    assert!(driver.device.wait_quiet(PATIENCE));
    driver.send(0, &[Buffer::Write(16)]);
    driver.start(VERSION_1);
    assert_eq!(driver.status() & NEEDS_RESET, NEEDS_RESET);
    driver.send(0, &[Buffer::Write(16)]);
    assert!(!driver.has_used(0) && driver.device.wait_quiet(Duration::ZERO));
    // The machine begins anew.
    driver.device.reset();
    assert_eq!((driver.config(4, 2), driver.common(STATUS, 1)), (0, 0xff), "no memory");
    driver.config_write(4, 6, 2);
    driver.start(VERSION_1);
    driver.ask(0, &[Buffer::Write(16)]);
}

#[test]
fn a_device_that_is_closed_lets_go_of_its_file() {
    let scratch = Scratch::new(DISK_BYTES);
    let mut driver = Driver::new(scratch.disk(false));
    driver.start(VERSION_1);
    assert_eq!(read(&mut driver, 0, 512).0, 0);
    assert!(Disk::open(&scratch.0, false).is_err());
    driver.device.close();
    driver.device.close();
    assert!(Disk::open(&scratch.0, false).is_ok());
    driver.start(VERSION_1);
    assert_eq!(driver.status() & NEEDS_RESET, NEEDS_RESET);
}

#[test]
fn memory_answers_only_at_its_place() {
    let driver = Driver::new(rng("rng"));
    assert_eq!(driver.common(0x12, 2), 1);
    driver.config_write(0x10, 0xd000_0000, 4);
    assert_eq!(driver.common(0x12, 2), 0xffff);
    driver.set_status(1);
    driver.config_write(0x10, BAR, 4);
    assert_eq!((driver.common(0x12, 2), driver.status()), (1, 0));
    driver.config_write(4, 4, 2);
    assert_eq!(driver.common(0x12, 2), 0xffff);
}

#[test]
fn configuration_space_leads_to_the_same_registers() {
    let mut driver = Driver::new(rng("rng"));
    let at = driver.capabilities[&0x105];
    let window = |offset: u64, len: u64| {
        driver.config_write(at + 8, offset, 4);
        driver.config_write(at + 12, len, 4);
    };
    window(0x12, 2);
    assert_eq!(driver.config(at + 16, 2), 1, "queues");
    window(STATUS, 1);
    driver.config_write(at + 16, 3, 1);
    assert_eq!(driver.status(), 3);
    assert_eq!(driver.config(at + 16, 4) & 0xff, 3);
    // What is no access of a register's width leads nowhere.
    for (offset, len) in [(STATUS, 3), (STATUS, 8), (1, 2), (0x8000, 4), (u64::from(u32::MAX), 1)] {
        window(offset, len);
        driver.config_write(at + 16, 0, 4);
        assert_eq!(driver.status(), 3);
    }
    driver.start(VERSION_1);
    driver.ask(0, &[Buffer::Write(16)]);
}
