//! The host bridge.

use std::sync::Mutex;

use super::{ConfigSpace, Function, Identity};
use crate::bus::Data;
use crate::devices::lock;

/// Function 00:00.0: it says that there is a bus, and does nothing.
pub struct HostBridge {
    space: Mutex<ConfigSpace>,
}

impl HostBridge {
    /// The generic bridge of virtual machines, for which kernels have no special treatment.
    const IDENTITY: Identity = Identity {
        vendor: 0x1b36,
        device: 0x0008,
        revision: 0,
        class: [0x06, 0x00, 0x00],
        subsystem_vendor: 0,
        subsystem: 0,
    };

    fn space() -> ConfigSpace {
        ConfigSpace::new(&Self::IDENTITY, None)
    }

    /// A bridge as it is after power-on.
    pub fn new() -> Self {
        Self { space: Mutex::new(Self::space()) }
    }
}

impl Default for HostBridge {
    fn default() -> Self {
        Self::new()
    }
}

impl Function for HostBridge {
    fn name(&self) -> &str {
        "PCI host bridge"
    }

    fn config_read(&self, offset: u64, len: usize) -> Data {
        lock(&self.space).read(offset, len)
    }

    fn config_write(&self, offset: u64, data: Data) {
        lock(&self.space).write(offset, data);
    }

    fn reset(&self) {
        *lock(&self.space) = Self::space();
    }
}
