//! The test device of guests/README.md.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use giantvm_node::vm::{DeviceSpec, Interrupts};
use kvm_vcpu::bus::{Data, Range, Simple, Space};

const MEMORY: u64 = 0xd000_0000;
const MEMORY_LEN: u64 = 0x1000;
const PORTS: u64 = 0x5e0;
/// Pin of the line, at the IOAPIC.
const PIN: u32 = 20;

/// Counter, slots by index and data, an MSI on request, a line.
#[derive(Default)]
pub(crate) struct TestDevice {
    pub(crate) interrupts: OnceLock<Interrupts>,
    sum: AtomicU32,
    sent: AtomicU32,
    line: Mutex<(bool, u32)>,
    index: AtomicU32,
    slots: Mutex<Vec<u32>>,
}

impl TestDevice {
    pub(crate) fn new() -> Self {
        Self { slots: Mutex::new(vec![0; 256]), ..Self::default() }
    }

    /// Where it answers: registers at the same offsets in memory and at ports, which lack the rest.
    pub(crate) fn spec(home: usize) -> DeviceSpec {
        DeviceSpec {
            name: "test".into(),
            home,
            ranges: vec![
                Range { space: Space::Mmio, start: MEMORY, len: MEMORY_LEN },
                Range { space: Space::Pio, start: PORTS, len: 16 },
            ],
            doorbells: Vec::new(),
        }
    }

    /// The register of an offset: ports follow memory, and their counter is at 0x0c.
    fn register(offset: u64) -> u64 {
        match offset.checked_sub(MEMORY_LEN) {
            Some(0x0c) => 0x08,
            Some(port) => port,
            None => offset,
        }
    }

    fn interrupts(&self) -> Option<&Interrupts> {
        self.interrupts.get()
    }
}

/// The same device, shared with the test.
pub(crate) struct Shared(pub(crate) Arc<TestDevice>);

impl Simple for Shared {
    fn name(&self) -> &str {
        "test device"
    }

    fn read(&self, offset: u64, len: usize) -> Data {
        let device = &self.0;
        let value = match TestDevice::register(offset) {
            0x00 => device.index.load(Ordering::SeqCst),
            0x04 => {
                let index = device.index.load(Ordering::SeqCst) as usize % 256;
                device.slots.lock().unwrap()[index]
            }
            0x08 => device.sum.load(Ordering::SeqCst),
            0x14 => device.sent.load(Ordering::SeqCst),
            0x1c => device.line.lock().unwrap().1,
            _ => u32::MAX,
        };
        Data::from_u64(value.into(), len)
    }

    fn write(&self, offset: u64, data: Data) {
        let (device, value) = (&self.0, data.to_u64() as u32);
        match TestDevice::register(offset) {
            0x00 => device.index.store(value, Ordering::SeqCst),
            0x04 => {
                let index = device.index.load(Ordering::SeqCst) as usize % 256;
                device.slots.lock().unwrap()[index] = value;
            }
            0x08 => _ = device.sum.fetch_add(value, Ordering::SeqCst),
            0x10 => {
                let (vector, id) = (value >> 8 & 0xff, u64::from(value & 0xff));
                device.sent.fetch_add(1, Ordering::SeqCst);
                if let Some(interrupts) = device.interrupts() {
                    interrupts.send_message(0xfee0_0000 | id << 12, vector);
                }
            }
            0x18 => {
                let high = value & 1 != 0;
                {
                    let mut line = device.line.lock().unwrap();
                    line.1 += u32::from(high && !line.0);
                    line.0 = high;
                }
                if let Some(interrupts) = device.interrupts() {
                    interrupts.set_line(PIN, high);
                }
            }
            _ => {}
        }
    }

    fn reset(&self) {
        self.0.sum.store(0, Ordering::SeqCst);
        self.0.index.store(0, Ordering::SeqCst);
        *self.0.line.lock().unwrap() = (false, 0);
    }
}
