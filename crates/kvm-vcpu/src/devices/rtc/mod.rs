//! The real-time clock and its memory (Motorola MC146818), ports 0x70 (index) and 0x71 (data).
//!
//! 128 bytes; the index's top bit, which masks NMIs on a PC, is ignored. No interrupts: alarm and
//! periodic flags never rise, the update flag does, once a second. The time is computed from a start
//! and the machine's clock, so it stands while the machine does.

mod date;

use std::sync::{Arc, Mutex};

use date::Date;

use super::Clock;
use super::host::lock;
use crate::bus::{Data, Simple};

const INDEX: u64 = 0;
const DATA: u64 = 1;

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const CENTURY: u8 = 0x32;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;

const A_UPDATE: u8 = 1 << 7;
/// 32.768 kHz time base, 1024 Hz periodic rate.
const A_DEFAULT: u8 = 0x26;
const B_SET: u8 = 1 << 7;
const B_BINARY: u8 = 1 << 2;
const B_24_HOURS: u8 = 1 << 1;
const C_UPDATED: u8 = 1 << 4;
const D_VALID: u8 = 1 << 7;

const NS: u64 = 1_000_000_000;
/// Before the seconds change, reads may be torn on the chip, and it says so for this long.
const UPDATE_NS: u64 = 244_000;

/// Memory sizes that old loaders read here.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RtcMemory {
    /// Bytes from address 0 to the hole below 4 GiB.
    pub below_4g: u64,
    /// Bytes from 4 GiB on.
    pub above_4g: u64,
}

/// The clock and its memory.
pub struct Rtc {
    clock: Arc<dyn Clock>,
    memory: RtcMemory,
    state: Mutex<State>,
}

struct State {
    index: u8,
    bytes: [u8; 128],
    /// Seconds since 1970 at the clock's 0.
    epoch_s: i64,
    /// What the time registers hold while the guest sets them.
    set: Option<[u8; 8]>,
    /// The second in which the update flag was last read.
    flag_read_s: u64,
}

impl State {
    fn new(memory: RtcMemory, epoch_s: i64) -> Self {
        let mut bytes = [0; 128];
        bytes[usize::from(STATUS_A)] = A_DEFAULT;
        bytes[usize::from(STATUS_B)] = B_24_HOURS;
        let kib = |bytes: u64, most: u64| (bytes >> 10).min(most) as u16;
        let chunks = |bytes: u64, most: u64| (bytes >> 16).min(most) as u32;
        let extended = kib(memory.below_4g.saturating_sub(1 << 20), 0xffff).to_le_bytes();
        let above_16m = chunks(memory.below_4g.saturating_sub(16 << 20), 0xffff).to_le_bytes();
        let above_4g = chunks(memory.above_4g, 0xff_ffff).to_le_bytes();
        bytes[0x15..0x17].copy_from_slice(&kib(memory.below_4g, 640).to_le_bytes());
        bytes[0x17..0x19].copy_from_slice(&extended);
        bytes[0x30..0x32].copy_from_slice(&extended);
        bytes[0x34..0x36].copy_from_slice(&above_16m[..2]);
        bytes[0x5b..0x5e].copy_from_slice(&above_4g[..3]);
        Self { index: 0, bytes, epoch_s, set: None, flag_read_s: 0 }
    }

    fn status_b(&self) -> u8 {
        self.bytes[usize::from(STATUS_B)]
    }

    fn read(&mut self, now_ns: u64) -> u8 {
        match self.index {
            STATUS_A => {
                let updating = now_ns % NS >= NS - UPDATE_NS && self.set.is_none();
                self.bytes[usize::from(STATUS_A)] | if updating { A_UPDATE } else { 0 }
            }
            STATUS_C => {
                let now_s = now_ns / NS;
                let updated = std::mem::replace(&mut self.flag_read_s, now_s) != now_s;
                if updated { C_UPDATED } else { 0 }
            }
            STATUS_D => D_VALID,
            index => match time_register(index) {
                Some(i) => self.set.unwrap_or_else(|| self.registers(now_ns))[i],
                None => self.bytes.get(usize::from(index)).copied().unwrap_or(0xff),
            },
        }
    }

    fn write(&mut self, value: u8, now_ns: u64) {
        match self.index {
            STATUS_A => self.bytes[usize::from(STATUS_A)] = value & !A_UPDATE,
            STATUS_B => self.set_status_b(value, now_ns),
            STATUS_C | STATUS_D => {}
            index => match time_register(index) {
                Some(i) => self.set_time(i, value, now_ns),
                None => {
                    if let Some(byte) = self.bytes.get_mut(usize::from(index)) {
                        *byte = value;
                    }
                }
            },
        }
    }

