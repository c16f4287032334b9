//! The thread of a stand-in: the local vCPU of one that runs on another node.
//!
//! It never runs an instruction of the guest. While it has nothing to do it waits in KVM as a
//! processor that was never started (`KVM_MP_STATE_UNINITIALIZED`): then `KVM_RUN` returns without
//! entering the guest whatever comes, and what came is told by the state: unchanged, an interrupt or
//! NMI waits, for which the stand-in's own loop runs; INIT_RECEIVED, an INIT; RUNNABLE, an INIT and a
//! start-up, whose vector is in CS.
//!
//! While its loop runs it is marked as the boot processor, because KVM then answers an INIT by
//! beginning at the reset vector, in a page of ours, instead of running the guest's code where a
//! start-up that follows says. So an INIT that meets a busy stand-in is noticed too. Kernels of today
//! send the start-up at once, without the 10 ms of the MultiProcessor Specification (B.4), and to a
//! boot processor KVM drops it; but it keeps the vector, which the stand-in then has carried out. To
//! tell it from that of an earlier start-up, it is set to one that no start-up has: once the earlier
//! one's repetition, which kernels send too, can no longer come. Until then a vector that is the same
//! again says nothing, and counts as a start-up only if no other one follows.

use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use kvm_bindings::{
    KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_SIPI_RECEIVED,
    KVM_MP_STATE_UNINITIALIZED, KVM_VCPUEVENT_VALID_SIPI_VECTOR,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::errors::{KvmError, report};
use super::gate::Order;
use super::machine::{Common, Seat, set_boots, set_mp_state};
use super::outside::Interrupt;
use super::private::{self, PORT_IDLE, PORT_RESET, PORT_VECTOR};

/// Longest pause between two looks for a start-up after an INIT.
const LOOK_MAX: Duration = Duration::from_millis(1);
const LOOK_MIN: Duration = Duration::from_micros(20);

/// A vector that no start-up has: A0 to BF are reserved (MultiProcessor Specification B.4.2).
const NO_STARTUP: u8 = 0xbf;
/// How long after a start-up its repetition may come: far more than the 200 us that the specification
/// tells the sender to wait.
const REPETITION: Duration = Duration::from_secs(1);
/// How long after an INIT a start-up comes: far more than the 10 ms of the specification.
const STARTUP_COMES: Duration = Duration::from_millis(200);

/// Offset of the trigger mode bits in the state of a local APIC (SDM vol. 3, table 11-1).
const TRIGGER_MODES: usize = 0x180;

struct StandIn<'a> {
    common: &'a Common,
    seat: &'a Seat,
    fd: VcpuFd,
    phase: Phase,
    /// The vector of the last start-up.
    last: u8,
    /// When that came, while KVM may still keep its vector.
    kept_since: Option<Instant>,
}

