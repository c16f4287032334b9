//! The guest's memory: a region's view.

#![allow(unsafe_code, reason = "says of a mapping what only its owner can know")]

use kvm_vcpu::boot::layout::Layout;
use kvm_vcpu::vm::{Ram, RamError};

use crate::node::Region;

/// The region's view as a guest's memory, laid out for a guest.
pub(super) fn ram(region: &Region, layout: &Layout) -> Result<Ram, RamError> {
    let view = region.memory().view();
    let ranges = layout
        .ranges()
        .into_iter()
        .map(|ram| (ram.start..ram.start + ram.len, view.start + ram.offset as usize))
        .collect();
    // SAFETY: the view is as long as the region, which is as long as the layout's memory; it is
    // mapped while the region's memory lives, which the second argument keeps alive; whatever
    // uses it expects others to change it.
    unsafe { Ram::new(ranges, region.shared_memory()) }
}
