//! The interval timer (Intel 8254), ports 0x40 to 0x43, and port 0x61 (system control port B), which
//! gates its channel 2 and shows that channel's output.
//!
//! Counts are computed from the clock when they are read. No channel interrupts: guests take their
//! ticks from the local APICs. Two departures from the chip, neither visible at its speed: a count
//! is in force when it is written, not at the next tick; square wave counts go down by two from an
//! odd count too.

mod channel;

use std::sync::{Arc, Mutex};

use channel::Channel;

use super::Clock;
use super::host::lock;
use crate::bus::{Data, Simple};

/// Offset at which port 0x61 is to be claimed; port 0x40 is at 0.
pub const PORT_B_OFFSET: u64 = 4;

const CONTROL: u64 = 3;
const PORT_B_GATE: u8 = 1 << 0;
/// Gate, speaker, and the two parity checks.
const PORT_B_WRITABLE: u8 = 0x0f;
/// Memory refresh: toggles every 15 microseconds; old code measures delays by it.
const PORT_B_REFRESH: u8 = 1 << 4;
const REFRESH_NS: u64 = 15_085;
const PORT_B_OUTPUT: u8 = 1 << 5;

/// The timer with its three channels.
pub struct Pit {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

struct State {
    channels: [Channel; 3],
    port_b: u8,
}

impl State {
    fn new() -> Self {
        // The gates of channels 0 and 1 are wired high.
        Self { channels: [Channel::new(true), Channel::new(true), Channel::new(false)], port_b: 0 }
    }

    fn read(&mut self, offset: u64, now_ns: u64) -> u8 {
        match offset {
            PORT_B_OFFSET => {
                let refresh = if now_ns / REFRESH_NS % 2 == 1 { PORT_B_REFRESH } else { 0 };
                let output = if self.channels[2].output(now_ns) { PORT_B_OUTPUT } else { 0 };
                self.port_b | refresh | output
            }
            // The control word can't be read back.
            _ => self.channel(offset).map_or(0xff, |channel| channel.read(now_ns)),
        }
    }

    fn write(&mut self, offset: u64, value: u8, now_ns: u64) {
        match offset {
            PORT_B_OFFSET => {
                self.port_b = value & PORT_B_WRITABLE;
                self.channels[2].set_gate(value & PORT_B_GATE != 0, now_ns);
            }
            CONTROL => self.control(value, now_ns),
            _ => {
                if let Some(channel) = self.channel(offset) {
                    channel.write(value, now_ns);
                }
            }
        }
    }

    fn control(&mut self, value: u8, now_ns: u64) {
        if let Some(channel) = self.channel(u64::from(value >> 6)) {
            return channel.control(value, now_ns);
        }
        // Read-back: bits 1 to 3 choose channels, clear bits 5 and 4 latch count and status.
        for (i, channel) in self.channels.iter_mut().enumerate() {
            if value & 2 << i == 0 {
                continue;
            }
            if value & 1 << 5 == 0 {
                channel.latch_count(now_ns);
            }
            if value & 1 << 4 == 0 {
                channel.latch_status(now_ns);
            }
        }
    }

    fn channel(&mut self, index: u64) -> Option<&mut Channel> {
        self.channels.get_mut(usize::try_from(index).ok()?)
    }
}

impl Pit {
    /// Counts the time of `clock`.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, state: Mutex::new(State::new()) }
    }
}

impl Simple for Pit {
    fn name(&self) -> &str {
        "pit"
    }

    fn read(&self, offset: u64, len: usize) -> Data {
        let now_ns = self.clock.now_ns();
        let mut state = lock(&self.state);
        Data::gather(offset, len, |at| state.read(at, now_ns))
    }

    fn write(&self, offset: u64, data: Data) {
        let now_ns = self.clock.now_ns();
        let mut state = lock(&self.state);
        data.scatter(offset, |at, byte| state.write(at, byte, now_ns));
    }

    fn reset(&self) {
        *lock(&self.state) = State::new();
    }
}

#[cfg(test)]
mod tests;
