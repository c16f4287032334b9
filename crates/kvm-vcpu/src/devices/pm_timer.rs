//! The ACPI power management timer (ACPI 6.5, 4.8.3.3): a counter of 3.579545 MHz.

use std::sync::Arc;

use super::Clock;
use crate::bus::{Data, Simple};

const HZ: u128 = 3_579_545;

/// Bits of the counter before it wraps: the FADT's TMR_VAL_EXT tells the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Width {
    /// Wraps every 4.69 seconds.
    Bits24,
    /// Wraps every 20 minutes.
    Bits32,
}

/// The timer: reads only, no state but the clock, so every node has its own. It raises no
/// interrupt when it wraps; hardware-reduced ACPI has no such event.
pub struct PmTimer {
    clock: Arc<dyn Clock>,
    width: Width,
}

impl PmTimer {
    /// Counts the time of `clock`.
    pub fn new(width: Width, clock: Arc<dyn Clock>) -> Self {
        Self { clock, width }
    }

    fn count(&self) -> u32 {
        let ticks = u128::from(self.clock.now_ns()) * HZ / 1_000_000_000;
        match self.width {
            Width::Bits24 => ticks as u32 & 0xff_ffff,
            Width::Bits32 => ticks as u32,
        }
    }
}

impl Simple for PmTimer {
    fn name(&self) -> &str {
        "pm-timer"
    }

    fn read(&self, offset: u64, len: usize) -> Data {
        let bytes = self.count().to_le_bytes();
        let register = |at| usize::try_from(at).ok().and_then(|at| bytes.get(at)).copied();
        Data::gather(offset, len, |at| register(at).unwrap_or(0))
    }

    fn write(&self, _: u64, _: Data) {}

    fn reset(&self) {}
}

#[cfg(test)]
mod tests {
    use super::super::host::fake::FakeClock;
    use super::*;

    #[test]
    fn counts_at_its_rate_and_wraps_at_its_width() {
        let clock = FakeClock::default();
        let narrow = PmTimer::new(Width::Bits24, clock.shared());
        let wide = PmTimer::new(Width::Bits32, clock.shared());
        clock.set_ns(1_000_000_000);
        assert_eq!(narrow.read(0, 4).to_u64(), 3_579_545);
        clock.set_ns(10_000_000_000);
        assert_eq!(wide.read(0, 4).to_u64(), 35_795_450);
        assert_eq!(narrow.read(0, 4).to_u64(), 35_795_450 % (1 << 24));
        clock.set_ns(u64::MAX);
        let ticks = u128::from(u64::MAX) * HZ / 1_000_000_000;
        assert_eq!(wide.read(0, 4).to_u64(), ticks as u64 & 0xffff_ffff, "centuries later");
        let bytes = [wide.read(0, 1), wide.read(1, 2), wide.read(3, 1)];
        let joined = bytes[0].to_u64() | bytes[1].to_u64() << 8 | bytes[2].to_u64() << 24;
        assert_eq!(joined, wide.read(0, 4).to_u64());
    }
}
