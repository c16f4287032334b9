//! A serial port: 16550A, 8 ports, over vm-superio's model of its registers.
//!
//! Output leaves at once; input waits in the FIFO (64 bytes) and, behind it, in a longer queue, so
//! that who types need not wait for the guest. What vm-superio simplifies and drivers that go by the
//! interrupt identification rely on is done here: received data comes before an empty transmitter
//! and stays pending until all is read, and the interrupt is a level, high while one is pending.
//! The baud rate and writes to the FIFO control register have no effect.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use vm_superio::Trigger;
use vm_superio::serial::NoEvents;

use super::host::{Driver, Wanted, lock};
use super::{ByteSink, Line};
use crate::bus::{Data, Simple};

/// Bytes of input that wait behind the FIFO; more are refused.
pub const INPUT_MAX: usize = 64 << 10;

const IIR: u8 = 2;
const IIR_NONE: u8 = 0xc1;
const IIR_THR_EMPTY: u8 = 0xc2;
const IIR_RECEIVED: u8 = 0xc4;
const IIR_THR_EMPTY_BIT: u8 = 1 << 1;
const IER_RECEIVED: u8 = 1 << 0;
const IER_THR_EMPTY: u8 = 1 << 1;

/// Notes that vm-superio wants an interrupt.
#[derive(Default)]
struct Noted(AtomicBool);

impl Trigger for Noted {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.store(true, Ordering::Relaxed);
        Ok(())
    }
}

type Registers = vm_superio::Serial<Noted, NoEvents, Vec<u8>>;

/// The serial port.
pub struct Serial {
    name: String,
    state: Mutex<State>,
    output: Arc<dyn ByteSink>,
    driver: Driver,
}

struct State {
    registers: Registers,
    /// Input that found no room in the FIFO.
    queue: VecDeque<u8>,
    /// The transmitter has become empty, and the guest has not been told.
    thr_empty: bool,
}

impl State {
    fn new() -> Self {
        let registers = Registers::new(Noted::default(), Vec::new());
        Self { registers, queue: VecDeque::new(), thr_empty: false }
    }

    fn read(&mut self, register: u8) -> u8 {
        let value = match register {
            IIR => self.identify(),
            _ => self.registers.read(register),
        };
        self.refill();
        value
    }

    fn write(&mut self, register: u8, value: u8) {
        // Neither the output, a vector, nor the trigger can fail.
        let _ = self.registers.write(register, value);
        self.note_thr_empty();
        self.refill();
    }

    /// The interrupt identification; to read an empty transmitter from it takes that back.
    fn identify(&mut self) -> u8 {
        let (received, thr_empty) = self.pending();
        self.registers.read(IIR);
        if received {
            IIR_RECEIVED
        } else if thr_empty {
            self.thr_empty = false;
            IIR_THR_EMPTY
        } else {
            IIR_NONE
        }
    }

    fn note_thr_empty(&mut self) {
        let state = self.registers.state();
        let enabled = state.interrupt_enable & IER_THR_EMPTY != 0;
        let raised = state.interrupt_identification & IIR_THR_EMPTY_BIT != 0;
        self.thr_empty = enabled && (self.thr_empty || raised);
    }

    /// Interrupts that are enabled and pending: received data, empty transmitter.
    fn pending(&self) -> (bool, bool) {
        let state = self.registers.state();
        let received = state.interrupt_enable & IER_RECEIVED != 0 && !state.in_buffer.is_empty();
        (received, self.thr_empty)
    }

    fn refill(&mut self) {
        let room = self.registers.fifo_capacity().min(self.queue.len());
        if room == 0 {
            return;
        }
        let bytes: Vec<u8> = self.queue.iter().take(room).copied().collect();
        // In loopback it takes none.
        let taken = self.registers.enqueue_raw_bytes(&bytes).unwrap_or(0);
        self.queue.drain(..taken);
    }

    fn wanted(&mut self) -> Wanted {
        let (received, thr_empty) = self.pending();
        let edge = self.registers.interrupt_evt().0.swap(false, Ordering::Relaxed);
        let high = received || thr_empty;
        Wanted { high, edge: edge && high }
    }
}

impl Serial {
    /// A port called `name` that writes to `output` and interrupts through `line`.
    pub fn new(name: impl Into<String>, line: Arc<dyn Line>, output: Arc<dyn ByteSink>) -> Self {
        let state = Mutex::new(State::new());
        Self { name: name.into(), state, output, driver: Driver::new(line) }
    }

    /// Input for the guest. Returns how many bytes, from the first, there was room for: all, unless
    /// [`INPUT_MAX`] wait already.
    pub fn enqueue(&self, input: &[u8]) -> usize {
        let taken = {
            let mut state = lock(&self.state);
            let room = INPUT_MAX.saturating_sub(state.queue.len());
            let input = &input[..input.len().min(room)];
            state.queue.extend(input);
            state.refill();
            input.len()
        };
        self.interrupt();
        taken
    }

    fn interrupt(&self) {
        self.driver.drive(|| lock(&self.state).wanted());
    }
}

impl Simple for Serial {
    fn name(&self) -> &str {
        &self.name
    }

    fn read(&self, offset: u64, len: usize) -> Data {
        let data = {
            let mut state = lock(&self.state);
            Data::gather(offset, len, |at| match u8::try_from(at) {
                Ok(register @ 0..8) => state.read(register),
                _ => 0xff,
            })
        };
        self.interrupt();
        data
    }

    fn write(&self, offset: u64, data: Data) {
        let output = {
            let mut state = lock(&self.state);
            data.scatter(offset, |at, byte| {
                if let Ok(register @ 0..8) = u8::try_from(at) {
                    state.write(register, byte);
                }
            });
            std::mem::take(state.registers.writer_mut())
        };
        if !output.is_empty() {
            self.output.put(&output);
        }
        self.interrupt();
    }

    fn reset(&self) {
        *lock(&self.state) = State::new();
        self.interrupt();
    }
}

#[cfg(test)]
mod tests;
