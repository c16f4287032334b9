//! One channel of the interval timer.

/// Ticks a second.
const HZ: u128 = 1_193_182;

/// Which bytes of a count an access moves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bytes {
    Low,
    High,
    LowHigh,
}

/// One channel.
#[derive(Clone, Copy)]
pub(super) struct Channel {
    /// The mode's three bits as written; 6 and 7 mean 2 and 3.
    mode_bits: u8,
    bcd: bool,
    bytes: Bytes,
    /// As written; 0 is the largest count.
    reload: u16,
    /// A count has been written since the mode.
    loaded: bool,
    gate: bool,
    /// Ticks counted before `since_ns`.
    ticks_before: u64,
    /// When it went on counting; `None` while it stands.
    since_ns: Option<u64>,
    /// The low byte of a count whose high byte is still to come.
    write_low: Option<u8>,
    /// The next read is of the high byte.
    read_high: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
}

impl Channel {
    pub(super) fn new(gate: bool) -> Self {
        Self {
            mode_bits: 3,
            bcd: false,
            bytes: Bytes::LowHigh,
            reload: 0,
            loaded: false,
            gate,
            ticks_before: 0,
            since_ns: None,
            write_low: None,
            read_high: false,
            latched_count: None,
            latched_status: None,
        }
    }

    /// A control word: a mode, or the latch command.
    pub(super) fn control(&mut self, value: u8, now_ns: u64) {
        self.bytes = match value >> 4 & 3 {
            0 => return self.latch_count(now_ns),
            1 => Bytes::Low,
            2 => Bytes::High,
            _ => Bytes::LowHigh,
        };
        *self = Self { bytes: self.bytes, reload: self.reload, ..Self::new(self.gate) };
        self.mode_bits = value >> 1 & 7;
        self.bcd = value & 1 != 0;
    }

    /// A byte of the count.
    pub(super) fn write(&mut self, value: u8, now_ns: u64) {
        let count = match (self.bytes, self.write_low.take()) {
            (Bytes::Low, _) => u16::from(value),
            (Bytes::High, _) => u16::from(value) << 8,
            (Bytes::LowHigh, Some(low)) => u16::from_le_bytes([low, value]),
            (Bytes::LowHigh, None) => {
                self.write_low = Some(value);
                // Mode 0: the first byte stops the count.
                if self.mode() == 0 {
                    self.stop(now_ns);
                }
                return;
            }
        };
        let first = !self.loaded;
        self.reload = count;
        self.loaded = true;
        match self.mode() {
            0 | 4 => self.restart(self.gate, now_ns),
            // A running period ends before a new count is in force on the chip; here it starts anew.
            2 | 3 => self.restart(self.gate, now_ns),
            // Modes 1 and 5 wait for the gate to rise; a new count does not disturb the running one
            // but is what it is computed from from now on.
            _ if first => self.restart(false, now_ns),
            _ => {}
        }
    }

    /// A byte of status, latched count or count.
    pub(super) fn read(&mut self, now_ns: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self.latched_count.unwrap_or_else(|| self.count(now_ns)).to_le_bytes();
        let (byte, last) = match self.bytes {
            Bytes::Low => (low, true),
            Bytes::High => (high, true),
            Bytes::LowHigh if self.read_high => (high, true),
            Bytes::LowHigh => (low, false),
        };
        self.read_high = !last;
        if last {
            self.latched_count = None;
        }
        byte
    }

    pub(super) fn latch_count(&mut self, now_ns: u64) {
        // A second latch before the first was read is ignored.
        if self.latched_count.is_none() {
            self.latched_count = Some(self.count(now_ns));
        }
    }

    pub(super) fn latch_status(&mut self, now_ns: u64) {
        if self.latched_status.is_some() {
            return;
        }
        let bytes = match self.bytes {
            Bytes::Low => 1,
            Bytes::High => 2,
            Bytes::LowHigh => 3,
        };
        self.latched_status = Some(
            u8::from(self.output(now_ns)) << 7
                | u8::from(!self.loaded) << 6
                | bytes << 4
                | self.mode_bits << 1
                | u8::from(self.bcd),
        );
    }

    pub(super) fn set_gate(&mut self, gate: bool, now_ns: u64) {
        let rises = gate && !self.gate;
        let falls = !gate && self.gate;
        self.gate = gate;
        if !self.loaded {
            return;
        }
        match self.mode() {
            // The gate only holds the count.
            0 | 4 if rises && self.write_low.is_none() => self.since_ns = Some(now_ns),
            0 | 2 | 3 | 4 if falls => self.stop(now_ns),
            // Elsewhere its rise starts it.
            1 | 2 | 3 | 5 if rises => self.restart(true, now_ns),
            _ => {}
        }
    }

    /// The level of the channel's output.
    pub(super) fn output(&self, now_ns: u64) -> bool {
        let (count, ticks) = (self.period(), self.ticks(now_ns));
        let stands = self.since_ns.is_none();
        match self.mode() {
            0 => self.loaded && ticks >= count,
            1 => stands || ticks >= count,
            2 => stands || ticks % count != count - 1,
            3 => stands || ticks % count < count.div_ceil(2),
            _ => !self.loaded || ticks != count,
        }
    }

    /// What a read finds.
    fn count(&self, now_ns: u64) -> u16 {
        let (period, ticks) = (self.period(), self.ticks(now_ns));
        // The counter wraps within its own digits.
        let wrap = self.wrap();
        let left = match self.mode() {
            2 => period - ticks % period,
            3 => period - 2 * (ticks % period) % period,
            _ => (period + wrap - ticks % wrap) % wrap,
        };
        if self.bcd { to_bcd(left) } else { left as u16 }
    }

    fn mode(&self) -> u8 {
        match self.mode_bits {
            mode @ (6 | 7) => mode - 4,
            mode => mode,
        }
    }

    fn wrap(&self) -> u64 {
        if self.bcd { 10_000 } else { 0x1_0000 }
    }

    /// The count as a number, 1 to 65536.
    fn period(&self) -> u64 {
        let count = if self.bcd { from_bcd(self.reload) } else { u64::from(self.reload) };
        if count == 0 { self.wrap() } else { count }
    }

    fn ticks(&self, now_ns: u64) -> u64 {
        let ns = self.since_ns.map_or(0, |since| now_ns.saturating_sub(since));
        let ticks = u128::from(ns) * HZ / 1_000_000_000;
        self.ticks_before.saturating_add(ticks as u64)
    }

    fn restart(&mut self, counts: bool, now_ns: u64) {
        self.ticks_before = 0;
        self.since_ns = counts.then_some(now_ns);
    }

    fn stop(&mut self, now_ns: u64) {
        self.ticks_before = self.ticks(now_ns);
        self.since_ns = None;
    }
}

/// Four decimal digits; a digit above 9 counts as what it is.
fn from_bcd(value: u16) -> u64 {
    (0..4).rev().fold(0, |sum, digit| sum * 10 + u64::from(value >> (4 * digit) & 0xf))
}

/// The low four decimal digits.
fn to_bcd(value: u64) -> u16 {
    let digit = |n: u32| (value / 10u64.pow(n) % 10) as u16;
    (0..4).fold(0, |bcd, n| bcd | digit(n) << (4 * n))
}