/// What a stand-in is at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Its loop has yet to run to its idle point.
    Starting,
    /// It takes interrupts.
    Online,
    /// It has had an INIT.
    WaitsForStartup {
        pause: Duration,
        /// When it has waited for long enough: a start-up with the last one's vector was dropped.
        presumed: Option<Instant>,
    },
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
    let phase = Phase::Starting;
    let mut stand_in = StandIn { common, seat, fd, phase, last: NO_STARTUP, kept_since: None };
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
    /// Makes it ready to run its loop from the start, with no start-up behind it.
    fn set_up(&mut self) -> Result<(), KvmError> {
        let vcpu = self.seat.vcpu;
        let mut sregs = self.fd.get_sregs().map_err(KvmError::vcpu("KVM_GET_SREGS", vcpu))?;
        let regs = private::start(vcpu.0 as usize, &mut sregs);
        self.fd.set_sregs(&sregs).map_err(KvmError::vcpu("KVM_SET_SREGS", vcpu))?;
        self.fd.set_regs(&regs).map_err(KvmError::vcpu("KVM_SET_REGS", vcpu))?;
        self.phase = Phase::Starting;
        self.forget_startup()
    }

    /// Waits for something to do, and does it.
    fn serve(&mut self) -> Result<(), KvmError> {
        match self.phase {
            Phase::Starting => return self.attend(),
            Phase::WaitsForStartup { pause, presumed } => {
                return self.look_for_startup(pause, presumed);
            }
            Phase::Online => {}
        }
        self.set_state(KVM_MP_STATE_UNINITIALIZED)?;
        let mut told = false;
        match self.fd.run() {
            Ok(exit) => log::debug!("stand-in {}: exit {exit:?} while idle", self.seat.vcpu),
            Err(error) if error.errno() == libc::EAGAIN => {}
            Err(error) if error.errno() == libc::EINTR => {
                self.seat.kick.came_out();
                told = true;
            }
            Err(error) => return Err(KvmError::vcpu("KVM_RUN", self.seat.vcpu)(error)),
        }
        if !told && self.kept_since.is_some_and(|since| since.elapsed() >= REPETITION) {
            self.forget_startup()?;
            self.kept_since = None;
        }
        match self.state()? {
            KVM_MP_STATE_UNINITIALIZED if told => Ok(()),
            KVM_MP_STATE_UNINITIALIZED => self.attend(),
            KVM_MP_STATE_INIT_RECEIVED => {
                self.reset(None);
                Ok(())
            }
            _ => match self.startup_vector()? {
                // It has just been forgotten.
                NO_STARTUP => {
                    self.reset(Some(Instant::now() + STARTUP_COMES));
                    self.set_state(KVM_MP_STATE_INIT_RECEIVED)
                }
                vector => {
                    self.reset(None);
                    self.forward_startup(vector)
                }
            },
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
                    let presumed = self.recover_startup()?;
                    self.reset(presumed);
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
    fn reset(&mut self, presumed: Option<Instant>) {
        self.phase = Phase::WaitsForStartup { pause: LOOK_MIN, presumed };
        self.common.outside.interrupt(self.seat.vcpu, Interrupt::Init);
    }

    /// Looks for a start-up without entering the guest, which KVM would do on its own.
    fn look_for_startup(
        &mut self,
        pause: Duration,
        presumed: Option<Instant>,
    ) -> Result<(), KvmError> {
        if self.state()? == KVM_MP_STATE_RUNNABLE {
            return self.forward_startup(self.startup_vector()?);
        }
        if presumed.is_some_and(|at| Instant::now() >= at) {
            return self.forward_startup(self.last);
        }
        std::thread::sleep(pause);
        self.phase = Phase::WaitsForStartup { pause: (2 * pause).min(LOOK_MAX), presumed };
        Ok(())
    }

    /// After an INIT that met the loop: has KVM carry out the start-up that came with it, if one
    /// certainly did; if one may have, until when another one would come.
    fn recover_startup(&self) -> Result<Option<Instant>, KvmError> {
        self.set_state(KVM_MP_STATE_SIPI_RECEIVED)?;
        if self.state()? != KVM_MP_STATE_RUNNABLE {
            return Ok(None);
        }
        let vector = self.startup_vector()?;
        let came = vector != NO_STARTUP;
        let doubtful = came && vector == self.last && self.kept_since.is_some();
        if !came || doubtful {
            // One that came while this looked still waits in KVM.
            self.set_state(KVM_MP_STATE_INIT_RECEIVED)?;
        }
        Ok(doubtful.then(|| Instant::now() + STARTUP_COMES))
    }

    /// Has KVM forget the vector of the last start-up; none must wait.
    fn forget_startup(&self) -> Result<(), KvmError> {
        let vcpu = self.seat.vcpu;
        let events = self.fd.get_vcpu_events();
        let mut events = events.map_err(KvmError::vcpu("KVM_GET_VCPU_EVENTS", vcpu))?;
        events.flags = KVM_VCPUEVENT_VALID_SIPI_VECTOR;
        events.sipi_vector = u32::from(NO_STARTUP);
        self.fd.set_vcpu_events(&events).map_err(KvmError::vcpu("KVM_SET_VCPU_EVENTS", vcpu))
    }

    /// The vector of the start-up that KVM has carried out, but for the guest's first instruction.
    fn startup_vector(&self) -> Result<u8, KvmError> {
        let sregs = self.fd.get_sregs();
        let sregs = sregs.map_err(KvmError::vcpu("KVM_GET_SREGS", self.seat.vcpu))?;
        Ok((sregs.cs.selector >> 8) as u8)
    }

    /// A start-up has come, and KVM may have carried it out, but for the guest's first instruction.
    fn forward_startup(&mut self, vector: u8) -> Result<(), KvmError> {
        self.set_up()?;
        (self.last, self.kept_since) = (vector, Some(Instant::now()));
        // Only then the real one: interrupts for it must find the stand-in's APIC switched on.
        while self.phase == Phase::Starting && self.common.gate.order() != Order::End {
            self.attend()?;
        }
        // Otherwise another INIT has come, and the real one waits for what follows that.
        if self.phase == Phase::Online {
            self.common.outside.interrupt(self.seat.vcpu, Interrupt::Startup { vector });
        }
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
