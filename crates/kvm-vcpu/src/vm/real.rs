//! The thread of a vCPU that runs on this node.

use std::sync::atomic::Ordering;

use kvm_ioctls::{VcpuExit, VcpuFd};

use super::errors::report;
use super::gate::Order;
use super::halt::{HaltSites, revive};
use super::machine::{APIC_X2APIC, Common, MSR_APIC_BASE, Seat, lock, registers};
use super::outside::{Io, IoData, Stop};
use super::private::PORT_RESET;
use super::run_page::RunPage;
use crate::bus::Space;
use crate::paging::Root;

/// What is left to do after an exit, once the exit's own data is no longer borrowed.
enum Next {
    Enter,
    Ports,
    Stop(Stop),
    Failed(String),
}

/// What a vCPU's thread remembers.
#[derive(Default)]
struct Seen {
    /// The setting of the time-stamp counter that it follows.
    tsc: u32,
    halts: HaltSites,
}

/// Runs the guest until the machine ends.
pub(super) fn run(common: &Common, seat: &Seat, mut fd: VcpuFd, mut page: RunPage) {
    let mut seen = Seen::default();
    while common.gate.go() {
        let goes_on = run_until_told(common, seat, &mut fd, &mut page, &mut seen);
        *lock(&seat.registers) = Some(registers(&fd));
        common.gate.back();
        if !goes_on {
            return;
        }
    }
}

/// Runs until another order comes; false if this vCPU can't go on.
fn run_until_told(
    common: &Common,
    seat: &Seat,
    fd: &mut VcpuFd,
    page: &mut RunPage,
    seen: &mut Seen,
) -> bool {
    while common.gate.order() == Order::Run {
        if let Err(error) = common.tsc.look(&mut seen.tsc, seat.vcpu, fd) {
            common.outside.failed(seat.vcpu, report(&error));
            return false;
        }
        if seat.root_wanted.swap(false, Ordering::SeqCst)
            && let Ok(sregs) = fd.get_sregs()
        {
            seat.root.store(Root::of(&sregs).map_or(0, Root::pack), Ordering::SeqCst);
        }
        match enter(common, seat, fd, &mut seen.halts) {
            Next::Enter => {}
            Next::Ports => ports(common, seat, page),
            Next::Stop(stop) => {
                common.outside.stopped(seat.vcpu, stop);
                return false;
            }
            Next::Failed(reason) => {
                common.outside.failed(seat.vcpu, reason);
                return false;
            }
        }
    }
    true
}

fn enter(common: &Common, seat: &Seat, fd: &mut VcpuFd, halts: &mut HaltSites) -> Next {
    let exit = fd.run();
    if exit.is_ok() {
        seat.halted.store(false, Ordering::SeqCst);
    }
    let reason = match exit {
        Ok(VcpuExit::IoIn(..) | VcpuExit::IoOut(..)) => return Next::Ports,
        Ok(VcpuExit::MmioRead(address, data)) => {
            let (size, data) = (data.len(), IoData::Read(data));
            common.outside.io(seat.vcpu, Io { space: Space::Mmio, address, size, data });
            return Next::Enter;
        }
        Ok(VcpuExit::MmioWrite(address, data)) => {
            let (size, data) = (data.len(), IoData::Write(data));
            common.outside.io(seat.vcpu, Io { space: Space::Mmio, address, size, data });
            return Next::Enter;
        }
        Ok(VcpuExit::IoapicEoi(vector)) => {
            common.outside.end_of_interrupt(seat.vcpu, vector);
            return Next::Enter;
        }
        Ok(VcpuExit::X86Wrmsr(exit)) => {
            let (index, value) = (exit.index, exit.data);
            // Whatever else it writes there has no meaning in a virtual machine.
            let leaves = index == MSR_APIC_BASE && value & APIC_X2APIC != APIC_X2APIC;
            *exit.error = u8::from(index != MSR_APIC_BASE);
            return if leaves { Next::Stop(Stop::LeftX2apic { value }) } else { Next::Enter };
        }
        Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::Hlt) => return Next::Enter,
        Ok(VcpuExit::Shutdown) => String::new(),
        Ok(VcpuExit::InternalError) => {
            "KVM can't carry out an instruction of the guest (KVM_EXIT_INTERNAL_ERROR)".into()
        }
        Ok(VcpuExit::FailEntry(hardware, _)) => {
            format!("the processor refuses to enter the guest, reason {hardware:#x}")
        }
        Ok(exit) => format!("an exit of the guest that giantvm does not know: {exit:?}"),
        Err(error) => match error.errno() {
            // A signal, or an INIT or start-up for a vCPU that waits for one.
            libc::EINTR | libc::EAGAIN => {
                seat.kick.came_out();
                if seat.sampled.swap(false, Ordering::SeqCst)
                    && let Ok(regs) = fd.get_regs()
                {
                    common.outside.sampled(seat.vcpu, regs.rip);
                }
                if seat.halted.swap(false, Ordering::SeqCst) {
                    revive(seat, fd);
                } else if seat.nudged.swap(false, Ordering::SeqCst) {
                    halts.halt_outside(common, seat, fd);
                }
                return Next::Enter;
            }
            libc::EFAULT => {
                "KVM could not reach the guest's memory; a node that held it may be lost".into()
            }
            _ => return Next::Failed(format!("KVM_RUN: {error}")),
        },
    };
    let registers = Box::new(registers(fd));
    Next::Stop(if reason.is_empty() {
        Stop::TripleFault(registers)
    } else {
        Stop::Kvm { reason, registers }
    })
}

fn ports(common: &Common, seat: &Seat, page: &mut RunPage) {
    let exit = page.port_exit();
    let data = page.port_data(&exit);
    let data = if exit.write { IoData::Write(data) } else { IoData::Read(data) };
    let (address, size) = (exit.port.into(), exit.size);
    common.outside.io(seat.vcpu, Io { space: Space::Pio, address, size, data });
}

/// A boot processor that gets an INIT begins at the reset page, which writes to this port: the
/// owner of the machine takes that for a request to reset it.
pub const RESET_REQUEST: u16 = PORT_RESET;
