//! One request of a driver: a chain of buffers in guest memory.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

/// Why a thread can't go on with its queues.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum Broken {
    /// The driver did what no driver may; what that is, for people.
    #[error("the driver {0}")]
    Driver(String),
    /// It is to stop: what it reads from now on means nothing.
    #[error("the device stops")]
    Stopped,
}

impl Broken {
    pub(super) fn new(what: &str) -> Self {
        Self::Driver(what.into())
    }
}

/// Buffers of one direction, those used up gone.
#[derive(Default)]
struct Part {
    pieces: VecDeque<(GuestAddress, usize)>,
}

impl Part {
    fn len(&self) -> usize {
        // A chain has at most 2^32 bytes.
        self.pieces.iter().map(|(_, len)| len).sum()
    }

    /// The next piece, of at most `most` bytes.
    fn take(&mut self, most: usize) -> Option<(GuestAddress, usize)> {
        let (address, len) = self.pieces.pop_front()?;
        let taken = len.min(most);
        if taken < len {
            // Within guest memory, whose addresses don't overflow.
            let rest = GuestAddress(address.0 + taken as u64);
            self.pieces.push_front((rest, len - taken));
        }
        Some((address, taken))
    }
}

/// A request: buffers that the device reads, and then buffers that it writes, all in guest memory.
pub(super) struct Chain {
    head: u16,
    memory: Arc<GuestMemoryMmap>,
    stop: Arc<AtomicBool>,
    readable: Part,
    writable: Part,
    written: u32,
}

impl Chain {
    /// Reads the descriptors, once.
    pub(super) fn new(
        chain: DescriptorChain<&GuestMemoryMmap>,
        memory: &Arc<GuestMemoryMmap>,
        stop: &Arc<AtomicBool>,
    ) -> Result<Self, Broken> {
        let head = chain.head_index();
        let (mut readable, mut writable) = (Part::default(), Part::default());
        let mut ended = false;
        for descriptor in chain {
            let (address, len) = (descriptor.addr(), descriptor.len() as usize);
            ended = !descriptor.has_next();
            let (part, access) = match descriptor.is_write_only() {
                true => (&mut writable, Permissions::Write),
                false if !writable.pieces.is_empty() => {
                    return Err(Broken::new("put a buffer to read after one to write"));
                }
                false => (&mut readable, Permissions::Read),
            };
            if !memory.check_range(address, len, access) {
                return Err(Broken::Driver(format!(
                    "gave a buffer that is not in memory ({:#x}, {len:#x} bytes)",
                    address.0
                )));
            }
            if len > 0 {
                part.pieces.push_back((address, len));
            }
        }
        // The iterator ends alike at the last descriptor and at one that can't be.
        match ended {
            true => {
                let (memory, stop) = (Arc::clone(memory), Arc::clone(stop));
                Ok(Self { head, memory, stop, readable, writable, written: 0 })
            }
            false => Err(Broken::new("gave a chain of descriptors that does not end")),
        }
    }

    /// The descriptor that names it.
    pub(super) fn head(&self) -> u16 {
        self.head
    }

    /// Bytes that are left to read.
    pub(super) fn readable(&self) -> usize {
        self.readable.len()
    }

    /// Bytes that are left to write.
    pub(super) fn writable(&self) -> usize {
        self.writable.len()
    }

    /// Bytes written so far.
    pub(super) fn written(&self) -> u32 {
        self.written
    }

    /// Reads on, as much as there is and fits. Of a device that stops, nothing: its memory may be lost,
    /// and what was read must not reach a disk.
    pub(super) fn read(&mut self, to: &mut [u8]) -> Result<usize, Broken> {
        let mut at = 0;
        while at < to.len()
            && let Some((address, len)) = self.readable.take(to.len() - at)
        {
            let read = self.memory.read_slice(&mut to[at..at + len], address);
            read.map_err(|error| Broken::Driver(format!("gave unreadable memory: {error}")))?;
            at += len;
        }
        if self.stop.load(Ordering::SeqCst) {
            return Err(Broken::Stopped);
        }
        Ok(at)
    }

    /// Writes on, as much as there is room for.
    pub(super) fn write(&mut self, from: &[u8]) -> Result<usize, Broken> {
        let mut at = 0;
        while at < from.len()
            && let Some((address, len)) = self.writable.take(from.len() - at)
        {
            self.put(&from[at..at + len], address)?;
            at += len;
        }
        Ok(at)
    }

    /// Takes the last byte to write away, to be [put](Self::put) when all else is done.
    pub(super) fn take_last(&mut self) -> Option<GuestAddress> {
        let (address, len) = self.writable.pieces.pop_back()?;
        if len > 1 {
            self.writable.pieces.push_back((address, len - 1));
        }
        Some(GuestAddress(address.0 + len as u64 - 1))
    }

    /// Writes at an address of the chain.
    pub(super) fn put(&mut self, bytes: &[u8], address: GuestAddress) -> Result<(), Broken> {
        let written = self.memory.write_slice(bytes, address);
        written.map_err(|error| Broken::Driver(format!("gave unwritable memory: {error}")))?;
        self.written = self.written.saturating_add(bytes.len() as u32);
        Ok(())
    }
}
