//! Marks: a byte that the guest writes for a node has it log what its memory did so far.

use std::sync::{Arc, OnceLock, Weak};

use giantvm_node::vm::{DeviceSpec, Vm};
use kvm_vcpu::bus::{Data, Range, Simple, Space};

use crate::log_lines::line;

/// The port of node 0; the others' follow.
const PORT: u64 = 0x5d0;

/// The device of one node.
pub(crate) struct Marks(pub(crate) Arc<OnceLock<Weak<Vm>>>);

impl Marks {
    /// The same on all nodes.
    pub(crate) fn spec(node: usize) -> DeviceSpec {
        DeviceSpec {
            name: format!("marks {node}"),
            home: node,
            ranges: vec![Range { space: Space::Pio, start: PORT + node as u64, len: 1 }],
            doorbells: Vec::new(),
        }
    }
}

impl Simple for Marks {
    fn name(&self) -> &str {
        "marks"
    }

    fn read(&self, _: u64, len: usize) -> Data {
        Data::all_ones(len)
    }

    fn write(&self, _: u64, data: Data) {
        if let Some(vm) = self.0.get().and_then(Weak::upgrade) {
            let stats = vm.memory().stats_json().unwrap_or_default();
            line(&format!("mark {}: {stats}", data.to_u64()));
        }
    }

    fn reset(&self) {}
}
