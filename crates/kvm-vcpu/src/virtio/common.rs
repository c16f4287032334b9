//! The common configuration (section 4.1.4.3): registers by which a driver sets a device up.

use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};

use super::interrupts::Interrupts;
use crate::bus::Data;

/// Bytes of the registers.
pub(super) const COMMON_BYTES: usize = 0x38;

const DEVICE_FEATURE_SELECT: u64 = 0x00;
const DEVICE_FEATURE: usize = 0x04;
const DRIVER_FEATURE_SELECT: u64 = 0x08;
const DRIVER_FEATURE: u64 = 0x0c;
const CONFIG_VECTOR: u64 = 0x10;
const NUM_QUEUES: usize = 0x12;
const STATUS: u64 = 0x14;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_VECTOR: u64 = 0x1a;
const QUEUE_ENABLE: u64 = 0x1c;
const QUEUE_NOTIFY_OFF: usize = 0x1e;
const QUEUE_DESCRIPTORS: u64 = 0x20;
const QUEUE_DRIVER: u64 = 0x28;
const QUEUE_DEVICE: u64 = 0x30;

const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET as u8;
/// Bits of the status that a driver sets.
const STATUS_OF_DRIVER: u8 = (VIRTIO_CONFIG_S_ACKNOWLEDGE
    | VIRTIO_CONFIG_S_DRIVER
    | VIRTIO_CONFIG_S_DRIVER_OK
    | VIRTIO_CONFIG_S_FEATURES_OK
    | VIRTIO_CONFIG_S_FAILED) as u8;

/// What a driver says of a queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct QueueSetup {
    pub(super) size_max: u16,
    pub(super) size: u16,
    pub(super) enabled: bool,
    /// Address of the descriptor table.
    pub(super) descriptors: u64,
    /// Address of the available ring.
    pub(super) driver: u64,
    /// Address of the used ring.
    pub(super) device: u64,
}

/// What follows from a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Effect {
    None,
    /// The driver is ready.
    Start,
    /// The driver resets the device.
    Reset,
}

/// The registers, but for what [`Interrupts`] has.
pub(super) struct Common {
    offered: u64,
    accepted: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    status: u8,
    queue_select: u16,
    queues: Vec<QueueSetup>,
}

impl Common {
    /// As after a reset.
    pub(super) fn new(offered: u64, queue_sizes: &[u16]) -> Self {
        let queue = |&size_max: &u16| QueueSetup {
            size_max,
            size: size_max,
            enabled: false,
            descriptors: 0,
            driver: 0,
            device: 0,
        };
        Self {
            offered,
            accepted: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            status: 0,
            queue_select: 0,
            queues: queue_sizes.iter().map(queue).collect(),
        }
    }

    pub(super) fn queues(&self) -> &[QueueSetup] {
        &self.queues
    }

    /// The features that driver and device agree on.
    pub(super) fn features(&self) -> u64 {
        self.accepted & self.offered
    }

    pub(super) fn read(&self, interrupts: &Interrupts, offset: u64, len: usize) -> Data {
        let image = self.image(interrupts);
        let register = |at: u64| usize::try_from(at).ok().and_then(|at| image.get(at));
        Data::gather(offset, len, |at| register(at).copied().unwrap_or(0))
    }

