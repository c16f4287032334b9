//! The guest's time-stamp counter on this node.

use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};

use dsm_core::types::NodeId;
use kvm_vcpu::time::{Estimator, EstimatorConfig, Exchange, GuestClock, tsc};

use super::message::VmMessage;
use super::post::Post;
use crate::node::lock;

/// Exchanges before the guest starts, one after the other.
const EXCHANGES: u32 = 200;

/// What the guest's counter is ahead of this host's; the same rate as the host's.
pub(super) struct Clock {
    offset: AtomicI64,
    khz: AtomicU32,
    exchanges: AtomicU32,
    estimator: Mutex<Option<Estimator>>,
}

/// How well this node's clock is known.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct ClockReport {
    /// Rate of the guest's counter.
    pub tsc_khz: u32,
    /// What it is ahead of this host's.
    pub tsc_offset: i64,
    /// Largest error against node 0's, in nanoseconds; 0 at node 0.
    pub error_ns: f64,
}

impl Clock {
    pub(super) fn new() -> Self {
        Self {
            offset: AtomicI64::new(0),
            khz: AtomicU32::new(0),
            exchanges: AtomicU32::new(0),
            estimator: Mutex::new(None),
        }
    }

    /// At node 0: the guest's counter begins now, at 0.
    pub(super) fn begin(&self, khz: u32) {
        self.khz.store(khz, Ordering::SeqCst);
        self.offset.store((tsc::now() as i64).wrapping_neg(), Ordering::SeqCst);
    }

    /// At other nodes: asks node 0; [`Clock::told`] goes on.
    pub(super) fn ask(&self, post: &Post, host_khz: u32, guest_khz: u32) -> Result<(), String> {
        self.khz.store(guest_khz, Ordering::SeqCst);
        let config = EstimatorConfig::crystals(host_khz, guest_khz);
        *lock(&self.estimator) = Some(Estimator::new(config).map_err(|error| error.to_string())?);
        self.exchanges.store(0, Ordering::SeqCst);
        send(post);
        Ok(())
    }

    /// Node 0 has answered. Returns once, when enough is known or nothing can be.
    pub(super) fn told(&self, post: &Post, sent: u64, told: u64) -> Option<Result<(), String>> {
        let received = tsc::now();
        let mut estimator = lock(&self.estimator);
        let known = estimator.as_mut()?;
        if let Err(error) = known.add(Exchange { sent, reference: told, received }) {
            *estimator = None;
            return Some(Err(format!(
                "the clocks of node 0 and this node can't be compared: {error}"
            )));
        }
        if self.exchanges.fetch_add(1, Ordering::SeqCst) + 1 < EXCHANGES {
            drop(estimator);
            send(post);
            return None;
        }
        let now = tsc::now();
        let estimate = known.at(now)?;
        let offset = estimate.reference().wrapping_sub(now) as i64;
        self.offset.store(offset, Ordering::SeqCst);
        Some(Ok(()))
    }

    pub(super) fn offset(&self) -> i64 {
        self.offset.load(Ordering::SeqCst)
    }

    /// The guest's counter now.
    pub(super) fn guest_now(&self) -> u64 {
        tsc::now().wrapping_add_signed(self.offset())
    }

    /// The guest's time in nanoseconds since it began.
    pub(super) fn now_ns(&self) -> u64 {
        let clock = GuestClock::new(self.khz.load(Ordering::SeqCst));
        clock.map_or(0, |clock| clock.ns(self.guest_now()))
    }

    pub(super) fn report(&self) -> ClockReport {
        let khz = self.khz.load(Ordering::SeqCst);
        let estimate = lock(&self.estimator).as_ref().and_then(|it| it.at(tsc::now()));
        let ticks = estimate.map_or(0.0, |estimate| estimate.error_ticks);
        let error_ns = ticks * 1e6 / f64::from(khz.max(1));
        ClockReport { tsc_khz: khz, tsc_offset: self.offset(), error_ns }
    }
}

fn send(post: &Post) {
    if let Some(first) = NodeId::new(0) {
        post.send(first, &VmMessage::TimeAsk { sent: tsc::now() });
    }
}
