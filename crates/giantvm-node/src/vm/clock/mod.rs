//! The guest's time-stamp counter on this node.
//!
//! Node 0's is the reference: its host's counter, from when it joined. A node on the same host counts
//! in the same way. On any other host the first node compares its counter with node 0's all the time
//! ([`keeper`]), corrects its rate where the processor can, and else stops the machine before a message
//! could show time going back; the other nodes of that host do as it does.

mod agree;
mod keeper;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use dsm_core::types::NodeId;
use kvm_vcpu::time::{GuestClock, Mapping, Ratio, tsc};
use kvm_vcpu::vm::TscSetting;

use agree::{Agreement, Role};
pub(super) use agree::{HostClock, ScalerParts};
use keeper::{Deed, Keeper};

use super::core::{Core, Event};
use super::message::VmMessage;
use super::spec::TscSource;
use crate::node::{lock, outrank};

/// How well this node's clock is known.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ClockReport {
    /// Rate of the guest's counter.
    pub tsc_khz: u32,
    /// What is added to this host's counter, scaled where it is.
    pub tsc_offset: i64,
    /// Largest error against node 0's, in nanoseconds; 0 on node 0's host.
    pub error_ns: f64,
    /// How much faster node 0's host counts than this one, against what both kernels take for their
    /// rates, in parts per million; 0 where that is not measured.
    pub drift_ppm: f64,
}

/// The guest's clock at this node.
pub(super) struct Clock {
    state: Mutex<State>,
    keeper: Mutex<Option<Keeper>>,
}

/// What is in force.
#[derive(Clone)]
struct State {
    guest_khz: u32,
    setting: TscSetting,
    mapping: Mapping,
    error_ns: f64,
    /// The clock is set.
    set: bool,
    /// Known when all nodes have joined.
    agreement: Option<Agreement>,
    /// What a leader told before it was known to be one.
    early: Option<(NodeId, TscSetting, f64)>,
}

impl Clock {
    pub(super) fn new() -> Self {
        let state = State {
            guest_khz: 0,
            setting: TscSetting::default(),
            mapping: Mapping::through(Ratio::ONE, 0, 0),
            error_ns: 0.0,
            set: false,
            agreement: None,
            early: None,
        };
        Self { state: Mutex::new(state), keeper: Mutex::new(None) }
    }

    /// How KVM is to make the guest's counter.
    pub(super) fn setting(&self) -> TscSetting {
        lock(&self.state).setting
    }

    /// The guest's time in nanoseconds since it began.
    pub(super) fn now_ns(&self) -> u64 {
        let (khz, mapping) = {
            let state = lock(&self.state);
            (state.guest_khz, state.mapping)
        };
        GuestClock::new(khz).map_or(0, |clock| clock.ns(mapping.guest(tsc::now())))
    }

    pub(super) fn report(&self) -> ClockReport {
        let state = lock(&self.state).clone();
        let known = lock(&self.keeper).as_ref().and_then(|keeper| keeper.known(tsc::now()));
        ClockReport {
            tsc_khz: state.guest_khz,
            tsc_offset: state.setting.offset as i64,
            error_ns: known.map_or(state.error_ns, |known| known.error_ns),
            drift_ppm: known.map_or(0.0, |known| known.drift_ppm),
        }
    }

    /// The nodes that do as this one does.
    fn followers(&self) -> Vec<NodeId> {
        match &lock(&self.state).agreement {
            Some(Agreement { role: Role::Leader { followers, .. }, .. }) => followers.clone(),
            _ => Vec::new(),
        }
    }

    /// Takes over a setting; whether it is the first.
    fn set(&self, setting: TscSetting, mapping: Mapping, error_ns: f64) -> bool {
        let mut state = lock(&self.state);
        state.setting = setting;
        state.mapping = mapping;
        state.error_ns = error_ns;
        !std::mem::replace(&mut state.set, true)
    }
}

