//! A driver for tests: finds a device as Linux does, and sets up its queues in plain memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{BAR_BYTES, Begin, Model, VirtioPci};
use crate::bus::Data;
use crate::chips::Message;
use crate::pci::{Function, MessageSink};

/// Where the device's memory range is.
pub(super) const BAR: u64 = 0xc000_0000;
/// Guest memory in tests.
pub(super) const MEMORY_BYTES: usize = 4 << 20;
/// Queues lie from there, each in 64 KiB of its own; buffers behind them.
const QUEUES: u64 = 0x1_0000;
const QUEUE_STRIDE: u64 = 0x1_0000;
const BUFFERS: u64 = 0x20_0000;
/// A device that takes longer hangs.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

pub(super) const VERSION_1: u64 = 1 << 32;
pub(super) const EVENT_IDX: u64 = 1 << 29;
pub(super) const NEEDS_RESET: u8 = 0x40;

// Offsets in the common configuration.
pub(super) const STATUS: u64 = 0x14;
pub(super) const QUEUE_SELECT: u64 = 0x16;
pub(super) const QUEUE_SIZE: u64 = 0x18;
pub(super) const QUEUE_ENABLE: u64 = 0x1c;

/// Vector of changes; a queue's is its index and one more.
pub(super) const CHANGES: u16 = 0;

/// What a driver asks a device to do with a buffer.
pub(super) enum Buffer<'a> {
    Read(&'a [u8]),
    Write(u32),
}

#[derive(Clone, Copy)]
struct Queue {
    at: u64,
    size: u16,
    next_descriptor: u16,
    available: u16,
    used: u16,
}

impl Queue {
    fn driver(&self) -> u64 {
        self.at + 0x4000
    }

    fn device(&self) -> u64 {
        self.at + 0x8000
    }
}

/// A request under way: the addresses of its buffers to write, and their lengths.
pub(super) struct Request {
    pub(super) head: u16,
    writable: Vec<(u64, u32)>,
}

pub(super) struct Driver {
    pub(super) device: Arc<VirtioPci>,
    pub(super) memory: Arc<GuestMemoryMmap>,
    messages: Receiver<Message>,
    /// Offset and length of each part, by the kind of its capability.
    pub(super) parts: BTreeMap<u8, (u64, u64)>,
    /// Offset in configuration space of each capability, virtio's by their kind and 0x100.
    pub(super) capabilities: BTreeMap<u16, u64>,
    stride: u64,
    queues: Vec<Queue>,
    next_buffer: u64,
}

/// What the threads of devices begin with in tests.
pub(super) fn nothing() -> Begin {
    Arc::new(|| {})
}

pub(super) fn memory() -> Arc<GuestMemoryMmap> {
    Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY_BYTES)]).unwrap())
}

impl Driver {
    /// A driver that has found the device, with memory and bus mastering on.
    pub(super) fn new(model: Model) -> Self {
        let memory = memory();
        let (send, messages) = mpsc::channel();
        let sink: Arc<dyn MessageSink> = Arc::new(move |message| _ = send.send(message));
        let device = VirtioPci::new(model, BAR, Arc::clone(&memory), sink, &nothing()).unwrap();
        let mut driver = Self {
            device: Arc::new(device),
            memory,
            messages,
            parts: BTreeMap::new(),
            capabilities: BTreeMap::new(),
            stride: 0,
            queues: Vec::new(),
            next_buffer: BUFFERS,
        };
        driver.find();
        driver
    }

    fn find(&mut self) {
        self.config_write(4, 6, 2);
        assert_eq!(self.config(0, 2), 0x1af4);
        let mut at = self.config(0x34, 1);
        while at != 0 {
            let kind = self.config(at, 1);
            if kind == 9 {
                let kind = self.config(at + 3, 1) as u8;
                assert_eq!(self.config(at + 4, 1), 0, "the one memory range");
                let part = (self.config(at + 8, 4), self.config(at + 12, 4));
                assert!(part.0 + part.1 <= BAR_BYTES);
                self.parts.insert(kind, part);
                self.capabilities.insert(0x100 + u16::from(kind), at);
                if kind == 2 {
                    self.stride = self.config(at + 16, 4);
                }
            } else {
                self.capabilities.insert(kind as u16, at);
            }
            at = self.config(at + 1, 1);
        }
    }

    pub(super) fn config(&self, at: u64, len: usize) -> u64 {
        self.device.config_read(at, len).to_u64()
    }

