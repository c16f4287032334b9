//! The thread of a stand-in: the local vCPU of one that runs on another node.
//!
//! It never runs an instruction of the guest. While it has nothing to do it waits in KVM as a
//! processor that was never started (`KVM_MP_STATE_UNINITIALIZED`): then `KVM_RUN` returns without
//! entering the guest whatever comes, and what came is told by the state: unchanged, an interrupt or
//! NMI waits, for which the stand-in's own loop runs; INIT_RECEIVED, an INIT; RUNNABLE, an INIT and a
//! start-up, whose vector is in CS.
//!
//! While its loop runs it is marked as the boot processor, because KVM then answers an INIT by
//! beginning at the reset vector, in a page of ours, and drops a start-up, instead of beginning where
//! a start-up that follows says. So an INIT that meets a busy stand-in is noticed too. A start-up
//! that follows it before the stand-in has reached the reset page is dropped, as a processor does that
//! is not ready for it: after the 10 ms that the MultiProcessor Specification (B.4) asks for it is.

use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::Duration;

use kvm_bindings::{KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::errors::{KvmError, report};
use super::gate::Order;
use super::machine::{Common, Seat, set_boots, set_mp_state};
use super::outside::Interrupt;
use super::private::{self, PORT_IDLE, PORT_RESET, PORT_VECTOR};

/// Longest pause between two looks for a start-up after an INIT.
const LOOK_MAX: Duration = Duration::from_millis(1);
const LOOK_MIN: Duration = Duration::from_micros(20);

/// Offset of the trigger mode bits in the state of a local APIC (SDM vol. 3, table 11-1).
const TRIGGER_MODES: usize = 0x180;

struct StandIn<'a> {
    common: &'a Common,
    seat: &'a Seat,
    fd: VcpuFd,
    phase: Phase,
}

/// What a stand-in is at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Its loop has yet to run to its idle point.
    Starting,
    /// It takes interrupts.
    Online,
    /// It has had an INIT.
    WaitsForStartup { pause: Duration },
}

/// How a run of the loop ended.
enum Ran {
    /// Nothing is left to do.
    Idle,
    /// An INIT came.
    Reset,
    /// Told to come out.
    Told,
}

/// Gets ready, says so, and forwards interrupts until the machine ends.
pub(super) fn run(common: &Common, seat: &Seat, fd: VcpuFd, ready: Sender<Result<(), KvmError>>) {
    let mut stand_in = StandIn { common, seat, fd, phase: Phase::Starting };
    let began = stand_in.set_up().and_then(|()| stand_in.attend());
    let failed = began.is_err();
    let _ = ready.send(began);
    drop(ready);
    if failed {
        return;
    }
    while common.gate.go() {
        let mut served = Ok(());
        while served.is_ok() && common.gate.order() == Order::Run {
            served = stand_in.serve();
        }
        common.gate.back();
        if let Err(error) = served {
            let reason = format!("stand-in: {}", report(&error));
            return common.outside.failed(seat.vcpu, reason);
        }
    }
}