/// Sets this node's clock by what all nodes told when they joined. [`Event::Clock`] comes when it is
/// set, or can't be; the thread that is returned, if any, keeps it as it is.
pub(super) fn start(
    core: &Arc<Core>,
    clocks: &[&HostClock],
    source: TscSource,
    me: NodeId,
) -> Result<Option<ClockThread>, String> {
    let agreement = Agreement::new(clocks, source, me).ok_or("no node has a clock")?;
    let clock = &core.clock;
    let early = {
        let mut state = lock(&clock.state);
        state.guest_khz = agreement.guest_khz;
        state.agreement = Some(agreement.clone());
        state.early.take()
    };
    match &agreement.role {
        Role::Reference => {
            clock.set(agreement.reference_setting, agreement.reference, 0.0);
            core.tell(Event::Clock(Ok(())));
            Ok(None)
        }
        Role::Follower { .. } => {
            if let Some((from, setting, error_ns)) = early {
                follow(core, from, setting, error_ns);
            }
            Ok(None)
        }
        Role::Leader { others, .. } => {
            let first = NodeId::new(0).ok_or("no node 0")?;
            let keeper = Keeper::new(&agreement, me, first, others, tsc::now())?;
            let deeds = keeper.begin();
            *lock(&clock.keeper) = Some(keeper);
            carry_out(core, deeds);
            ClockThread::start(Arc::clone(core)).map(Some)
        }
    }
}

/// A node has told its counter.
pub(super) fn told(core: &Core, from: NodeId, sent: u64, told: u64) {
    let received = tsc::now();
    let deeds = {
        let mut keeper = lock(&core.clock.keeper);
        keeper.as_mut().map(|keeper| keeper.told(from, sent, told, received))
    };
    carry_out(core, deeds.unwrap_or_default());
}

/// The node that keeps this host's clock has set it.
pub(super) fn follow(core: &Core, from: NodeId, setting: TscSetting, error_ns: f64) {
    let mapping = {
        let mut state = lock(&core.clock.state);
        let Some(agreement) = &state.agreement else {
            state.early = Some((from, setting, error_ns));
            return;
        };
        if agreement.role != (Role::Follower { leader: from }) {
            return;
        }
        let ratio = match (agreement.scaler, setting.khz) {
            (Some(scaler), Some(khz)) => scaler.ratio(khz),
            _ => Ratio::ONE,
        };
        Mapping { ratio, offset: setting.offset }
    };
    put_in_force(core, setting, mapping, error_ns);
}

fn carry_out(core: &Core, deeds: Vec<Deed>) {
    let post = &core.hub.post;
    for deed in deeds {
        match deed {
            Deed::Ask(node) => post.send(node, &VmMessage::TimeAsk { sent: tsc::now() }),
            Deed::Set { setting, mapping, error_ns } => {
                put_in_force(core, setting, mapping, error_ns);
                let followers = core.clock.followers();
                for node in followers {
                    let error_ns = error_ns.clamp(0.0, 1e18) as u64;
                    post.send(node, &VmMessage::TimeSet { setting, error_ns });
                }
            }
            Deed::Fail(reason) => {
                // At once: the thread of the lifecycle may have something else to do.
                core.hub.machine().inspect(|machine| machine.pause());
                core.tell(Event::Clock(Err(reason)));
            }
        }
    }
}

fn put_in_force(core: &Core, setting: TscSetting, mapping: Mapping, error_ns: f64) {
    if core.clock.set(setting, mapping, error_ns) {
        core.tell(Event::Clock(Ok(())));
    }
    core.hub.machine().inspect(|machine| machine.set_tsc(setting));
}

/// The thread that looks at the clock in time; ends when dropped.
pub(super) struct ClockThread {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl ClockThread {
    fn start(core: Arc<Core>) -> Result<Self, String> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let run = move || {
            outrank();
            while !stopped.load(Ordering::SeqCst) {
                // In this order: no exchange that it knows of was received later.
                let next = lock(&core.clock.keeper).as_mut().map(|keeper| keeper.tick(tsc::now()));
                let Some((deeds, wait)) = next else { return };
                carry_out(&core, deeds);
                std::thread::park_timeout(wait);
            }
        };
        let thread = std::thread::Builder::new().name("gvm-vm-clock".into()).spawn(run);
        let thread = thread.map_err(|error| format!("no thread for the clock: {error}"))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for ClockThread {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}