    fn image(&self, interrupts: &Interrupts) -> [u8; COMMON_BYTES] {
        let mut image = [0; COMMON_BYTES];
        let mut set = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        set(DEVICE_FEATURE_SELECT as usize, &self.device_feature_select.to_le_bytes());
        set(DEVICE_FEATURE, &half(self.offered, self.device_feature_select).to_le_bytes());
        set(DRIVER_FEATURE_SELECT as usize, &self.driver_feature_select.to_le_bytes());
        set(
            DRIVER_FEATURE as usize,
            &half(self.accepted, self.driver_feature_select).to_le_bytes(),
        );
        set(CONFIG_VECTOR as usize, &interrupts.config_vector().to_le_bytes());
        set(NUM_QUEUES, &(self.queues.len() as u16).to_le_bytes());
        let broken = if interrupts.needs_reset() { NEEDS_RESET } else { 0 };
        set(STATUS as usize, &[self.status | broken]);
        set(QUEUE_SELECT as usize, &self.queue_select.to_le_bytes());
        // Of a queue that does not exist all is 0, its size above all.
        if let Some(queue) = self.queues.get(usize::from(self.queue_select)) {
            set(QUEUE_SIZE as usize, &queue.size.to_le_bytes());
            let vector = interrupts.queue_vector(self.queue_select);
            set(QUEUE_VECTOR as usize, &vector.to_le_bytes());
            set(QUEUE_ENABLE as usize, &u16::from(queue.enabled).to_le_bytes());
            set(QUEUE_NOTIFY_OFF, &self.queue_select.to_le_bytes());
            set(QUEUE_DESCRIPTORS as usize, &queue.descriptors.to_le_bytes());
            set(QUEUE_DRIVER as usize, &queue.driver.to_le_bytes());
            set(QUEUE_DEVICE as usize, &queue.device.to_le_bytes());
        }
        image
    }

    /// Writes one register, of its own width; of the wide ones also a half. Nothing else counts
    /// (section 4.1.3.1).
    pub(super) fn write(&mut self, interrupts: &Interrupts, offset: u64, data: Data) -> Effect {
        let value = data.to_u64();
        match (offset, data.len()) {
            (DEVICE_FEATURE_SELECT, 4) => self.device_feature_select = value as u32,
            (DRIVER_FEATURE_SELECT, 4) => self.driver_feature_select = value as u32,
            (DRIVER_FEATURE, 4) if self.status & FEATURES_OK == 0 => {
                set_half(&mut self.accepted, self.driver_feature_select, value as u32);
            }
            (CONFIG_VECTOR, 2) => interrupts.set_config_vector(value as u16),
            (STATUS, 1) => return self.write_status(value as u8),
            (QUEUE_SELECT, 2) => self.queue_select = value as u16,
            (QUEUE_VECTOR, 2) => interrupts.set_queue_vector(self.queue_select, value as u16),
            (QUEUE_SIZE.., _) => self.write_queue(offset, data.len(), value),
            _ => {}
        }
        Effect::None
    }

    fn write_queue(&mut self, offset: u64, len: usize, value: u64) {
        let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else { return };
        // What a queue is made of does not change while it may be in use.
        if queue.enabled {
            return;
        }
        let address = match offset & !7 {
            QUEUE_DESCRIPTORS => &mut queue.descriptors,
            QUEUE_DRIVER => &mut queue.driver,
            QUEUE_DEVICE => &mut queue.device,
            _ => {
                match (offset, len, value as u16) {
                    (QUEUE_SIZE, 2, size) if size.is_power_of_two() && size <= queue.size_max => {
                        queue.size = size;
                    }
                    (QUEUE_ENABLE, 2, 1) => queue.enabled = true,
                    _ => {}
                }
                return;
            }
        };
        match (offset & 7, len) {
            (0, 8) => *address = value,
            (0, 4) => set_half(address, 0, value as u32),
            (4, 4) => set_half(address, 1, value as u32),
            _ => {}
        }
    }

    fn write_status(&mut self, value: u8) -> Effect {
        if value == 0 {
            return Effect::Reset;
        }
        // A driver can't take back what it said, but by a reset.
        let mut status = self.status | value & STATUS_OF_DRIVER;
        let version_1 = 1 << VIRTIO_F_VERSION_1;
        if self.accepted & !self.offered != 0 || self.accepted & version_1 == 0 {
            status &= !FEATURES_OK;
        }
        if status & FEATURES_OK == 0 {
            status &= !DRIVER_OK;
        }
        let ready = status & !self.status & DRIVER_OK != 0;
        self.status = status;
        if ready { Effect::Start } else { Effect::None }
    }
}

fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_half(value: &mut u64, select: u32, half: u32) {
    match select {
        0 => *value = *value & !0xffff_ffff | u64::from(half),
        1 => *value = *value & 0xffff_ffff | u64::from(half) << 32,
        _ => {}
    }
}
