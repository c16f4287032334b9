//! The ports that the guest needs, and where its batches come from.

use std::sync::{Arc, Mutex, PoisonError, mpsc};

use super::super::guest::roles::Outside;
use crate::guest::registers::{HOP, NEXT, SAMPLES, SUM, TARGET_PORT};
use crate::guest::{RAM_BYTES, Turns};

const SERIAL: u16 = 0x3f8;
const SERIAL_STATUS: u16 = 0x3fd;
/// Takes more at once.
const SERIAL_EMPTY: u8 = 0x60;
const FW_CFG_SELECT: u16 = 0x510;
const FW_CFG_DATA: u16 = 0x511;
const DEBUG_EXIT: u16 = 0xf4;

/// What the ports lead to.
pub(super) struct Platform {
    pub(super) turns: Arc<Turns>,
    pub(super) outside: Arc<dyn Outside>,
    pub(super) vcpus: usize,
    /// What the guest has selected of fw_cfg, and not read yet.
    pub(super) item: Mutex<u64>,
    pub(super) console: Mutex<Vec<u8>>,
}

impl Platform {
    pub(super) fn read(&self, port: u16, data: &mut [u8]) {
        let value = match port {
            NEXT => {
                let (give, given) = mpsc::channel();
                self.turns.ask(move |count| _ = give.send(count));
                // The other end is dropped only with the whole process.
                given.recv().unwrap_or(0).into()
            }
            TARGET_PORT => self.outside.ask().into(),
            SERIAL_STATUS => SERIAL_EMPTY.into(),
            FW_CFG_DATA => {
                let mut item = self.item.lock().unwrap_or_else(PoisonError::into_inner);
                let byte = *item & 0xff;
                *item >>= 8;
                byte
            }
            _ => u64::MAX,
        };
        let bytes = value.to_le_bytes();
        let len = data.len().min(bytes.len());
        data[..len].copy_from_slice(&bytes[..len]);
    }

    /// False when the guest has ended.
    pub(super) fn write(&self, port: u16, data: &[u8]) -> bool {
        match port {
            HOP => self.outside.interrupt(),
            SAMPLES => self.turns.add_samples(data),
            SUM => self.turns.add_sum(data),
            SERIAL => {
                self.console.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(data);
            }
            FW_CFG_SELECT => {
                let item = match data.first() {
                    Some(0) => u64::from(u32::from_le_bytes(*b"QEMU")),
                    Some(3) => RAM_BYTES as u64,
                    Some(5) => self.vcpus as u64,
                    _ => 0,
                };
                *self.item.lock().unwrap_or_else(PoisonError::into_inner) = item;
            }
            DEBUG_EXIT => {
                let console = self.console.lock().unwrap_or_else(PoisonError::into_inner);
                self.turns.end(String::from_utf8_lossy(&console).into_owned());
                return false;
            }
            _ => {}
        }
        true
    }
}
