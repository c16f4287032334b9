//! The keyboard controller (8042) without keyboard or mouse: guests use it to reset the machine.
//!
//! Ports 0x60 (data) and 0x64 (status and commands). Commands that a driver needs to find out that
//! nothing is attached are answered; the interface tests report both ports as broken. No interrupts.

use std::sync::{Arc, Mutex};

use super::host::lock;
use super::{EventSink, MachineEvent};
use crate::bus::{Data, Simple};

/// Offset at which port 0x64 is to be claimed; port 0x60 is at 0.
pub const I8042_COMMAND_OFFSET: u64 = 4;

const STATUS_OUTPUT_FULL: u8 = 1 << 0;
const STATUS_SELF_TEST_DONE: u8 = 1 << 2;
const STATUS_LAST_WAS_COMMAND: u8 = 1 << 3;

/// Output port bit 0, low: reset.
const OUTPUT_NO_RESET: u8 = 1 << 0;
const OUTPUT_A20: u8 = 1 << 1;

/// Both interrupts disabled, both clocks off, self test passed.
const CONFIG_AT_RESET: u8 = 0x34;

/// The controller.
pub struct I8042 {
    events: Arc<dyn EventSink>,
    state: Mutex<State>,
}

#[derive(Clone, Copy)]
struct State {
    config: u8,
    output: Option<u8>,
    /// A command that takes its argument from the data port.
    awaits: Option<u8>,
    last_was_command: bool,
}

impl Default for State {
    fn default() -> Self {
        Self { config: CONFIG_AT_RESET, output: None, awaits: None, last_was_command: false }
    }
}

impl State {
    fn status(&self) -> u8 {
        let full = if self.output.is_some() { STATUS_OUTPUT_FULL } else { 0 };
        let command = if self.last_was_command { STATUS_LAST_WAS_COMMAND } else { 0 };
        full | command | STATUS_SELF_TEST_DONE
    }

    /// Whether the command resets the machine.
    fn command(&mut self, command: u8) -> bool {
        self.last_was_command = true;
        self.awaits = None;
        match command {
            0x20 => self.output = Some(self.config),
            0x60 | 0xd1..=0xd4 => self.awaits = Some(command),
            0xa7 => self.config |= 0x20,
            0xa8 => self.config &= !0x20,
            // Test of the second and the first interface: clock line stuck low.
            0xa9 | 0xab => self.output = Some(0x01),
            // Self test passed.
            0xaa => (self.config, self.output) = (CONFIG_AT_RESET, Some(0x55)),
            0xad => self.config |= 0x10,
            0xae => self.config &= !0x10,
            0xd0 => self.output = Some(OUTPUT_NO_RESET | OUTPUT_A20),
            // Pulse output lines low: bit 0 is the processor's reset, and 0 in a bit pulses it.
            0xf0..=0xff => return command & OUTPUT_NO_RESET == 0,
            _ => {}
        }
        false
    }

    /// Whether the byte resets the machine.
    fn data(&mut self, value: u8) -> bool {
        self.last_was_command = false;
        match self.awaits.take() {
            Some(0x60) => self.config = value,
            Some(0xd1) => return value & OUTPUT_NO_RESET == 0,
            // Written as if a device had sent it.
            Some(0xd2 | 0xd3) => self.output = Some(value),
            // To a keyboard or mouse: nobody answers.
            _ => {}
        }
        false
    }
}

impl I8042 {
    /// Resets the machine through `events`.
    pub fn new(events: Arc<dyn EventSink>) -> Self {
        Self { events, state: Mutex::default() }
    }
}

impl Simple for I8042 {
    fn name(&self) -> &str {
        "i8042"
    }

    fn read(&self, offset: u64, len: usize) -> Data {
        let mut state = lock(&self.state);
        let value = match offset {
            0 => state.output.take().unwrap_or(0),
            I8042_COMMAND_OFFSET => state.status(),
            _ => 0xff,
        };
        Data::from_u64(value.into(), len)
    }

    fn write(&self, offset: u64, data: Data) {
        let Some(&value) = data.bytes().first() else { return };
        let reset = match offset {
            0 => lock(&self.state).data(value),
            I8042_COMMAND_OFFSET => lock(&self.state).command(value),
            _ => false,
        };
        if reset {
            self.events.event(MachineEvent::Reset);
        }
    }

    fn reset(&self) {
        *lock(&self.state) = State::default();
    }
}

#[cfg(test)]
mod tests {
    use super::super::host::fake::Collect;
    use super::*;

    fn command(device: &I8042, value: u64) {
        device.write(I8042_COMMAND_OFFSET, Data::from_u64(value, 1));
    }

    #[test]
    fn both_ways_of_reset() {
        let events = Collect::default();
        let device = I8042::new(Arc::new(events.one()));
        command(&device, 0xff);
        assert_eq!(events.take(), [], "pulses nothing");
        command(&device, 0xfe);
        assert_eq!(events.take(), [MachineEvent::Reset]);
        command(&device, 0xd1);
        device.write(0, Data::from_u64(0xdf, 1));
        assert_eq!(events.take(), [], "A20 on");
        command(&device, 0xd1);
        device.write(0, Data::from_u64(0xfe, 1));
        assert_eq!(events.take(), [MachineEvent::Reset]);
        device.write(0, Data::from_u64(0xfe, 1));
        assert_eq!(events.take(), [], "data without a command");
    }

    #[test]
    fn answers_fill_the_output_buffer_once() {
        let device = I8042::new(Arc::new(|_: MachineEvent| {}));
        let status = || device.read(I8042_COMMAND_OFFSET, 1).to_u64() as u8;
        assert_eq!(status() & STATUS_OUTPUT_FULL, 0);
        for (value, answer) in [(0xaa, 0x55), (0x20, 0x34), (0xab, 0x01), (0xd0, 0x03)] {
            command(&device, value);
            assert_eq!(status() & STATUS_OUTPUT_FULL, STATUS_OUTPUT_FULL);
            assert_eq!(device.read(0, 1).to_u64(), answer);
            assert_eq!(status() & STATUS_OUTPUT_FULL, 0);
        }
        command(&device, 0x60);
        device.write(0, Data::from_u64(0x47, 1));
        command(&device, 0x20);
        assert_eq!(device.read(0, 1).to_u64(), 0x47);
    }
}
