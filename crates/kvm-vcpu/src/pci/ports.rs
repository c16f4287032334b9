//! Configuration mechanism 1 (PCI Local Bus 3.0, section 3.2.2.3.2), and the reset register between.
//!
//! Two nodes may use the pair of ports in turn, under a lock of the guest: the address must be in
//! force before the data port is used. So both live on one node, which asks the function's.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::ECAM_BUS_BYTES;
use crate::bus::{Access, Data, Device, Reply, Simple};

/// The first port.
pub const CONFIG_PORTS_START: u16 = 0xcf8;
/// How many ports there are.
pub const CONFIG_PORTS: u64 = 8;

/// Of the address: configuration space is meant.
const ENABLE: u32 = 1 << 31;
/// Of the address: bits that exist.
const ADDRESS_BITS: u32 = 0x80ff_fffc;
/// Offset of the data port.
const DATA: u64 = 4;
/// Offset of the reset register, a port of a byte between those of the address, which is one of
/// four bytes.
const RESET: u64 = 1;

/// Leads an access to the configuration space of bus 0, by its offset from the start of ECAM, to who
/// answers there. Must not block.
pub type ConfigRoute = dyn Fn(Access, Reply) + Send + Sync;

/// The ports 0xcf8 to 0xcff.
pub struct ConfigPorts {
    address: AtomicU32,
    route: Arc<ConfigRoute>,
    reset: Arc<dyn Simple>,
}

impl ConfigPorts {
    /// `reset` is at port 0xcf9.
    pub fn new(route: Arc<ConfigRoute>, reset: Arc<dyn Simple>) -> Self {
        Self { address: AtomicU32::new(0), route, reset }
    }

    /// The offset from the start of ECAM that the data port stands for; `None` for buses that do
    /// not exist.
    fn offset(&self, port: u64) -> Option<u64> {
        let address = self.address.load(Ordering::SeqCst);
        if address & ENABLE == 0 {
            return None;
        }
        // Bus, device and function are 8 bits further left in ECAM than in the address.
        let function = u64::from(address >> 8 & 0xffff) << 12;
        let offset = function | u64::from(address & 0xfc) | (port - DATA);
        (offset < ECAM_BUS_BYTES).then_some(offset)
    }
}

impl Device for ConfigPorts {
    fn name(&self) -> &str {
        "PCI configuration ports"
    }

    fn access(&self, access: Access, reply: Reply) {
        let (offset, len) = (access.offset(), access.len());
        if offset >= DATA {
            // Where nobody is, the reply finds all ones when it is dropped.
            if let Some(at) = self.offset(offset) {
                (self.route)(access.at(at), reply);
            }
            return;
        }
        match (access, offset, len) {
            (Access::Write { data, .. }, 0, 4) => {
                self.address.store(data.to_u64() as u32 & ADDRESS_BITS, Ordering::SeqCst);
                reply.written();
            }
            (Access::Read { .. }, 0, 4) => {
                reply.read(Data::from_u64(self.address.load(Ordering::SeqCst).into(), 4));
            }
            (Access::Write { data, .. }, RESET, 1) => {
                self.reset.write(0, data);
                reply.written();
            }
            (Access::Read { .. }, RESET, 1) => reply.read(self.reset.read(0, 1)),
            _ => {}
        }
    }

    fn reset(&self) {
        self.address.store(0, Ordering::SeqCst);
        self.reset.reset();
    }
}