    fn set_status_b(&mut self, value: u8, now_ns: u64) {
        // The registers are read in the old format, or the time would change with it.
        let held = self.set.unwrap_or_else(|| self.registers(now_ns));
        self.bytes[usize::from(STATUS_B)] = value;
        match (self.set, value & B_SET != 0) {
            (None, true) => self.set = Some(held),
            (Some(held), false) => {
                self.set = None;
                self.adopt(held, now_ns);
            }
            _ => {}
        }
    }

    fn set_time(&mut self, i: usize, value: u8, now_ns: u64) {
        let mut registers = self.set.unwrap_or_else(|| self.registers(now_ns));
        registers[i] = value;
        match self.set {
            Some(_) => self.set = Some(registers),
            None => self.adopt(registers, now_ns),
        }
    }

    /// Takes the registers' time as the time; if it is none, the old one goes on.
    fn adopt(&mut self, registers: [u8; 8], now_ns: u64) {
        let number = |i: usize| self.decode(registers[i]);
        let hours = registers[2];
        let hour = match self.status_b() & B_24_HOURS != 0 {
            true => self.decode(hours),
            false => self.decode(hours & 0x7f) % 12 + if hours & 0x80 != 0 { 12 } else { 0 },
        };
        let date = Date {
            year: number(7) * 100 + number(6),
            month: number(5),
            day: number(4),
            hour,
            minute: number(1),
            second: number(0),
        };
        if let Some(seconds) = date.to_seconds() {
            self.epoch_s = seconds - (now_ns / NS) as i64;
        }
    }

    /// Seconds, minutes, hours, weekday, day, month, year and century.
    fn registers(&self, now_ns: u64) -> [u8; 8] {
        let seconds = self.epoch_s.saturating_add((now_ns / NS) as i64);
        let date = Date::from_seconds(seconds);
        let hour = match self.status_b() & B_24_HOURS != 0 {
            true => self.encode(date.hour),
            false => {
                let half = if date.hour >= 12 { 0x80 } else { 0 };
                self.encode((date.hour + 11) % 12 + 1) | half
            }
        };
        [
            self.encode(date.second),
            self.encode(date.minute),
            hour,
            self.encode(date::weekday(seconds)),
            self.encode(date.day),
            self.encode(date.month),
            self.encode(date.year % 100),
            self.encode(date.year / 100),
        ]
    }

    fn encode(&self, value: u32) -> u8 {
        match self.status_b() & B_BINARY != 0 {
            true => value as u8,
            false => (((value / 10) << 4) | (value % 10)) as u8,
        }
    }

    fn decode(&self, value: u8) -> u32 {
        match self.status_b() & B_BINARY != 0 {
            true => value.into(),
            false => u32::from(value >> 4) * 10 + u32::from(value & 0xf),
        }
    }
}

/// Which of the time registers it is; alarm registers are mere memory.
fn time_register(index: u8) -> Option<usize> {
    let all = [SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY];
    all.iter().position(|register| *register == index)
}

impl Rtc {
    /// Shows the time `epoch_s` (seconds since 1970, UTC) at the clock's 0.
    pub fn new(epoch_s: u32, memory: RtcMemory, clock: Arc<dyn Clock>) -> Self {
        let state = Mutex::new(State::new(memory, epoch_s.into()));
        Self { clock, memory, state }
    }
}

impl Simple for Rtc {
    fn name(&self) -> &str {
        "rtc"
    }

    fn read(&self, offset: u64, len: usize) -> Data {
        let now_ns = self.clock.now_ns();
        let mut state = lock(&self.state);
        Data::gather(offset, len, |at| if at == DATA { state.read(now_ns) } else { 0xff })
    }

    fn write(&self, offset: u64, data: Data) {
        let now_ns = self.clock.now_ns();
        let mut state = lock(&self.state);
        data.scatter(offset, |at, byte| match at {
            INDEX => state.index = byte & 0x7f,
            DATA => state.write(byte, now_ns),
            _ => {}
        });
    }

    /// The time goes on, and memory stays: a battery keeps both.
    fn reset(&self) {
        let mut state = lock(&self.state);
        let fresh = State::new(self.memory, state.epoch_s);
        let mut bytes = state.bytes;
        for status in [STATUS_A, STATUS_B] {
            bytes[usize::from(status)] = fresh.bytes[usize::from(status)];
        }
        *state = State { bytes, ..fresh };
    }
}

#[cfg(test)]
mod tests;
