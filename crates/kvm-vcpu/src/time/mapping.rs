//! How KVM makes the guest's TSC of the host's (Linux `arch/x86/kvm/x86.c`; SDM vol. 3C, 26.3;
//! APM vol. 2, 15.30.5).

/// What the processor multiplies the host's TSC by: a fixed-point number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ratio {
    mantissa: u64,
    fraction_bits: u32,
}

impl Ratio {
    /// As fast as the host.
    pub const ONE: Self = Self { mantissa: 1 << 32, fraction_bits: 32 };

    /// As a number.
    pub fn as_f64(self) -> f64 {
        self.mantissa as f64 / 2f64.powi(self.fraction_bits.min(64) as i32)
    }

    /// The host's ticks, multiplied (`mul_u64_u64_shr`).
    pub fn apply(self, host: u64) -> u64 {
        ((u128::from(host) * u128::from(self.mantissa)) >> self.fraction_bits) as u64
    }
}

/// What `KVM_SET_TSC_KHZ` makes of a frequency on one host with TSC scaling.
///
/// KVM doesn't scale within [`Scaler::TOLERANCE_PPM`] of what it takes for the host's frequency: there
/// the call succeeds and changes nothing. So the guest's nominal frequency has to lie outside of that
/// on every node: [`nominal_khz`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Scaler {
    /// What KVM takes for the host's frequency: `KVM_GET_TSC_KHZ` of a new vCPU.
    pub host_khz: u32,
    /// Bits behind the point of the processor's ratio: [`Scaler::INTEL_BITS`] or
    /// [`Scaler::AMD_BITS`].
    pub fraction_bits: u32,
    /// KVM's parameter `tsc_tolerance_ppm`, in `/sys/module/kvm/parameters`.
    pub tolerance_ppm: u32,
}

impl Scaler {
    /// The VMX TSC multiplier has 48 bits behind the point.
    pub const INTEL_BITS: u32 = 48;
    /// AMD's TSC ratio MSR has 32 bits behind the point.
    pub const AMD_BITS: u32 = 32;
    /// KVM's default.
    pub const TOLERANCE_PPM: u32 = 250;

    /// The ratio that KVM programs for this frequency.
    pub fn ratio(&self, khz: u32) -> Ratio {
        if self.ignores(khz) || self.host_khz == 0 {
            return Ratio::ONE;
        }
        // `mul_u64_u32_div(1 << bits, khz, host_khz)`; below 2^(48 + 32).
        let mantissa = (u128::from(khz) << self.fraction_bits) / u128::from(self.host_khz);
        Ratio { mantissa: mantissa as u64, fraction_bits: self.fraction_bits }
    }

    /// Whether KVM runs the guest at the host's rate though asked for this one.
    pub fn ignores(&self, khz: u32) -> bool {
        let (host, ppm) = (u64::from(self.host_khz), u64::from(self.tolerance_ppm));
        let low = host * 1_000_000u64.saturating_sub(ppm) / 1_000_000;
        let high = host * (1_000_000 + ppm) / 1_000_000;
        (low..=high).contains(&khz.into())
    }
}

/// The guest's frequency: one that every node's KVM scales to, with room for corrections.
///
/// Just below the slowest host by more than all tolerances.
pub fn nominal_khz(nodes: &[Scaler]) -> Option<u32> {
    /// Room for drift and for what corrects it.
    const ROOM_PPM: u64 = 750;
    let slowest = nodes.iter().map(|node| node.host_khz).min()?;
    let tolerance = nodes.iter().map(|node| node.tolerance_ppm).max()?;
    let ppm = 1_000_000u64.saturating_sub(u64::from(tolerance) + ROOM_PPM);
    u32::try_from(u64::from(slowest) * ppm / 1_000_000).ok()
}

/// The guest's TSC as a function of the host's: `host * ratio + offset`, modulo 2^64.
///
/// To put one in force on a vCPU: in its thread, out of the guest, `KVM_SET_TSC_KHZ` (which keeps the
/// offset, and so alone would make the counter jump), then `KVM_VCPU_TSC_OFFSET`. Every vCPU of the
/// node gets the same mapping, whenever it gets to it: publish it, then kick them all. Between the
/// first and the last, two vCPUs differ by the change of the rate times the time between: well below
/// a tick for one kHz and the microseconds of a kick. A vCPU that waits for a page has a signal
/// pending and does not enter the guest with the old mapping. Read the offset back once: a KVM without
/// hardware virtualization may take it and ignore it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mapping {
    /// The rate.
    pub ratio: Ratio,
    /// Added after scaling: `KVM_VCPU_TSC_OFFSET`.
    pub offset: u64,
}

impl Mapping {
    /// The mapping with this rate that is `guest` at `host`.
    pub fn through(ratio: Ratio, host: u64, guest: u64) -> Self {
        Self { ratio, offset: guest.wrapping_sub(ratio.apply(host)) }
    }

    /// The guest's TSC.
    pub fn guest(&self, host: u64) -> u64 {
        self.ratio.apply(host).wrapping_add(self.offset)
    }

    /// Another rate from `host` on, without a jump.
    #[must_use]
    pub fn continued(&self, ratio: Ratio, host: u64) -> Self {
        Self::through(ratio, host, self.guest(host))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOST: Scaler = Scaler { host_khz: 2_400_000, fraction_bits: 48, tolerance_ppm: 250 };

    #[test]
    fn within_its_tolerance_kvm_does_not_scale() {
        assert!(HOST.ignores(2_400_600) && HOST.ignores(2_399_400));
        assert!(!HOST.ignores(2_400_601) && !HOST.ignores(2_399_399));
        assert_eq!(HOST.ratio(2_400_100), Ratio::ONE);
        assert_eq!(HOST.ratio(1_200_000).apply(1_000_000), 500_000);
        let exact = Scaler { tolerance_ppm: 0, ..HOST };
        assert!(!exact.ignores(2_400_001));
    }

    #[test]
    fn the_nominal_frequency_is_scaled_on_every_node() {
        let nodes = [HOST, Scaler { host_khz: 2_400_500, ..HOST }];
        let khz = nominal_khz(&nodes).unwrap();
        for node in nodes {
            for change in [-300, 300] {
                let ppm = i64::from(khz) * change / 1_000_000;
                assert!(!node.ignores((i64::from(khz) + ppm) as u32));
            }
        }
        assert_eq!(nominal_khz(&[]), None);
    }

    proptest! {
        #[test]
        fn a_change_of_rate_is_no_jump(
            khz in 1_000_000u32..4_000_000, other in 1_000_000u32..4_000_000, at in any::<u64>(),
            guest in any::<u64>(), bits in prop::sample::select(vec![32u32, 48]),
        ) {
            let scaler = Scaler { fraction_bits: bits, ..HOST };
            let before = Mapping::through(scaler.ratio(khz), at, guest);
            prop_assert_eq!(before.guest(at), guest);
            prop_assert_eq!(before.continued(scaler.ratio(other), at).guest(at), guest);
        }
    }
}