impl StandIn<'_> {
    /// Makes it ready to run its loop from the start.
    fn set_up(&mut self) -> Result<(), KvmError> {
        let vcpu = self.seat.vcpu;
        let mut sregs = self.fd.get_sregs().map_err(KvmError::vcpu("KVM_GET_SREGS", vcpu))?;
        let regs = private::start(vcpu.0 as usize, &mut sregs);
        self.fd.set_sregs(&sregs).map_err(KvmError::vcpu("KVM_SET_SREGS", vcpu))?;
        self.fd.set_regs(&regs).map_err(KvmError::vcpu("KVM_SET_REGS", vcpu))?;
        self.phase = Phase::Starting;
        Ok(())
    }

    /// Waits for something to do, and does it.
    fn serve(&mut self) -> Result<(), KvmError> {
        match self.phase {
            Phase::Starting => return self.attend(),
            Phase::WaitsForStartup { pause } => return self.look_for_startup(pause),
            Phase::Online => {}
        }
        self.set_state(KVM_MP_STATE_UNINITIALIZED)?;
        match self.fd.run() {
            Ok(exit) => log::debug!("stand-in {}: exit {exit:?} while idle", self.seat.vcpu),
            Err(error) if error.errno() == libc::EAGAIN => {}
            Err(error) if error.errno() == libc::EINTR => {
                self.seat.kick.came_out();
                return Ok(());
            }
            Err(error) => return Err(KvmError::vcpu("KVM_RUN", self.seat.vcpu)(error)),
        }
        match self.state()? {
            KVM_MP_STATE_UNINITIALIZED => self.attend(),
            KVM_MP_STATE_INIT_RECEIVED => {
                self.reset();
                Ok(())
            }
            _ => {
                self.reset();
                self.forward_startup()
            }
        }
    }

    /// Runs the loop until it has nothing left to do.
    fn attend(&mut self) -> Result<(), KvmError> {
        set_boots(self.seat.vcpu, &self.fd, true)?;
        self.set_state(KVM_MP_STATE_RUNNABLE)?;
        loop {
            match self.run_loop()? {
                Ran::Told if self.common.gate.order() == Order::End => return Ok(()),
                // Little is left before it is idle, and a pause can wait for that.
                Ran::Told => {}
                Ran::Idle => {
                    self.phase = Phase::Online;
                    return set_boots(self.seat.vcpu, &self.fd, false);
                }
                Ran::Reset => {
                    set_boots(self.seat.vcpu, &self.fd, false)?;
                    self.set_state(KVM_MP_STATE_INIT_RECEIVED)?;
                    self.reset();
                    return Ok(());
                }
            }
        }
    }

    /// Enters the loop until an exit that says something; forwards the interrupts met on the way.
    fn run_loop(&mut self) -> Result<Ran, KvmError> {
        let vcpu = self.seat.vcpu;
        loop {
            match self.fd.run() {
                Ok(VcpuExit::IoOut(PORT_IDLE, _)) => return Ok(Ran::Idle),
                Ok(VcpuExit::IoOut(PORT_RESET, _)) => return Ok(Ran::Reset),
                Ok(VcpuExit::IoOut(PORT_VECTOR, &[vector, ..])) => self.forward(vector)?,
                // The end of an interrupt here is not the guest's.
                Ok(VcpuExit::IoapicEoi(_) | VcpuExit::Intr | VcpuExit::IrqWindowOpen) => {}
                Ok(exit) => {
                    let what = format!("unexpected exit {exit:?}");
                    return Err(KvmError::vcpu("KVM_RUN", vcpu)(std::io::Error::other(what)));
                }
                Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => {
                    self.seat.kick.came_out();
                    return Ok(Ran::Told);
                }
                Err(error) => return Err(KvmError::vcpu("KVM_RUN", vcpu)(error)),
            }
        }
    }

    fn forward(&self, vector: u8) -> Result<(), KvmError> {
        let interrupt = match vector {
            2 => Interrupt::Nmi,
            vector => Interrupt::Fixed { vector, level: self.is_level(vector)? },
        };
        self.common.outside.interrupt(self.seat.vcpu, interrupt);
        Ok(())
    }

    /// The trigger mode with which the local APIC accepted `vector`.
    fn is_level(&self, vector: u8) -> Result<bool, KvmError> {
        if !self.common.levels.load(Ordering::SeqCst) {
            return Ok(false);
        }
        let apic = self.fd.get_lapic().map_err(KvmError::vcpu("KVM_GET_LAPIC", self.seat.vcpu))?;
        let at = TRIGGER_MODES + usize::from(vector / 32) * 16 + usize::from(vector % 32 / 8);
        Ok(apic.regs.get(at).is_some_and(|&byte| byte as u8 & 1 << (vector % 8) != 0))
    }

    /// An INIT has come.
    fn reset(&mut self) {
        self.phase = Phase::WaitsForStartup { pause: LOOK_MIN };
        self.common.outside.interrupt(self.seat.vcpu, Interrupt::Init);
    }

    /// Looks for a start-up without entering the guest, which KVM would do on its own.
    fn look_for_startup(&mut self, pause: Duration) -> Result<(), KvmError> {
        if self.state()? == KVM_MP_STATE_RUNNABLE {
            return self.forward_startup();
        }
        std::thread::sleep(pause);
        self.phase = Phase::WaitsForStartup { pause: (2 * pause).min(LOOK_MAX) };
        Ok(())
    }

    /// The vector of the start-up that KVM has carried out, but for the guest's first instruction.
    fn forward_startup(&mut self) -> Result<(), KvmError> {
        let vcpu = self.seat.vcpu;
        let sregs = self.fd.get_sregs().map_err(KvmError::vcpu("KVM_GET_SREGS", vcpu))?;
        let vector = (sregs.cs.selector >> 8) as u8;
        self.set_up()?;
        // Only then the real one: interrupts for it must find the stand-in's APIC switched on.
        while self.phase == Phase::Starting && self.common.gate.order() != Order::End {
            self.attend()?;
        }
        self.common.outside.interrupt(vcpu, Interrupt::Startup { vector });
        Ok(())
    }

    fn state(&self) -> Result<u32, KvmError> {
        let state = self.fd.get_mp_state();
        Ok(state.map_err(KvmError::vcpu("KVM_GET_MP_STATE", self.seat.vcpu))?.mp_state)
    }

    fn set_state(&self, mp_state: u32) -> Result<(), KvmError> {
        set_mp_state(self.seat.vcpu, &self.fd, mp_state)
    }
}
