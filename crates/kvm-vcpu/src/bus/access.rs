//! An access of the guest to a device, and the answer.

use std::fmt;

/// Which of the processor's two address spaces.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Space {
    /// Ports: `in` and `out`; addresses below 65536.
    Pio,
    /// Memory addresses that are not RAM.
    Mmio,
}

/// Up to eight bytes, little-endian, as the processor moves them.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Data {
    bytes: [u8; 8],
    len: u8,
}

impl Data {
    /// What a read of `len` bytes finds where nobody answers.
    pub const fn all_ones(len: usize) -> Self {
        Self { bytes: [0xff; 8], len: if len > 8 { 8 } else { len as u8 } }
    }

    /// The first eight bytes of `bytes`.
    pub fn new(bytes: &[u8]) -> Self {
        let len = bytes.len().min(8);
        let mut data = Self { bytes: [0; 8], len: len as u8 };
        data.bytes[..len].copy_from_slice(&bytes[..len]);
        data
    }

    /// The low `len` bytes of `value`, 8 at most.
    pub fn from_u64(value: u64, len: usize) -> Self {
        Self::new(&value.to_le_bytes()[..len.min(8)])
    }

    /// `len` bytes, 8 at most, each from the byte register at its offset, lowest first.
    pub fn gather(offset: u64, len: usize, mut register: impl FnMut(u64) -> u8) -> Self {
        let mut data = Self::all_ones(len);
        for (at, byte) in (0..).zip(&mut data.bytes[..len.min(8)]) {
            *byte = register(offset.wrapping_add(at));
        }
        data
    }

    /// Each byte to the byte register at its offset, lowest first.
    pub fn scatter(&self, offset: u64, mut register: impl FnMut(u64, u8)) {
        for (at, byte) in (0..).zip(self.bytes()) {
            register(offset.wrapping_add(at), *byte);
        }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// The bytes as a number, zero-extended.
    pub fn to_u64(self) -> u64 {
        let mut bytes = self.bytes;
        bytes[usize::from(self.len)..].fill(0);
        u64::from_le_bytes(bytes)
    }

    /// Number of bytes, 0 to 8.
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}/{}", self.to_u64(), self.len)
    }
}

/// One access, as a device sees it. Strings (`rep outs`) come as one access each element.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Access {
    /// Read `len` bytes (1, 2, 4 or 8).
    Read {
        /// From the start of the device's range.
        offset: u64,
        /// Bytes to read.
        len: usize,
    },
    /// Write these bytes.
    Write {
        /// From the start of the device's range.
        offset: u64,
        /// The bytes.
        data: Data,
    },
}

impl Access {
    /// From the start of the device's range.
    pub fn offset(&self) -> u64 {
        match *self {
            Self::Read { offset, .. } | Self::Write { offset, .. } => offset,
        }
    }

    /// The same access at another offset.
    #[must_use]
    pub fn at(self, offset: u64) -> Self {
        match self {
            Self::Read { len, .. } => Self::Read { offset, len },
            Self::Write { data, .. } => Self::Write { offset, data },
        }
    }

    /// Number of bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Read { len, .. } => *len,
            Self::Write { data, .. } => data.len(),
        }
    }

    /// Whether it moves nothing; no processor does that.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Where the answer to one access goes, once. If it is dropped without one, the guest reads all
/// ones and goes on: a device that fails never hangs a processor.
pub struct Reply(Option<Box<dyn FnOnce(Option<Data>) + Send>>);

impl Reply {
    /// A reply that calls `answer`, from any thread, with what was read; `None` after a write, or
    /// where nobody answered.
    pub fn new(answer: impl FnOnce(Option<Data>) + Send + 'static) -> Self {
        Self(Some(Box::new(answer)))
    }

    /// The write is done, in all its effects.
    pub fn written(mut self) {
        self.call(None);
    }

    /// The read found this.
    pub fn read(mut self, data: Data) {
        self.call(Some(data));
    }

    fn call(&mut self, data: Option<Data>) {
        if let Some(answer) = self.0.take() {
            answer(data);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.call(None);
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reply")
    }
}

/// What answers at a range of addresses. Called on vCPU threads and on the thread that serves other
/// nodes, from several at once.
///
/// Nothing that the guest does may make it panic or block for long. One that takes its time answers
/// later, from a thread of its own.
pub trait Device: Send + Sync {
    /// Its name in messages to people.
    fn name(&self) -> &str;

    /// Serves an access within the range, now or later.
    fn access(&self, access: Access, reply: Reply);

    /// The state after power-on.
    fn reset(&self);

    /// Whether a write at this offset may go on before it has taken effect: the write is posted.
    fn is_doorbell(&self, offset: u64) -> bool {
        let _ = offset;
        false
    }

    /// The same device, if it answers at once.
    fn direct(&self) -> Option<&dyn Direct> {
        None
    }
}

/// A device that answers at once: no answer has to be carried between threads.
pub trait Direct {
    /// Reads `len` bytes.
    fn read(&self, offset: u64, len: usize) -> Data;

    /// Writes; all effects have happened when it returns.
    fn write(&self, offset: u64, data: Data);
}

/// A device without threads: what most implement, wrapped in [`Immediate`].
pub trait Simple: Send + Sync {
    /// Its name in messages to people.
    fn name(&self) -> &str;

    /// Reads `len` bytes.
    fn read(&self, offset: u64, len: usize) -> Data;

    /// Writes; all effects have happened when it returns.
    fn write(&self, offset: u64, data: Data);

    /// The state after power-on.
    fn reset(&self);
}

/// A [`Simple`] device as a [`Device`].
#[derive(Debug)]
pub struct Immediate<D>(
    /// The device.
    pub D,
);

impl<D: Simple> Direct for Immediate<D> {
    fn read(&self, offset: u64, len: usize) -> Data {
        self.0.read(offset, len)
    }

    fn write(&self, offset: u64, data: Data) {
        self.0.write(offset, data);
    }
}

impl<D: Simple> Device for Immediate<D> {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn access(&self, access: Access, reply: Reply) {
        match access {
            Access::Read { offset, len } => reply.read(self.0.read(offset, len)),
            Access::Write { offset, data } => {
                self.0.write(offset, data);
                reply.written();
            }
        }
    }

    fn reset(&self) {
        self.0.reset();
    }

    fn direct(&self) -> Option<&dyn Direct> {
        Some(self)
    }
}
