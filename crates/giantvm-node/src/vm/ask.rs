//! Accesses that a device of this node makes to one of another.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_vcpu::bus::{Access, Data, Reply, Space};
use kvm_vcpu::vm::VcpuId;

use super::message::{Payload, VmMessage};
use crate::node::lock;

/// Stands for a device where messages name the vCPU that waits.
pub(super) const DEVICE: VcpuId = VcpuId(u32::MAX);

/// The accesses that have no answer yet.
#[derive(Default)]
pub(super) struct Asked {
    last: AtomicU32,
    open: Mutex<HashMap<u32, Reply>>,
}

impl Asked {
    /// The message that asks for an access to memory, whose offset is its address.
    pub(super) fn ask(&self, generation: u32, access: Access, reply: Reply) -> VmMessage {
        // 0 is for accesses that want no answer.
        let sequence = self.last.fetch_add(1, Ordering::Relaxed).wrapping_add(1).max(1);
        lock(&self.open).insert(sequence, reply);
        let payload = match access {
            Access::Read { len, .. } => Payload::Read { len: len as u16 },
            Access::Write { data, .. } => Payload::Write(data.bytes().to_vec()),
        };
        VmMessage::Access {
            generation,
            vcpu: DEVICE,
            sequence,
            space: Space::Mmio,
            address: access.offset(),
            size: access.len() as u8,
            payload,
        }
    }

    /// An answer has come.
    pub(super) fn answer(&self, sequence: u32, data: &[u8]) {
        let reply = lock(&self.open).remove(&sequence);
        match reply {
            Some(reply) if data.is_empty() => reply.written(),
            Some(reply) => reply.read(Data::new(data)),
            None => {}
        }
    }

    /// No answer comes any more: whoever waits finds all ones.
    pub(super) fn reset(&self) {
        let open = std::mem::take(&mut *lock(&self.open));
        drop(open);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn answers_find_who_asked_and_a_reset_lets_all_go() {
        let asked = Asked::default();
        let (send, told) = mpsc::channel();
        let ask = |access| {
            let send = send.clone();
            let reply = Reply::new(move |data| send.send(data.map(Data::to_u64)).unwrap());
            match asked.ask(3, access, reply) {
                VmMessage::Access { generation: 3, vcpu: DEVICE, sequence, .. } => sequence,
                other => panic!("{other:?}"),
            }
        };
        let read = Access::Read { offset: 0xe000_0000, len: 4 };
        let (first, second) = (ask(read), ask(read));
        let write = ask(Access::Write { offset: 0xe000_0004, data: Data::from_u64(6, 2) });
        asked.answer(second, &[2, 0, 0, 0]);
        asked.answer(second, &[3, 0, 0, 0]);
        asked.answer(write, &[]);
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [Some(2), None]);
        asked.reset();
        asked.answer(first, &[1, 0, 0, 0]);
        assert_eq!(told.try_iter().collect::<Vec<_>>(), [None]);
    }
}