    pub(super) fn config_write(&self, at: u64, value: u64, len: usize) {
        self.device.config_write(at, Data::from_u64(value, len));
    }

    pub(super) fn common(&self, at: u64, len: usize) -> u64 {
        self.device.memory_read(self.parts[&1].0 + at, len).to_u64()
    }

    pub(super) fn common_write(&self, at: u64, value: u64, len: usize) {
        self.device.memory_write(self.parts[&1].0 + at, Data::from_u64(value, len));
    }

    pub(super) fn device_config(&self, at: u64, len: usize) -> u64 {
        self.device.memory_read(self.parts[&4].0 + at, len).to_u64()
    }

    pub(super) fn isr(&self) -> u64 {
        self.device.memory_read(self.parts[&3].0, 1).to_u64()
    }

    pub(super) fn status(&self) -> u8 {
        self.common(STATUS, 1) as u8
    }

    pub(super) fn set_status(&self, status: u8) {
        self.common_write(STATUS, status.into(), 1);
    }

    pub(super) fn features(&self) -> u64 {
        let half = |select: u64| {
            self.common_write(0, select, 4);
            self.common(4, 4)
        };
        half(0) | half(1) << 32
    }

    pub(super) fn accept(&self, features: u64) {
        for select in [0, 1] {
            self.common_write(8, select, 4);
            self.common_write(0x0c, features >> (32 * select), 4);
        }
    }

    /// Resets the device as Linux does: until its status is 0.
    pub(super) fn reset(&mut self) {
        self.set_status(0);
        while self.status() != 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        self.queues.clear();
        self.next_buffer = BUFFERS;
    }

    /// Makes the device ready, with these of its features and all of its queues.
    pub(super) fn start(&mut self, features: u64) {
        self.reset();
        self.set_status(1);
        self.set_status(3);
        self.accept(features);
        self.set_status(11);
        assert_eq!(self.status(), 11, "features accepted");
        self.enable_messages();
        self.common_write(0x10, CHANGES.into(), 2);
        for index in 0..self.common(0x12, 2) as u16 {
            self.set_up(index);
        }
        self.set_status(15);
    }

    /// Every vector sends its number, and is not masked.
    fn enable_messages(&self) {
        let at = self.capabilities[&0x11];
        let (vectors, table) = ((self.config(at + 2, 2) & 0x7ff) + 1, self.config(at + 4, 4));
        for vector in 0..vectors {
            let entry = table + 16 * vector;
            self.device.memory_write(entry, Data::from_u64(0xfee0_0000, 8));
            self.device.memory_write(entry + 8, Data::from_u64(vector, 8));
        }
        self.config_write(at + 2, 0x8000, 2);
    }

    fn set_up(&mut self, index: u16) {
        self.common_write(QUEUE_SELECT, index.into(), 2);
        let size = self.common(QUEUE_SIZE, 2) as u16;
        let at = QUEUES + QUEUE_STRIDE * u64::from(index);
        let queue = Queue { at, size, next_descriptor: 0, available: 0, used: 0 };
        self.memory.write_slice(&[0; QUEUE_STRIDE as usize], GuestAddress(at)).unwrap();
        self.common_write(0x1a, u64::from(index) + 1, 2);
        for (register, address) in
            [(0x20, queue.at), (0x28, queue.driver()), (0x30, queue.device())]
        {
            self.common_write(register, address & 0xffff_ffff, 4);
            self.common_write(register + 4, address >> 32, 4);
        }
        self.common_write(QUEUE_ENABLE, 1, 2);
        self.queues.push(queue);
    }

    pub(super) fn put<T: vm_memory::ByteValued>(&self, value: T, at: u64) {
        self.memory.write_obj(value, GuestAddress(at)).unwrap();
    }

    fn get<T: vm_memory::ByteValued>(&self, at: u64) -> T {
        self.memory.read_obj(GuestAddress(at)).unwrap()
    }

    /// Where a queue's descriptors are.
    pub(super) fn descriptors(&self, queue: usize) -> u64 {
        self.queues[queue].at
    }

    pub(super) fn descriptor(
        &self,
        queue: usize,
        index: u16,
        (address, len): (u64, u32),
        (flags, next): (u16, u16),
    ) {
        let at = self.queues[queue].at + 16 * u64::from(index);
        self.put(address, at);
        self.put(len, at + 8);
        self.put(flags, at + 12);
        self.put(next, at + 14);
    }

