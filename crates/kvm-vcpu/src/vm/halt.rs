//! vCPUs that are halted within the guest, which KVM was told not to leave at HLT.

use std::sync::atomic::Ordering;

use kvm_bindings::{KVM_MP_STATE_HALTED, KVM_MP_STATE_RUNNABLE, KVM_VCPUEVENT_VALID_SHADOW};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use super::errors::KvmError;
use super::machine::{Common, Seat, set_mp_state};

/// HLT.
const HLT: u8 = 0xf4;
/// Interrupts are on.
const FLAG_IF: u64 = 1 << 9;
/// A guest has few places at which it idles; of more, the first are remembered.
const SITES_MAX: usize = 8;

/// Where a vCPU has been found halted: addresses behind a HLT.
///
/// To look at the instruction again each time would read the guest's page tables and its code, which
/// another node may have by then: pages would travel to find out whether a vCPU can do without one.
/// Should the guest put other code there, a vCPU met at that address waits outside of the guest until
/// the next interrupt or [`super::Machine::revive`].
#[derive(Default)]
pub(super) struct HaltSites(Vec<u64>);

impl HaltSites {
    /// If the vCPU is halted within the guest, has it wait in KVM instead, until an interrupt comes: as
    /// an exit at HLT would have it.
    pub(super) fn halt_outside(&mut self, common: &Common, seat: &Seat, fd: &VcpuFd) {
        if self.is_halted(common, fd) != Some(true) {
            return;
        }
        // `sti; hlt`: where the shadow of the one still lies on the other, no interrupt would end this.
        let unshadowed = fd.get_vcpu_events().and_then(|mut events| {
            events.interrupt.shadow = 0;
            events.flags = KVM_VCPUEVENT_VALID_SHADOW;
            fd.set_vcpu_events(&events)
        });
        let halted = unshadowed
            .map_err(KvmError::vcpu("KVM_SET_VCPU_EVENTS", seat.vcpu))
            .and_then(|()| set_mp_state(seat.vcpu, fd, KVM_MP_STATE_HALTED));
        match halted {
            Ok(()) => seat.halted.store(true, Ordering::SeqCst),
            Err(error) => log::debug!("{error}"),
        }
    }

    fn is_halted(&mut self, common: &Common, fd: &VcpuFd) -> Option<bool> {
        if fd.get_mp_state().ok()?.mp_state != KVM_MP_STATE_RUNNABLE {
            return Some(false);
        }
        // Without interrupts only an NMI or an INIT wakes it: rare, and left alone.
        let regs = fd.get_regs().ok().filter(|regs| regs.rflags & FLAG_IF != 0)?;
        if self.0.contains(&regs.rip) {
            return Some(true);
        }
        let before = regs.rip.checked_sub(1)?;
        let at = fd.translate_gva(before).ok().filter(|at| at.valid != 0)?;
        let byte: u8 = common.ram.memory().read_obj(GuestAddress(at.physical_address)).ok()?;
        let halted = byte == HLT;
        if halted && self.0.len() < SITES_MAX {
            self.0.push(regs.rip);
        }
        Some(halted)
    }
}

/// Has a vCPU that waits outside of the guest go on, unless something has woken it anyway.
pub(super) fn revive(seat: &Seat, fd: &VcpuFd) {
    let state = fd.get_mp_state().map(|state| state.mp_state);
    if state == Ok(KVM_MP_STATE_HALTED)
        && let Err(error) = set_mp_state(seat.vcpu, fd, KVM_MP_STATE_RUNNABLE)
    {
        log::debug!("{error}");
    }
}
