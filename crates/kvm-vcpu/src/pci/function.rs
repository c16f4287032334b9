//! A function, and its two windows on the bus.

use std::sync::Arc;

use crate::bus::{Data, Simple};

/// What a PCI function does. It answers at once, and no access of a guest makes it panic or wait.
pub trait Function: Send + Sync {
    /// Its name in messages to people.
    fn name(&self) -> &str;

    /// Reads configuration space.
    fn config_read(&self, offset: u64, len: usize) -> Data;

    /// Writes configuration space.
    fn config_write(&self, offset: u64, data: Data);

    /// Reads its memory.
    fn memory_read(&self, offset: u64, len: usize) -> Data {
        let _ = offset;
        Data::all_ones(len)
    }

    /// Writes its memory.
    fn memory_write(&self, offset: u64, data: Data) {
        let _ = (offset, data);
    }

    /// The state after power-on. Nothing that it started goes on.
    fn reset(&self) {}
}

/// Configuration space of a function, as a device on the bus.
pub struct ConfigWindow(
    /// The function.
    pub Arc<dyn Function>,
);

impl Simple for ConfigWindow {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn read(&self, offset: u64, len: usize) -> Data {
        self.0.config_read(offset, len)
    }

    fn write(&self, offset: u64, data: Data) {
        self.0.config_write(offset, data);
    }

    fn reset(&self) {
        self.0.reset();
    }
}

/// Memory of a function, as a device on the bus.
pub struct MemoryWindow(
    /// The function.
    pub Arc<dyn Function>,
);

impl Simple for MemoryWindow {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn read(&self, offset: u64, len: usize) -> Data {
        self.0.memory_read(offset, len)
    }

    fn write(&self, offset: u64, data: Data) {
        self.0.memory_write(offset, data);
    }

    // The window of configuration space resets the function.
    fn reset(&self) {}
}

/// Configuration space where no function is: reads find all ones, on every node alike.
#[derive(Debug)]
pub struct Absent;

impl Simple for Absent {
    fn name(&self) -> &str {
        "no PCI function"
    }

    fn read(&self, _: u64, len: usize) -> Data {
        Data::all_ones(len)
    }

    fn write(&self, _: u64, _: Data) {}

    fn reset(&self) {}
}
