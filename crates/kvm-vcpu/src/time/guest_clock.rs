//! Nanoseconds from the guest's TSC.

/// Turns the guest's TSC into time, for devices that count it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuestClock {
    khz: u64,
}

impl GuestClock {
    /// A clock of `khz` thousand ticks a second; `None` for 0.
    pub fn new(khz: u32) -> Option<Self> {
        (khz != 0).then_some(Self { khz: khz.into() })
    }

    /// Ticks a millisecond.
    pub fn khz(&self) -> u64 {
        self.khz
    }

    /// Nanoseconds since the guest's TSC was 0; after 2^64 of them (584 years) from 0 again.
    pub fn ns(&self, guest_tsc: u64) -> u64 {
        self.count(guest_tsc, 1_000_000_000)
    }

    /// How often something of `hz` per second has happened since the guest's TSC was 0, modulo 2^64:
    /// for example 3,579,545 Hz for the ACPI PM timer, 1,193,182 Hz for the PIT.
    pub fn count(&self, guest_tsc: u64, hz: u32) -> u64 {
        (u128::from(guest_tsc) * u128::from(hz) / self.ticks_per_s()) as u64
    }

    /// The first guest TSC at which [`GuestClock::count`] is `count`, or `None` if it is beyond the
    /// counter's end or `hz` is 0.
    pub fn tsc_of_count(&self, count: u64, hz: u32) -> Option<u64> {
        if hz == 0 {
            return None;
        }
        // Fits: the counter has 64 bits, ticks per second less than 42.
        let ticks = (u128::from(count) * self.ticks_per_s()).div_ceil(hz.into());
        u64::try_from(ticks).ok()
    }

    fn ticks_per_s(&self) -> u128 {
        u128::from(self.khz) * 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_second_is_a_second_at_both_ends_of_the_counter() {
        let clock = GuestClock::new(2_400_000).unwrap();
        assert_eq!(clock.ns(2_400_000_000), 1_000_000_000);
        assert_eq!(clock.ns(u64::MAX), 7_686_143_364_045_646_506);
        assert_eq!(clock.count(2_400_000_000, 3_579_545), 3_579_545);
        assert_eq!(GuestClock::new(0), None);
    }

    proptest! {
        #[test]
        fn the_first_tick_of_a_count_is_its_first(
            khz in 1_000u32..6_000_000, hz in 1u32..4_000_000_000, count in 1u64..1 << 40,
        ) {
            let clock = GuestClock::new(khz).unwrap();
            if let Some(tsc) = clock.tsc_of_count(count, hz) {
                prop_assert!(clock.count(tsc, hz) >= count);
                prop_assert!(clock.count(tsc - 1, hz) < count);
            }
        }
    }
}
