//! Ports for test guests, as QEMU's `isa-debug-exit` and `isa-debugcon`.

use std::sync::Arc;

use super::{ByteSink, EventSink, MachineEvent};
use crate::bus::{Data, Simple};

/// A port (usually 0xf4, 4 long) that ends the machine: what is written, times two plus one, is the
/// exit status, so that a guest cannot claim success by 0 for what never ran.
pub struct DebugExit {
    events: Arc<dyn EventSink>,
}

impl DebugExit {
    /// Ends the machine through `events`.
    pub fn new(events: Arc<dyn EventSink>) -> Self {
        Self { events }
    }
}

impl Simple for DebugExit {
    fn name(&self) -> &str {
        "debug-exit"
    }

    fn read(&self, _: u64, len: usize) -> Data {
        Data::from_u64(0, len)
    }

    fn write(&self, _: u64, data: Data) {
        let value = data.to_u64() as u32;
        self.events.event(MachineEvent::DebugExit(value << 1 | 1));
    }

    fn reset(&self) {}
}

/// A port (usually 0xe9) whose writes are a console's output, and which reads 0xe9 to say that it
/// is there.
pub struct DebugConsole {
    output: Arc<dyn ByteSink>,
}

impl DebugConsole {
    /// Writes to `output`.
    pub fn new(output: Arc<dyn ByteSink>) -> Self {
        Self { output }
    }
}

impl Simple for DebugConsole {
    fn name(&self) -> &str {
        "debug-console"
    }

    fn read(&self, _: u64, len: usize) -> Data {
        Data::from_u64(0xe9, len)
    }

    fn write(&self, _: u64, data: Data) {
        self.output.put(data.bytes().get(..1).unwrap_or_default());
    }

    fn reset(&self) {}
}

#[cfg(test)]
mod tests {
    use super::super::host::fake::Collect;
    use super::*;

    #[test]
    fn exit_status_is_odd() {
        let events = Collect::default();
        let device = DebugExit::new(Arc::new(events.one()));
        device.write(0, Data::from_u64(0, 1));
        device.write(0, Data::from_u64(0x8000_0010, 4));
        assert_eq!(events.take(), [MachineEvent::DebugExit(1), MachineEvent::DebugExit(0x21)]);
    }

    #[test]
    fn the_console_passes_bytes_on() {
        let bytes = Collect::default();
        let device = DebugConsole::new(Arc::new(bytes.many()));
        device.write(0, Data::from_u64(b'h'.into(), 1));
        device.write(0, Data::from_u64(b'i'.into(), 1));
        assert_eq!(bytes.take(), b"hi");
        assert_eq!(device.read(0, 1).to_u64(), 0xe9);
    }
}
