//! Reset and sleep of hardware-reduced ACPI (ACPI 6.5, 4.8.3.6 and 4.8.3.7).

use std::sync::Arc;

use super::{EventSink, MachineEvent};
use crate::acpi::SLEEP_CONTROL_S5;
use crate::bus::{Data, Simple};

/// SLP_TYPx and SLP_EN of the sleep control register.
const SLEEP_BITS: u8 = 0x3c;

/// The reset register: one port, one value.
pub struct AcpiReset {
    value: u8,
    events: Arc<dyn EventSink>,
}

impl AcpiReset {
    /// Resets the machine when `value`, the FADT's RESET_VALUE, is written.
    pub fn new(value: u8, events: Arc<dyn EventSink>) -> Self {
        Self { value, events }
    }
}

impl Simple for AcpiReset {
    fn name(&self) -> &str {
        "acpi-reset"
    }

    fn read(&self, _: u64, len: usize) -> Data {
        Data::from_u64(0, len)
    }

    fn write(&self, _: u64, data: Data) {
        if data.bytes().first() == Some(&self.value) {
            self.events.event(MachineEvent::Reset);
        }
    }

    fn reset(&self) {}
}

/// The sleep control register (offset 0) and the sleep status register (offset 1).
///
/// Only S5, as [`SLEEP_CONTROL_S5`] asks for it, is known; other sleep types are ignored, and the
/// machine goes on. It never wakes, so the status is 0.
pub struct AcpiSleep {
    events: Arc<dyn EventSink>,
}

impl AcpiSleep {
    /// Switches the machine off through `events`.
    pub fn new(events: Arc<dyn EventSink>) -> Self {
        Self { events }
    }
}

impl Simple for AcpiSleep {
    fn name(&self) -> &str {
        "acpi-sleep"
    }

    fn read(&self, _: u64, len: usize) -> Data {
        Data::from_u64(0, len)
    }

    fn write(&self, offset: u64, data: Data) {
        let Some(&control) = data.bytes().first().filter(|_| offset == 0) else { return };
        if control & SLEEP_BITS == SLEEP_CONTROL_S5 {
            self.events.event(MachineEvent::PowerOff);
        }
    }

    fn reset(&self) {}
}

#[cfg(test)]
mod tests {
    use super::super::host::fake::Collect;
    use super::*;

    #[test]
    fn only_the_reset_value_resets() {
        let events = Collect::default();
        let device = AcpiReset::new(6, Arc::new(events.one()));
        device.write(0, Data::from_u64(5, 1));
        assert_eq!(events.take(), []);
        device.write(0, Data::from_u64(6, 1));
        assert_eq!(events.take(), [MachineEvent::Reset]);
    }

    #[test]
    fn s5_with_sleep_enable_powers_off() {
        let events = Collect::default();
        let device = AcpiSleep::new(Arc::new(events.one()));
        for (offset, value) in [(0, 5 << 2), (0, 3 << 2 | 1 << 5), (1, SLEEP_CONTROL_S5)] {
            device.write(offset, Data::from_u64(value.into(), 1));
            assert_eq!(events.take(), []);
        }
        device.write(0, Data::from_u64(SLEEP_CONTROL_S5.into(), 1));
        assert_eq!(events.take(), [MachineEvent::PowerOff]);
    }
}