    /// Offers a chain, and tells the device.
    pub(super) fn offer(&mut self, queue: usize, head: u16) {
        let it = &mut self.queues[queue];
        let (ring, slot) = (it.driver(), it.available % it.size);
        it.available = it.available.wrapping_add(1);
        let available = it.available;
        self.put(head, ring + 4 + 2 * u64::from(slot));
        self.put(available, ring + 2);
        self.kick(queue);
    }

    pub(super) fn kick(&self, queue: usize) {
        let at = self.parts[&2].0 + self.stride * queue as u64;
        self.device.memory_write(at, Data::from_u64(queue as u64, 2));
    }

    /// Sends a request.
    pub(super) fn send(&mut self, queue: usize, buffers: &[Buffer<'_>]) -> Request {
        let size = self.queues[queue].size;
        let first = self.queues[queue].next_descriptor;
        let mut writable = Vec::new();
        for (number, buffer) in (0..).zip(buffers) {
            let index = (first + number) % size;
            let (len, flag) = match buffer {
                Buffer::Read(bytes) => (bytes.len() as u32, 0),
                Buffer::Write(len) => (*len, 2),
            };
            let at = self.next_buffer;
            self.next_buffer += u64::from(len).next_multiple_of(16);
            assert!(self.next_buffer <= MEMORY_BYTES as u64, "a test with fewer buffers");
            match buffer {
                Buffer::Read(bytes) => self.memory.write_slice(bytes, GuestAddress(at)).unwrap(),
                Buffer::Write(_) => writable.push((at, len)),
            }
            let more = u16::from(usize::from(number) + 1 < buffers.len());
            self.descriptor(queue, index, (at, len), (flag | more, (index + 1) % size));
        }
        self.queues[queue].next_descriptor = (first + buffers.len() as u16) % size;
        assert!(buffers.len() <= size.into(), "a test with fewer buffers at a time");
        self.offer(queue, first);
        Request { head: first, writable }
    }

    fn used_index(&self, queue: usize) -> u16 {
        self.get(self.queues[queue].device() + 2)
    }

    /// Whether the device has given a buffer back.
    pub(super) fn has_used(&self, queue: usize) -> bool {
        self.used_index(queue) != self.queues[queue].used
    }

    /// Waits for the next buffer that the device gives back: its head, and how much was written.
    pub(super) fn wait(&mut self, queue: usize) -> (u16, u32) {
        loop {
            // An interrupt is wanted for the next one, unless it has come by then.
            let Queue { size, used, .. } = self.queues[queue];
            self.put(used, self.queues[queue].driver() + 4 + 2 * u64::from(size));
            fence(Ordering::SeqCst);
            if self.has_used(queue) {
                break;
            }
            let vector = self.next_vector();
            assert_ne!(vector, CHANGES, "the device is broken");
        }
        let it = &mut self.queues[queue];
        let at = it.device() + 4 + 8 * u64::from(it.used % it.size);
        it.used = it.used.wrapping_add(1);
        (self.get::<u32>(at) as u16, self.get(at + 4))
    }

    /// Sends a request and waits for it: what was written of its buffers, in one piece.
    pub(super) fn ask(&mut self, queue: usize, buffers: &[Buffer<'_>]) -> Vec<u8> {
        let request = self.send(queue, buffers);
        let (head, len) = self.wait(queue);
        assert_eq!(head, request.head);
        self.written(&request, len)
    }

    pub(super) fn written(&self, request: &Request, len: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        for &(at, room) in &request.writable {
            let mut piece = vec![0; room as usize];
            self.memory.read_slice(&mut piece, GuestAddress(at)).unwrap();
            bytes.extend(piece);
        }
        assert!(len as usize <= bytes.len(), "{len} bytes written");
        bytes
    }

    /// The vector of the next interrupt.
    pub(super) fn next_vector(&self) -> u16 {
        self.messages.recv_timeout(PATIENCE).expect("an interrupt").data as u16
    }

    /// Vectors of interrupts that have come.
    pub(super) fn vectors(&self) -> Vec<u16> {
        self.messages.try_iter().map(|message| message.data as u16).collect()
    }

    /// Sends a network command; says whether it was obeyed.
    pub(super) fn command(&mut self, queue: usize, command: &[u8]) -> bool {
        self.ask(queue, &[Buffer::Read(command), Buffer::Write(1)]) == [0]
    }

    /// Waits until the device says that it needs a reset.
    pub(super) fn wait_broken(&self) {
        while self.next_vector() != CHANGES {}
        assert_eq!(self.status() & NEEDS_RESET, NEEDS_RESET);
    }
}
