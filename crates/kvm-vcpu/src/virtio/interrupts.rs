//! What a device tells its driver: used buffers, changes, and that it is broken.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};

use crate::pci::{MessageSink, Msix};

/// No vector: no interrupt (section 4.1.5.1.2).
pub(super) const NO_VECTOR: u16 = 0xffff;

/// Bits of the ISR status (section 4.1.4.5).
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// Shared by the registers and the threads of a device.
pub(super) struct Interrupts {
    pub(super) msix: Msix,
    isr: AtomicU8,
    config_vector: AtomicU16,
    queue_vectors: Box<[AtomicU16]>,
    needs_reset: AtomicBool,
}

impl Interrupts {
    /// One vector for changes, and one for each queue.
    pub(super) fn new(queues: usize, sink: Arc<dyn MessageSink>) -> Self {
        Self {
            msix: Msix::new(queues as u16 + 1, sink),
            isr: AtomicU8::new(0),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            needs_reset: AtomicBool::new(false),
        }
    }

    /// A queue has used buffers that its driver wants to know of.
    pub(super) fn used(&self, queue: u16) {
        self.send(self.queue_vector(queue), ISR_QUEUE);
    }

    /// The device does not go on until it is reset; `tell` if its driver is to know.
    pub(super) fn break_device(&self, tell: bool) {
        self.needs_reset.store(true, Ordering::SeqCst);
        if tell {
            self.send(self.config_vector(), ISR_CONFIG);
        }
    }

    fn send(&self, vector: u16, isr: u8) {
        // With MSI-X, only changes are in the ISR status, and nobody needs to read it.
        if isr == ISR_CONFIG || !self.msix.is_enabled() {
            self.isr.fetch_or(isr, Ordering::SeqCst);
        }
        if vector != NO_VECTOR {
            self.msix.trigger(vector);
        }
    }

    pub(super) fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    /// Reads the ISR status, which clears it.
    pub(super) fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::SeqCst)
    }

    pub(super) fn config_vector(&self) -> u16 {
        self.config_vector.load(Ordering::SeqCst)
    }

    pub(super) fn queue_vector(&self, queue: u16) -> u16 {
        let vector = self.queue_vectors.get(usize::from(queue));
        vector.map_or(NO_VECTOR, |vector| vector.load(Ordering::SeqCst))
    }

    pub(super) fn set_config_vector(&self, vector: u16) {
        self.config_vector.store(self.existing(vector), Ordering::SeqCst);
    }

    pub(super) fn set_queue_vector(&self, queue: u16, vector: u16) {
        if let Some(it) = self.queue_vectors.get(usize::from(queue)) {
            it.store(self.existing(vector), Ordering::SeqCst);
        }
    }

    fn existing(&self, vector: u16) -> u16 {
        if vector < self.msix.vectors() { vector } else { NO_VECTOR }
    }

    /// As after a reset of the device, which leaves the vectors' messages alone.
    pub(super) fn reset(&self) {
        self.isr.store(0, Ordering::SeqCst);
        self.needs_reset.store(false, Ordering::SeqCst);
        self.config_vector.store(NO_VECTOR, Ordering::SeqCst);
        self.queue_vectors.iter().for_each(|it| it.store(NO_VECTOR, Ordering::SeqCst));
    }
}
