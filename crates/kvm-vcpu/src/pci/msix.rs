//! MSI-X (PCI Local Bus 3.0, section 6.8.2): a table of messages, and bits for those that wait.

use std::sync::{Arc, Mutex};

use crate::bus::Data;
use crate::chips::Message;
use crate::devices::lock;

/// Bytes of a table entry.
pub const MSIX_ENTRY_BYTES: u64 = 16;

/// Id of the capability.
pub const MSIX_CAPABILITY: u8 = 0x11;
/// Bytes of what follows the capability's id and link.
const BODY_BYTES: usize = 10;
/// Of the message control register: all vectors are masked.
const CONTROL_MASKED: u16 = 1 << 14;
/// Of the message control register: messages are sent.
const CONTROL_ENABLED: u16 = 1 << 15;
/// Of an entry's vector control: it is masked.
const ENTRY_MASKED: u32 = 1;

/// Where messages go. Any closure that takes one is one. Must not block, nor call back.
pub trait MessageSink: Send + Sync {
    /// Sends an interrupt.
    fn send(&self, message: Message);
}

impl<F: Fn(Message) + Send + Sync> MessageSink for F {
    fn send(&self, message: Message) {
        self(message);
    }
}

#[derive(Clone, Copy)]
struct Entry {
    message: Message,
    control: u32,
    pending: bool,
}

impl Entry {
    /// As after power-on.
    const NEW: Self =
        Self { message: Message { address: 0, data: 0 }, control: ENTRY_MASKED, pending: false };

    fn bytes(&self) -> [u8; MSIX_ENTRY_BYTES as usize] {
        let mut bytes = [0; MSIX_ENTRY_BYTES as usize];
        bytes[..8].copy_from_slice(&self.message.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.message.data.to_le_bytes());
        bytes[12..].copy_from_slice(&self.control.to_le_bytes());
        bytes
    }
}

struct State {
    entries: Box<[Entry]>,
    control: u16,
    bus_master: bool,
}

impl State {
    fn may_send(&self) -> bool {
        self.bus_master && self.control & (CONTROL_ENABLED | CONTROL_MASKED) == CONTROL_ENABLED
    }

    fn new(vectors: u16) -> Self {
        let entries = vec![Entry::NEW; vectors.into()].into();
        Self { entries, control: 0, bus_master: false }
    }
}

/// The vectors of a function.
///
/// A message is sent with the lock held: when a guest's write to the table completes, no interrupt
/// goes where the entry pointed before, and none is lost between the two.
pub struct Msix {
    state: Mutex<State>,
    sink: Arc<dyn MessageSink>,
}

impl Msix {
    /// So many vectors, 1 to 2048, as after power-on.
    pub fn new(vectors: u16, sink: Arc<dyn MessageSink>) -> Self {
        Self { state: Mutex::new(State::new(vectors)), sink }
    }

    /// Number of vectors.
    pub fn vectors(&self) -> u16 {
        lock(&self.state).entries.len() as u16
    }

    /// The capability's body, and the bits of it that a guest may write: table and pending bits are in
    /// memory range 0 at these offsets, multiples of 8.
    pub fn capability(&self, table: u32, pending: u32) -> ([u8; BODY_BYTES], [u8; 2]) {
        let mut body = [0; BODY_BYTES];
        body[..2].copy_from_slice(&(self.vectors() - 1).to_le_bytes());
        body[2..6].copy_from_slice(&table.to_le_bytes());
        body[6..].copy_from_slice(&pending.to_le_bytes());
        (body, (CONTROL_ENABLED | CONTROL_MASKED).to_le_bytes())
    }

    /// The guest has written the message control register or the command register.
    pub fn set_control(&self, control: u16, bus_master: bool) {
        let mut state = lock(&self.state);
        (state.control, state.bus_master) = (control, bus_master);
        self.send_pending(&mut state);
    }

    /// Whether interrupts are messages.
    pub fn is_enabled(&self) -> bool {
        lock(&self.state).control & CONTROL_ENABLED != 0
    }

    /// Sends a vector's message, or remembers it while it is masked.
    pub fn trigger(&self, vector: u16) {
        let mut state = lock(&self.state);
        if state.control & CONTROL_ENABLED == 0 {
            return;
        }
        let may_send = state.may_send();
        let Some(entry) = state.entries.get_mut(usize::from(vector)) else { return };
        entry.pending = !may_send || entry.control & ENTRY_MASKED != 0;
        if !entry.pending {
            self.sink.send(entry.message);
        }
    }

    /// Reads the table.
    pub fn read_table(&self, offset: u64, len: usize) -> Data {
        let state = lock(&self.state);
        Data::gather(offset, len, |at| {
            let entry = state.entries.get((at / MSIX_ENTRY_BYTES) as usize);
            entry.map_or(0, |entry| entry.bytes()[(at % MSIX_ENTRY_BYTES) as usize])
        })
    }

    /// Writes the table: fields of 4 bytes, or two of them.
    pub fn write_table(&self, offset: u64, data: Data) {
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(data.len() as u64) {
            return;
        }
        let mut state = lock(&self.state);
        let index = (offset / MSIX_ENTRY_BYTES) as usize;
        let Some(entry) = state.entries.get_mut(index) else { return };
        let mut bytes = entry.bytes();
        let at = (offset % MSIX_ENTRY_BYTES) as usize;
        bytes[at..at + data.len()].copy_from_slice(data.bytes());
        let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|byte| bytes[at + byte]));
        entry.message =
            Message { address: u64::from(word(4)) << 32 | u64::from(word(0)), data: word(8) };
        entry.control = word(12) & ENTRY_MASKED;
        self.send_pending(&mut state);
    }

    /// Reads the pending bits.
    pub fn read_pending(&self, offset: u64, len: usize) -> Data {
        let state = lock(&self.state);
        Data::gather(offset, len, |at| {
            let first = (at as usize).saturating_mul(8);
            let entries = state.entries.iter().skip(first).take(8).enumerate();
            entries.fold(0, |bits, (bit, entry)| bits | u8::from(entry.pending) << bit)
        })
    }

    /// As after power-on.
    pub fn reset(&self) {
        let mut state = lock(&self.state);
        *state = State::new(state.entries.len() as u16);
    }

    fn send_pending(&self, state: &mut State) {
        if !state.may_send() {
            return;
        }
        for entry in &mut state.entries {
            if entry.pending && entry.control & ENTRY_MASKED == 0 {
                entry.pending = false;
                self.sink.send(entry.message);
            }
        }
    }
}
